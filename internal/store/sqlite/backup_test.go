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
	// A name that SQLite would take for a URI.
	t.Chdir(dir)
	if err := b.Backup(t.Context(), "file:odd.db"); err != nil {
		t.Fatal(err)
	}
	if info, err := os.Stat("file:odd.db"); err != nil || info.Mode().Perm() != 0o600 || info.Size() == 0 {
		t.Errorf("%v %v", info, err)
	}
	gone := sqlite.New(filepath.Join(dir, "gone.db"))
	if err := gone.Backup(t.Context(), filepath.Join(dir, "of-nothing.db")); err == nil {
		t.Error("a backup of nothing")
	}
	if _, err := os.Stat(filepath.Join(dir, "of-nothing.db")); err == nil {
		t.Error("half a backup stays")
	}
}

// TestReplace_UnderAGateway: what was there stays, whole, under a name that was
// free; a change that waited is made to what was restored; one that came
// before is not lost unseen.
func TestReplace_UnderAGateway(t *testing.T) {
	dir := t.TempDir()
	path, link := filepath.Join(dir, "auth.db"), filepath.Join(dir, "link.db")
	db := create(t, path) // stays open, as a gateway's
	if err := os.Symlink(path, link); err != nil {
		t.Fatal(err)
	}
	b := sqlite.New(link)
	backup := filepath.Join(dir, "backup.db")
	if err := b.Backup(t.Context(), backup); err != nil {
		t.Fatal(err)
	}
	before, err := os.ReadFile(backup)
	if err != nil {
		t.Fatal(err)
	}
	last := func(p string) string {
		t.Helper()
		db, err := store.Open(t.Context(), sqlite.New(p), store.Existing)
		if err != nil {
			t.Fatal(err)
		}
		e, err := db.LastAudit(t.Context())
		if err := errors.Join(err, db.Close()); err != nil {
			t.Fatal(err)
		}
		return e.Action
	}
	replace := func(from string, ready func() error) string {
		t.Helper()
		staged, err := b.Stage(t.Context(), from)
		if err != nil {
			t.Fatal(err)
		}
		aside, err := b.Replace(t.Context(), staged, "now", ready)
		if err := errors.Join(err, staged.Discard()); err != nil {
			t.Fatal(err)
		}
		return aside
	}
	note := func(action string) error { return db.Note(t.Context(), "test", action, "x", nil) }
	if err := note("late"); err != nil {
		t.Fatal(err)
	}
	waited := make(chan error, 1)
	first := replace(backup, func() error {
		go func() { waited <- note("waited") }()
		return nil
	})
	if err := <-waited; err != nil {
		t.Fatal(err)
	}
	if last(first) != "late" || last(link) != "waited" {
		t.Errorf("aside ends with %s, the store with %s", last(first), last(link))
	}
	second := replace(first, func() error { return nil }) // undone
	if first == second || last(link) != "late" || last(second) != "waited" {
		t.Errorf("%s ends with %s, %s with %s", link, last(link), second, last(second))
	}
	if err := note("after"); err != nil || last(link) != "after" {
		t.Errorf("the open handle: %v, %s", err, last(link))
	}
	staged, err := b.Stage(t.Context(), backup)
	if err != nil {
		t.Fatal(err)
	}
	refusal := errors.New("no")
	if _, err := b.Replace(t.Context(), staged, "now", func() error { return refusal }); !errors.Is(err, refusal) || last(link) != "after" {
		t.Errorf("refused: %v, ends with %s", err, last(link))
	}
	if err := staged.Discard(); err != nil {
		t.Fatal(err)
	}
	if info, err := os.Lstat(link); err != nil || info.Mode()&os.ModeSymlink == 0 {
		t.Error("the link was replaced")
	}
	if after, _ := os.ReadFile(backup); !bytes.Equal(before, after) {
		t.Error("the backup was changed")
	}
	if left, _ := filepath.Glob(filepath.Join(dir, "*.restoring-*")); len(left) > 0 {
		t.Errorf("left %s", strings.Join(left, ", "))
	}
	if err := sqlite.New(path).Check(t.Context()); err != nil {
		t.Error(err)
	}
}

// TestPutInPlace where there is nothing, and where there is garbage.
func TestPutInPlace(t *testing.T) {
	dir := t.TempDir()
	source := filepath.Join(dir, "source.db")
	create(t, source)
	backup := filepath.Join(dir, "backup.db")
	if err := sqlite.New(source).Backup(t.Context(), backup); err != nil {
		t.Fatal(err)
	}
	b := sqlite.New(filepath.Join(dir, "new", "auth.db"))
	for i := range 3 {
		staged, err := b.Stage(t.Context(), backup)
		if err != nil {
			t.Fatal(err)
		}
		aside, err := b.PutInPlace(staged, "now")
		if err != nil || (aside != "") != (i > 0) {
			t.Fatalf("%d: %q %v", i, aside, err)
		}
		if err := b.Check(t.Context()); err != nil {
			t.Error(err)
		}
		if i > 0 {
			if text, _ := os.ReadFile(aside); !strings.HasPrefix(string(text), "garbage") {
				t.Errorf("%s is not what was there", aside)
			}
		}
		if err := os.WriteFile(b.Path(), []byte(strings.Repeat("garbage ", 999)), 0o600); err != nil {
			t.Fatal(err)
		}
	}
}

// TestStage_BackupWithItsLog: a copy of the files of a store in use is the
// database and its write-ahead log; both count.
func TestStage_BackupWithItsLog(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "auth.db")
	db := create(t, path)
	if err := db.Note(t.Context(), "test", "only in the log", "x", nil); err != nil {
		t.Fatal(err)
	}
	copied := filepath.Join(dir, "copied.db")
	for _, suffix := range []string{"", "-wal"} {
		text, err := os.ReadFile(path + suffix)
		if err == nil {
			err = os.WriteFile(copied+suffix, text, 0o600)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	staged, err := sqlite.New(filepath.Join(dir, "elsewhere", "auth.db")).Stage(t.Context(), copied)
	if err != nil {
		t.Fatal(err)
	}
	got, err := store.Open(t.Context(), staged, store.Existing)
	if err != nil {
		t.Fatal(err)
	}
	e, err := got.LastAudit(t.Context())
	if err := errors.Join(err, got.Close()); err != nil || e.Action != "only in the log" {
		t.Errorf("%+v %v", e, err)
	}
	if err := os.WriteFile(copied, []byte(strings.Repeat("garbage ", 999)), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(copied + "-wal"); err != nil && !os.IsNotExist(err) {
		t.Fatal(err)
	}
	if _, err := sqlite.New(path).Stage(t.Context(), copied); !errors.Is(err, auth.ErrCorrupt) {
		t.Errorf("garbage: %v", err)
	}
}
