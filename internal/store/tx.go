package store

import (
	"context"
	"crypto/rand"
	"database/sql"
	"errors"
	"fmt"

	"github.com/caddy-auth/caddy-auth/internal/auth"
)

// Tx is one change. Its time is frozen when it begins. It commits only with
// both a journal row and an audit row, if it changed anything.
type Tx struct {
	d         *DB
	tx        *sql.Tx
	actor     string
	now       int64
	wrote     auth.Point // the last journal row
	changed   bool
	journaled bool
	audited   bool
}

// Change runs one change in a write transaction and commits it, or rolls all
// of it back if change returns an error.
func (d *DB) Change(ctx context.Context, actor string, change func(*Tx) error) error {
	return d.change(ctx, actor, d.checkMoved, change)
}

// change is Change if may, asked under the writer's lock, has nothing against it.
func (d *DB) change(ctx context.Context, actor string, may func(context.Context, *sql.Tx) error, change func(*Tx) error) error {
	sqlTx, err := d.backend.BeginWrite(ctx, d.current().Write)
	if err != nil {
		return d.wrap("beginning a change", err)
	}
	defer func() { _ = sqlTx.Rollback() }() // after a commit it does nothing
	if err := may(ctx, sqlTx); err != nil {
		return d.wrap("beginning a change", err)
	}
	now, err := d.backend.Now(ctx, sqlTx)
	if err != nil {
		return d.wrap("reading the store's clock", err)
	}
	tx := &Tx{d: d, tx: sqlTx, actor: actor, now: now}
	if err := change(tx); err != nil {
		return err
	}
	if !tx.changed {
		return nil
	}
	if !tx.journaled || !tx.audited {
		return errors.New("a change without a journal row and an audit row was not committed")
	}
	err = d.wrap("committing a change", sqlTx.Commit())
	if errors.Is(err, auth.ErrUnavailable) && !errors.Is(err, auth.ErrNotWritable) {
		return auth.WithHint(err, "the change may have been made all the same: look before it is made again")
	}
	return err
}

// Written is the journal row that the change wrote; false if it wrote none. It
// holds once Change has returned without an error.
func (tx *Tx) Written() (auth.Point, bool) { return tx.wrote, tx.wrote.Seq != 0 }

// Now is the transaction's time by the store's clock, in unix milliseconds.
func (tx *Tx) Now() int64 { return tx.now }

func (tx *Tx) exec(ctx context.Context, doing, query string, args ...any) error {
	tx.changed = true
	_, err := tx.tx.ExecContext(ctx, query, args...)
	return tx.d.wrap(doing, err)
}

func (tx *Tx) queryRow(ctx context.Context, query string, args ...any) *sql.Row {
	return tx.tx.QueryRowContext(ctx, query, args...)
}

// Journal writes the change's journal row: the credentials or the parent that
// it concerns.
func (tx *Tx) Journal(ctx context.Context, kind string, fps []auth.Fingerprint, parent auth.Parent) error {
	var id auth.RowID
	if _, err := rand.Read(id[:]); err != nil {
		return fmt.Errorf("reading random bytes: %w", err)
	}
	packed := make([]byte, 0, len(fps)*len(auth.Fingerprint{}))
	for _, fp := range fps {
		packed = append(packed, fp[:]...)
	}
	tx.journaled, tx.changed = true, true
	err := tx.queryRow(ctx, `INSERT INTO journal (id, at, kind, fingerprints, parent_kind, parent_name) VALUES ($1, $2, $3, $4, $5, $6) RETURNING seq`,
		id[:], tx.now, kind, packed, string(parent.Kind), parent.Name).Scan(&tx.wrote.Seq)
	if err != nil {
		return tx.d.wrap("writing the journal", err)
	}
	tx.wrote.Row = id
	var epoch []byte
	if err := tx.queryRow(ctx, `SELECT value FROM store_meta WHERE name = 'epoch'`).Scan(&epoch); err != nil {
		return tx.d.wrap("reading the store's epoch", err)
	}
	copy(tx.wrote.Epoch[:], epoch)
	return nil
}
