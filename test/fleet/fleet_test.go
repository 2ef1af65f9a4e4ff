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
	"github.com/caddy-auth/caddy-auth/internal/auth"
	"github.com/caddy-auth/caddy-auth/internal/cache"
	"github.com/caddy-auth/caddy-auth/internal/manage"
	"github.com/caddy-auth/caddy-auth/internal/redisx"
	"github.com/caddy-auth/caddy-auth/internal/secret"
	"github.com/caddy-auth/caddy-auth/internal/store"
	"github.com/caddy-auth/caddy-auth/internal/store/postgres"
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
	redis    *servers.Redis // nil: none, or not of this fleet
	upstream *httptest.Server
	gateways []*gateway
	client   *http.Client

	dsn  string // of a PostgreSQL store, for operators; empty: a file
	file *sqlite.Backend
	db   *store.DB
	ops  *manage.Manager
	bell *bell // nil without Redis

	judgedBy, authority string // of the login corp; see signsInAt
}

type gateway struct {
	f      *fleet
	name   string
	addr   string
	admin  string // Caddy's admin endpoint
	config string
	cmd    *exec.Cmd
}

// setup is what a fleet consists of; the zero value is one gateway on a file.
type setup struct {
	n         int
	redis     *servers.Redis
	redisLine string // instead of the one for redis
	dsn       string // PostgreSQL, for operators
	storeLine string // for gateways, instead of the one for the file or dsn
	masters   string // behind master_key, for PostgreSQL; default masterKey, noMaster: none
	global    string
	proxy     string // in the block of reverse_proxy
	upstream  string // instead of the fleet's
	site      string // instead of auth
}

// masterKey is the one of fleets on PostgreSQL.
const masterKey = "MDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY3ODlhYmNkZWY="

const noMaster = "none"

// startFleet runs n gateways on a file until the test ends.
func startFleet(t *testing.T, n int, redis bool, global string) *fleet {
	t.Helper()
	s := setup{n: n, global: global}
	if redis {
		s.redis = servers.StartRedis(t)
	}
	return startSetup(t, s)
}

func startSetup(t *testing.T, s setup) *fleet {
	t.Helper()
	f := &fleet{t: t, dir: t.TempDir(), redis: s.redis, dsn: s.dsn}
	f.upstream = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "ok") }))
	t.Cleanup(f.upstream.Close)
	tr := &http.Transport{MaxIdleConnsPerHost: 128, MaxIdleConns: 1024}
	t.Cleanup(tr.CloseIdleConnections)
	f.client = &http.Client{Transport: tr, Timeout: 10 * time.Second}
	for i := range max(s.n, 1) {
		g := &gateway{f: f, name: fmt.Sprintf("gateway-%d", i), addr: servers.SpareAddr(t), admin: servers.SpareAddr(t)}
		g.config = filepath.Join(f.dir, g.name+".caddyfile")
		g.configure(s)
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

// lines are the global block's about the store and Redis.
func (s setup) lines(dir string) string {
	store, redis := s.storeLine, s.redisLine
	switch {
	case store == "" && s.dsn == "":
		store = "store sqlite " + dir + "/auth.db"
	case store == "":
		store = fmt.Sprintf("store postgres %q", s.dsn)
	}
	if strings.HasPrefix(store, "store postgres") {
		masters := s.masters
		if masters == "" {
			masters = masterKey
		}
		if masters != noMaster {
			store += "\nmaster_key " + masters
		}
	}
	if redis == "" && s.redis != nil {
		redis = "redis " + s.redis.URL()
	}
	return store + "\n" + redis + "\n" + s.global
}

// configure writes the gateway's configuration.
func (g *gateway) configure(s setup) {
	g.f.t.Helper()
	upstream := s.upstream
	if upstream == "" {
		upstream = g.f.upstream.Listener.Addr().String()
	}
	site := s.site
	if site == "" {
		site = "auth {\npublic /open\n}"
	}
	text := fmt.Sprintf(`{
	admin %[6]s
	persist_config off
	auto_https off
	storage file_system %[1]s/caddy
	log {
		output file %[1]s/%[2]s.log
		format auth_redact
	}
	auth {
		%[3]s
	}
}
http://%[4]s {
	auth_health /ready
	%[8]s
	reverse_proxy %[5]s {
		%[7]s
	}
}
`, g.f.dir, g.name, s.lines(g.f.dir), g.addr, upstream, g.admin, s.proxy, site)
	if err := os.WriteFile(g.config, []byte(text), 0o600); err != nil {
		g.f.t.Fatal(err)
	}
}

// reload makes the gateway take its configuration anew, as an operator does.
func (g *gateway) reload() {
	g.f.t.Helper()
	out, err := child(g.f.t, "caddy-auth", g.f.dir, "reload", "--config", g.config, "--adapter", "caddyfile", "--force").CombinedOutput()
	if err != nil {
		g.f.t.Fatalf("reloading %s: %v: %s", g.name, err, out)
	}
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
	var err error
	if f.db, err = store.Open(context.Background(), f.backend(), store.Existing); err != nil {
		f.t.Fatal(err)
	}
	f.t.Cleanup(func() { _ = f.db.Close() })
	f.ops = f.operator()
}

func (f *fleet) backend() store.Backend {
	f.t.Helper()
	if f.dsn == "" {
		f.file = sqlite.New(filepath.Join(f.dir, "auth.db"))
		return f.file
	}
	b, err := postgres.New(f.dsn)
	if err != nil {
		f.t.Fatal(err)
	}
	return b
}

func (f *fleet) ring() *secret.Ring {
	f.t.Helper()
	key := auth.NewSecret(masterKey)
	if f.dsn == "" {
		var err error
		if key, err = f.file.MasterKey(); err != nil {
			f.t.Fatal(err)
		}
	}
	raw, err := secret.ParseMasterKey(key)
	if err != nil {
		f.t.Fatal(err)
	}
	ring, err := secret.NewRing("store secrets", raw)
	if err != nil {
		f.t.Fatal(err)
	}
	return ring
}

func (f *fleet) operator() *manage.Manager {
	f.t.Helper()
	ring := f.ring()
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
