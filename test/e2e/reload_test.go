package e2e

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptrace"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/caddyconfig"
	"github.com/redis/go-redis/v9"

	"github.com/caddy-auth/caddy-auth/internal/auth"
	"github.com/caddy-auth/caddy-auth/internal/manage"
	"github.com/caddy-auth/caddy-auth/internal/store"
	"github.com/caddy-auth/caddy-auth/internal/store/sqlite"
	"github.com/caddy-auth/caddy-auth/test/servers"
)

// heldSocket is a listening socket that outlives configurations, as systemd
// holds one: then a reload loses not even a connection in the accept queue.
func heldSocket(t *testing.T) (addr string, bind string) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	f, err := l.(*net.TCPListener).File()
	if err != nil {
		t.Fatal(err)
	}
	addr = l.Addr().String()
	_ = l.Close()
	t.Cleanup(func() { _ = f.Close() })
	return addr, fmt.Sprintf("bind fd/%d", f.Fd())
}

// slowUpstream answers /slow in two halves, the second when it is told to.
func slowUpstream(t *testing.T) (addr string, inside *atomic.Int64, release chan struct{}) {
	t.Helper()
	inside, release = new(atomic.Int64), make(chan struct{})
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	srv := &http.Server{ReadHeaderTimeout: 5 * time.Second, Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path != "/slow" {
			_, _ = io.WriteString(w, "whole")
			return
		}
		w.Header().Set("Content-Length", "10")
		_, _ = io.WriteString(w, "first")
		_ = http.NewResponseController(w).Flush()
		inside.Add(1)
		<-release
		_, _ = io.WriteString(w, "other")
	})}
	go func() { _ = srv.Serve(l) }()
	t.Cleanup(func() { _ = srv.Close() })
	return l.Addr().String(), inside, release
}

// TestReload_NothingIsDropped reloads under load, with slow requests in
// flight, changing everything that holds resources. Clients keep their
// connections: one that is made in the very moment of a reload net/http may
// close unanswered, with or without us (docs/operations.md).
func TestReload_NothingIsDropped(t *testing.T) {
	r := servers.StartRedisWith(t, &redis.Options{Password: "one"}, "--requirepass", "one")
	addr, bind := heldSocket(t)
	up, inside, release := slowUpstream(t)
	site := func(directive string) options {
		return options{raw: fmt.Sprintf("http://%s {\n%s\n%s\nreverse_proxy %s\n}", addr, bind, directive, up)}
	}
	with := func(directive, global string) options {
		o := site(directive)
		o.auth = global
		return o
	}
	redisOne := "redis redis://:one@" + r.Addr + "/0"
	g := start(t, with("auth", redisOne))
	g.addr = addr
	key := g.plainKey()

	stop := make(chan struct{})
	var wg sync.WaitGroup
	var total, unlucky atomic.Int64
	for range 4 {
		wg.Go(func() {
			client := &http.Client{Transport: &http.Transport{}}
			defer client.CloseIdleConnections()
			for {
				select {
				case <-stop:
					return
				default:
				}
				reused := false
				ctx := httptrace.WithClientTrace(t.Context(), &httptrace.ClientTrace{GotConn: func(c httptrace.GotConnInfo) { reused = c.Reused }})
				req, _ := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+addr+"/", nil)
				req.Header.Set("X-Api-Key", key)
				res, err := client.Do(req)
				if err != nil && !reused && errors.Is(err, io.EOF) {
					unlucky.Add(1)
					continue
				}
				if err != nil {
					t.Error(err)
					return
				}
				body, err := io.ReadAll(res.Body)
				_ = res.Body.Close()
				if res.StatusCode != 200 || string(body) != "whole" || err != nil {
					t.Errorf("%d %q %v", res.StatusCode, body, err)
				}
				total.Add(1)
			}
		})
	}
	// In every configuration a slow request begins; none ends before the last.
	var slow sync.WaitGroup
	begin := func(i int) {
		slow.Go(func() {
			req, _ := http.NewRequest(http.MethodGet, "http://"+addr+"/slow", nil)
			req.Header.Set("X-Api-Key", key)
			res, err := (&http.Transport{}).RoundTrip(req)
			for errors.Is(err, io.EOF) { // a new connection in the moment of the reload, as above
				unlucky.Add(1)
				res, err = (&http.Transport{}).RoundTrip(req)
			}
			if err != nil {
				t.Errorf("slow request %d: %v", i, err)
				return
			}
			defer res.Body.Close()
			body, err := io.ReadAll(res.Body)
			if res.StatusCode != 200 || string(body) != "firstother" || err != nil {
				t.Errorf("slow request %d: %d %q %v", i, res.StatusCode, body, err)
			}
		})
		eventually(t, "a slow request is inside", func() bool { return inside.Load() == int64(i+1) })
	}
	loads := func() float64 { return g.metricsNow("store", "hit") }
	eventually(t, "the key is cached", func() bool { return total.Load() > 10 })
	before := loads()
	changes := []options{
		with("auth {\nrealm changed\n}", redisOne),
		with("auth", redisOne+" {\ntimeout 60ms\n}"),
		with("auth", "redis redis://:wrong@"+r.Addr+"/0"),
		with("auth", "redis redis://127.0.0.1:1"), // no longer there
		with("auth", ""),
		with("auth", redisOne+"\ncache {\nsize 50\nttl 1m\n}"),
		with("auth", redisOne+"\nmax_staleness 1m"),
		with("auth {\nfrom header X-Api-Key X-Other\n}", redisOne+"\nkey_prefix other"),
		with("auth", redisOne),
	}
	begin(0)
	for i, o := range changes {
		if err := g.load(o); err != nil {
			t.Fatalf("reload %d: %v", i, err)
		}
		begin(i + 1)
		from := total.Load()
		eventually(t, "traffic", func() bool { return total.Load() > from+50 })
	}
	if got := loads() - before; got != 0 {
		t.Errorf("%v store reads: a reload made the caches cold", got)
	}
	// Another store: the old one stays open for what is still inside.
	other := storeDir(t)
	close(stop)
	wg.Wait()
	g.dir = other
	if err := g.load(with("auth", "")); err != nil {
		t.Fatal(err)
	}
	if a := g.do(http.MethodGet, "/", "X-Api-Key", key); a.Code != string(auth.CodeInvalidCredential) {
		t.Errorf("a key of the old store: %d %s", a.Status, a.Code)
	}
	close(release)
	slow.Wait()
	t.Logf("%d requests over %d reloads, %d new connections closed by net/http", total.Load(), len(changes), unlucky.Load())
	if unlucky.Load() > int64(len(changes)) {
		t.Errorf("%d connections were closed unanswered", unlucky.Load())
	}
}

