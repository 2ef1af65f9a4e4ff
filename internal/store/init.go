package store

import (
	"context"
	"crypto/rand"
	"database/sql"
	"errors"
	"fmt"
	"slices"

	"github.com/caddy-auth/caddy-auth/internal/auth"
	"github.com/caddy-auth/caddy-auth/internal/secret"
)

const mintingSecret = "minting"

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
		var id, epoch [16]byte
		minting := make([]byte, secret.MintingSecretLen)
		for _, b := range [][]byte{id[:], epoch[:], minting} {
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
		sealed := ring.Seal(sealedName(id[:], mintingSecret, 1), minting)
		if err := tx.exec(ctx, "writing the minting secret", `INSERT INTO secrets (name, id, sealed, created_at) VALUES ($1, 1, $2, $3)`,
			mintingSecret, sealed, tx.now); err != nil {
			return err
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

// Minter opens the store's minting secrets with ring. A ring without the
// right master key is secret.ErrWrongKey, with a hint.
func (d *DB) Minter(ctx context.Context, ring *secret.Ring) (*secret.Minter, error) {
	read := d.current().Read
	var id []byte
	if err := read.QueryRowContext(ctx, `SELECT value FROM store_meta WHERE name = 'store_id'`).Scan(&id); err != nil {
		if errors.Is(err, sql.ErrNoRows) {
			return nil, auth.WithHint(fmt.Errorf("%s: %w", d.Describe(), auth.ErrNotInitialized), "make it with: caddy-auth store init")
		}
		return nil, d.wrap("reading the store's id", err)
	}
	rows, err := read.QueryContext(ctx, `SELECT id, sealed FROM secrets WHERE name = $1 ORDER BY id DESC`, mintingSecret)
	if err != nil {
		return nil, d.wrap("reading the minting secrets", err)
	}
	defer rows.Close()
	var secrets [][]byte
	for rows.Next() {
		var n int
		var sealed []byte
		if err := rows.Scan(&n, &sealed); err != nil {
			return nil, d.wrap("reading the minting secrets", err)
		}
		plain, err := ring.Open(sealedName(id, mintingSecret, n), sealed)
		if err != nil {
			return nil, auth.WithHint(fmt.Errorf("opening minting secret %d of %s: %w", n, d.Describe(), err),
				"the master key must be the one this store was made with")
		}
		secrets = append(secrets, plain)
	}
	if err := rows.Err(); err != nil {
		return nil, d.wrap("reading the minting secrets", err)
	}
	prefixes, err := d.Prefixes(ctx)
	if err != nil {
		return nil, err
	}
	return secret.NewMinter(secrets, prefixes)
}

func sealedName(storeID []byte, name string, id int) string {
	return fmt.Sprintf("%x/%s/%d", storeID, name, id)
}
