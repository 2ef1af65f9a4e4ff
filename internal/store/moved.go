package store

import (
	"context"
	"database/sql"
	"errors"
	"fmt"

	"github.com/caddy-auth/caddy-auth/internal/auth"
)

// Abandon makes sure that a copy of the store with an id, which is not finished,
// never becomes a store by a run that is under way. One that is a store already
// is auth.ErrConflict.
func Abandon(ctx context.Context, d *DB, id []byte) error {
	_, err := d.begin(ctx, id)
	return err
}

// MovedTo is where a store was moved to; empty: nowhere.
func (d *DB) MovedTo(ctx context.Context) (string, error) {
	to, err := d.meta(ctx, metaMoved)
	return string(to), err
}

// Unmove takes changes again at a store that was moved. Whoever calls it has
// abandoned the copy, or knows that it is lost.
func Unmove(ctx context.Context, d *DB, actor string) error {
	allowed := func(context.Context, *sql.Tx) error { return nil }
	return d.change(ctx, actor, allowed, func(tx *Tx) error {
		var to []byte
		if err := tx.queryRow(ctx, `SELECT value FROM store_meta WHERE name = $1`, metaMoved).Scan(&to); err != nil {
			if errors.Is(err, sql.ErrNoRows) {
				return fmt.Errorf("%s was not moved: %w", d.Describe(), auth.ErrConflict)
			}
			return d.wrap("reading the store's "+metaMoved, err)
		}
		if err := tx.exec(ctx, "opening the store again", `DELETE FROM store_meta WHERE name = $1`, metaMoved); err != nil {
			return err
		}
		return errors.Join(tx.Journal(ctx, ChangeUnmoved, nil, auth.Parent{}), tx.Audit(ctx, "store.unmoved", "store", map[string]any{"from": string(to)}))
	})
}

// meta reads a fact about the store; nil: there is none.
func (d *DB) meta(ctx context.Context, name string) ([]byte, error) {
	var value []byte
	err := d.current().Read.QueryRowContext(ctx, `SELECT value FROM store_meta WHERE name = $1`, name).Scan(&value)
	if errors.Is(err, sql.ErrNoRows) {
		return nil, nil
	}
	return value, d.wrap("reading the store's "+name, err)
}

// movedError says where a store has gone.
func movedError(store, to string) error {
	return auth.WithHint(fmt.Errorf("%s was moved to %s: %w", store, to, auth.ErrMoved), "name the new store in the configuration, and reload every gateway")
}

// checkMoved refuses writes to a store that was moved. It is asked under the
// lock of whoever wants to write.
func (d *DB) checkMoved(ctx context.Context, tx *sql.Tx) error {
	var to []byte
	switch err := tx.QueryRowContext(ctx, `SELECT value FROM store_meta WHERE name = $1`, metaMoved).Scan(&to); {
	case errors.Is(err, sql.ErrNoRows):
		return nil
	case err != nil:
		return err
	}
	return movedError(d.Describe(), string(to))
}

// Usable says why a store that is open must not be used: it was moved, or it
// is a copy that is not finished.
func (d *DB) Usable(ctx context.Context) error {
	moved, err := d.meta(ctx, metaMoved)
	if err != nil {
		return err
	}
	if moved != nil {
		return movedError(d.Describe(), string(moved))
	}
	began, err := d.meta(ctx, metaCopying)
	if err != nil || began == nil {
		return err
	}
	return auth.WithHint(fmt.Errorf("%s is a copy that is not finished: %w", d.Describe(), auth.ErrConflict), "run store copy again: it goes on where it ended")
}
