package store

import (
	"context"
	"crypto/rand"
	"database/sql"
	"errors"
	"fmt"
	"time"

	"github.com/caddy-auth/caddy-auth/internal/auth"
	"github.com/caddy-auth/caddy-auth/internal/secret"
)

// newSecret writes the first secret called name, random and sealed.
func (tx *Tx) newSecret(ctx context.Context, ring *secret.Ring, storeID []byte, name string, length int) error {
	return tx.addSecret(ctx, ring, storeID, name, 1, length)
}

func (tx *Tx) addSecret(ctx context.Context, ring *secret.Ring, storeID []byte, name string, id, length int) error {
	plain := make([]byte, length)
	if _, err := rand.Read(plain); err != nil {
		return fmt.Errorf("reading random bytes: %w", err)
	}
	return tx.exec(ctx, "writing the "+name+" secret", `INSERT INTO secrets (name, id, sealed, created_at) VALUES ($1, $2, $3, $4)`,
		name, id, ring.Seal(sealedName(storeID, name, id), plain), tx.now)
}

// EnsureSealing makes a sealing secret where an earlier release left none, or
// where ring, which must have opened the minting secrets, can't open it: what
// it sealed is only a cache.
func (d *DB) EnsureSealing(ctx context.Context, actor string, ring *secret.Ring) error {
	_, have, err := d.secrets(ctx, ring, sealingSecret)
	useless := errors.Is(err, secret.ErrWrongKey)
	if err != nil && !useless || len(have) > 0 && !useless {
		return err
	}
	return d.Change(ctx, actor, func(tx *Tx) error {
		var n int
		if err := tx.queryRow(ctx, `SELECT COUNT(*) FROM secrets WHERE name = $1`, sealingSecret).Scan(&n); err != nil {
			return d.wrap("reading the sealing secret", err)
		}
		if n > 0 && !useless {
			return nil
		}
		if err := tx.exec(ctx, "replacing the sealing secret", `DELETE FROM secrets WHERE name = $1`, sealingSecret); err != nil {
			return err
		}
		var id []byte
		if err := tx.queryRow(ctx, queryStoreID).Scan(&id); err != nil {
			return d.wrap("reading the store's id", err)
		}
		if err := tx.newSecret(ctx, ring, id, sealingSecret, secret.SealingSecretLen); err != nil {
			return err
		}
		if err := tx.Journal(ctx, ChangeSecrets, nil, auth.Parent{}); err != nil {
			return err
		}
		return tx.Audit(ctx, "store.secret", "store", map[string]any{"name": sealingSecret})
	})
}

// RotateSecrets makes the store's secrets anew and seals all of them under
// ring's first key. Keys that were minted with an older secret stay good.
// Every secret there is must open with ring: else nothing is changed.
func (tx *Tx) RotateSecrets(ctx context.Context, ring *secret.Ring) error {
	var storeID []byte
	if err := tx.queryRow(ctx, queryStoreID).Scan(&storeID); err != nil {
		return tx.d.wrap("reading the store's id", err)
	}
	newest := 0
	err := tx.reseal(ctx, ring, storeID, mintingSecret, &newest)
	if err != nil {
		return err
	}
	if err := tx.addSecret(ctx, ring, storeID, mintingSecret, newest+1, secret.MintingSecretLen); err != nil {
		return err
	}
	var last int // what was sealed under older ones is only a cache
	if err := tx.queryRow(ctx, `SELECT COALESCE(MAX(id), 0) FROM secrets WHERE name = $1`, sealingSecret).Scan(&last); err != nil {
		return tx.d.wrap("reading the sealing secret", err)
	}
	if err := tx.exec(ctx, "replacing the sealing secret", `DELETE FROM secrets WHERE name = $1`, sealingSecret); err != nil {
		return err
	}
	if err := tx.addSecret(ctx, ring, storeID, sealingSecret, last+1, secret.SealingSecretLen); err != nil {
		return err
	}
	if err := errors.Join(tx.resealAssertionKeys(ctx, ring, storeID), tx.resealSessions(ctx, ring, storeID)); err != nil {
		return err
	}
	return errors.Join(tx.Journal(ctx, ChangeSecrets, nil, auth.Parent{}), tx.Audit(ctx, "store.rotate_secrets", "store", map[string]any{"minting": newest + 1}))
}