func TestReload_LeaksNoGoroutine(t *testing.T) {
	r := servers.StartRedis(t)
	g := start(t, options{auth: "redis " + r.URL(), site: "auth"})
	g.ok(g.get("/", "X-API-Key: "+g.plainKey()))
	http.DefaultTransport.(*http.Transport).CloseIdleConnections()
	count := func() int { return runtime.NumGoroutine() }
	first := g.dir
	reload := func(i int) {
		g.dir = first
		if i%2 == 1 {
			g.dir = filepath.Join(first, fmt.Sprint("store", i%4))
			if err := os.MkdirAll(g.dir, 0o700); err != nil {
				t.Fatal(err)
			}
		}
		if err := g.load(options{auth: fmt.Sprintf("redis %s {\ntimeout %dms\n}", r.URL(), 50+i), site: "auth"}); err != nil {
			t.Fatal(err)
		}
		g.answers()
	}
	reload(0)
	reload(2)
	eventually(t, "what the first loads began has ended", func() bool { return steady(count) })
	before := count()
	for i := range 12 {
		reload(i)
	}
	reload(2)
	eventually(t, "goroutines end with their configurations", func() bool { return count() <= before+4 })
}

// steady reports whether two counts some time apart are the same.
func steady(count func() int) bool {
	n := count()
	timer := time.NewTimer(1500 * time.Millisecond)
	<-timer.C
	return count() <= n
}

// TestReload_ThatFailsChangesNothing: the settings of a configuration that
// fails, and its store, leave no trace. Apps start in random order, so it is
// tried until both orders were seen very likely.
func TestReload_ThatFailsChangesNothing(t *testing.T) {
	r := servers.StartRedis(t)
	conf := options{auth: "redis " + r.URL(), site: "auth"}
	g := start(t, conf)
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	var keys []string
	for range 200 {
		keys = append(keys, g.plainKey())
		g.ok(g.get("/", "X-API-Key: "+keys[len(keys)-1]))
	}
	mine := g.dir
	bad := "http://{addr} {\nauth\nrespond ok\n}\nhttp://" + taken.Addr().String() + " {\nrespond ok\n}"
	for i := range 10 {
		if g.dir = mine; i%2 == 1 {
			g.dir = storeDir(t) // another store, too
		}
		err := g.load(options{auth: "cache {\nsize 1\n}\nkey_prefix zz", raw: bad})
		if err == nil || !strings.Contains(err.Error(), "address already in use") {
			t.Fatalf("loaded, or failed otherwise: %v", err)
		}
	}
	g.dir = mine
	g.answers() // connections of the moment of a reload may be closed
	if n := gathered(t, "caddy_auth_cache_entries", map[string]string{"kind": "identity"}); n != 200 {
		t.Errorf("%v identities are cached, 200 were", n)
	}
	if gathered(t, "caddy_auth_trusted", map[string]string{}) != 1 {
		t.Error("the gauges tell of another store")
	}
	loads := g.metricsNow("store", "hit")
	for _, k := range keys {
		g.ok(g.get("/", "X-API-Key: "+k))
	}
	if got := g.metricsNow("store", "hit") - loads; got != 0 {
		t.Errorf("%v store reads", got)
	}
	records := len(r.Dump())
	g.ok(g.get("/", "X-API-Key: "+g.plainKey()))
	eventually(t, "a record in the Redis of the old configuration", func() bool { return len(r.Dump()) == records+1 })
	db, err := store.Open(t.Context(), sqlite.New(filepath.Join(mine, "auth.db")), store.Existing)
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	if prefixes, err := db.Prefixes(t.Context()); err != nil || len(prefixes) != 1 {
		t.Errorf("prefixes %v, %v", prefixes, err)
	}
}

