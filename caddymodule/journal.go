package caddymodule

import (
	"context"
	"fmt"

	"go.uber.org/zap"

	"github.com/caddy-auth/caddy-auth/internal/auth"
	"github.com/caddy-auth/caddy-auth/internal/feed"
	"github.com/caddy-auth/caddy-auth/internal/store"
)

// journal is the store as the follower sees it.
type journal struct{ rt *runtime }

func (j journal) open() (*store.DB, error) { return j.rt.openDB() }

func (rt *runtime) openDB() (*store.DB, error) {
	if db := rt.db.Load(); db != nil {
		return db, nil
	}
	return nil, fmt.Errorf("the store is not open: %w", auth.ErrUnavailable)
}

// LookupKey implements verifier.Keys, as the next three do.
func (rt *runtime) LookupKey(ctx context.Context, fp auth.Fingerprint) (l store.Loaded, err error) {
	db, err := rt.openDB()
	if err != nil {
		return l, err
	}
	return db.LookupKey(ctx, fp)
}

// LookupToken reads a token of our own.
func (rt *runtime) LookupToken(ctx context.Context, fp auth.Fingerprint) (l store.LoadedToken, err error) {
	db, err := rt.openDB()
	if err != nil {
		return l, err
	}
	return db.LookupToken(ctx, fp)
}

// LookupSecret reads a client by one of its secrets.
func (rt *runtime) LookupSecret(ctx context.Context, fp auth.Fingerprint) (l store.LoadedClient, err error) {
	db, err := rt.openDB()
	if err != nil {
		return l, err
	}
	return db.LookupSecret(ctx, fp)
}

// LookupSession implements verifier.Keys.
func (rt *runtime) LookupSession(ctx context.Context, fp auth.Fingerprint) (l store.LoadedSession, err error) {
	db, err := rt.openDB()
	if err != nil {
		return l, err
	}
	return db.LookupSession(ctx, fp)
}

// LookupClient reads a client by its id.
func (rt *runtime) LookupClient(ctx context.Context, id string) (l store.LoadedClient, err error) {
	db, err := rt.openDB()
	if err != nil {
		return l, err
	}
	return db.LookupClient(ctx, id)
}

// Look implements feed.Journal.
func (j journal) Look(ctx context.Context, cursor int64) (feed.Look, error) {
	db, err := j.open()
	if err != nil {
		return feed.Look{}, err
	}
	l, err := db.Look(ctx, cursor)
	return feed.Look{
		Epoch: l.Epoch, First: l.First, Head: l.Head, AtCursor: l.AtCursor, AtCursorOK: l.AtCursorOK,
		Rows: l.Rows, More: len(l.Rows) == store.MaxLookRows,
	}, err
}

// Tail implements feed.Journal.
func (j journal) Tail(ctx context.Context, since int64) (auth.Epoch, []auth.Change, error) {
	db, err := j.open()
	if err != nil {
		return auth.Epoch{}, nil, err
	}
	return db.Tail(ctx, since)
}

// NewEpoch implements feed.Journal.
func (j journal) NewEpoch(ctx context.Context, old, next auth.Epoch) error {
	db, err := j.open()
	if err != nil {
		return err
	}
	return db.NewEpoch(ctx, old, next)
}

// Reopen implements feed.Journal.
func (j journal) Reopen(ctx context.Context) error {
	db, err := j.open()
	if err != nil {
		return err
	}
	if err := db.Reopen(ctx); err != nil {
		return err
	}
	if err := db.Warm(ctx); err != nil { // they are opened as they are needed
		j.rt.logger().Warn("not all connections to the store could be opened", zap.Error(hinted(err)))
	}
	return nil
}

// Beat implements feed.Journal.
func (j journal) Beat(ctx context.Context, n auth.Node) error {
	db, err := j.open()
	if err != nil {
		return err
	}
	return db.Beat(ctx, n)
}
