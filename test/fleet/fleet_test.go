// Package fleet runs several gateways as processes of their own, over one
// store and one Redis, and measures and breaks them.
package fleet

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	caddycmd "github.com/caddyserver/caddy/v2/cmd"
	_ "github.com/caddyserver/caddy/v2/modules/standard"

	"github.com/caddy-auth/caddy-auth/caddymodule"
	"github.com/caddy-auth/caddy-auth/internal/cache"
	"github.com/caddy-auth/caddy-auth/internal/manage"
	"github.com/caddy-auth/caddy-auth/internal/redisx"
	"github.com/caddy-auth/caddy-auth/internal/secret"
	"github.com/caddy-auth/caddy-auth/internal/store"
	"github.com/caddy-auth/caddy-auth/internal/store/sqlite"
	"github.com/caddy-auth/caddy-auth/test/servers"
)

// childEnv says what a process of this test binary is.
const childEnv = "CADDY_AUTH_FLEET_CHILD"

func TestMain(m *testing.M) {
	switch os.Getenv(childEnv) {
	case "caddy-auth":
		caddymodule.Brand()
		caddycmd.Main()
		return
	case "writer":
		writerMain()
		return
	}
	os.Exit(m.Run())
}

// soak reports whether the long tests are asked for.
func soak() bool { return os.Getenv("CADDY_AUTH_SOAK") != "" }

// child prepares a process that ends with this one.
func child(t *testing.T, what, dir string, args ...string) *exec.Cmd {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(self, args...)
	cmd.Env = append(os.Environ(), childEnv+"="+what, "HOME="+dir, "XDG_DATA_HOME="+dir, "XDG_CONFIG_HOME="+dir)
	cmd.Dir = dir
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	return cmd
}

// fleet is some gateways, their store, and perhaps a Redis.
type fleet struct {
	t        *testing.T
	dir      string
	redis    *servers.Redis // nil: none
	upstream *httptest.Server
	gateways []*gateway
	client   *http.Client

	backend *sqlite.Backend
	db      *store.DB
	ops     *manage.Manager
	bell    *bell // nil without Redis
}

type gateway struct {
	f      *fleet
	name   string
	addr   string
	config string
	cmd    *exec.Cmd
}

// startFleet runs n gateways until the test ends.
func startFleet(t *testing.T, n int, redis bool, global string) *fleet {
	t.Helper()
	f := &fleet{t: t, dir: t.TempDir()}
	f.upstream = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "ok") }))
	t.Cleanup(f.upstream.Close)
	if redis {
		f.redis = servers.StartRedis(t)
		global += "\nredis " + f.redis.URL()
	}
	tr := &http.Transport{MaxIdleConnsPerHost: 128, MaxIdleConns: 1024}
	t.Cleanup(tr.CloseIdleConnections)
	f.client = &http.Client{Transport: tr, Timeout: 10 * time.Second}
	for i := range n {
		g := &gateway{f: f, name: fmt.Sprintf("gateway-%d", i), addr: servers.SpareAddr(t)}
		g.config = filepath.Join(f.dir, g.name+".caddyfile")
		text := fmt.Sprintf(`{
	admin off
	persist_config off
	auto_https off
	storage file_system %[1]s/caddy
	log {
		output file %[1]s/%[2]s.log
		format auth_redact
	}
	auth {
		store sqlite %[1]s/auth.db
		%[3]s
	}
}
http://%[4]s {
	auth_health /ready
	auth
	reverse_proxy %[5]s
}
`, f.dir, g.name, global, g.addr, f.upstream.Listener.Addr())
		if err := os.WriteFile(g.config, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		f.gateways = append(f.gateways, g)
		g.start()
		if i == 0 {
			g.ready() // it makes the store
		}
	}
	for _, g := range f.gateways {
		g.ready()
	}
	f.open()
	return f
}

func (g *gateway) start() {
	g.f.t.Helper()
	g.cmd = child(g.f.t, "caddy-auth", g.f.dir, "run", "--config", g.config, "--adapter", "caddyfile")
	if err := g.cmd.Start(); err != nil {
		g.f.t.Fatal(err)
	}
	cmd := g.cmd
	g.f.t.Cleanup(func() { _ = cmd.Process.Kill(); _ = cmd.Wait() })
}

