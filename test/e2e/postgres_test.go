package e2e

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"testing"

	"github.com/caddy-auth/caddy-auth/internal/auth"
	"github.com/caddy-auth/caddy-auth/internal/manage"
	"github.com/caddy-auth/caddy-auth/internal/store"
	"github.com/caddy-auth/caddy-auth/test/servers"
)

func revoke(t *testing.T, m *manage.Manager, id string) {
	t.Helper()
	if _, err := m.Revoke(context.Background(), []string{id}, "test"); err != nil {
		t.Fatal(err)
	}
}

// refused waits until a key is refused for good, and meanwhile accepts nothing
// but its being let in.
func (g *gateway) refused(key string) {
	g.t.Helper()
	eventually(g.t, "the key is refused", func() bool {
		a := g.get("/", "X-API-Key: "+key)
		return a.Status == http.StatusUnauthorized && a.Code == string(auth.CodeInvalidCredential)
	})
	g.upstream.take()
}

// good asks until a key is let in, and fails if it is ever called bad.
func (g *gateway) good(what, key string) {
	g.t.Helper()
	eventually(g.t, what, func() bool {
		a := g.get("/", "X-API-Key: "+key)
		if a.Status == http.StatusUnauthorized || a.Status == http.StatusForbidden {
			g.t.Fatalf("%s: a good key was answered %d %s", what, a.Status, a.Code)
		}
		return a.Status == http.StatusOK
	})
	g.upstream.take()
}

func TestPostgres_Gateway(t *testing.T) {
	pg := servers.StartPostgres(t)
	g := start(t, options{store: pg.DSN(), site: "auth"})
	made := g.key(manage.KeySpec{Scopes: []string{"a"}})
	if s := g.ok(g.get("/", "X-API-Key: "+made.Text.Reveal())); s.Header.Get("X-Auth-Credential-Id") != made.Key.ID {
		t.Errorf("the upstream saw %v", s.Header)
	}
	revoke(t, g.manager(), made.Key.ID)
	g.refused(made.Text.Reveal())
	if !strings.Contains(g.logs(), pg.Addr+"/auth") || strings.Contains(g.logs(), "sesame-of-the-tests") {
		t.Error("the log does not name the store, or tells its password")
	}
}

// TestPostgres_NoMasterKey: it works, and warns.
func TestPostgres_NoMasterKey(t *testing.T) {
	pg := servers.StartPostgres(t)
	g := start(t, options{full: fmt.Sprintf(`{
	admin off
	persist_config off
	log {
		output file {dir}/log.json
		format auth_redact
	}
	auth {
		store postgres %q
	}
}
http://{addr} {
	auth
	reverse_proxy {upstream}
}`, pg.DSN())})
	if a := g.get("/", "X-API-Key: ca_live_x"); a.Status != http.StatusUnauthorized {
		t.Errorf("answer %d", a.Status)
	}
	if !strings.Contains(g.logs(), "no master_key") {
		t.Error("nobody was warned")
	}
}

// TestPostgres_ConnectionLoss: connections that the server ended are replaced
// within the request that needs one.
func TestPostgres_ConnectionLoss(t *testing.T) {
	pg := servers.StartPostgres(t)
	g := start(t, options{store: pg.DSN(), site: "auth"})
	cached := g.plainKey()
	g.ok(g.get("/", "X-API-Key: "+cached))
	for range 5 {
		cold := g.plainKey()
		pg.Do("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = 'gateway'")
		g.ok(g.get("/", "X-API-Key: "+cached))
		g.good("a cold key after the connections were cut", cold)
	}
	pg.Kill()
	g.ok(g.get("/", "X-API-Key: "+cached))
	pg.Start()
	g.good("a cold key after a crash of the server", g.plainKey())
}

// TestPostgres_Failover: with a synchronous standby nothing is lost, nobody
// with a good key is refused, and nobody revoked comes back.
func TestPostgres_Failover(t *testing.T) {
	primary := servers.StartPostgres(t)
	standby := primary.Standby("second")
	primary.Do("ALTER SYSTEM SET synchronous_standby_names = 'second'")
	primary.Do("SELECT pg_reload_conf()")
	dsn := primary.DSNAt(primary.Addr + "," + standby.Addr)
	g := start(t, options{store: dsn, site: "auth"})
	cached, cold, bad := g.plainKey(), g.plainKey(), g.key(manage.KeySpec{})
	g.good("a key", cached)
	g.good("a key", bad.Text.Reveal())
	revoke(t, g.manager(), bad.Key.ID) // committed on both
	g.refused(bad.Text.Reveal())
	primary.Kill()
	if a := g.get("/", "X-API-Key: "+bad.Text.Reveal()); a.Status == http.StatusOK {
		t.Error("a revoked key was let in while nobody was the primary")
	}
	g.ok(g.get("/", "X-API-Key: "+cached))
	standby.Promote()
	g.good("a cold key after the failover", cold)
	g.refused(bad.Text.Reveal())
	late := g.key(manage.KeySpec{})
	g.good("a key made after the failover", late.Text.Reveal())
	revoke(t, g.manager(), late.Key.ID)
	g.refused(late.Text.Reveal())
	if strings.Contains(g.logs(), "went back in time") {
		t.Error("nothing was lost, but the log says so")
	}
}

