package store

import (
	"context"
	"errors"
	"fmt"

	"github.com/caddy-auth/caddy-auth/internal/auth"
	"github.com/caddy-auth/caddy-auth/internal/secret"
)

// Private parts are sealed as the store's secrets are, under a name of their own.
func assertionKeyName(storeID []byte, id string) string {
	return fmt.Sprintf("%x/assertion/%s", storeID, id)
}

const queryAssertionKeys = `SELECT id, algorithm, sealed, created_at, signs_from, published_until FROM assertion_keys ORDER BY signs_from, id`

// AssertionKeys returns the keys that assertions are signed with, the earliest
// first, opened with ring. A ring without the right master key is
// secret.ErrWrongKey, with a hint; a nil ring opens nothing and leaves the
// private parts out.
func (d *DB) AssertionKeys(ctx context.Context, ring *secret.Ring) ([]auth.AssertionKey, error) {
	storeID, err := d.ID(ctx)
	if err != nil {
		return nil, err
	}
	return d.assertionKeys(ctx, d.current().Fresh, ring, storeID)
}

// AssertionKeys is what the transaction sees, without private parts.
func (tx *Tx) AssertionKeys(ctx context.Context) ([]auth.AssertionKey, error) {
	return tx.d.assertionKeys(ctx, tx.tx, nil, nil)
}

func (d *DB) assertionKeys(ctx context.Context, src querier, ring *secret.Ring, storeID []byte) ([]auth.AssertionKey, error) {
	const doing = "reading the assertion keys"
	rows, err := src.QueryContext(ctx, queryAssertionKeys)
	if err != nil {
		return nil, d.wrap(doing, err)
	}
	defer rows.Close()
	var out []auth.AssertionKey
	for rows.Next() {
		var k auth.AssertionKey
		var sealed []byte
		if err := rows.Scan(&k.ID, &k.Algorithm, &sealed, &k.CreatedAt, &k.SignsFrom, &k.PublishedUntil); err != nil {
			return nil, d.wrap(doing, err)
		}
		if ring != nil {
			if k.Private, err = ring.Open(assertionKeyName(storeID, k.ID), sealed); err != nil {
				return nil, auth.WithHint(fmt.Errorf("opening the assertion key %s of %s: %w", k.ID, d.Describe(), err), "the master key must be the one this store was made with")
			}
		}
		out = append(out, k)
	}
	return out, d.wrap(doing, rows.Err())
}

// InsertAssertionKey adds a key, sealed under ring.
func (tx *Tx) InsertAssertionKey(ctx context.Context, ring *secret.Ring, k auth.AssertionKey) error {
	var storeID []byte
	if err := tx.queryRow(ctx, queryStoreID).Scan(&storeID); err != nil {
		return tx.d.wrap("reading the store's id", err)
	}
	return tx.exec(ctx, "writing an assertion key", `INSERT INTO assertion_keys (id, algorithm, sealed, created_at, signs_from, published_until) VALUES ($1, $2, $3, $4, $5, $6)`,
		k.ID, k.Algorithm, ring.Seal(assertionKeyName(storeID, k.ID), k.Private), k.CreatedAt, k.SignsFrom, k.PublishedUntil)
}

// EndAssertionKey lets a key be published until a time, and removes those that
// are not any more.
func (tx *Tx) EndAssertionKey(ctx context.Context, id string, until int64) error {
	return errors.Join(
		tx.exec(ctx, "ending an assertion key", `UPDATE assertion_keys SET published_until = $2 WHERE id = $1`, id, until),
		tx.exec(ctx, "removing old assertion keys", `DELETE FROM assertion_keys WHERE published_until <> 0 AND published_until <= $1`, tx.now))
}

// resealAssertionKeys seals every key under ring's first key.
func (tx *Tx) resealAssertionKeys(ctx context.Context, ring *secret.Ring, storeID []byte) error {
	keys, err := tx.d.assertionKeys(ctx, tx.tx, ring, storeID)
	if err != nil {
		return err
	}
	for _, k := range keys {
		if err := tx.exec(ctx, "sealing the assertion keys", `UPDATE assertion_keys SET sealed = $2 WHERE id = $1`, k.ID, ring.Seal(assertionKeyName(storeID, k.ID), k.Private)); err != nil {
			return err
		}
	}
	return nil
}