// kill ends the process as a crash does.
func (g *gateway) kill() {
	_ = g.cmd.Process.Kill()
	_ = g.cmd.Wait()
}

// stop ends it as an operator does.
func (g *gateway) stop() {
	g.f.t.Helper()
	if err := g.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		g.f.t.Fatal(err)
	}
	_ = g.cmd.Wait()
}

func (g *gateway) ready() {
	g.f.t.Helper()
	servers.Eventually(g.f.t, g.name+" is ready", func() bool { return g.get("/ready", "") == http.StatusOK })
}

// get makes a request and returns its status; 0 if there was no answer.
func (g *gateway) get(path, key string) int {
	req, err := http.NewRequest(http.MethodGet, "http://"+g.addr+path, nil)
	if err != nil {
		g.f.t.Error(err)
		return 0
	}
	if key != "" {
		req.Header.Set("X-API-Key", key)
	}
	res, err := g.f.client.Do(req)
	if err != nil {
		return 0
	}
	_, _ = io.Copy(io.Discard, res.Body)
	_ = res.Body.Close()
	return res.StatusCode
}

// open gives the test what an operator has, bell included.
func (f *fleet) open() {
	f.t.Helper()
	f.backend = sqlite.New(filepath.Join(f.dir, "auth.db"))
	var err error
	if f.db, err = store.Open(context.Background(), f.backend, store.Existing); err != nil {
		f.t.Fatal(err)
	}
	f.t.Cleanup(func() { _ = f.db.Close() })
	f.ops = f.operator()
}

func (f *fleet) operator() *manage.Manager {
	f.t.Helper()
	ring := storeRing(f.t, f.backend)
	m := manage.New(f.db, "test", "ca", func(ctx context.Context) (*secret.Minter, error) { return f.db.Minter(ctx, ring) })
	if f.redis == nil {
		return m
	}
	e, err := f.db.Envelope(context.Background(), ring)
	if err != nil {
		f.t.Fatal(err)
	}
	opts, err := redisx.ParseURL(f.redis.URL())
	if err != nil {
		f.t.Fatal(err)
	}
	c := redisx.New(opts)
	f.t.Cleanup(c.Close)
	f.bell = &bell{c: c, channel: cache.DefaultSharedPrefix + e.Channel("doorbell")}
	m.SetBell(f.bell)
	return m
}

// bell rings, and notes when it was asked to: right after a commit.
type bell struct {
	c       *redisx.Client
	channel string
	asked   time.Time
}

func (b *bell) Ring(ctx context.Context) error {
	b.asked = time.Now()
	return b.c.Publish(ctx, b.channel)
}

func storeRing(t testing.TB, b *sqlite.Backend) *secret.Ring {
	t.Helper()
	key, err := b.MasterKey()
	if err != nil {
		t.Fatal(err)
	}
	raw, err := secret.ParseMasterKey(key)
	if err != nil {
		t.Fatal(err)
	}
	ring, err := secret.NewRing("store secrets", raw)
	if err != nil {
		t.Fatal(err)
	}
	return ring
}

// key makes a key.
func (f *fleet) key(owner string) manage.Made {
	f.t.Helper()
	made, err := f.ops.Create(context.Background(), manage.KeySpec{Owner: owner})
	if err != nil {
		f.t.Fatal(err)
	}
	return made
}

// command runs the command line on the first gateway's configuration.
func (f *fleet) command(args ...string) (stdout, stderr string, code int) {
	f.t.Helper()
	cmd := child(f.t, "caddy-auth", f.dir, append(args, "--config", f.gateways[0].config)...)
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	err := cmd.Run()
	if _, exited := err.(*exec.ExitError); err != nil && !exited { //nolint:errorlint // Run returns it as it is
		f.t.Fatal(err)
	}
	return out.String(), errs.String(), cmd.ProcessState.ExitCode()
}

// must runs a command that has to succeed.
func (f *fleet) must(args ...string) (stdout, stderr string) {
	f.t.Helper()
	stdout, stderr, code := f.command(args...)
	if code != 0 {
		f.t.Fatalf("%s: exit %d: %s", strings.Join(args, " "), code, stderr)
	}
	return stdout, stderr
}
