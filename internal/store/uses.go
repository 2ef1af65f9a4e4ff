package store

import (
	"context"
	"database/sql"
	"fmt"
	"slices"
	"strings"

	"github.com/caddy-auth/caddy-auth/internal/auth"
)

// RecordUse moves last-used times forward, never back. It is no change in the
// sense of the journal.
func (d *DB) RecordUse(ctx context.Context, uses []auth.Use) error {
	return record(ctx, d, "writing last-used times", uses, func(part []auth.Use) (string, []any) {
		q := newest(part, func(u auth.Use) (auth.Fingerprint, int64) { return u.Fingerprint, u.At },
			func(u auth.Use) []any { return []any{u.Fingerprint[:], u.At} })
		return q.query("fingerprint", "last_used_at"), q.args
	})
}

// RecordRefusals writes when and why keys were refused last. It is no change
// in the sense of the journal.
func (d *DB) RecordRefusals(ctx context.Context, refused []auth.Refused) error {
	return record(ctx, d, "writing refusals", refused, func(part []auth.Refused) (string, []any) {
		q := newest(part, func(r auth.Refused) (string, int64) { return r.CredentialID, r.At },
			func(r auth.Refused) []any { return []any{r.CredentialID, r.At, r.Reason} })
		return q.query("id", "refused_at", "refused_reason"), q.args
	})
}

// latest builds one statement that moves columns of several keys: the first of
// them is a time that never goes back. The database may be far away, so that
// one statement for each key would hold the writer's lock for long.
type latest struct {
	args []any
	rows int
}

// newest is of the newest item about each key: of two, the statement would
// take either.
func newest[T any, K comparable](items []T, at func(T) (K, int64), args func(T) []any) latest {
	best := map[K]T{}
	for _, item := range items {
		key, when := at(item)
		if old, ok := best[key]; ok {
			if _, then := at(old); then >= when {
				continue
			}
		}
		best[key] = item
	}
	l := latest{rows: len(best)}
	for _, item := range best {
		l.args = append(l.args, args(item)...)
	}
	return l
}

func (l *latest) query(key string, columns ...string) string {
	var sets []string
	width := 1 + len(columns)
	for i, column := range columns {
		var cases strings.Builder
		for r := range l.rows {
			fmt.Fprintf(&cases, " WHEN $%d THEN $%d", r*width+1, r*width+2+i)
		}
		sets = append(sets, fmt.Sprintf("%s = CASE %s%s ELSE %s END", column, key, cases.String(), column))
	}
	var where []string
	for r := range l.rows {
		where = append(where, fmt.Sprintf("%s = $%d AND %s < $%d", key, r*width+1, columns[0], r*width+2))
	}
	return "UPDATE keys SET " + strings.Join(sets, ", ") + " WHERE " + strings.Join(where, " OR ")
}

// recordPart is how many keys one statement moves.
const recordPart = 50

// record runs a statement for each part of items, in one transaction.
func record[T any](ctx context.Context, d *DB, doing string, items []T, statement func(part []T) (query string, args []any)) error {
	if len(items) == 0 {
		return nil
	}
	return d.wrap(doing, d.write(ctx, d.current(), func(tx *sql.Tx, _ int64) error {
		for part := range slices.Chunk(items, recordPart) {
			query, args := statement(part)
			if _, err := tx.ExecContext(ctx, query, args...); err != nil {
				return err
			}
		}
		return nil
	}))
}
