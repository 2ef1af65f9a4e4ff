package main

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/caddy-auth/caddy-auth/internal/auth"
	"github.com/caddy-auth/caddy-auth/internal/secret"
	"github.com/caddy-auth/caddy-auth/internal/store"
	"github.com/caddy-auth/caddy-auth/internal/store/sqlite"
)

const clockTicks = 100 // USER_HZ on every Linux that Go runs on

// sameHeaders makes plain Caddy send its upstream what the gateway sends: the
// part of the cost that is Caddy's for every header.
const sameHeaders = `request_header -X-Api-Key
	request_header X-Auth-Subject customer
	request_header X-Auth-Method api_key
	request_header X-Auth-Credential-Id key_0192a7b0-0000-7000-8000-000000000000
	request_header X-Auth-Scopes "orders:read orders:write"
	request_header X-Auth-Environment live`

// process is one running gateway.
type process struct {
	cmd  *exec.Cmd
	addr string
	once sync.Once
}

// prepare builds the binary and makes the keys.
func (b *bench) prepare(ctx context.Context, keys int) error {
	if b.binary == "" {
		b.binary = filepath.Join(b.dir, "caddy-auth")
		fmt.Fprintln(os.Stderr, "building")
		build := exec.CommandContext(ctx, "go", "build", "-tags", "nobadger,nomysql,nopgx", "-o", b.binary, "./cmd/caddy-auth")
		build.Stderr = os.Stderr
		if err := build.Run(); err != nil {
			return fmt.Errorf("building: %w", err)
		}
	}
	path := filepath.Join(b.dir, "auth.db")
	if out, err := exec.CommandContext(ctx, b.binary, "store", "init", "--store", "sqlite:"+path).CombinedOutput(); err != nil {
		return fmt.Errorf("making the store: %w: %s", err, out)
	}
	fmt.Fprintf(os.Stderr, "making %d keys\n", keys)
	return b.makeKeys(ctx, sqlite.New(path), keys)
}

func (b *bench) makeKeys(ctx context.Context, backend *sqlite.Backend, keys int) error {
	db, err := store.Open(ctx, backend, store.Existing)
	if err != nil {
		return err
	}
	defer db.Close()
	master, err := backend.MasterKey()
	if err != nil {
		return err
	}
	raw, err := secret.ParseMasterKey(master)
	if err != nil {
		return err
	}
	ring, err := secret.NewRing("store secrets", raw)
	if err != nil {
		return err
	}
	minter, err := db.Minter(ctx, ring)
	if err != nil {
		return err
	}
	return db.Change(ctx, "load", func(tx *store.Tx) error {
		if _, err := tx.EnsureOwner(ctx, "customer"); err != nil {
			return err
		}
		for i := range keys {
			text, err := minter.Mint("ca", "live")
			if err != nil {
				return err
			}
			b.keys = append(b.keys, text.Reveal())
			err = tx.InsertKey(ctx, &auth.Key{
				ID: fmt.Sprintf("key_0192a7b0-0000-7000-8000-%012d", i), Fingerprint: auth.FingerprintOf(text.Reveal()), Owner: "customer", Environment: "live",
				Hint: secret.Hint(text.Reveal()), Scopes: []string{"orders:read", "orders:write"}, Meta: map[string]string{},
			})
			if err != nil {
				return err
			}
		}
		return errors.Join(tx.Journal(ctx, "load", nil, auth.Parent{}), tx.Audit(ctx, "load", "store", nil))
	})
}

// start runs the binary with a site that proxies, with a directive before it.
func (b *bench) start(ctx context.Context, name, upstream, directive string) (*process, error) {
	return b.startWith(ctx, name, upstream, directive, "auth_redact", "")
}

// startLogging also writes an access log in a format.
func (b *bench) startLogging(ctx context.Context, format, upstream string) (*process, error) {
	directive := fmt.Sprintf("log {\noutput file %s {\nroll_disabled\n}\nformat %s\n}\nauth", filepath.Join(b.dir, format+".log"), format)
	return b.startWith(ctx, "log-"+format, upstream, directive, format, "unsafe_logs")
}

func (b *bench) startWith(ctx context.Context, name, upstream, directive, format, more string) (*process, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	addr := l.Addr().String()
	_ = l.Close() // the process takes it
	if !strings.Contains(more, "cache {") {
		more += fmt.Sprintf("\ncache {\nsize %d\nttl 1h\n}", 2*max(len(b.keys), tokenCount))
	}
	config := fmt.Sprintf(`{
	admin off
	persist_config off
	auto_https off
	log {
		level ERROR
		format %s
	}
	auth {
		%s
		store sqlite %s
	}
}
http://%s {
	%s
	reverse_proxy %s {
		transport http {
			keepalive_idle_conns_per_host 512
		}
	}
}
`, format, more, filepath.Join(b.dir, "auth.db"), addr, directive, upstream)
	file := filepath.Join(b.dir, name+".caddyfile")
	if err := os.WriteFile(file, []byte(config), 0o600); err != nil {
		return nil, err
	}
	cmd := exec.Command(b.binary, "run", "--config", file, "--adapter", "caddyfile")
	cmd.Env = append(os.Environ(), "HOME="+b.dir, "XDG_DATA_HOME="+b.dir, "XDG_CONFIG_HOME="+b.dir)
	cmd.Stderr = os.Stderr
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	p := &process{cmd: cmd, addr: addr}
	deadline := time.Now().Add(30 * time.Second)
	for time.Now().Before(deadline) && ctx.Err() == nil {
		if c, err := net.Dial("tcp", addr); err == nil {
			_ = c.Close()
			return p, nil
		}
		time.Sleep(20 * time.Millisecond)
	}
	p.stop()
	return nil, fmt.Errorf("%s does not listen", name)
}

