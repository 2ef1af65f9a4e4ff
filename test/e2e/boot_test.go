package e2e

import (
	"database/sql"
	"path/filepath"
	"testing"

	"github.com/caddy-auth/caddy-auth/internal/auth"
)

// TestBoot_StoreThatCantBeReached: a store that somebody else holds loads all
// the same, answers 503, and is used as soon as it can be.
func TestBoot_StoreThatCantBeReached(t *testing.T) {
	conf := options{site: "auth_health /ready\nauth {\npublic /open\n}"}
	conf.dir = storeDir(t)
	var key string
	t.Run("before", func(t *testing.T) { // all that has the store open ends with it
		g := start(t, conf)
		key = g.plainKey()
		g.ok(g.get("/", "X-API-Key: "+key))
	})
	holder, err := sql.Open("sqlite", filepath.Join(conf.dir, "auth.db"))
	if err != nil {
		t.Fatal(err)
	}
	defer holder.Close()
	holder.SetMaxOpenConns(1)
	eventually(t, "the store is held", func() bool { // the stopped gateway may still close it
		for _, q := range []string{"PRAGMA journal_mode=DELETE", "PRAGMA locking_mode=EXCLUSIVE", "BEGIN EXCLUSIVE"} {
			if _, err := holder.Exec(q); err != nil {
				_, _ = holder.Exec("ROLLBACK")
				return false
			}
		}
		return true
	})
	h := start(t, conf) // no error
	h.want(h.get("/", "X-API-Key: "+key), 503, auth.CodeUnavailable)
	h.want(h.get("/open"), 200, "")
	if s := h.get("/ready").Status; s != 503 {
		t.Errorf("ready: %d", s)
	}
	if _, err := holder.Exec("COMMIT"); err != nil {
		t.Fatal(err)
	}
	if err := holder.Close(); err != nil {
		t.Fatal(err)
	}
	eventually(t, "200", func() bool { return h.get("/", "X-API-Key: "+key).Status == 200 })
}
