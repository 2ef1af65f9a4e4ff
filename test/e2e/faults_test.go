package e2e

import (
	"context"
	"database/sql"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/caddy-auth/caddy-auth/internal/auth"
	"github.com/caddy-auth/caddy-auth/internal/manage"
)

// startError loads a configuration that must be refused.
func startError(t *testing.T, o options) string {
	t.Helper()
	g := &gateway{t: t, dir: o.dir, addr: freeAddr(t), upstream: newUpstream(t)}
	if g.dir == "" {
		g.dir = storeDir(t)
	}
	err := g.load(o)
	if err == nil {
		_ = stopCaddy()
		t.Fatal("loaded")
	}
	return err.Error()
}

func TestRefusesToLoadWithoutATrustworthyStore(t *testing.T) {
	for name, c := range map[string]struct {
		damage func(dir string) error
		want   []string
	}{
		"corrupt": {func(dir string) error {
			return os.WriteFile(filepath.Join(dir, "auth.db"), []byte(strings.Repeat("garbage ", 1000)), 0o600)
		}, []string{"auth.db", "corrupt", "hint: restore a backup"}},
		"missing master key": {func(dir string) error {
			return os.Remove(filepath.Join(dir, "auth.db.master-key"))
		}, []string{"auth.db.master-key is missing", "hint:"}},
		"missing database": {func(dir string) error {
			return os.Remove(filepath.Join(dir, "auth.db"))
		}, []string{"auth.db is missing, but its master key is there", "hint: put the database back"}},
		"another master key": {func(dir string) error {
			return os.WriteFile(filepath.Join(dir, "auth.db.master-key"), []byte("AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=\n"), 0o600)
		}, []string{"sealed under another key", "hint: the master key must be the one"}},
		"newer": {func(dir string) error {
			db, err := sql.Open("sqlite", filepath.Join(dir, "auth.db"))
			if err != nil {
				return err
			}
			defer db.Close()
			_, err = db.Exec(`INSERT INTO schema_migrations VALUES (9, 'later', 'x', 9, 0)`)
			return err
		}, []string{"auth.db", "newer release", "hint:"}},
	} {
		t.Run(name, func(t *testing.T) {
			g := start(t, options{site: "auth"})
			g.plainKey()
			if err := stopCaddy(); err != nil {
				t.Fatal(err)
			}
			settle(t, g.dir)
			if err := c.damage(g.dir); err != nil {
				t.Fatal(err)
			}
			before, _ := os.ReadFile(filepath.Join(g.dir, "auth.db"))
			got := startError(t, options{site: "auth", dir: g.dir})
			for _, w := range c.want {
				if !strings.Contains(got, w) {
					t.Errorf("error %q lacks %q", got, w)
				}
			}
			if after, _ := os.ReadFile(filepath.Join(g.dir, "auth.db")); name != "newer" && string(after) != string(before) {
				t.Error("the database was changed")
			}
			if _, err := os.Stat(filepath.Join(g.dir, "auth.db.master-key")); name == "missing master key" && err == nil {
				t.Error("a new master key hides the loss")
			}
		})
	}
}

// settle moves everything from the write-ahead log into the database file.
func settle(t *testing.T, dir string) {
	t.Helper()
	db, err := sql.Open("sqlite", filepath.Join(dir, "auth.db"))
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	eventually(t, "the write-ahead log is empty", func() bool { // a reader may be at it
		var busy, log, done int
		err := db.QueryRow("PRAGMA wal_checkpoint(TRUNCATE)").Scan(&busy, &log, &done)
		return err == nil && busy == 0
	})
}

func TestRefusesUnwritableDirectory(t *testing.T) {
	got := startError(t, options{auth: "", site: "auth", dir: "/proc/nowhere"})
	if !strings.Contains(got, "/proc/nowhere") {
		t.Errorf("error %q does not name the directory", got)
	}
}

// TestStoreReplacedWhileRunning puts a backup in the database's place: keys
// made after it stop working, keys in it go on, and the log says so.
func TestStoreReplacedWhileRunning(t *testing.T) {
	g := start(t, options{site: "auth"})
	old := g.plainKey()
	db, err := sql.Open("sqlite", filepath.Join(g.dir, "auth.db"))
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	backup := filepath.Join(g.dir, "backup.db")
	if _, err := db.Exec("VACUUM INTO ?", backup); err != nil {
		t.Fatal(err)
	}
	late := g.plainKey()
	for _, k := range []string{old, late} {
		g.ok(g.get("/", "X-API-Key: "+k))
	}
	if err := os.Rename(backup, filepath.Join(g.dir, "auth.db")); err != nil {
		t.Fatal(err)
	}
	for _, suffix := range []string{"-wal", "-shm"} {
		_ = os.Remove(filepath.Join(g.dir, "auth.db"+suffix))
	}
	eventually(t, "the late key is refused", func() bool { return g.get("/", "X-API-Key: "+late).Code == string(auth.CodeInvalidCredential) })
	g.upstream.take()
	g.ok(g.get("/", "X-API-Key: "+old))
	if !strings.Contains(g.logs(), "went back in time or was replaced") || !strings.Contains(g.logs(), "auth.db") {
		t.Error("the log does not say it")
	}
	g.ok(g.get("/", "X-API-Key: "+g.plainKey()))
}

