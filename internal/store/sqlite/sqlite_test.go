package sqlite_test

import (
	"bytes"
	"context"
	"database/sql"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/caddy-auth/caddy-auth/internal/auth"
	"github.com/caddy-auth/caddy-auth/internal/secret"
	"github.com/caddy-auth/caddy-auth/internal/store"
	"github.com/caddy-auth/caddy-auth/internal/store/sqlite"
	"github.com/caddy-auth/caddy-auth/internal/store/storetest"
)

func TestConformance(t *testing.T) {
	dirs := map[string]string{}
	storetest.Run(t, func(t *testing.T, name string) store.Backend {
		id := t.Name() + name
		if dirs[id] == "" {
			dirs[id] = t.TempDir()
		}
		// A path that a careless DSN would misread.
		return sqlite.New(filepath.Join(dirs[id], "a b?c#d%20é", "auth.db"))
	})
}

func create(t *testing.T, path string) *store.DB {
	t.Helper()
	db, err := store.Open(t.Context(), sqlite.New(path), store.Create)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = db.Close() })
	ring, err := secret.NewRing("test", bytes.Repeat([]byte{1}, 32))
	if err != nil {
		t.Fatal(err)
	}
	if err := db.Init(t.Context(), "test", ring, "ca"); err != nil {
		t.Fatal(err)
	}
	return db
}

func TestFileModes(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "new")
	path := filepath.Join(dir, "auth.db")
	create(t, path)
	for name, want := range map[string]os.FileMode{dir: 0o700, path: 0o600, path + "-wal": 0o600, path + "-shm": 0o600} {
		info, err := os.Stat(name)
		if err != nil {
			t.Fatal(err)
		}
		if got := info.Mode().Perm(); got != want {
			t.Errorf("%s has mode %o, want %o", filepath.Base(name), got, want)
		}
	}
	b := sqlite.New(path)
	key, err := b.CreateMasterKey()
	if err != nil {
		t.Fatal(err)
	}
	if again, err := b.CreateMasterKey(); err != nil || !again.Equal(key) {
		t.Errorf("made twice: %v", err)
	}
	if info, err := os.Stat(b.MasterKeyPath()); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("master key file: %v, %v", info, err)
	}
	raw, _ := os.ReadFile(path)
	if bytes.Contains(raw, []byte(strings.TrimSpace(key.Reveal()))) {
		t.Error("the master key lies in the database")
	}
}

func TestCorruptFiles(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "auth.db")
	db := create(t, path)
	if err := db.Close(); err != nil {
		t.Fatal(err)
	}
	good, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	torn := bytes.Clone(good)
	for i := 4096; i < 3*4096; i++ {
		torn[i] = 0xa5
	}
	for name, bad := range map[string][]byte{"text": []byte(strings.Repeat("this is no database ", 500)), "damaged pages": torn, "cut off": good[:len(good)/2]} {
		p := filepath.Join(dir, strings.ReplaceAll(name, " ", "-")+".db")
		if err := os.WriteFile(p, bad, 0o600); err != nil {
			t.Fatal(err)
		}
		_, err := store.Open(t.Context(), sqlite.New(p), store.Create)
		if !errors.Is(err, auth.ErrCorrupt) || !strings.Contains(err.Error(), p) || auth.Hint(err) == "" {
			t.Errorf("%s: %v", name, err)
		}
		if after, _ := os.ReadFile(p); !bytes.Equal(after, bad) {
			t.Errorf("%s: the file was changed", name)
		}
	}
}

