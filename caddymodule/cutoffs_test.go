package caddymodule

import (
	"bytes"
	"context"
	"path/filepath"
	"testing"

	"github.com/caddy-auth/caddy-auth/internal/secret"
	"github.com/caddy-auth/caddy-auth/internal/store"
	"github.com/caddy-auth/caddy-auth/internal/store/sqlite"
)

// TestReadCutOffs_HasTimeOfItsOwn: what is read at boot before it may have used
// up a look's time, when there are many imported keys.
func TestReadCutOffs_HasTimeOfItsOwn(t *testing.T) {
	backend := sqlite.New(filepath.Join(t.TempDir(), "auth.db"))
	db, err := store.Open(t.Context(), backend, store.Create)
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	ring, err := secret.NewRing("test", bytes.Repeat([]byte{7}, 32))
	if err != nil {
		t.Fatal(err)
	}
	if err := db.Init(t.Context(), "test", ring, "ca"); err != nil {
		t.Fatal(err)
	}
	rt := newRuntime(backend, nil)
	late, cancel := context.WithCancel(t.Context())
	cancel()
	if err := rt.readCutOffs(late, db); err != nil || rt.verifier.CutOffs() == nil {
		t.Errorf("%v", err)
	}
}
