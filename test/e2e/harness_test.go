// Package e2e tests the gateway from outside: a real Caddy in this process, a
// real SQLite file, real sockets.
package e2e

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/caddyconfig"
	_ "github.com/caddyserver/caddy/v2/modules/standard"

	_ "github.com/caddy-auth/caddy-auth/caddymodule"
	"github.com/caddy-auth/caddy-auth/internal/auth"
	"github.com/caddy-auth/caddy-auth/internal/manage"
	"github.com/caddy-auth/caddy-auth/internal/secret"
	"github.com/caddy-auth/caddy-auth/internal/store"
	"github.com/caddy-auth/caddy-auth/internal/store/postgres"
	"github.com/caddy-auth/caddy-auth/internal/store/sqlite"
)

func TestMain(m *testing.M) {
	home, err := os.MkdirTemp("", "caddy-auth-e2e")
	if err != nil {
		panic(err)
	}
	for _, v := range []string{"HOME", "XDG_DATA_HOME", "XDG_CONFIG_HOME"} {
		if err := os.Setenv(v, home); err != nil {
			panic(err)
		}
	}
	code := m.Run()
	_ = os.RemoveAll(home)
	os.Exit(code)
}

// seen is what the upstream received.
type seen struct {
	Method, Target string
	Header         http.Header
	Trailer        http.Header
	Body           string
}

// upstream is a service that records requests and answers with what it saw.
type upstream struct {
	*httptest.Server
	mu   sync.Mutex
	last []seen
}

func newUpstream(t testing.TB) *upstream {
	u := &upstream{}
	u.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(io.LimitReader(r.Body, 1<<20))
		s := seen{r.Method, r.RequestURI, r.Header.Clone(), r.Trailer.Clone(), string(body)}
		u.mu.Lock()
		if len(u.last) < 1000 { // nobody looks at more
			u.last = append(u.last, s)
		}
		u.mu.Unlock()
		_ = json.NewEncoder(w).Encode(s)
	}))
	t.Cleanup(u.Close)
	return u
}

// take returns and forgets what was received.
func (u *upstream) take() []seen {
	u.mu.Lock()
	defer u.mu.Unlock()
	out := u.last
	u.last = nil
	return out
}

// gateway is a running Caddy.
type gateway struct {
	t        testing.TB
	dir      string
	addr     string
	upstream *upstream
	config   string
	store    string // a PostgreSQL DSN, or empty
}

// masterKey is the one of gateways on PostgreSQL.
const masterKey = "MDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY3ODlhYmNkZWY="

// options of a gateway; the zero value is one site that proxies.
type options struct {
	global string // in the global block
	auth   string // in the global auth block
	site   string // in the site, before reverse_proxy
	raw    string // the whole site instead
	dir    string // of another gateway, to start again on its store
	full   string // the whole configuration instead
	store  string // a PostgreSQL DSN instead of the file
}

func freeAddr(t testing.TB) string { return freeAddrs(t, 1)[0] }

// freeAddrs returns n different addresses nobody listens on, with ports that are
// free on every address: Caddy listens on all.
func freeAddrs(t testing.TB, n int) []string {
	var out []string
	for range n {
		l, err := net.Listen("tcp", ":0")
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close() // all at the end, so that none is given twice
		out = append(out, "127.0.0.1:"+port(l.Addr().String()))
	}
	return out
}

// storeDir is a directory that goes when nobody writes to it any more: a
// gateway that was stopped uses its store until its last request has ended.
func storeDir(t testing.TB) string {
	dir, err := os.MkdirTemp("", "gateway")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { eventually(t, "the directory is empty", func() bool { return os.RemoveAll(dir) == nil }) })
	return dir
}

// start runs a gateway until the test ends.
func start(t testing.TB, o options) *gateway {
	t.Helper()
	g := &gateway{t: t, dir: o.dir, addr: freeAddr(t), upstream: newUpstream(t)}
	if g.dir == "" {
		g.dir = storeDir(t)
	}
	if err := g.load(o); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := caddy.Stop(); err != nil {
			t.Errorf("stopping: %v", err)
		}
	})
	return g
}

func (g *gateway) load(o options) error {
	g.store = o.store
	site := o.raw
	if site == "" {
		site = fmt.Sprintf("http://%s {\n%s\nreverse_proxy {upstream}\n}", g.addr, o.site)
	}
	fill := strings.NewReplacer("{upstream}", g.upstream.Listener.Addr().String(), "{addr}", g.addr, "{port}", port(g.addr), "{dir}", g.dir)
	site = fill.Replace(site)
	g.config = fill.Replace(o.full)
	if o.full == "" {
		g.config = g.text(o, site)
	}
	text, _, err := caddyconfig.GetAdapter("caddyfile").Adapt([]byte(g.config), map[string]any{"filename": "Caddyfile"})
	if err != nil {
		return err
	}
	return caddy.Load(text, true)
}

