package fleet

import (
	"encoding/json"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/caddy-auth/caddy-auth/test/ledger"
	"github.com/caddy-auth/caddy-auth/test/servers"
)

// steady sends requests of good keys, cached and never asked for before, and
// of a revoked and a forged one, to all gateways in turn.
func (f *fleet) steady(rate int) *ledger.Load {
	f.t.Helper()
	var urls []string
	for _, g := range f.gateways {
		urls = append(urls, "http://"+g.addr)
	}
	var cached, cold []*ledger.Credential
	for range 10 {
		cached = append(cached, &ledger.Credential{Class: ledger.Cached, Key: f.key("acme").Text.Reveal()})
	}
	for range 600 {
		cold = append(cold, &ledger.Credential{Class: ledger.Cold, Key: f.key("acme").Text.Reveal()})
	}
	bad := f.key("acme")
	if _, err := f.ops.Revoke(f.t.Context(), []string{bad.Key.ID}, "test"); err != nil {
		f.t.Fatal(err)
	}
	revoked := &ledger.Credential{Class: ledger.Revoked, Key: bad.Text.Reveal()}
	forged := &ledger.Credential{Class: ledger.Forged, Key: bad.Text.Reveal()[:len(bad.Text.Reveal())-4] + "0000"}
	var next atomic.Int64
	return &ledger.Load{Rate: rate, Client: f.client, URLs: func() []string { return urls }, Pick: func(n int) *ledger.Credential {
		switch n % 10 {
		case 3:
			if i := int(next.Add(1)); i < len(cold) {
				return cold[i]
			}
		case 5:
			return revoked
		case 7:
			return forged
		}
		return cached[n%len(cached)]
	}}
}

// allGood says what was wrong, and that no good key was turned away.
func allGood(t *testing.T, load *ledger.Load) {
	t.Helper()
	entries := load.Take()
	for i, w := range ledger.Wrong(entries) {
		if i < 10 {
			t.Error(w)
		}
	}
	s := ledger.SumOf(entries, ledger.Cached, ledger.Cold)
	t.Logf("%d requests of good keys, %d got 503, p99 %s, slowest %s", s.Requests, s.Unavailable, s.P99.Round(100*time.Microsecond), s.Max.Round(time.Millisecond))
	if s.Unavailable > 0 || s.Requests < 200 {
		t.Errorf("%d of %d good keys got 503", s.Unavailable, s.Requests)
	}
}

func passes(d time.Duration) func() bool {
	from := time.Now()
	return func() bool { return time.Since(from) > d }
}

// TestMove_UnderTraffic copies a file to PostgreSQL while two gateways serve
// from it, and switches them by a reload: no good key is refused, nobody
// revoked gets in, and changes are refused at the old place from then on.
func TestMove_UnderTraffic(t *testing.T) {
	pg := servers.StartPostgres(t)
	redis := servers.StartRedis(t)
	s := setup{n: 2, redis: redis, global: "poll_interval 100ms"}
	t.Setenv("AUTH_DSN", pg.DSN())
	f := startSetup(t, s)
	load := f.steady(300)
	stop := load.Start()
	servers.Eventually(t, "traffic", passes(500*time.Millisecond))
	out, _ := f.must("store", "copy", "--to", "{env.AUTH_DSN}", "--prepare", "--json")
	var prepared struct{ Moved bool }
	if err := json.Unmarshal([]byte(out), &prepared); err != nil || prepared.Moved {
		t.Fatalf("%s: %v", out, err)
	}
	late := f.key("acme") // in neither of the gateways' caches, and not in the first copy
	_, notes := f.must("store", "copy", "--to", "{env.AUTH_DSN}")
	for _, want := range []string{"takes no changes any more", "reload the 2 gateways within 2m0s", "master_key {file." + f.dir + "/auth.db.master-key}"} {
		if !strings.Contains(notes, want) {
			t.Errorf("the command does not say %q:\n%s", want, notes)
		}
	}
	if strings.Contains(notes, "sesame-of-the-tests") {
		t.Error("it tells the password")
	}
	if _, errs, code := f.command("key", "create", "--owner", "acme"); code != 1 || !strings.Contains(errs, "was moved to postgres://") || !strings.Contains(errs, "hint: name the new store") {
		t.Errorf("a change at the old place: exit %d: %s", code, errs)
	}
	// Gateways that were not switched yet go on, with keys they don't know too,
	// and call no key bad that may exist where the store is now.
	if got := f.gateways[0].get("/", late.Text.Reveal()); got != http.StatusOK {
		t.Errorf("a good key at a gateway that follows the old store: %d", got)
	}
	// What is said of the wait is true: the gateways are still at the old place.
	s.storeLine, s.masters = `store postgres {env.AUTH_DSN}`, "{file."+f.dir+"/auth.db.master-key}"
	f.gateways[0].configure(s)
	made, errs, code := f.command("key", "create", "--owner", "new", "--wait", "--wait-timeout", "1s")
	if code != 1 || !strings.Contains(errs, "gateway") && !strings.Contains(errs, "refuse") {
		t.Errorf("--wait at the new place, while gateways follow the old one: exit %d: %s", code, errs)
	}
	key := strings.TrimSpace(made)
	if got := f.gateways[1].get("/", key); got != http.StatusServiceUnavailable {
		t.Errorf("a key that is only at the new place: %d, want 503", got)
	}
	for _, g := range f.gateways {
		g.configure(s)
		g.reload()
	}
	for _, g := range f.gateways {
		servers.Eventually(t, "the new key passes at "+g.name, func() bool { return g.get("/", key) == http.StatusOK })
	}
	f.must("owner", "disable", "new", "--yes", "--wait") // those that followed the old store have left
	for _, g := range f.gateways {
		if got := g.get("/", key); got != http.StatusUnauthorized {
			t.Errorf("after --wait the disabled owner's key got %d at %s", got, g.name)
		}
	}
	servers.Eventually(t, "traffic", passes(500*time.Millisecond))
	stop()
	allGood(t, load)
	if nodes, _ := f.must("nodes"); strings.Count(nodes, "live") < 2 {
		t.Errorf("the new store does not know its gateways:\n%s", nodes)
	}
}

