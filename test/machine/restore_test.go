package machine

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/caddy-auth/caddy-auth/internal/auth"
	"github.com/caddy-auth/caddy-auth/internal/store"
	"github.com/caddy-auth/caddy-auth/internal/store/sqlite"
)

// backup copies the store and returns the file.
func (w *world) backup() string {
	w.t.Helper()
	w.backups++
	path := filepath.Join(filepath.Dir(w.path), fmt.Sprintf("backup-%d", w.backups))
	w.must(sqlite.New(w.path).Backup(w.t.Context(), path))
	return path
}

// restore puts a backup in place as store restore does, or, with the epoch of
// before, as somebody does who knows no better.
func (w *world) restore(backup string, sameEpoch bool) {
	w.t.Helper()
	ctx := w.t.Context()
	b := sqlite.New(w.path)
	staged, err := b.Stage(ctx, backup)
	w.must(err)
	if !sameEpoch {
		db, err := store.Open(ctx, staged, store.Existing)
		w.must(err)
		w.must(db.Renew(ctx))
		w.must(db.Close())
	}
	w.backups++
	_, err = b.Replace(ctx, staged, fmt.Sprint(w.backups), func() error { return nil })
	w.must(err)
	w.must(staged.Discard())
	w.ops = w.operator()
}

// exchange puts another file in the database's place.
func (w *world) exchange(with string) {
	w.t.Helper()
	for _, suffix := range []string{"-wal", "-shm"} {
		if err := os.Remove(w.path + suffix); err != nil && !errors.Is(err, fs.ErrNotExist) {
			w.t.Fatal(err)
		}
	}
	w.must(os.Rename(with, w.path))
}

// reopen gives the operator what is there now.
func (w *world) reopen() {
	w.t.Helper()
	w.must(w.db.Reopen(w.t.Context()))
	w.ops = w.operator()
}

// TestRow_FileExchanged: a gateway recovers by itself from whatever is done to
// the file, and lets nobody in meanwhile that the new one does not know.
func TestRow_FileExchanged(t *testing.T) {
	for name, meanwhile := range map[string]func(w *world, a *node){
		"at once": func(*world, *node) {},
		"it is gone for longer than max_staleness": func(w *world, a *node) {
			w.must(os.Rename(w.path, w.path+".old"))
			for range 10 {
				time.Sleep(maxStaleness / 5)
				_ = a.try()
			}
		},
		"it is seen half copied": func(w *world, a *node) {
			w.must(os.Rename(w.path, w.path+".old"))
			w.must(os.WriteFile(w.path, nil, 0o600))
			for range 3 {
				if a.try() == nil {
					w.t.Error("a good look at half a file")
				}
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			run(t, 1, func(t *testing.T, w *world) {
				a, k := w.nodes[0], w.create("acme", 0)
				a.look()
				backup := w.backup()
				late := w.create("acme", 0)
				a.look()
				wantVerdict(t, a.verify(late), auth.Allow, "before")
				meanwhile(w, a)
				w.exchange(backup)
				w.reopen()
				for range 3 { // it may take more than one
					_ = a.try()
				}
				wantVerdict(t, a.verify(k), auth.Allow, "a key of the backup")
				wantVerdict(t, a.verify(late), auth.Deny, "a key that the backup does not know")
				w.revoke(k)
				wantMissing(t, w, a, "it follows the new file")
				a.look()
				a.do(func() { w.must(a.follower.Beat(t.Context())) })
				wantAcknowledged(t, w, 1, "after a look")
				wantVerdict(t, a.verify(k), auth.Deny, "revoked")
			})
		})
	}
}

// try looks without stopping, and may fail.
func (n *node) try() (err error) {
	n.do(func() { err = n.follower.Look(n.w.t.Context()) })
	return err
}