// text is the configuration of one site.
func (g *gateway) text(o options, site string) string {
	return fmt.Sprintf(`{
	admin off
	persist_config off
	auto_https off
	storage file_system %[1]s/caddy
	log {
		output file %[1]s/log.json
		format auth_redact
		level DEBUG
	}
	%[2]s
	auth {
		store %[5]s
		poll_interval 20ms
		%[3]s
	}
}
%[4]s
`, g.dir, o.global, o.auth, site, g.storeLine())
}

// answers waits until connections made after a reload are answered, several in
// turn: Caddy may reset some that the old listener had not accepted yet.
func (g *gateway) answers() {
	g.t.Helper()
	inTurn := 0
	eventually(g.t, "answers after a reload", func() bool {
		res, err := (&http.Client{Transport: &http.Transport{DisableKeepAlives: true}}).Get("http://" + g.addr + "/answers")
		if inTurn++; err != nil || res.Body.Close() != nil {
			inTurn = 0
		}
		return inTurn == 5
	})
	g.upstream.take()
}

func (g *gateway) storeLine() string {
	if g.store == "" {
		return "sqlite " + g.dir + "/auth.db"
	}
	return fmt.Sprintf("postgres %q\nmaster_key %s", g.store, masterKey)
}

// backend is the gateway's store, and the key that opens its secrets.
func (g *gateway) backend() (store.Backend, func() (auth.Secret, error)) {
	g.t.Helper()
	if g.store == "" {
		b := sqlite.New(filepath.Join(g.dir, "auth.db"))
		return b, b.MasterKey
	}
	b, err := postgres.New(g.store)
	if err != nil {
		g.t.Fatal(err)
	}
	return b, func() (auth.Secret, error) { return auth.NewSecret(masterKey), nil }
}

// manager returns what an operator has, on the gateway's store.
func (g *gateway) manager() *manage.Manager {
	g.t.Helper()
	backend, master := g.backend()
	db, err := store.Open(context.Background(), backend, store.Existing)
	if err != nil {
		g.t.Fatal(err)
	}
	g.t.Cleanup(func() { _ = db.Close() })
	return manage.New(db, "test", "ca", g.minterOf(db, master))
}

// minter mints as the gateway does.
func (g *gateway) minter() *secret.Minter {
	g.t.Helper()
	backend, master := g.backend()
	db, err := store.Open(context.Background(), backend, store.Existing)
	if err != nil {
		g.t.Fatal(err)
	}
	defer db.Close()
	m, err := g.minterOf(db, master)(context.Background())
	if err != nil {
		g.t.Fatal(err)
	}
	return m
}

func (g *gateway) minterOf(db *store.DB, master func() (auth.Secret, error)) func(context.Context) (*secret.Minter, error) {
	return func(ctx context.Context) (*secret.Minter, error) {
		key, err := master()
		if err != nil {
			return nil, err
		}
		raw, err := secret.ParseMasterKey(key)
		if err != nil {
			return nil, err
		}
		ring, err := secret.NewRing("store secrets", raw)
		if err != nil {
			return nil, err
		}
		return db.Minter(ctx, ring)
	}
}

// key makes a key.
func (g *gateway) key(spec manage.KeySpec) manage.Made {
	g.t.Helper()
	if spec.Owner == "" {
		spec.Owner = "acme"
	}
	made, err := g.manager().Create(context.Background(), spec)
	if err != nil {
		g.t.Fatal(err)
	}
	return made
}

func (g *gateway) plainKey() string { return g.key(manage.KeySpec{}).Text.Reveal() }

// mistyped returns a credential of ours with another last character.
func mistyped(text string) string {
	last := "0"
	if strings.HasSuffix(text, last) {
		last = "1"
	}
	return text[:len(text)-1] + last
}

// answer is what a client received.
type answer struct {
	Status int
	Header http.Header
	Body   string
	Code   string // of a problem
	Detail string
	Inst   string
}

// do sends a request that Go's client is willing to send.
func (g *gateway) do(method, target string, headers ...string) answer {
	g.t.Helper()
	req, err := http.NewRequest(method, "http://"+g.addr+target, nil)
	if err != nil {
		g.t.Fatal(err)
	}
	for i := 0; i < len(headers); i += 2 {
		if headers[i] == "Host" {
			req.Host = headers[i+1]
			continue
		}
		req.Header[headers[i]] = append(req.Header[headers[i]], headers[i+1])
	}
	res, err := http.DefaultTransport.RoundTrip(req)
	if err != nil {
		g.t.Fatal(err)
	}
	return readAnswer(g.t, res)
}

