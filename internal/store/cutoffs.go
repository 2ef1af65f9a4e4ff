package store

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"strings"

	"github.com/caddy-auth/caddy-auth/internal/auth"
)

const queryCutOffs = `SELECT issuer, kind, name, issued_before, created_at, kept_until, reason FROM token_cutoffs `

func scanCutOff(row interface{ Scan(...any) error }) (auth.CutOff, error) {
	var c auth.CutOff
	var kind auth.ParentKind
	var name string
	if err := row.Scan(&c.Issuer, &kind, &name, &c.IssuedBefore, &c.CreatedAt, &c.KeptUntil, &c.Reason); err != nil {
		return c, err
	}
	switch kind {
	case auth.ParentToken:
		c.JTI = name
	case auth.ParentSubject:
		c.Subject = name
	default:
		return c, fmt.Errorf("a cut-off of the kind %q: %w", kind, auth.ErrCorrupt)
	}
	return c, nil
}

// CutOffs calls each for every cut-off, by issuer, until it returns an error.
func (d *DB) CutOffs(ctx context.Context, each func(auth.CutOff) error) error {
	return d.each(ctx, "reading what was cut off", queryCutOffs+`ORDER BY issuer, kind, name`, func(rows *sql.Rows) error {
		c, err := scanCutOff(rows)
		if err != nil {
			return err
		}
		return each(c)
	})
}

// CutOff returns the cut-off that a journal row's parent names. A missing one
// is auth.ErrNotFound. It is read where the journal is.
func (d *DB) CutOff(ctx context.Context, p auth.Parent) (auth.CutOff, error) {
	issuer, name, ok := strings.Cut(p.Name, ":")
	if !ok {
		return auth.CutOff{}, fmt.Errorf("a cut-off without an issuer: %w", auth.ErrCorrupt)
	}
	c, err := scanCutOff(d.current().Fresh.QueryRowContext(ctx, queryCutOffs+`WHERE issuer = $1 AND kind = $2 AND name = $3`, issuer, string(p.Kind), name))
	if errors.Is(err, sql.ErrNoRows) {
		return c, fmt.Errorf("the cut-off of %s: %w", issuer, auth.ErrNotFound)
	}
	return c, d.wrap("reading a cut-off", err)
}

// CutOff writes a cut-off. What was cut off already stays so, and as long: the
// later times count. It reports whether anything changed.
func (tx *Tx) CutOff(ctx context.Context, c auth.CutOff) (changed bool, err error) {
	kind, name := string(auth.ParentSubject), c.Subject
	if c.JTI != "" {
		kind, name = string(auth.ParentToken), c.JTI
	}
	var have, kept int64
	err = tx.queryRow(ctx, `SELECT issued_before, kept_until FROM token_cutoffs WHERE issuer = $1 AND kind = $2 AND name = $3`, c.Issuer, kind, name).Scan(&have, &kept)
	switch {
	case err == nil && have >= c.IssuedBefore && (kept == 0 || c.KeptUntil != 0):
		return false, nil
	case err == nil:
		c.IssuedBefore = max(c.IssuedBefore, have)
		if kept == 0 {
			c.KeptUntil = 0
		}
	case err != nil && !errors.Is(err, sql.ErrNoRows):
		return false, tx.d.wrap("reading a cut-off", err)
	}
	return true, tx.exec(ctx, "writing a cut-off", `INSERT INTO token_cutoffs (issuer, kind, name, issued_before, created_at, kept_until, reason) VALUES ($1, $2, $3, $4, $5, $6, $7)
		ON CONFLICT (issuer, kind, name) DO UPDATE SET issued_before = excluded.issued_before, created_at = excluded.created_at,
		kept_until = excluded.kept_until, reason = excluded.reason`,
		c.Issuer, kind, name, c.IssuedBefore, tx.now, c.KeptUntil, c.Reason)
}

// PruneCutOffs removes cut-offs of which every token has expired, by the
// store's clock.
func (d *DB) PruneCutOffs(ctx context.Context) error {
	return d.wrap("removing old cut-offs", d.note(ctx, d.current(), func(tx *sql.Tx, now int64) error {
		_, err := tx.ExecContext(ctx, `DELETE FROM token_cutoffs WHERE kept_until < $1 AND kept_until <> 0`, now)
		return err
	}))
}