// TestReload_ToAnotherStore: Caddy may serve before the new store is open; then
// requests wait for it.
func TestReload_ToAnotherStore(t *testing.T) {
	dirs := [2]string{storeDir(t), storeDir(t)}
	var keys [2]string
	g := start(t, options{site: "auth", dir: dirs[0]})
	keys[0] = g.plainKey()
	g.dir = dirs[1]
	if err := g.load(options{site: "auth"}); err != nil {
		t.Fatal(err)
	}
	keys[1] = g.plainKey()
	for i := range 20 {
		now := i % 2
		g.dir = dirs[now]
		loaded := make(chan error, 1)
		go func() { loaded <- g.load(options{site: fmt.Sprintf("header X-Round %d\nauth", i)}) }()
		for done := false; !done; {
			select {
			case err := <-loaded:
				if err != nil {
					t.Fatal(err)
				}
				done = true
			default:
			}
			req, _ := http.NewRequest(http.MethodGet, "http://"+g.addr+"/", nil)
			req.Header.Set("X-Api-Key", keys[now])
			res, err := (&http.Transport{DisableKeepAlives: true}).RoundTrip(req)
			if err != nil {
				continue // a connection of the moment; see docs/operations.md
			}
			_ = res.Body.Close()
			// The other store's gateway may still answer; the new one's must know the key.
			if res.Header.Get("X-Round") == fmt.Sprint(i) && res.StatusCode != 200 {
				t.Errorf("round %d: %d", i, res.StatusCode)
			}
		}
	}
}

// TestReload_KeepsCountingAndWarm: metrics go on over reloads, and so does the
// cache when only its size changes.
func TestReload_KeepsCountingAndWarm(t *testing.T) {
	g := start(t, options{site: "auth"})
	var keys []manage.Made
	for range 20 {
		keys = append(keys, g.key(manage.KeySpec{}))
		g.ok(g.get("/", "X-API-Key: "+keys[len(keys)-1].Text.Reveal()))
	}
	allowed := func() float64 {
		return gathered(t, "caddy_auth_requests_total", map[string]string{"method": "api_key", "result": "allowed"})
	}
	before, loads := allowed(), g.metricsNow("store", "hit")
	for _, size := range []int{500_000, 50_000, 10_000} {
		if err := g.load(options{auth: fmt.Sprintf("cache {\nsize %d\n}", size), site: "auth"}); err != nil {
			t.Fatal(err)
		}
		g.answers()
		for _, k := range keys {
			g.ok(g.get("/", "X-API-Key: "+k.Text.Reveal()))
		}
	}
	if got := allowed() - before; got != 60 {
		t.Errorf("%v requests counted", got)
	}
	if got := g.metricsNow("store", "hit") - loads; got != 0 {
		t.Errorf("%v store reads", got)
	}
}

// TestValidate_TouchesNothing: no connection, no file, no goroutine.
func TestValidate_TouchesNothing(t *testing.T) {
	dir := storeDir(t)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	var connections atomic.Int64
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			connections.Add(1)
			_ = c.Close()
		}
	}()
	text := fmt.Sprintf("{\nadmin off\nstorage file_system %[1]s/caddy\nlog {\nformat auth_redact\noutput discard\n}\nauth {\nstore sqlite %[1]s/auth.db\nredis redis://%[2]s\n}\n}\nhttp://127.0.0.1:1 {\nauth\nrespond ok\n}", dir, l.Addr())
	raw, _, err := caddyconfig.GetAdapter("caddyfile").Adapt([]byte(text), nil)
	if err != nil {
		t.Fatal(err)
	}
	var cfg caddy.Config
	if err := json.Unmarshal(raw, &cfg); err != nil {
		t.Fatal(err)
	}
	if err := caddy.Validate(&cfg); err != nil {
		t.Fatal(err)
	}
	if n := connections.Load(); n != 0 {
		t.Errorf("%d connections", n)
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		if strings.Contains(e.Name(), "auth") {
			t.Errorf("wrote %s", e.Name())
		}
	}
}
