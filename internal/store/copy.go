package store

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"database/sql"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"slices"
	"strings"

	"github.com/caddy-auth/caddy-auth/internal/auth"
)

// table is what a copy has of a table: its columns, the first of which, or the
// first two, are the primary key.
type table struct {
	name    string
	columns []string
	keys    int // how many columns the primary key has
}

// copied are the tables that a copy takes over row by row, in an order in
// which each refers to earlier ones only. store_meta and nodes come at the end,
// in their own way.
var copied = []table{
	{"prefixes", []string{"prefix", "created_at"}, 1},
	{"secrets", []string{"name", "id", "sealed", "created_at"}, 2},
	{"key_formats", []string{"name", "pattern", "created_at"}, 1},
	{"owners", []string{"name", "created_at", "disabled_at", "disabled_reason"}, 1},
	{"keys", []string{
		"id", "fingerprint", "owner", "name", "hint", "environment", "scopes", "networks", "meta", "created_at", "expires_at", "disabled_at", "revoked_at",
		"revoked_reason", "replaced_by", "replaced_at", "overlap_until", "last_used_at", "refused_at", "refused_reason", "format",
	}, 1},
	{"journal", []string{"seq", "id", "at", "kind", "fingerprints", "parent_kind", "parent_name"}, 1},
	{"audit", []string{"id", "at", "actor", "action", "target", "detail"}, 1},
}

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

// querier is a connection or a transaction.
type querier interface {
	QueryContext(ctx context.Context, query string, args ...any) (*sql.Rows, error)
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

// compare returns the rows that have lacks or has otherwise, and those it has
// too many. Both are in the order of the primary key.
func compare(t table, want, have [][]any) (write, remove [][]any) {
	same := map[string][]any{}
	for _, r := range have {
		same[string(rowBytes(r[:t.keys]))] = r
	}
	for _, r := range want {
		key := string(rowBytes(r[:t.keys]))
		if h, ok := same[key]; !ok || !bytes.Equal(rowBytes(h), rowBytes(r)) {
			write = append(write, r)
		}
		delete(same, key)
	}
	for _, r := range have {
		if _, left := same[string(rowBytes(r[:t.keys]))]; left {
			remove = append(remove, r)
		}
	}
	return write, remove
}

func writeRow(sum hash.Hash, row []any) { sum.Write(rowBytes(row)) }

// rowBytes is a row in a form that is the same whichever database it is from.
func rowBytes(row []any) []byte {
	var out []byte
	add := func(kind byte, b []byte) {
		out = append(out, kind)
		out = binary.BigEndian.AppendUint32(out, uint32(len(b)))
		out = append(out, b...)
	}
	for _, v := range row {
		switch v := v.(type) {
		case int64:
			out = append(out, 'i')
			out = binary.BigEndian.AppendUint64(out, uint64(v))
		case string:
			add('s', []byte(v))
		case []byte:
			add('b', v)
		default:
			add('?', fmt.Append(nil, v))
		}
	}
	return out
}

// chunk reads the next rows above after, at most copyChunk.
func (d *DB) chunk(ctx context.Context, src querier, t table, after, upTo []any) ([][]any, error) {
	where, args := t.between(after, upTo)
	order := strings.Join(t.columns[:t.keys], ", ")
	query := "SELECT " + strings.Join(t.columns, ", ") + " FROM " + t.name + where + " ORDER BY " + order
	if upTo == nil {
		query += fmt.Sprintf(" LIMIT %d", copyChunk)
	}
	rows, err := src.QueryContext(ctx, query, args...)
	if err != nil {
		return nil, d.wrap("reading "+t.name, err)
	}
	defer rows.Close()
	var out [][]any
	for rows.Next() {
		row, dest := make([]any, len(t.columns)), make([]any, len(t.columns))
		for i := range row {
			dest[i] = &row[i]
		}
		if err := rows.Scan(dest...); err != nil {
			return nil, d.wrap("reading "+t.name, err)
		}
		for i, v := range row {
			if b, isBytes := v.([]byte); v == nil || isBytes && b == nil { // how a driver reads an empty BLOB: no column can be NULL
				row[i] = []byte{}
			}
		}
		out = append(out, row)
	}
	return out, d.wrap("reading "+t.name, rows.Err())
}

// between reads the rows of a copy above after and up to upTo. Without an end
// there may be many more than there should: they are read in parts.
func (d *DB) between(ctx context.Context, t table, after, upTo []any) ([][]any, error) {
	if upTo != nil {
		return d.chunk(ctx, d.current().Read, t, after, upTo)
	}
	var all [][]any
	for {
		rows, err := d.chunk(ctx, d.current().Read, t, after, nil)
		if err != nil {
			return nil, err
		}
		if all = append(all, rows...); len(rows) < copyChunk {
			return all, nil
		}
		after = rows[len(rows)-1][:t.keys]
	}
}

// between is the condition for a primary key above after and up to upTo.
func (t table) between(after, upTo []any) (where string, args []any) {
	key := t.columns[0]
	if t.keys > 1 {
		key = "(" + strings.Join(t.columns[:t.keys], ", ") + ")"
	}
	var conditions []string
	for _, c := range []struct {
		op    string
		bound []any
	}{{">", after}, {"<=", upTo}} {
		if c.bound == nil {
			continue
		}
		var marks []string
		for _, v := range c.bound {
			args = append(args, v)
			marks = append(marks, fmt.Sprintf("$%d", len(args)))
		}
		bound := marks[0]
		if t.keys > 1 {
			bound = "(" + strings.Join(marks, ", ") + ")"
		}
		conditions = append(conditions, key+" "+c.op+" "+bound)
	}
	if len(conditions) == 0 {
		return "", nil
	}
	return " WHERE " + strings.Join(conditions, " AND "), args
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

// insertRows writes rows in statements of as many as the backend likes.
func (d *DB) insertRows(ctx context.Context, tx *sql.Tx, t table, rows [][]any) error {
	each := d.backend.Values() / len(t.columns)
	var full *sql.Stmt
	if len(rows) > each {
		var err error
		if full, err = tx.PrepareContext(ctx, t.insert(each)); err != nil {
			return err
		}
		defer full.Close()
	}
	for part := range slices.Chunk(rows, each) {
		var err error
		if full != nil && len(part) == each {
			_, err = full.ExecContext(ctx, slices.Concat(part...)...)
		} else {
			_, err = tx.ExecContext(ctx, t.insert(len(part)), slices.Concat(part...)...)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

func (t table) insert(rows int) string {
	var q strings.Builder
	q.WriteString("INSERT INTO " + t.name + " (" + strings.Join(t.columns, ", ") + ") VALUES ")
	n := 0
	for r := range rows {
		if r > 0 {
			q.WriteString(", ")
		}
		for i := range t.columns {
			n++
			q.WriteString([]string{"(", ", "}[min(i, 1)])
			fmt.Fprintf(&q, "$%d", n)
		}
		q.WriteString(")")
	}
	var sets []string
	for _, column := range t.columns[t.keys:] {
		sets = append(sets, column+" = excluded."+column)
	}
	q.WriteString(" ON CONFLICT (" + strings.Join(t.columns[:t.keys], ", ") + ") DO UPDATE SET " + strings.Join(sets, ", "))
	return q.String()
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
