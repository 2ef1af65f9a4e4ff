package main

import (
	"cmp"
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
)

// adminHost is the Host that gateways' admin APIs take.
const adminHost = "load.internal"

// sameHeaders makes plain Caddy send its upstream what the gateway sends: the
// part of the cost that is Caddy's for every header.
const sameHeaders = `request_header -X-Api-Key
	request_header X-Auth-Subject customer
	request_header X-Auth-Method api_key
	request_header X-Auth-Credential-Id key_0192a7b0-0000-7000-8000-000000000000
	request_header X-Auth-Scopes "orders:read orders:write"
	request_header X-Auth-Environment live`

// spec is a gateway to start.
type spec struct {
	name    string
	stock   bool   // Caddy's own binary
	sites   string // directives before reverse_proxy
	auth    string // lines of the auth block; empty: no such block
	global  string // lines of the global options
	store   string // default: the bench's SQLite file
	format  string // of the log; default: Caddy's, or auth_redact with an auth block
	shipped bool   // with the binary's own runtime settings, else with Go's default GOGC
	tls     bool
	warm    bool // with a second site that only authenticates
	paced   bool // refusals; else they are answered as fast as they come
	cache   int  // identities; default: more than are used
	every   bool // on every core
}

// start runs a gateway in front of the upstream.
func (b *bench) start(ctx context.Context, s spec) (*process, error) {
	addr, err := spare()
	if err != nil {
		return nil, err
	}
	extra, err := spare()
	if err != nil {
		return nil, err
	}
	admin := filepath.Join(b.dir, s.name+".sock")
	_ = os.Remove(admin)
	file := filepath.Join(b.dir, s.name+".caddyfile")
	if err := os.WriteFile(file, []byte(b.caddyfile(s, addr, extra, admin)), 0o600); err != nil {
		return nil, err
	}
	binary := b.binary
	if s.stock {
		binary = b.stock
	}
	args := []string{"run", "--config", file, "--adapter", "caddyfile"}
	cmd := onGatewayCore(binary, args...)
	if s.every {
		cmd = exec.Command(binary, args...)
	}
	cmd.Env = append(ownEnv(), "HOME="+b.dir, "XDG_DATA_HOME="+b.dir, "XDG_CONFIG_HOME="+b.dir)
	if !s.shipped {
		cmd.Env = append(cmd.Env, "GOGC=100")
	}
	cmd.Stderr = os.Stderr
	p, err := launch(ctx, cmd, addr)
	if err != nil {
		return nil, fmt.Errorf("starting %s: %w", s.name, err)
	}
	p.admin, p.extra, p.tls = admin, extra, s.tls
	return p, nil
}

// ownEnv is the environment without settings of Go's runtime, which are what is
// compared.
func ownEnv() []string {
	return slices.DeleteFunc(os.Environ(), func(v string) bool {
		return strings.HasPrefix(v, "GOGC=") || strings.HasPrefix(v, "GOMEMLIMIT=") || strings.HasPrefix(v, "GOMAXPROCS=") || strings.HasPrefix(v, "GODEBUG=")
	})
}

func (b *bench) caddyfile(s spec, addr, extra, admin string) string {
	format := s.format
	auth := ""
	if s.auth != "" || strings.Contains(s.sites, "auth") {
		if !s.paced {
			s.auth += "\nrefusal_rate off"
		}
		size := cmp.Or(s.cache, 2*max(len(b.keys), tokenCount))
		auth = fmt.Sprintf("auth {\nstore %s\ncache {\nsize %d\nttl 1h\n}\n%s\n}", cmp.Or(s.store, "sqlite "+b.db), size, s.auth)
		format = cmp.Or(format, "auth_redact")
	}
	scheme := "http://"
	if s.tls {
		scheme = "https://"
	}
	if format != "" {
		format = "format " + format
	}
	warm := ""
	if s.warm {
		warm = fmt.Sprintf("http://%s {\n%s\nrespond 200\n}\n", extra, s.sites)
	}
	return fmt.Sprintf(`{
	admin unix/%s {
		origins %s
	}
	persist_config off
	skip_install_trust
	auto_https disable_redirects
	log {
		level ERROR
		%s
	}
	%s
	%s
}
%s%s {
	%s
	reverse_proxy %s {
		transport http {
			keepalive_idle_conns_per_host 512
		}
	}
}
%s`, admin, adminHost, format, s.global, auth, scheme, addr, s.sites, b.upstream, warm)
}

// spare returns an address that nobody listens on.
func spare() (string, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", err
	}
	defer l.Close()
	return l.Addr().String(), nil
}

// startUpstream serves 200 bytes of JSON and tells what it saw.
func (b *bench) startUpstream() error {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	body := []byte(`{"orders":[` + strings.Repeat(`"4711",`, 26) + `"4711"]}`)
	go func() {
		_ = http.Serve(l, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("X-Seen", r.Header.Get("X-Auth-Subject")+"|"+r.Header.Get("X-Api-Key"))
			_, _ = w.Write(body)
		}))
	}()
	b.upstream = l.Addr().String()
	return nil
}

// check makes sure that what is measured is right, with a key: good, bad,
// missing and spoofed.
func (b *bench) check(ps ...*process) error {
	for _, p := range ps {
		if err := b.checkCredential(p, "X-API-Key", b.keys[0], "customer"); err != nil {
			return fmt.Errorf("before measuring: %w", err)
		}
	}
	return nil
}

// checkToken does so with a bearer token.
func (b *bench) checkToken(token, subject string, ps ...*process) error {
	for _, p := range ps {
		if err := b.checkCredential(p, "Authorization", "Bearer "+token, subject); err != nil {
			return fmt.Errorf("before measuring: %w", err)
		}
	}
	return nil
}

func (b *bench) checkCredential(p *process, header, good, subject string) error {
	client := http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true}}}
	defer client.CloseIdleConnections()
	for _, c := range []struct {
		credential, spoof string
		status            int
		seen              string
	}{
		{good, "", 200, subject + "|"},
		{good, "evil", 200, subject + "|"},
		{good[:len(good)-10], "", 401, ""},
		{"", "evil", 401, ""},
	} {
		req, err := http.NewRequest(http.MethodGet, p.url(), nil)
		if err != nil {
			return err
		}
		if c.credential != "" {
			req.Header.Set(header, c.credential)
		}
		if c.spoof != "" {
			req.Header.Set("X-Auth-Subject", c.spoof)
		}
		res, err := client.Do(req)
		if err != nil {
			return err
		}
		_, _ = io.Copy(io.Discard, res.Body)
		_ = res.Body.Close()
		if res.StatusCode != c.status || res.Header.Get("X-Seen") != c.seen {
			return fmt.Errorf("%s: status %d and identity %q, want %d and %q", p.addr, res.StatusCode, res.Header.Get("X-Seen"), c.status, c.seen)
		}
	}
	return nil
}