func (p *process) stop() {
	p.once.Do(func() {
		_ = p.cmd.Process.Signal(os.Interrupt)
		_ = p.cmd.Wait() // how it ended is of no interest
	})
}

// cpu is the process's CPU time in seconds.
func (p *process) cpu() float64 {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", p.cmd.Process.Pid))
	if err != nil {
		return 0
	}
	_, rest, _ := bytes.Cut(text, []byte(") "))
	fields := strings.Fields(string(rest))
	user, _ := strconv.ParseFloat(fields[11], 64)
	system, _ := strconv.ParseFloat(fields[12], 64)
	return (user + system) / clockTicks
}

// startUpstream serves 200 bytes of JSON.
func startUpstream() (net.Listener, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	body := []byte(`{"orders":[` + strings.Repeat(`"4711",`, 26) + `"4711"]}`)
	go func() {
		_ = http.Serve(l, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("X-Seen", r.Header.Get("X-Auth-Subject")+"|"+r.Header.Get("X-Api-Key"))
			_, _ = w.Write(body)
		}))
	}()
	return l, nil
}

func request(addr, key string) []byte {
	return []byte("GET /v1/orders?page=2 HTTP/1.1\r\nHost: " + addr + "\r\nUser-Agent: load\r\nAccept: */*\r\nX-API-Key: " + key + "\r\n\r\n")
}

// plainRequests are the same requests, keys included, for a process that does
// not look at them.
func plainRequests(p *process, keys []string) [][]byte { return keyRequests(p, keys, "") }

func keyRequests(p *process, keys []string, end string) [][]byte {
	out := make([][]byte, len(keys))
	for i, k := range keys {
		if end != "" {
			if k = k[:len(k)-1] + end; k == keys[i] {
				k = k[:len(k)-1] + "1"
			}
		}
		out[i] = request(p.addr, k)
	}
	return out
}

// run sends requests over conns connections until ctx ends and returns how
// many were answered with the wanted status. Any other answer is an error.
func run(ctx context.Context, addr string, requests [][]byte, conns, want int) (int, error) {
	var wg sync.WaitGroup
	counts, errs := make([]int, conns), make([]error, conns)
	for i := range conns {
		wg.Go(func() { counts[i], errs[i] = client(ctx, addr, requests, i, conns, want) })
	}
	wg.Wait()
	total := 0
	for _, n := range counts {
		total += n
	}
	return total, errors.Join(errs...)
}

func client(ctx context.Context, addr string, requests [][]byte, first, step, want int) (int, error) {
	conn, err := net.Dial("tcp", addr)
	if err != nil {
		return 0, err
	}
	defer conn.Close()
	r := bufio.NewReader(conn)
	n := 0
	for i := first; ctx.Err() == nil; i += step {
		if _, err := conn.Write(requests[i%len(requests)]); err != nil {
			return n, err
		}
		status, err := readResponse(r)
		if err != nil {
			return n, err
		}
		if status != want {
			return n, fmt.Errorf("status %d, want %d", status, want)
		}
		n++
	}
	return n, nil
}

// readResponse reads one response with a Content-Length, cheaply.
func readResponse(r *bufio.Reader) (int, error) {
	line, err := r.ReadSlice('\n')
	if err != nil {
		return 0, err
	}
	if len(line) < 12 {
		return 0, fmt.Errorf("odd status line %q", line)
	}
	status, err := strconv.Atoi(string(line[9:12]))
	if err != nil {
		return 0, err
	}
	length := 0
	for {
		line, err := r.ReadSlice('\n')
		if err != nil {
			return 0, err
		}
		if len(line) <= 2 {
			break
		}
		if name, value, _ := bytes.Cut(line, []byte(":")); bytes.EqualFold(name, []byte("Content-Length")) {
			if length, err = strconv.Atoi(string(bytes.TrimSpace(value))); err != nil {
				return 0, err
			}
		}
	}
	_, err = r.Discard(length)
	return status, err
}

// check makes sure that what is measured is right: good, bad, missing and
// spoofed.
func (b *bench) check(p *process) error {
	for _, c := range []struct {
		key, spoof string
		status     int
		seen       string
	}{
		{b.keys[0], "", 200, "customer|"},
		{b.keys[0], "evil", 200, "customer|"},
		{b.keys[0][:20], "", 401, ""},
		{"", "evil", 401, ""},
	} {
		req, err := http.NewRequest(http.MethodGet, "http://"+p.addr+"/", nil)
		if err != nil {
			return err
		}
		if c.key != "" {
			req.Header.Set("X-API-Key", c.key)
		}
		if c.spoof != "" {
			req.Header.Set("X-Auth-Subject", c.spoof)
		}
		res, err := http.DefaultClient.Do(req)
		if err != nil {
			return err
		}
		_, _ = io.Copy(io.Discard, res.Body)
		_ = res.Body.Close()
		if res.StatusCode != c.status || res.Header.Get("X-Seen") != c.seen {
			return fmt.Errorf("status %d and identity %q, want %d and %q", res.StatusCode, res.Header.Get("X-Seen"), c.status, c.seen)
		}
	}
	return nil
}
