package store

import (
	"bytes"
	"context"
	"database/sql"
	"encoding/binary"
	"fmt"
	"hash"
	"slices"
	"strings"
)

// table is what a copy has of a table: its columns, the first few of which are
// the primary key.
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
	{"token_cutoffs", []string{"issuer", "kind", "name", "issued_before", "created_at", "kept_until", "reason"}, 3},
	{"clients", []string{
		"id", "owner", "name", "environment", "scopes", "networks", "meta", "token_lifetime", "jwks", "created_at", "disabled_at", "revoked_at",
		"revoked_reason", "last_token_at",
	}, 1},
	{"client_secrets", []string{"fingerprint", "client", "hint", "created_at", "ends_at"}, 1},
	{"access_tokens", []string{"fingerprint", "id", "client", "key_id", "scopes", "issued_at", "expires_at", "revoked_at"}, 1},
	{"client_assertions", []string{"client", "jti", "expires_at"}, 2},
	{"assertion_keys", []string{"id", "algorithm", "sealed", "created_at", "signs_from", "published_until"}, 1},
	{"sessions", []string{
		"id", "fingerprint", "login", "subject", "sub", "sid", "environment", "scopes", "meta", "created_at", "seen_at", "idle_until", "expires_at", "revoked_at",
		"revoked_reason", "tokens", "tokens_version", "leased_by", "leased_until", "judged_by", "authority",
	}, 1},
	{"journal", []string{"seq", "id", "at", "kind", "fingerprints", "parent_kind", "parent_name"}, 1},
	{"audit", []string{"id", "at", "actor", "action", "target", "detail"}, 1},
}

// querier is a connection or a transaction.
type querier interface {
	QueryContext(ctx context.Context, query string, args ...any) (*sql.Rows, error)
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
