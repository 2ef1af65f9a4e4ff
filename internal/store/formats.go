package store

import (
	"context"
	"database/sql"
	"errors"
	"fmt"

	"github.com/caddy-auth/caddy-auth/internal/auth"
)

// EnsureFormat declares the pattern of imported keys. Another pattern under
// the same name is auth.ErrConflict.
func (tx *Tx) EnsureFormat(ctx context.Context, name, pattern string) error {
	var have string
	err := tx.queryRow(ctx, `SELECT pattern FROM key_formats WHERE name = $1`, name).Scan(&have)
	switch {
	case errors.Is(err, sql.ErrNoRows):
		return tx.exec(ctx, "writing a key format", `INSERT INTO key_formats (name, pattern, created_at) VALUES ($1, $2, $3)`, name, pattern, tx.now)
	case err != nil:
		return tx.d.wrap("reading a key format", err)
	}
	return sameFormat(name, have, pattern)
}

// CheckFormat is auth.ErrConflict if name has another pattern.
func (d *DB) CheckFormat(ctx context.Context, name, pattern string) error {
	var have string
	err := d.current().Read.QueryRowContext(ctx, `SELECT pattern FROM key_formats WHERE name = $1`, name).Scan(&have)
	if errors.Is(err, sql.ErrNoRows) {
		return nil
	}
	if err != nil {
		return d.wrap("reading a key format", err)
	}
	return sameFormat(name, have, pattern)
}

func sameFormat(name, have, want string) error {
	if have == want {
		return nil
	}
	return auth.WithHint(fmt.Errorf("the format %s has the pattern %s: %w", name, have, auth.ErrConflict), "give this one another name with --format")
}

// Formats returns the patterns of imported keys.
func (d *DB) Formats(ctx context.Context) (patterns []string, err error) {
	err = d.each(ctx, "reading the key formats", `SELECT pattern FROM key_formats ORDER BY name`, func(rows *sql.Rows) error {
		var p string
		err := rows.Scan(&p)
		patterns = append(patterns, p)
		return err
	})
	return patterns, err
}

// Imported returns what recognizes imported keys, and the patterns it can't
// read; see auth.NewImported. It reads all of them.
func (d *DB) Imported(ctx context.Context) (m *auth.Imported, unread []string, err error) {
	patterns, err := d.Formats(ctx)
	if err != nil || len(patterns) == 0 {
		return nil, nil, err
	}
	var sums []uint64
	err = d.each(ctx, "reading the imported keys", `SELECT fingerprint FROM keys WHERE format <> ''`, func(rows *sql.Rows) error {
		var fp sql.RawBytes
		if err := rows.Scan(&fp); err != nil {
			return err
		}
		if len(fp) != len(auth.Fingerprint{}) {
			return fmt.Errorf("an imported key's fingerprint: %w", auth.ErrCorrupt)
		}
		sums = append(sums, auth.Sum(auth.Fingerprint(fp)))
		return nil
	})
	if err != nil {
		return nil, nil, err
	}
	m, unread = auth.NewImported(patterns, sums)
	return m, unread, nil
}

// each calls scan for every row of a query.
func (d *DB) each(ctx context.Context, doing, query string, scan func(*sql.Rows) error) error {
	rows, err := d.current().Read.QueryContext(ctx, query)
	if err != nil {
		return d.wrap(doing, err)
	}
	defer rows.Close()
	for rows.Next() {
		if err := scan(rows); err != nil {
			return d.wrap(doing, err)
		}
	}
	return d.wrap(doing, rows.Err())
}
