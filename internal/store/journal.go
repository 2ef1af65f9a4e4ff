package store

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"time"

	"github.com/caddy-auth/caddy-auth/internal/auth"
)

// Kinds of changes in the journal.
const (
	ChangeKeyCreate     = "key.create"
	ChangeKeyImport     = "key.import"
	ChangeKeyRotate     = "key.rotate"
	ChangeKeyRevoke     = "key.revoke"
	ChangeKeyEdit       = "key.edit"
	ChangeKeyDisable    = "key.disable"
	ChangeKeyEnable     = "key.enable"
	ChangeOwner         = "owner"
	ChangeTokenRevoke   = "token.revoke" // of another issuer: see CutOffs
	ChangeClientCreate  = "client.create"
	ChangeClientEdit    = "client.edit"
	ChangeClientRotate  = "client.rotate"
	ChangeClientRevoke  = "client.revoke"
	ChangeClientDisable = "client.disable"
	ChangeClientEnable  = "client.enable"
	ChangeOwnToken      = "token.end" // of our own: it was revoked
	ChangeSession       = "session.end"
	ChangeAssertionKeys = "assertion_keys" // gateways read them again
	ChangeMoved         = "store.moved"    // nothing is changed here any more
	ChangeUnmoved       = "store.unmoved"  // they are again
	ChangeSecrets       = "secrets"        // prefixes or minting secrets: gateways read them again
)

// Look is what a gateway learns from one look at the journal, read in one
// snapshot.
type Look struct {
	Epoch auth.Epoch
	// First and Head are the oldest and the newest row's sequence.
	First, Head int64
	// AtCursor is the id of the row at the cursor; AtCursorOK is false if
	// there is no such row.
	AtCursor   auth.RowID
	AtCursorOK bool
	// Rows are the rows above the cursor, oldest first, at most MaxLookRows.
	Rows []auth.Change
}

// MaxLookRows bounds how much one look reads.
const MaxLookRows = 1000

const queryRows = `SELECT seq, id, at, kind, fingerprints, parent_kind, parent_name FROM journal `

// Look reads the journal above cursor. It returns auth.ErrReplaced if the
// database was exchanged under the gateway: Reopen, then start as at boot.
func (d *DB) Look(ctx context.Context, cursor int64) (Look, error) {
	var l Look
	c := d.current()
	if c.Current != nil {
		if err := c.Current(); err != nil {
			return l, fmt.Errorf("looking at %s: %w", d.Describe(), err)
		}
	}
	err := d.snapshot(ctx, c.Fresh, func(tx *sql.Tx) error {
		if err := scanHead(tx.QueryRowContext(ctx, queryHead), &l.Epoch, &l.Head, nil); err != nil {
			return err
		}
		if err := tx.QueryRowContext(ctx, `SELECT MIN(seq) FROM journal`).Scan(&l.First); err != nil {
			return err
		}
		var id []byte
		switch err := tx.QueryRowContext(ctx, `SELECT id FROM journal WHERE seq = $1`, cursor).Scan(&id); {
		case err == nil:
			l.AtCursorOK = copy(l.AtCursor[:], id) == len(l.AtCursor)
		case !errors.Is(err, sql.ErrNoRows):
			return err
		}
		var err error
		l.Rows, err = readRows(ctx, tx, queryRows+`WHERE seq > $1 ORDER BY seq LIMIT $2`, cursor, MaxLookRows)
		return err
	})
	return l, d.wrap("looking at the journal", err)
}

// Tail reads, in one snapshot, the epoch and the journal's rows from the one
// that was the head at since (unix milliseconds) on.
func (d *DB) Tail(ctx context.Context, since int64) (auth.Epoch, []auth.Change, error) {
	var epoch auth.Epoch
	var rows []auth.Change
	c := d.current()
	if c.Current != nil {
		if err := c.Current(); err != nil {
			return epoch, nil, fmt.Errorf("looking at %s: %w", d.Describe(), err)
		}
	}
	err := d.snapshot(ctx, c.Fresh, func(tx *sql.Tx) error {
		var head int64
		if err := scanHead(tx.QueryRowContext(ctx, queryHead), &epoch, &head, nil); err != nil {
			return err
		}
		var err error
		rows, err = readRows(ctx, tx, queryRows+`WHERE seq >= COALESCE((SELECT MAX(seq) FROM journal WHERE at < $1), 0) ORDER BY seq`, since)
		return err
	})
	return epoch, rows, d.wrap("reading the journal's tail", err)
}

// NewEpoch replaces the epoch, unless another gateway already did.
func (d *DB) NewEpoch(ctx context.Context, old, next auth.Epoch) error {
	return d.Change(ctx, "gateway", func(tx *Tx) error {
		if err := tx.exec(ctx, "writing a new epoch", `UPDATE store_meta SET value = $1 WHERE name = 'epoch' AND value = $2`, next[:], old[:]); err != nil {
			return err
		}
		if err := tx.Journal(ctx, "epoch", nil, auth.Parent{}); err != nil {
			return err
		}
		return tx.Audit(ctx, "store.epoch", "store", map[string]any{"old": old.String()})
	})
}

// PruneJournal removes rows that are older than kept by the store's clock,
// never the newest.
func (d *DB) PruneJournal(ctx context.Context, kept time.Duration) error {
	return d.wrap("pruning the journal", d.write(ctx, d.current(), func(tx *sql.Tx, now int64) error {
		_, err := tx.ExecContext(ctx, `DELETE FROM journal WHERE at < $1 AND seq < (SELECT MAX(seq) FROM journal)`, now-kept.Milliseconds())
		return err
	}))
}

const queryHead = `SELECT m.value, j.seq, j.id FROM store_meta m, (SELECT seq, id FROM journal ORDER BY seq DESC LIMIT 1) j WHERE m.name = 'epoch'`

func scanHead(row *sql.Row, epoch *auth.Epoch, seq *int64, id *auth.RowID) error {
	var e, r []byte
	if err := row.Scan(&e, seq, &r); err != nil {
		if errors.Is(err, sql.ErrNoRows) {
			return auth.ErrNotInitialized
		}
		return err
	}
	if id != nil {
		copy(id[:], r)
	}
	copy(epoch[:], e)
	return nil
}

func readRows(ctx context.Context, tx *sql.Tx, query string, args ...any) ([]auth.Change, error) {
	rows, err := tx.QueryContext(ctx, query, args...)
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	var out []auth.Change
	for rows.Next() {
		var c auth.Change
		var id, fps []byte
		if err := rows.Scan(&c.Seq, &id, &c.At, &c.Kind, &fps, &c.Parent.Kind, &c.Parent.Name); err != nil {
			return nil, err
		}
		if len(id) != len(c.Row) || len(fps)%len(auth.Fingerprint{}) != 0 {
			return nil, fmt.Errorf("journal row %d: %w", c.Seq, auth.ErrCorrupt)
		}
		copy(c.Row[:], id)
		for ; len(fps) > 0; fps = fps[len(auth.Fingerprint{}):] {
			c.Fingerprints = append(c.Fingerprints, auth.Fingerprint(fps[:len(auth.Fingerprint{})]))
		}
		out = append(out, c)
	}
	return out, rows.Err()
}

// snapshot runs read in one read-only transaction.
func (d *DB) snapshot(ctx context.Context, db *sql.DB, read func(*sql.Tx) error) error {
	tx, err := d.backend.BeginRead(ctx, db)
	if err != nil {
		return err
	}
	defer func() { _ = tx.Rollback() }() // it only read
	return read(tx)
}