// TestRotateSecrets_UnderTraffic gives a fleet a new master key and new
// secrets, in the three steps that the documentation names.
func TestRotateSecrets_UnderTraffic(t *testing.T) {
	pg := servers.StartPostgres(t)
	const next = "ZmVkY2JhOTg3NjU0MzIxMGZlZGNiYTk4NzY1NDMyMTA="
	s := setup{n: 2, redis: servers.StartRedis(t), dsn: pg.DSN(), global: "poll_interval 100ms"}
	f := startSetup(t, s)
	load := f.steady(300)
	stop := load.Start()
	reload := func(masters string) {
		t.Helper()
		s.masters = masters
		for _, g := range f.gateways {
			g.configure(s)
			g.reload()
		}
	}
	before := f.key("acme").Text.Reveal()
	reload(next + " " + masterKey)
	f.must("store", "rotate-secrets", "--wait")
	reload(next)
	for i, key := range []string{before, f.made()} {
		for _, g := range f.gateways {
			if got := g.get("/", key); got != http.StatusOK {
				t.Errorf("key %d at %s: %d", i, g.name, got)
			}
		}
	}
	servers.Eventually(t, "traffic", passes(500*time.Millisecond))
	stop()
	allGood(t, load)
	s.masters = masterKey
	f.gateways[0].configure(s)
	if _, errs, code := f.command("key", "create", "--owner", "acme"); code != 1 || !strings.Contains(errs, "sealed under another key") {
		t.Errorf("the old master key still opens the store: exit %d: %s", code, errs)
	}
}

// made makes a key by the command line.
func (f *fleet) made() string {
	f.t.Helper()
	out, _ := f.must("key", "create", "--owner", "acme", "--wait")
	return strings.TrimSpace(out)
}

// TestRotateSecrets_FirstMasterKey: a store without a master key gets one; then
// what everybody could have sealed opens nothing any more.
func TestRotateSecrets_FirstMasterKey(t *testing.T) {
	pg := servers.StartPostgres(t)
	s := setup{dsn: pg.DSN(), masters: noMaster, global: "poll_interval 100ms"}
	f := startSetup(t, s)
	before := f.made()
	passes := func(key string) {
		t.Helper()
		if got := f.gateways[0].get("/", key); got != http.StatusOK {
			t.Errorf("a good key: %d", got)
		}
	}
	passes(before)
	if _, errs, code := f.command("store", "copy", "--to", "sqlite:"+f.dir+"/other.db"); code != 1 || !strings.Contains(errs, "sealed under no master key") {
		t.Errorf("secrets that nothing seals, into a file: exit %d: %s", code, errs)
	}
	s.masters = masterKey
	f.gateways[0].configure(s)
	f.gateways[0].reload()
	passes(before)
	if out, _, _ := f.command("doctor"); !strings.Contains(out, "not sealed under it yet") {
		t.Errorf("doctor does not say that a rotation is due:\n%s", out)
	}
	passes(f.made())
	f.must("store", "rotate-secrets", "--wait")
	passes(before)
	passes(f.made())
	s.masters = noMaster
	f.gateways[0].configure(s)
	if _, errs, code := f.command("key", "create", "--owner", "acme"); code != 1 || !strings.Contains(errs, "sealed under another key") {
		t.Errorf("without the master key: exit %d: %s", code, errs)
	}
}