func readAnswer(t testing.TB, res *http.Response) answer {
	t.Helper()
	defer res.Body.Close()
	body, err := io.ReadAll(res.Body)
	if err != nil {
		t.Fatal(err)
	}
	a := answer{Status: res.StatusCode, Header: res.Header, Body: string(body)}
	if res.Header.Get("Content-Type") == "application/problem+json" && len(body) > 0 {
		var p struct{ Code, Detail, Instance string }
		if err := json.Unmarshal(body, &p); err != nil {
			t.Fatalf("problem %q: %v", body, err)
		}
		a.Code, a.Detail, a.Inst = p.Code, p.Detail, p.Instance
	}
	return a
}

// raw writes bytes to the gateway and reads one answer.
func (g *gateway) raw(text string) answer {
	g.t.Helper()
	conn, err := net.Dial("tcp", g.addr)
	if err != nil {
		g.t.Fatal(err)
	}
	defer conn.Close()
	if err := conn.SetDeadline(time.Now().Add(10 * time.Second)); err != nil {
		g.t.Fatal(err)
	}
	if _, err := io.WriteString(conn, text); err != nil {
		g.t.Fatal(err)
	}
	method, _, _ := strings.Cut(text, " ")
	res, err := http.ReadResponse(bufio.NewReader(conn), &http.Request{Method: method})
	if err != nil {
		g.t.Fatalf("no answer to %.60q: %v", text, err)
	}
	return readAnswer(g.t, res)
}

// get is a raw GET with header lines.
func (g *gateway) get(target string, lines ...string) answer {
	g.t.Helper()
	return g.raw("GET " + target + " HTTP/1.1\r\nHost: " + g.addr + "\r\n" + strings.Join(append(lines, "Connection: close"), "\r\n") + "\r\n\r\n")
}

// want checks an answer's status and code, and that a refusal reached nobody.
func (g *gateway) want(a answer, status int, code auth.Code) {
	g.t.Helper()
	if a.Status != status || a.Code != string(code) {
		g.t.Errorf("answer %d %s (%s), want %d %s", a.Status, a.Code, a.Detail, status, code)
	}
	got := g.upstream.take()
	if status >= 400 && len(got) > 0 {
		g.t.Errorf("the upstream was reached: %+v", got)
	}
	if status == 200 && len(got) != 1 {
		g.t.Errorf("the upstream received %d requests", len(got))
	}
}

// ok checks that a request passed and returns what the upstream saw.
func (g *gateway) ok(a answer) seen {
	g.t.Helper()
	got := g.upstream.take()
	if a.Status != 200 || len(got) != 1 {
		g.t.Fatalf("answer %d %s (%s), %d requests at the upstream", a.Status, a.Code, a.Detail, len(got))
	}
	return got[0]
}

// logs returns what was logged so far.
func (g *gateway) logs() string {
	g.t.Helper()
	b, err := os.ReadFile(filepath.Join(g.dir, "log.json"))
	if err != nil {
		g.t.Fatal(err)
	}
	return string(b)
}

// parseSeen reads what the upstream answered: what it saw.
func parseSeen(body string) (seen, error) {
	var s seen
	err := json.Unmarshal([]byte(body), &s)
	return s, err
}

// file returns a file of the gateway's directory, or "".
func (g *gateway) file(name string) string {
	b, _ := os.ReadFile(filepath.Join(g.dir, name))
	return string(b)
}

// eventually polls until ok or a deadline.
func eventually(t testing.TB, what string, ok func() bool) {
	t.Helper()
	within(t, 10*time.Second, what, ok)
}

// within is eventually with another deadline.
func within(t testing.TB, most time.Duration, what string, ok func() bool) {
	t.Helper()
	deadline := time.Now().Add(most)
	for !ok() {
		if time.Now().After(deadline) {
			t.Fatalf("not within %s: %s", most, what)
		}
		time.Sleep(5 * time.Millisecond)
	}
}

// logLines returns the log entries of one logger.
func (g *gateway) logLines(logger string) []map[string]any {
	g.t.Helper()
	var out []map[string]any
	for line := range bytes.Lines([]byte(g.logs())) {
		var m map[string]any
		if json.Unmarshal(line, &m) == nil && m["logger"] == logger {
			out = append(out, m)
		}
	}
	return out
}