// TestPostgres_FailoverToALaggingStandby: what the new primary does not know
// is gone; the gateway notices, says so, and begins a new epoch.
func TestPostgres_FailoverToALaggingStandby(t *testing.T) {
	primary := servers.StartPostgres(t)
	standby := primary.Standby("second")
	g := start(t, options{store: primary.DSNAt(primary.Addr + "," + standby.Addr), site: "auth"})
	old := g.plainKey()
	g.good("a key", old)
	standby.Caught(primary)
	standby.Disconnect() // from here on nothing arrives
	late := g.plainKey()
	g.good("a key that the standby never hears of", late)
	primary.Kill()
	standby.Promote()
	g.refused(late)
	g.good("an older key", old)
	eventually(t, "the log says it", func() bool { return strings.Contains(g.logs(), "went back in time") })
	g.good("a key made after", g.plainKey())
}

// TestPostgres_StandbyIsNotRead: a server that may lag is no store, however a
// connection got there.
func TestPostgres_StandbyIsNotRead(t *testing.T) {
	primary := servers.StartPostgres(t)
	g := start(t, options{store: primary.DSN(), auth: "max_staleness 1s", site: "auth"})
	key := g.plainKey()
	g.good("a key", key)
	standby := primary.Standby("second")
	if err := stopCaddy(); err != nil {
		t.Fatal(err)
	}
	if err := g.load(options{store: primary.DSNAt(standby.Addr), auth: "max_staleness 1s", site: "auth"}); err != nil {
		t.Fatalf("an unreachable primary must not refuse to load: %v", err)
	}
	if a := g.get("/", "X-API-Key: "+key); a.Status != http.StatusServiceUnavailable {
		t.Errorf("answer %d from a standby", a.Status)
	}
	if !strings.Contains(g.logs(), "no host is a primary") {
		t.Error("the log does not say why")
	}
	standby.Promote()
	g.good("a key once the standby is the primary", key)
}

// TestPostgres_NoConnectionLeft: a gateway keeps those it has; a command says
// what is the matter.
func TestPostgres_NoConnectionLeft(t *testing.T) {
	pg := servers.StartPostgres(t, "max_connections=30")
	g := start(t, options{store: pg.DSN(), site: "auth"})
	cached, cold := g.plainKey(), g.plainKey()
	g.good("a key", cached)
	var hogs []*sql.DB
	defer func() {
		for _, db := range hogs {
			_ = db.Close()
		}
	}()
	eventually(t, "the server has no connection left", func() bool {
		db, err := sql.Open("pgx", pg.DSN())
		if err != nil {
			t.Fatal(err)
		}
		hogs = append(hogs, db)
		return db.Ping() != nil
	})
	backend, _ := g.backend()
	_, err := store.Open(context.Background(), backend, store.Existing)
	if !errors.Is(err, auth.ErrUnavailable) || !strings.Contains(auth.Hint(err), "max_connections") {
		t.Errorf("a command would say: %v (%s)", err, auth.Hint(err))
	}
	g.ok(g.get("/", "X-API-Key: "+cached))
	g.ok(g.get("/", "X-API-Key: "+cold))
	for _, db := range hogs {
		_ = db.Close()
	}
	hogs = nil
	eventually(t, "there are connections again", func() bool {
		db, err := store.Open(context.Background(), backend, store.Existing)
		return err == nil && db.Close() == nil
	})
	g.good("a key made after", g.plainKey())
}

// TestPostgres_WrongPassword: what waiting can't mend refuses to load.
func TestPostgres_WrongPassword(t *testing.T) {
	pg := servers.StartPostgres(t)
	got := startError(t, options{store: strings.Replace(pg.DSN(), "sesame", "s3same", 1), site: "auth"})
	if !strings.Contains(got, "28P01") || !strings.Contains(got, "hint:") || strings.Contains(got, "s3same") {
		t.Errorf("error %q", got)
	}
	got = startError(t, options{store: strings.Replace(pg.DSN(), "/auth?", "/nothing?", 1), site: "auth"})
	if !strings.Contains(got, "createdb") {
		t.Errorf("error %q", got)
	}
}
