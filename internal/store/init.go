package store

import (
	"context"
	"crypto/rand"
	"fmt"
	"slices"
	"time"

	"github.com/caddy-auth/caddy-auth/internal/auth"
	"github.com/caddy-auth/caddy-auth/internal/secret"
)

// Names of the secrets a store holds.
const (
	mintingSecret = "minting"
	sealingSecret = "sealing"
)

// Initialized reports whether the store has its first journal row and its
// secrets.
func (d *DB) Initialized(ctx context.Context) (bool, error) {
	var n int
	err := d.current().Read.QueryRowContext(ctx, `SELECT COUNT(*) FROM store_meta WHERE name = 'epoch'`).Scan(&n)
	return n > 0, d.wrap("reading the store's epoch", err)
}

// Init gives an empty store its id, epoch, minting secret, prefix and first
// journal row. On an initialized store it does nothing.
func (d *DB) Init(ctx context.Context, actor string, ring *secret.Ring, prefix string) error {
	if err := secret.CheckPrefix(prefix); err != nil {
		return err
	}
	return d.Change(ctx, actor, func(tx *Tx) error {
		var n int
		if err := tx.queryRow(ctx, `SELECT COUNT(*) FROM store_meta WHERE name = 'epoch'`).Scan(&n); err != nil {
			return d.wrap("reading the store's epoch", err)
		}
		if n > 0 {
			return nil
		}
		if err := d.Usable(ctx); err != nil { // a copy that has just begun
			return err
		}
		var id, epoch [16]byte
		for _, b := range [][]byte{id[:], epoch[:]} {
			if _, err := rand.Read(b); err != nil {
				return fmt.Errorf("reading random bytes: %w", err)
			}
		}
		const meta = `INSERT INTO store_meta (name, value) VALUES ($1, $2)`
		if err := tx.exec(ctx, "writing the store's id", meta, "store_id", id[:]); err != nil {
			return err
		}
		if err := tx.exec(ctx, "writing the store's epoch", meta, "epoch", epoch[:]); err != nil {
			return err
		}
		for name, length := range map[string]int{mintingSecret: secret.MintingSecretLen, sealingSecret: secret.SealingSecretLen} {
			if err := tx.newSecret(ctx, ring, id[:], name, length); err != nil {
				return err
			}
		}
		if err := tx.exec(ctx, "writing the key prefix", queryAddPrefix, prefix, tx.now); err != nil {
			return err
		}
		if err := tx.Journal(ctx, "init", nil, auth.Parent{}); err != nil {
			return err
		}
		return tx.Audit(ctx, "store.init", "store", map[string]any{"prefix": prefix})
	})
}

const queryAddPrefix = `INSERT INTO prefixes (prefix, created_at) VALUES ($1, $2) ON CONFLICT (prefix) DO NOTHING`

// EnsurePrefix makes keys with prefix valid. Gateways learn it from the journal.
func (d *DB) EnsurePrefix(ctx context.Context, actor, prefix string) error {
	known, err := d.Prefixes(ctx)
	if err != nil || slices.Contains(known, prefix) {
		return err
	}
	if err := secret.CheckPrefix(prefix); err != nil {
		return err
	}
	return d.Change(ctx, actor, func(tx *Tx) error {
		if err := tx.exec(ctx, "writing the key prefix", queryAddPrefix, prefix, tx.now); err != nil {
			return err
		}
		if err := tx.Journal(ctx, ChangeSecrets, nil, auth.Parent{}); err != nil {
			return err
		}
		return tx.Audit(ctx, "store.prefix", "store", map[string]any{"prefix": prefix})
	})
}

// Prefixes returns every prefix ever issued.
func (d *DB) Prefixes(ctx context.Context) ([]string, error) {
	rows, err := d.current().Read.QueryContext(ctx, `SELECT prefix FROM prefixes ORDER BY prefix`)
	if err != nil {
		return nil, d.wrap("reading the key prefixes", err)
	}
	defer rows.Close()
	var out []string
	for rows.Next() {
		var p string
		if err := rows.Scan(&p); err != nil {
			return nil, d.wrap("reading the key prefixes", err)
		}
		out = append(out, p)
	}
	return out, d.wrap("reading the key prefixes", rows.Err())
}

const queryStoreID = `SELECT value FROM store_meta WHERE name = 'store_id'`

// ID returns the store's id, which a copy of the store keeps.
func (d *DB) ID(ctx context.Context) ([]byte, error) {
	var id []byte
	err := d.current().Read.QueryRowContext(ctx, queryStoreID).Scan(&id)
	return id, d.wrap("reading the store's id", err)
}

// Renew gives a copy that is about to take the store's place a new epoch, so
// that nothing read from either history before is used after.
func (d *DB) Renew(ctx context.Context) error {
	epoch, _, err := d.Tail(ctx, time.Now().UnixMilli())
	if err != nil {
		return err
	}
	var next auth.Epoch
	if _, err := rand.Read(next[:]); err != nil {
		return fmt.Errorf("reading random bytes: %w", err)
	}
	return d.NewEpoch(ctx, epoch, next)
}
