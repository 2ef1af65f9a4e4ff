package sqlite_test

import (
	"bytes"
	"database/sql"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/caddy-auth/caddy-auth/internal/auth"
	"github.com/caddy-auth/caddy-auth/internal/secret"
	"github.com/caddy-auth/caddy-auth/internal/store"
	"github.com/caddy-auth/caddy-auth/internal/store/sqlite"
)

// TestStoreOfAnEarlierRelease has no sealing secret: the first gateway makes
// one, once.
func TestStoreOfAnEarlierRelease(t *testing.T) {
	path := filepath.Join(t.TempDir(), "auth.db")
	db := create(t, path)
	ring, err := secret.NewRing("test", bytes.Repeat([]byte{1}, 32))
	if err != nil {
		t.Fatal(err)
	}
	raw, err := sql.Open("sqlite", path)
	if err != nil {
		t.Fatal(err)
	}
	defer raw.Close()
	if _, err := raw.Exec(`DELETE FROM secrets WHERE name = 'sealing'`); err != nil {
		t.Fatal(err)
	}
	if _, err := db.Envelope(t.Context(), ring); !errors.Is(err, auth.ErrNotFound) {
		t.Fatalf("%v", err)
	}
	names := map[string]bool{}
	for range 3 {
		if err := db.EnsureSealing(t.Context(), "test", ring); err != nil {
			t.Fatal(err)
		}
		e, err := db.Envelope(t.Context(), ring)
		if err != nil {
			t.Fatal(err)
		}
		names[e.Name("key", nil, auth.Fingerprint{})] = true
	}
	if len(names) != 1 {
		t.Error("the secret changed")
	}
	if look, _ := db.Look(t.Context(), 0); look.Rows[len(look.Rows)-1].Kind != store.ChangeSecrets {
		t.Error("gateways don't learn of it")
	}
}

// TestBackup_OfAStoreInUse: complete, 0600, never over another file, and
// nothing of an interrupted one stays.
func TestBackup_OfAStoreInUse(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "auth.db")
	db := create(t, path)
	for i := range 50 {
		if err := db.Note(t.Context(), "test", "noted", fmt.Sprint(i), nil); err != nil {
			t.Fatal(err)
		}
	}
	b := sqlite.New(path)
	out := filepath.Join(dir, "it's a backup?.db")
	if err := b.Backup(t.Context(), out); err != nil {
		t.Fatal(err)
	}
	if info, err := os.Stat(out); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("%v %v", info, err)
	}
	if err := b.Backup(t.Context(), out); !errors.Is(err, auth.ErrConflict) {
		t.Errorf("overwriting: %v", err)
	}
	if err := b.Backup(t.Context(), filepath.Join(dir, "missing", "x.db")); err == nil {
		t.Error("into a missing directory")
	}
	copied, err := store.Open(t.Context(), sqlite.New(out), store.Existing)
	if err != nil {
		t.Fatal(err)
	}
	last, err := copied.LastAudit(t.Context())
	if err := errors.Join(err, copied.Close()); err != nil || last.Target != "49" {
		t.Errorf("last row %+v, %v", last, err)
	}
	gone := sqlite.New(filepath.Join(dir, "gone.db"))
	if err := gone.Backup(t.Context(), filepath.Join(dir, "of-nothing.db")); err == nil {
		t.Error("a backup of nothing")
	}
	if _, err := os.Stat(filepath.Join(dir, "of-nothing.db")); err == nil {
		t.Error("half a backup stays")
	}
}

// TestPutInPlace moves a store with its log aside and leaves no log for the
// new one.
func TestPutInPlace(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "auth.db")
	db := create(t, path)
	b := sqlite.New(path)
	backup := filepath.Join(dir, "backup.db")
	if err := b.Backup(t.Context(), backup); err != nil {
		t.Fatal(err)
	}
	if err := db.Note(t.Context(), "test", "late", "x", nil); err != nil {
		t.Fatal(err)
	}
	before, err := os.ReadFile(backup)
	if err != nil {
		t.Fatal(err)
	}
	staged, err := b.Stage(t.Context(), backup)
	if err != nil {
		t.Fatal(err)
	}
	aside, err := b.PutInPlace(staged, "now")
	if err != nil || aside != path+".before-restore-now" {
		t.Fatalf("%q %v", aside, err)
	}
	if _, err := os.Stat(path + "-wal"); err == nil {
		t.Error("the new file has the old one's log")
	}
	for p, want := range map[string]string{path: "store.init", aside: "late"} {
		db, err := store.Open(t.Context(), sqlite.New(p), store.Existing)
		if err != nil {
			t.Fatal(err)
		}
		last, err := db.LastAudit(t.Context())
		if err := errors.Join(err, db.Close()); err != nil || last.Action != want {
			t.Errorf("%s: %+v, %v", filepath.Base(p), last, err)
		}
	}
	if after, _ := os.ReadFile(backup); !bytes.Equal(before, after) {
		t.Error("the backup was touched")
	}
	if left, _ := filepath.Glob(filepath.Join(dir, "*.restoring-*")); len(left) > 0 {
		t.Errorf("left %s", strings.Join(left, ", "))
	}
	if err := os.WriteFile(backup, []byte(strings.Repeat("garbage ", 999)), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := b.Stage(t.Context(), backup); !errors.Is(err, auth.ErrCorrupt) {
		t.Errorf("garbage: %v", err)
	}
}
