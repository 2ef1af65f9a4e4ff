package store

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"database/sql"
	"encoding/hex"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/caddy-auth/caddy-auth/internal/auth"
)

const (
	// copyChunk is how many rows are compared at a time.
	copyChunk = 2000

	metaCopying = "copying" // in a copy that is not finished: the store's id, then the run's
	metaMoved   = "moved"   // in a source that was copied: where to
)

// Tally is what a table came to: how many rows there are on both sides, and
// the SHA-256 of them all.
type Tally struct {
	Table  string
	Rows   int64
	SHA256 string
}

// Progress is told how far a copy is.
type Progress func(stage, table string, done, total int64)

// Copy makes to, an empty store or one that an earlier Copy began, the same as
// from, and compares all of it. With finish it then ends changes at from for
// good: from is marked as moved, and nobody can change it from the moment of
// the last comparison on, which is made under its lock. Without, to stays a
// copy that nobody can use, and Copy can be run again to go on.
func Copy(ctx context.Context, from, to *DB, actor string, finish bool, progress Progress) ([]Tally, error) {
	c := &copier{from: from, to: to, progress: progress}
	if err := c.prepare(ctx, finish); err != nil {
		return nil, err
	}
	tallies, err := c.copySnapshot(ctx)
	if err != nil || !finish {
		return tallies, err
	}
	if !c.frozen {
		err = from.Change(ctx, actor, func(tx *Tx) error {
			if tallies, err = c.tables(ctx, "comparing, changes wait", tx.tx); err != nil {
				return err
			}
			return c.mark(ctx, tx)
		})
		if err != nil {
			return nil, err
		}
	}
	return tallies, c.open(ctx, actor)
}

type copier struct {
	from, to *DB
	id       []byte // of the store
	run      []byte // what marks the copy as this run's
	frozen   bool   // the source is marked: a copy was interrupted at its end
	total    int64  // rows of the source
	progress Progress
}

// prepare checks both sides and marks the copy as one that is not finished.
func (c *copier) prepare(ctx context.Context, finish bool) error {
	var err error
	if c.id, err = c.from.ID(ctx); err != nil {
		return err
	}
	moved, err := c.from.meta(ctx, metaMoved)
	if err != nil {
		return err
	}
	epoch, err := c.to.meta(ctx, "epoch")
	if err != nil {
		return err
	}
	began, err := c.to.meta(ctx, metaCopying)
	if err != nil {
		return err
	}
	switch c.frozen = moved != nil; {
	case epoch != nil:
		return c.alreadyStore(ctx)
	case began != nil && !bytes.HasPrefix(began, c.id):
		return auth.WithHint(fmt.Errorf("%s holds part of a copy of another store: %w", c.to.Describe(), auth.ErrConflict), "empty it first")
	case c.frozen && began == nil:
		return movedError(c.from.Describe(), string(moved))
	case c.frozen && !finish:
		return auth.WithHint(fmt.Errorf("the move of %s has begun: %w", c.from.Describe(), auth.ErrConflict), "run it again without --prepare")
	}
	if c.run, err = c.to.begin(ctx, c.id); err != nil {
		return err
	}
	for _, t := range copied {
		var n int64
		if err := c.from.current().Read.QueryRowContext(ctx, "SELECT COUNT(*) FROM "+t.name).Scan(&n); err != nil {
			return c.from.wrap("counting "+t.name, err)
		}
		c.total += n
	}
	return nil
}

// alreadyStore says why a copy can't go to a store that is complete.
func (c *copier) alreadyStore(ctx context.Context) error {
	have, err := c.to.ID(ctx)
	if err != nil {
		return err
	}
	if c.frozen && bytes.Equal(have, c.id) {
		return fmt.Errorf("%s was copied to %s already, and is complete: %w", c.from.Describe(), c.to.Describe(), auth.ErrConflict)
	}
	return auth.WithHint(fmt.Errorf("%s is a store already: %w", c.to.Describe(), auth.ErrConflict), "copy to an empty database, or to a file that is not there")
}

// copySnapshot copies the source as it is now, in one snapshot, so that no row
// refers to one that came later.
func (c *copier) copySnapshot(ctx context.Context) ([]Tally, error) {
	tx, err := c.from.backend.BeginRead(ctx, c.from.current().Read)
	if err != nil {
		return nil, c.from.wrap("reading the store", err)
	}
	defer func() { _ = tx.Rollback() }() // it only read
	return c.tables(ctx, "copying", tx)
}

// tables makes every table the same as it is in the source, as src sees it.
func (c *copier) tables(ctx context.Context, stage string, src querier) ([]Tally, error) {
	var done int64
	var out []Tally
	for _, t := range copied {
		sum := sha256.New()
		tally := Tally{Table: t.name}
		var after, upTo []any // the primary key of the last row done
		for last := false; !last; after = upTo {
			rows, err := c.from.chunk(ctx, src, t, after, nil)
			if err != nil {
				return nil, err
			}
			if last = len(rows) < copyChunk; last {
				upTo = nil
			} else {
				upTo = rows[len(rows)-1][:t.keys]
			}
			if err := c.match(ctx, t, rows, after, upTo); err != nil {
				return nil, err
			}
			for _, r := range rows {
				writeRow(sum, r)
			}
			tally.Rows += int64(len(rows))
			done += int64(len(rows))
			c.progress(stage, t.name, done, max(c.total, done))
		}
		tally.SHA256 = hex.EncodeToString(sum.Sum(nil))
		out = append(out, tally)
	}
	return out, nil
}

