package store

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"time"

	"github.com/caddy-auth/caddy-auth/internal/auth"
)

const queryOwners = `SELECT o.name, o.created_at, o.disabled_at, o.disabled_reason,
	(SELECT COUNT(*) FROM keys k WHERE k.owner = o.name AND k.revoked_at = 0 AND (k.expires_at = 0 OR k.expires_at > $1)
		AND (k.overlap_until = 0 OR k.overlap_until > $1)) FROM owners o `

func scanOwner(row interface{ Scan(...any) error }) (auth.Owner, error) {
	var o auth.Owner
	err := row.Scan(&o.Name, &o.CreatedAt, &o.DisabledAt, &o.DisabledReason, &o.Keys)
	return o, err
}

// Owner returns an owner. A missing one is auth.ErrNotFound.
func (d *DB) Owner(ctx context.Context, name string) (auth.Owner, error) {
	return d.oneOwner(d.current().Read.QueryRowContext(ctx, queryOwners+`WHERE o.name = $2`, Millis(time.Now()), name), name)
}

// Owner returns an owner as the transaction sees it. A missing one is auth.ErrNotFound.
func (tx *Tx) Owner(ctx context.Context, name string) (auth.Owner, error) {
	return tx.d.oneOwner(tx.queryRow(ctx, queryOwners+`WHERE o.name = $2`, tx.now, name), name)
}

func (d *DB) oneOwner(row *sql.Row, name string) (auth.Owner, error) {
	o, err := scanOwner(row)
	if errors.Is(err, sql.ErrNoRows) {
		return o, fmt.Errorf("owner %s: %w", name, auth.ErrNotFound)
	}
	return o, d.wrap("reading an owner", err)
}

// Owners calls each for every owner by name, until it returns an error.
func (d *DB) Owners(ctx context.Context, each func(auth.Owner) error) error {
	rows, err := d.current().Read.QueryContext(ctx, queryOwners+`ORDER BY o.name`, Millis(time.Now()))
	if err != nil {
		return d.wrap("listing owners", err)
	}
	defer rows.Close()
	for rows.Next() {
		o, err := scanOwner(rows)
		if err != nil {
			return d.wrap("listing owners", err)
		}
		if err := each(o); err != nil {
			return err
		}
	}
	return d.wrap("listing owners", rows.Err())
}

// EnsureOwner adds an owner if there is none of that name, and says whether it did.
func (tx *Tx) EnsureOwner(ctx context.Context, name string) (created bool, err error) {
	if _, err := tx.Owner(ctx, name); !errors.Is(err, auth.ErrNotFound) {
		return false, err
	}
	return true, tx.exec(ctx, "writing an owner", `INSERT INTO owners (name, created_at) VALUES ($1, $2)`, name, tx.now)
}

// SetOwnerDisabled disables an owner at a time, or enables it with 0.
func (tx *Tx) SetOwnerDisabled(ctx context.Context, name string, at int64, reason string) error {
	return tx.exec(ctx, "writing an owner", `UPDATE owners SET disabled_at = $2, disabled_reason = $3 WHERE name = $1`, name, at, reason)
}
