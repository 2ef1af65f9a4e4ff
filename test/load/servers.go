package main

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"sync"

	"github.com/caddy-auth/caddy-auth/internal/store/sqlite"
	"github.com/caddy-auth/caddy-auth/test/servers"
)

// startAll runs gateways and returns what stops them.
func (b *bench) startAll(ctx context.Context, specs ...spec) (ps []*process, stop func(), err error) {
	stop = func() {
		for _, p := range ps {
			p.stop()
		}
	}
	for _, s := range specs {
		if s.stock && b.stock == "" {
			b.stock = filepath.Join(b.dir, "stock-caddy")
			if err := b.build(ctx, b.stock, "./test/load/stock"); err != nil {
				stop()
				return nil, nil, err
			}
		}
		p, err := b.start(ctx, s)
		if err != nil {
			stop()
			return nil, nil, err
		}
		ps = append(ps, p)
	}
	return ps, stop, nil
}

func (b *bench) startRedis() *servers.Redis {
	return servers.StartRedis(b.tb, "--save", "", "--appendonly", "no")
}

// startPostgres runs PostgreSQL with what is in the bench's store and returns
// what the directive store says.
func (b *bench) startPostgres(ctx context.Context) (string, error) {
	pg := servers.StartPostgres(b.tb)
	dir := b.tb.TempDir()
	for _, end := range []string{"", ".master-key"} {
		text, err := os.ReadFile(b.db + end)
		if err != nil {
			return "", err
		}
		if err := os.WriteFile(filepath.Join(dir, "auth.db"+end), text, 0o600); err != nil {
			return "", err
		}
	}
	master, err := sqlite.New(b.db).MasterKey()
	if err != nil {
		return "", err
	}
	dsn := pg.DSN("sslmode=disable")
	copying := exec.CommandContext(ctx, b.binary, "store", "copy", "--from", "sqlite:"+filepath.Join(dir, "auth.db"), "--to", "{env.LOAD_DSN}")
	copying.Env = append(os.Environ(), "LOAD_DSN="+dsn)
	if out, err := copying.CombinedOutput(); err != nil {
		return "", fmt.Errorf("copying the store to PostgreSQL: %w: %s", err, out)
	}
	return fmt.Sprintf("postgres %q\nmaster_key %s", dsn, master.Reveal()), nil
}

// manyKeys makes a store of its own with n keys.
func (b *bench) manyKeys(ctx context.Context, n int) (keys []string, db string, err error) {
	db = filepath.Join(b.tb.TempDir(), "auth.db")
	if out, err := exec.CommandContext(ctx, b.binary, "store", "init", "--store", "sqlite:"+db).CombinedOutput(); err != nil {
		return nil, "", fmt.Errorf("making a store: %w: %s", err, out)
	}
	backend := sqlite.New(db)
	master, err := backend.MasterKey()
	if err != nil {
		return nil, "", err
	}
	keys, err = makeKeys(ctx, backend, master, n)
	return keys, db, err
}

// warm sends each request of a target once.
func (b *bench) warm(ctx context.Context, t target) error {
	if t.load != nil {
		slice, cancel := context.WithTimeout(ctx, b.slice)
		defer cancel()
		_, err := t.load(slice)
		return err
	}
	return once(ctx, t.process.addr, t.requests, b.conns, t.want)
}

const h2Conns, h2Streams = 4, 8

// h2 loads an address over HTTP/2 and TLS.
func (b *bench) h2(addr string) (load func(context.Context) (int, error), done func()) {
	only := new(http.Protocols)
	only.SetHTTP2(true)
	var transports []*http.Transport
	for range h2Conns {
		transports = append(transports, &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true}, DisableCompression: true, Protocols: only})
	}
	load = func(ctx context.Context) (int, error) {
		var wg sync.WaitGroup
		counts, errs := make([]int, h2Conns*h2Streams), make([]error, h2Conns*h2Streams)
		for i := range counts {
			wg.Go(func() {
				for k := i; ctx.Err() == nil && errs[i] == nil; k += len(counts) {
					if errs[i] = get(transports[i%h2Conns], addr, b.keys[k%len(b.keys)]); errs[i] == nil {
						counts[i]++
					}
				}
			})
		}
		wg.Wait()
		total := 0
		for _, n := range counts {
			total += n
		}
		return total, errors.Join(errs...)
	}
	return load, func() {
		for _, t := range transports {
			t.CloseIdleConnections()
		}
	}
}

func get(t *http.Transport, addr, key string) error {
	req, err := http.NewRequest(http.MethodGet, "https://"+addr+"/v1/orders?page=2", nil)
	if err != nil {
		return err
	}
	req.Header.Set("X-API-Key", key)
	res, err := t.RoundTrip(req)
	if err != nil {
		return err
	}
	_, err = io.Copy(io.Discard, res.Body)
	if res.ProtoMajor != 2 {
		return fmt.Errorf("the answer came over %s", res.Proto)
	}
	if err = errors.Join(err, res.Body.Close()); err == nil && res.StatusCode != http.StatusOK {
		err = fmt.Errorf("status %d, want 200", res.StatusCode)
	}
	return err
}