// match makes the rows of the copy above after and up to upTo (nil: no end) the
// same as want, and reads them again if it had to change any.
func (c *copier) match(ctx context.Context, t table, want [][]any, after, upTo []any) error {
	for try := 0; ; try++ {
		have, err := c.to.between(ctx, t, after, upTo)
		if err != nil {
			return err
		}
		write, remove := compare(t, want, have)
		if len(write)+len(remove) == 0 {
			return nil
		}
		if try > 0 {
			return fmt.Errorf("%d rows of %s in %s are not what was written there: %w", len(write)+len(remove), t.name, c.to.Describe(), auth.ErrCorrupt)
		}
		if err := c.put(ctx, t, write, remove); err != nil {
			return err
		}
	}
}

// put writes and removes rows of a copy in one transaction. It takes no lock
// that the source may share: nobody but this run may write to the copy.
func (c *copier) put(ctx context.Context, t table, write, remove [][]any) error {
	d := c.to
	tx, err := d.backend.BeginNote(ctx, d.current().Note)
	if err != nil {
		return d.wrap("beginning to write "+t.name, err)
	}
	defer func() { _ = tx.Rollback() }() // after a commit it does nothing
	if err := c.mine(ctx, tx); err != nil {
		return d.wrap("writing "+t.name, err)
	}
	for _, r := range remove {
		var where []string
		for i, column := range t.columns[:t.keys] {
			where = append(where, fmt.Sprintf("%s = $%d", column, i+1))
		}
		if _, err := tx.ExecContext(ctx, "DELETE FROM "+t.name+" WHERE "+strings.Join(where, " AND "), r[:t.keys]...); err != nil {
			return d.wrap("removing from "+t.name, err)
		}
	}
	if err := d.insertRows(ctx, tx, t, write); err != nil {
		return d.wrap("writing "+t.name, err)
	}
	return d.wrap("writing "+t.name, tx.Commit())
}

// mark ends changes at the source, in the transaction under whose lock it was
// compared. Its journal row tells the gateways.
func (c *copier) mark(ctx context.Context, tx *Tx) error {
	if err := tx.exec(ctx, "marking the store as moved", `INSERT INTO store_meta (name, value) VALUES ($1, $2)`, metaMoved, []byte(c.to.Describe())); err != nil {
		return err
	}
	return errors.Join(tx.Journal(ctx, ChangeMoved, nil, auth.Parent{}), tx.Audit(ctx, "store.moved", "store", map[string]any{"to": c.to.Describe()}))
}

// open makes a complete copy a store: it gets the source's id and epoch, and
// knows the gateways that still follow the source, so that whoever changes
// something here waits for them.
func (c *copier) open(ctx context.Context, actor string) error {
	epoch, err := c.from.meta(ctx, "epoch")
	if err != nil {
		return err
	}
	fleet, err := c.from.Fleet(ctx, auth.Point{})
	if err != nil {
		return err
	}
	return c.to.Change(ctx, actor, func(tx *Tx) error {
		if err := c.mine(ctx, tx.tx); err != nil {
			return c.to.wrap("ending the copy", err)
		}
		if err := c.to.backend.Renumber(ctx, tx.tx); err != nil {
			return c.to.wrap("going on with the numbers", err)
		}
		for name, value := range map[string][]byte{"store_id": c.id, "epoch": epoch} {
			if err := tx.exec(ctx, "writing the store's "+name, `INSERT INTO store_meta (name, value) VALUES ($1, $2)`, name, value); err != nil {
				return err
			}
		}
		if err := tx.exec(ctx, "ending the copy", `DELETE FROM store_meta WHERE name = $1`, metaCopying); err != nil {
			return err
		}
		for _, m := range fleet.Members {
			ago := fleet.Now - m.HeartbeatAt // the two clocks may differ
			if err := tx.exec(ctx, "writing the nodes", queryBeat, m.ID, m.Name, m.Version, tx.now-ago, m.MaxStaleness.Milliseconds(), m.Seq, m.Row[:]); err != nil {
				return err
			}
		}
		return errors.Join(tx.Journal(ctx, "store.copied", nil, auth.Parent{}), tx.Audit(ctx, "store.copied", "store", map[string]any{"from": c.from.Describe()}))
	})
}

// mine makes sure, until the transaction ends, that the copy is still this
// run's: another may have gone on with it, or have made it a store.
func (c *copier) mine(ctx context.Context, tx *sql.Tx) error {
	res, err := tx.ExecContext(ctx, `UPDATE store_meta SET value = $1 WHERE name = $2 AND value = $1`, c.run, metaCopying)
	if err != nil {
		return err
	}
	if n, err := res.RowsAffected(); err != nil || n != 1 {
		return errors.Join(err, fmt.Errorf("another run of the copy has taken over: %w", auth.ErrConflict))
	}
	return nil
}

// begin marks an empty store, or a copy that an earlier run left, as the copy
// of a new run, which it returns. A store that somebody made meanwhile is
// auth.ErrConflict.
func (d *DB) begin(ctx context.Context, id []byte) (run []byte, err error) {
	var random [16]byte
	if _, err := rand.Read(random[:]); err != nil {
		return nil, fmt.Errorf("reading random bytes: %w", err)
	}
	run = slices.Concat(id, random[:])
	return run, d.wrap("beginning the copy", d.write(ctx, d.current(), func(tx *sql.Tx, _ int64) error {
		var n int
		if err := tx.QueryRowContext(ctx, `SELECT COUNT(*) FROM store_meta WHERE name <> $1`, metaCopying).Scan(&n); err != nil {
			return err
		}
		if n > 0 {
			return fmt.Errorf("somebody else has just begun to use it: %w", auth.ErrConflict)
		}
		_, err := tx.ExecContext(ctx, `INSERT INTO store_meta (name, value) VALUES ($1, $2) ON CONFLICT (name) DO UPDATE SET value = $2`, metaCopying, run)
		return err
	}))
}