// TestStoreDamagedWhileRunning: nothing is let in that was not verified, and
// nobody is told that their key is bad.
func TestStoreDamagedWhileRunning(t *testing.T) {
	g := start(t, options{auth: "max_staleness 300ms", site: "auth {\npublic /open\n}"})
	cached, cold := g.plainKey(), g.plainKey()
	g.ok(g.get("/", "X-API-Key: "+cached))
	settle(t, g.dir)
	path := filepath.Join(g.dir, "auth.db")
	// In one step: a look that found no file would log that, and then nothing
	// more for a while.
	if err := os.WriteFile(path+".bad", []byte(strings.Repeat("garbage ", 2000)), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(os.Link(path, path+".good"), os.Rename(path+".bad", path)); err != nil {
		t.Fatal(err)
	}
	eventually(t, "503", func() bool { return g.get("/", "X-API-Key: "+cached).Status == 503 })
	g.upstream.take()
	a := g.get("/", "X-API-Key: "+cold)
	g.want(a, 503, auth.CodeUnavailable)
	if a.Header.Get("Retry-After") == "" {
		t.Error("no Retry-After")
	}
	g.want(g.get("/", "X-API-Key: "+cold[:len(cold)-1]+"!"), 401, auth.CodeInvalidCredential)
	g.want(g.get("/open"), 200, "")
	eventually(t, "the log names the file", func() bool { return strings.Contains(g.logs(), path) && strings.Contains(g.logs(), "corrupt") })
	// The good file comes back: it recovers by itself and nothing is lost.
	if err := os.Rename(path+".good", path); err != nil {
		t.Fatal(err)
	}
	eventually(t, "200 again", func() bool { return g.get("/", "X-API-Key: "+cold).Status == 200 })
}

func TestStoreGoneWhileRunning(t *testing.T) {
	g := start(t, options{auth: "max_staleness 300ms", site: "auth"})
	key := g.plainKey()
	g.ok(g.get("/", "X-API-Key: "+key))
	path := filepath.Join(g.dir, "auth.db")
	if err := os.Rename(path, path+".away"); err != nil {
		t.Fatal(err)
	}
	eventually(t, "503", func() bool { return g.get("/", "X-API-Key: "+key).Status == 503 })
	if err := os.Rename(path+".away", path); err != nil {
		t.Fatal(err)
	}
	eventually(t, "200 again", func() bool { return g.get("/", "X-API-Key: "+key).Status == 200 })
}

func TestReloadKeepsServing(t *testing.T) {
	g := start(t, options{site: "auth"})
	key := g.plainKey()
	g.ok(g.get("/", "X-API-Key: "+key))
	for i, site := range []string{"auth {\nrealm a\n}", "auth {\npublic /open\n}"} {
		if err := g.load(options{site: site}); err != nil {
			t.Fatal(err)
		}
		g.answers()
		g.ok(g.get("/", "X-API-Key: "+key))
		if i == 1 {
			g.want(g.get("/open"), 200, "")
		}
	}
	if err := g.load(options{auth: "cache {\nsize 10\n}", site: "auth"}); err != nil {
		t.Fatal(err)
	}
	g.answers()
	g.ok(g.get("/", "X-API-Key: "+key))
}

func TestConfigurationsThatAreRefused(t *testing.T) {
	for name, c := range map[string]struct {
		o    options
		want string
	}{
		"identity header is a credential": {options{auth: "key_header X-Auth-Key", site: "auth"}, "is also one of the identity headers"},
		"mapped onto the key header":      {options{site: "auth {\nidentity_headers {\nmap X-API-Key subject\n}\n}"}, "is also one of the identity headers"},
		"underscore spelling expected":    {options{global: "servers {\nexpected_underscore_headers X_Auth_Subject\n}", site: "auth"}, "spelling of an identity header"},
		"master key":                      {options{auth: "master_key short", site: "auth"}, "want 32 bytes"},
		"master key from nowhere":         {options{auth: "master_key {env.NO_SUCH_VARIABLE}", site: "auth"}, "master_key"},
		"staleness":                       {options{auth: "max_staleness 30ms", site: "auth"}, "max_staleness"},
		"keep of our own":                 {options{site: "auth {\nidentity_headers {\nkeep X-Auth-Subject\n}\n}"}, "sets this header itself"},
		"unknown field":                   {options{site: "auth {\nidentity_headers {\nmap X-Y nonsense\n}\n}"}, "no such field"},
		"realm":                           {options{site: "auth {\nrealm `a\"b`\n}"}, "realm"},
		"key prefix":                      {options{auth: "key_prefix Ca", site: "auth"}, "key prefix"},
	} {
		t.Run(name, func(t *testing.T) {
			if got := startError(t, c.o); !strings.Contains(got, c.want) {
				t.Errorf("error %q, want %q", got, c.want)
			}
		})
	}
}

func TestKeyPrefixChangesAndOldKeysStay(t *testing.T) {
	g := start(t, options{site: "auth"})
	old := g.plainKey()
	if err := g.load(options{auth: "key_prefix acme", site: "auth"}); err != nil {
		t.Fatal(err)
	}
	g.answers()
	g.ok(g.get("/", "X-API-Key: "+old))
	g.want(g.get("/?q="+old, "X-API-Key: "+old), 400, auth.CodeCredentialInQuery)
}

func TestMasterKeyFromTheConfiguration(t *testing.T) {
	t.Setenv("AUTH_MASTER", "MDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY3ODlhYmNkZWY=")
	g := start(t, options{auth: "master_key {env.AUTH_MASTER}", site: "auth"})
	if _, err := os.Stat(filepath.Join(g.dir, "auth.db.master-key")); err == nil {
		t.Error("a key file was made although a key was given")
	}
	_, err := g.manager().Create(context.Background(), manage.KeySpec{Owner: "acme"})
	if err == nil {
		t.Error("a key was made without the master key")
	}
	if strings.Contains(g.logs(), "MDEyMzQ1") {
		t.Error("the log shows the master key")
	}
}
