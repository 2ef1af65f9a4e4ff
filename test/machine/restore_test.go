package machine

import (
	"fmt"
	"path/filepath"

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