func TestNewerSchema(t *testing.T) {
	path := filepath.Join(t.TempDir(), "auth.db")
	db := create(t, path)
	exec := func(q string) {
		t.Helper()
		raw, err := sql.Open("sqlite", path)
		if err != nil {
			t.Fatal(err)
		}
		defer raw.Close()
		if _, err := raw.Exec(q); err != nil {
			t.Fatal(err)
		}
	}
	_ = db.Close()
	// A newer release that only added something: this one goes on.
	exec(`INSERT INTO schema_migrations VALUES (90, 'later', 'x', 1, 0)`)
	ok, err := store.Open(t.Context(), sqlite.New(path), store.Create)
	if err != nil {
		t.Fatalf("an expanded schema: %v", err)
	}
	_ = ok.Close()
	// One that removed something: this one must not touch it.
	exec(`INSERT INTO schema_migrations VALUES (91, 'contract', 'x', 91, 0)`)
	_, err = store.Open(t.Context(), sqlite.New(path), store.Create)
	if !errors.Is(err, auth.ErrTooNew) || !strings.Contains(err.Error(), path) || auth.Hint(err) == "" {
		t.Errorf("a contracted schema: %v", err)
	}
	exec(`DELETE FROM schema_migrations WHERE version >= 90`)
	exec(`UPDATE schema_migrations SET sha256 = 'changed' WHERE version = 1`)
	if _, err := store.Open(t.Context(), sqlite.New(path), store.Create); !errors.Is(err, auth.ErrConflict) {
		t.Errorf("a changed migration: %v", err)
	}
}

func TestPlacesThatWontDo(t *testing.T) {
	dir := t.TempDir()
	_, err := store.Open(t.Context(), sqlite.New(dir), store.Create)
	if !errors.Is(err, auth.ErrInvalid) || !strings.Contains(err.Error(), dir) {
		t.Errorf("a directory: %v", err)
	}
	file := filepath.Join(dir, "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	_, err = store.Open(t.Context(), sqlite.New(filepath.Join(file, "auth.db")), store.Create)
	if !errors.Is(err, auth.ErrInvalid) || !strings.Contains(err.Error(), file) {
		t.Errorf("below a file: %v", err)
	}
	// Root may write anywhere but where the kernel says no.
	_, err = store.Open(t.Context(), sqlite.New("/proc/caddy-auth/auth.db"), store.Create)
	if !errors.Is(err, auth.ErrInvalid) || !strings.Contains(err.Error(), "/proc/caddy-auth") {
		t.Errorf("an unwritable directory: %v", err)
	}
}

func TestMissingMasterKeyNamesTheFile(t *testing.T) {
	b := sqlite.New(filepath.Join(t.TempDir(), "auth.db"))
	_, err := b.MasterKey()
	if !errors.Is(err, auth.ErrNotInitialized) || !strings.Contains(err.Error(), b.MasterKeyPath()) || auth.Hint(err) == "" {
		t.Errorf("%v", err)
	}
	if err := os.WriteFile(b.MasterKeyPath(), []byte("garbage"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := b.MasterKey(); err == nil || !strings.Contains(err.Error(), b.MasterKeyPath()) || strings.Contains(err.Error(), "garbage") {
		t.Errorf("%v", err)
	}
}

func TestReplacedFileIsNoticed(t *testing.T) {
	path := filepath.Join(t.TempDir(), "auth.db")
	db := create(t, path)
	if err := os.Rename(path, path+".old"); err != nil {
		t.Fatal(err)
	}
	if _, err := db.Look(t.Context(), 0); !errors.Is(err, auth.ErrUnavailable) {
		t.Errorf("the file is gone: %v", err)
	}
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := db.Look(t.Context(), 0); !errors.Is(err, auth.ErrReplaced) {
		t.Errorf("another file: %v", err)
	}
}

func TestForeignKeyAndDurability(t *testing.T) {
	db := create(t, filepath.Join(t.TempDir(), "auth.db"))
	err := db.Change(t.Context(), "test", func(tx *store.Tx) error {
		return tx.InsertKey(context.Background(), &auth.Key{ID: "key_1", Owner: "nobody", Meta: map[string]string{}})
	})
	if !errors.Is(err, auth.ErrConflict) {
		t.Errorf("a key without an owner: %v", err)
	}
}
