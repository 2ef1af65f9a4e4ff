package store

import (
	"context"
	"database/sql"
	"fmt"
	"time"

	"github.com/caddy-auth/caddy-auth/internal/auth"
)

// nodeKept is how long a gateway that fell silent stays in the list.
const nodeKept = 24 * time.Hour

const queryBeat = `INSERT INTO nodes (id, name, version, started_at, heartbeat_at, max_staleness, seq, row)
	VALUES ($1, $2, $3, $4, $4, $5, $6, $7)
	ON CONFLICT (id) DO UPDATE SET version = $3, heartbeat_at = $4, max_staleness = $5, seq = $6, row = $7`

// Beat writes that a gateway is there and what it has applied. Its times are
// the store's clock. Errors: auth.ErrReplaced if the store was exchanged,
// auth.ErrNotWritable with auth.ErrUnavailable if it is full or read-only.
func (d *DB) Beat(ctx context.Context, n auth.Node) error {
	c := d.current()
	if c.Current != nil {
		if err := c.Current(); err != nil {
			return fmt.Errorf("writing a heartbeat to %s: %w", d.Describe(), err)
		}
	}
	err := d.note(ctx, c, func(tx *sql.Tx, now int64) error {
		_, err := tx.ExecContext(ctx, queryBeat, n.ID, n.Name, n.Version, now, n.MaxStaleness.Milliseconds(), n.Seq, n.Row[:])
		return err
	})
	return d.wrap("writing a heartbeat", err)
}

// Leave removes a gateway that has ended, so that nobody waits for it.
func (d *DB) Leave(ctx context.Context, id string) error {
	return d.wrap("removing a node", d.note(ctx, d.current(), func(tx *sql.Tx, _ int64) error {
		_, err := tx.ExecContext(ctx, `DELETE FROM nodes WHERE id = $1`, id)
		return err
	}))
}

// PruneNodes removes gateways that fell silent long ago.
func (d *DB) PruneNodes(ctx context.Context) error {
	return d.wrap("removing silent nodes", d.note(ctx, d.current(), func(tx *sql.Tx, now int64) error {
		_, err := tx.ExecContext(ctx, `DELETE FROM nodes WHERE heartbeat_at + max_staleness < $1`, now-nodeKept.Milliseconds())
		return err
	}))
}

// note runs a small write that needs no order; see write.
func (d *DB) note(ctx context.Context, c *Conns, do func(tx *sql.Tx, now int64) error) error {
	tx, err := d.backend.BeginNote(ctx, c.Note)
	if err != nil {
		return err
	}
	return d.finish(ctx, tx, do)
}

// write runs a small write that is no change in the sense of the journal, with
// the time by the store's clock.
func (d *DB) write(ctx context.Context, c *Conns, do func(tx *sql.Tx, now int64) error) error {
	tx, err := d.backend.BeginWrite(ctx, c.Write)
	if err != nil {
		return err
	}
	return d.finish(ctx, tx, do)
}

func (d *DB) finish(ctx context.Context, tx *sql.Tx, do func(tx *sql.Tx, now int64) error) error {
	defer func() { _ = tx.Rollback() }() // after a commit it does nothing
	if err := d.checkMoved(ctx, tx); err != nil {
		return err
	}
	now, err := d.backend.Now(ctx, tx)
	if err != nil {
		return err
	}
	if err := do(tx, now); err != nil {
		return err
	}
	return tx.Commit()
}

// Member is a gateway and how far it has come.
type Member struct {
	auth.Node
	// Known says that the journal's row at Seq is the one that was applied. If
	// not, the acknowledgement is of a history that was undone.
	Known bool
}

// Applied reports whether the gateway has applied the row at seq of the
// present history.
func (m *Member) Applied(seq int64) bool { return m.Known && m.Seq >= seq }

// Fleet is who follows the store, with the journal in the same snapshot.
type Fleet struct {
	Now     int64      // by the store's clock, unix milliseconds
	Head    auth.Point // the newest row
	There   bool       // whether the row that was asked for is in the journal
	Members []Member   // by the time they started
}

// Fleet reads who follows the store, and whether the row of p is still in its
// journal.
func (d *DB) Fleet(ctx context.Context, p auth.Point) (Fleet, error) {
	var f Fleet
	c := d.current()
	if c.Current != nil {
		if err := c.Current(); err != nil {
			return f, fmt.Errorf("reading the nodes of %s: %w", d.Describe(), err)
		}
	}
	err := d.snapshot(ctx, c.Fresh, func(tx *sql.Tx) error {
		var err error
		if f.Now, err = d.backend.Now(ctx, tx); err != nil {
			return err
		}
		if err := scanHead(tx.QueryRowContext(ctx, queryHead), &f.Head.Epoch, &f.Head.Seq, &f.Head.Row); err != nil {
			return err
		}
		var n int
		if err := tx.QueryRowContext(ctx, `SELECT COUNT(*) FROM journal WHERE seq = $1 AND id = $2`, p.Seq, p.Row[:]).Scan(&n); err != nil {
			return err
		}
		f.There = n == 1
		return f.readMembers(ctx, tx)
	})
	return f, d.wrap("reading the nodes", err)
}

// Behind counts the journal rows above seq.
func (d *DB) Behind(ctx context.Context, seq int64) (int64, error) {
	var n int64
	err := d.current().Read.QueryRowContext(ctx, `SELECT COUNT(*) FROM journal WHERE seq > $1`, seq).Scan(&n)
	return n, d.wrap("counting journal rows", err)
}

const queryMembers = `SELECT n.id, n.name, n.version, n.started_at, n.heartbeat_at, n.max_staleness, n.seq, n.row,
	EXISTS (SELECT 1 FROM journal j WHERE j.seq = n.seq AND j.id = n.row) FROM nodes n ORDER BY n.started_at, n.id`

func (f *Fleet) readMembers(ctx context.Context, tx *sql.Tx) error {
	rows, err := tx.QueryContext(ctx, queryMembers)
	if err != nil {
		return err
	}
	defer rows.Close()
	for rows.Next() {
		var m Member
		var staleness int64
		var row []byte
		if err := rows.Scan(&m.ID, &m.Name, &m.Version, &m.StartedAt, &m.HeartbeatAt, &staleness, &m.Seq, &row, &m.Known); err != nil {
			return err
		}
		m.MaxStaleness = time.Duration(staleness) * time.Millisecond
		copy(m.Row[:], row)
		f.Members = append(f.Members, m)
	}
	return rows.Err()
}