// reseal seals the secrets called name under ring's first key.
func (tx *Tx) reseal(ctx context.Context, ring *secret.Ring, storeID []byte, name string, newest *int) error {
	rows, err := tx.tx.QueryContext(ctx, `SELECT id, sealed FROM secrets WHERE name = $1 ORDER BY id`, name)
	if err != nil {
		return tx.d.wrap("reading the "+name+" secrets", err)
	}
	defer rows.Close()
	sealed := map[int][]byte{}
	for rows.Next() {
		var text []byte
		if err := rows.Scan(newest, &text); err != nil {
			return tx.d.wrap("reading the "+name+" secrets", err)
		}
		plain, err := ring.Open(sealedName(storeID, name, *newest), text)
		if err != nil {
			return wrongKey(tx.d, name, *newest, err)
		}
		sealed[*newest] = ring.Seal(sealedName(storeID, name, *newest), plain)
	}
	if err := rows.Err(); err != nil {
		return tx.d.wrap("reading the "+name+" secrets", err)
	}
	for id, text := range sealed {
		if err := tx.exec(ctx, "sealing the "+name+" secrets", `UPDATE secrets SET sealed = $3 WHERE name = $1 AND id = $2`, name, id, text); err != nil {
			return err
		}
	}
	return nil
}

func wrongKey(d *DB, name string, n int, err error) error {
	return auth.WithHint(fmt.Errorf("opening %s secret %d of %s: %w", name, n, d.Describe(), err), "the master key must be the one this store was made with")
}

// held is a secret that the store holds, opened.
type held struct {
	plain     []byte
	createdAt int64
}

// secrets opens the secrets called name with ring, newest first. A ring
// without the right master key is secret.ErrWrongKey, with a hint.
func (d *DB) secrets(ctx context.Context, ring *secret.Ring, name string) (storeID []byte, found []held, err error) {
	read := d.current().Read
	if err := read.QueryRowContext(ctx, queryStoreID).Scan(&storeID); err != nil {
		if errors.Is(err, sql.ErrNoRows) {
			return nil, nil, auth.WithHint(fmt.Errorf("%s: %w", d.Describe(), auth.ErrNotInitialized), "make it with: caddy-auth store init")
		}
		return nil, nil, d.wrap("reading the store's id", err)
	}
	rows, err := read.QueryContext(ctx, `SELECT id, sealed, created_at FROM secrets WHERE name = $1 ORDER BY id DESC`, name)
	if err != nil {
		return nil, nil, d.wrap("reading the "+name+" secrets", err)
	}
	defer rows.Close()
	for rows.Next() {
		var n int
		var sealed []byte
		var h held
		if err := rows.Scan(&n, &sealed, &h.createdAt); err != nil {
			return nil, nil, d.wrap("reading the "+name+" secrets", err)
		}
		if h.plain, err = ring.Open(sealedName(storeID, name, n), sealed); err != nil {
			return nil, nil, wrongKey(d, name, n, err)
		}
		found = append(found, h)
	}
	return storeID, found, d.wrap("reading the "+name+" secrets", rows.Err())
}

// Minter opens the store's minting secrets with ring. A ring without the
// right master key is secret.ErrWrongKey, with a hint.
func (d *DB) Minter(ctx context.Context, ring *secret.Ring) (*secret.Minter, error) {
	return d.MinterAt(ctx, ring, time.Now())
}

// MinterAt is Minter as it is at a time, which decides what new keys are made
// with.
func (d *DB) MinterAt(ctx context.Context, ring *secret.Ring, now time.Time) (*secret.Minter, error) {
	_, minting, err := d.secrets(ctx, ring, mintingSecret)
	if err != nil {
		return nil, err
	}
	prefixes, err := d.Prefixes(ctx)
	if err != nil {
		return nil, err
	}
	return secret.NewMinter(mintingOrder(minting, Millis(now)), prefixes)
}

// MintingDelay is how long after a rotation keys are still made with the
// secret before it: a gateway that had not heard of the new one would call
// them forged.
const MintingDelay = 10 * time.Minute

// mintingOrder puts the secret to mint with first: the newest that every
// gateway knows by now, else the oldest.
func mintingOrder(newestFirst []held, now int64) [][]byte {
	var out [][]byte
	for _, h := range newestFirst {
		out = append(out, h.plain)
	}
	for i, h := range newestFirst {
		if i == len(newestFirst)-1 || h.createdAt+MintingDelay.Milliseconds() <= now {
			out[0], out[i] = out[i], out[0]
			break
		}
	}
	return out
}

// Envelope opens the store's sealing secrets with ring. A store that an
// earlier release made may have none: auth.ErrNotFound.
func (d *DB) Envelope(ctx context.Context, ring *secret.Ring) (*secret.Envelope, error) {
	id, sealing, err := d.secrets(ctx, ring, sealingSecret)
	if err != nil {
		return nil, err
	}
	if len(sealing) == 0 {
		return nil, fmt.Errorf("the sealing secret of %s: %w", d.Describe(), auth.ErrNotFound)
	}
	plain := make([][]byte, 0, len(sealing))
	for _, h := range sealing {
		plain = append(plain, h.plain)
	}
	return secret.NewEnvelope(id, plain...)
}

func sealedName(storeID []byte, name string, id int) string {
	return fmt.Sprintf("%x/%s/%d", storeID, name, id)
}
