package store

import (
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/caddy-auth/caddy-auth/internal/auth"
)

const keyColumns = `k.id, k.fingerprint, k.owner, k.name, k.hint, k.environment, k.scopes, k.networks, k.meta, k.created_at, k.expires_at,
	k.disabled_at, k.revoked_at, k.revoked_reason, k.replaced_by, k.replaced_at, k.overlap_until, k.last_used_at, k.refused_at, k.refused_reason, k.format, o.disabled_at`

const queryKeys = `SELECT ` + keyColumns + ` FROM keys k JOIN owners o ON o.name = k.owner `

// The row and the point it was read at come from one statement, so from one
// snapshot (design 4.6, Point).
const queryLookup = `SELECT m.value, j.seq, j.id, (SELECT COUNT(*) FROM store_meta WHERE name = '` + metaMoved + `'), ` + keyColumns + `
	FROM store_meta m
	CROSS JOIN (SELECT seq, id FROM journal ORDER BY seq DESC LIMIT 1) j
	LEFT JOIN keys k ON k.fingerprint = $1
	LEFT JOIN owners o ON o.name = k.owner
	WHERE m.name = 'epoch'`

// Loaded is a key, or the certainty that there is none, and the point in the
// store's history it was read at.
type Loaded struct {
	Point auth.Point
	Key   *auth.Key // nil: no such key
	Moved bool      // the store was moved: what is not there may be at its new place
}

// LookupKey reads the key with a fingerprint. A missing key is no error.
func (d *DB) LookupKey(ctx context.Context, fp auth.Fingerprint) (Loaded, error) {
	var l Loaded
	var epoch, row []byte
	var k nullableKey
	err := d.current().lookup.QueryRowContext(ctx, fp[:]).Scan(append([]any{&epoch, &l.Point.Seq, &row, &l.Moved}, k.dest()...)...)
	if errors.Is(err, sql.ErrNoRows) {
		return l, fmt.Errorf("looking up a key in %s: %w", d.Describe(), auth.ErrNotInitialized)
	}
	if err != nil {
		return l, d.wrap("looking up a key", err)
	}
	copy(l.Point.Epoch[:], epoch)
	copy(l.Point.Row[:], row)
	if !k.id.Valid {
		return l, nil
	}
	if l.Key, err = k.key(); err == nil && l.Key.Fingerprint != fp {
		err = fmt.Errorf("another key was answered: %w", auth.ErrCorrupt)
	}
	return l, d.wrap("looking up a key", err)
}

// KeyByID returns a key. A missing one is auth.ErrNotFound.
func (d *DB) KeyByID(ctx context.Context, id string) (*auth.Key, error) {
	return d.oneKey(d.current().Read.QueryRowContext(ctx, queryKeys+`WHERE k.id = $1`, id), id)
}

// Key returns a key as the transaction sees it. A missing one is auth.ErrNotFound.
func (tx *Tx) Key(ctx context.Context, id string) (*auth.Key, error) {
	return tx.d.oneKey(tx.queryRow(ctx, queryKeys+`WHERE k.id = $1`, id), id)
}

func (d *DB) oneKey(row *sql.Row, id string) (*auth.Key, error) {
	var k nullableKey
	if err := row.Scan(k.dest()...); err != nil {
		if errors.Is(err, sql.ErrNoRows) {
			return nil, fmt.Errorf("key %s: %w", id, auth.ErrNotFound)
		}
		return nil, d.wrap("reading a key", err)
	}
	key, err := k.key()
	return key, d.wrap("reading a key", err)
}

// InsertKey adds a key. Its owner must exist.
func (tx *Tx) InsertKey(ctx context.Context, k *auth.Key) error {
	meta, err := json.Marshal(k.Meta)
	if err != nil {
		return fmt.Errorf("writing a key: %w", err)
	}
	return tx.exec(ctx, "writing a key", `INSERT INTO keys (id, fingerprint, owner, name, hint, environment, scopes, networks, meta, created_at, expires_at, format)
		VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12)`,
		k.ID, k.Fingerprint[:], k.Owner, k.Name, k.Hint, k.Environment, strings.Join(k.Scopes, " "), strings.Join(k.Networks, " "), string(meta), k.CreatedAt, k.ExpiresAt, k.Format)
}

// InsertKeys adds many keys, whose owners must exist.
func (tx *Tx) InsertKeys(ctx context.Context, keys []*auth.Key) error {
	var t table
	for _, c := range copied {
		if c.name == "keys" {
			t = c
		}
	}
	var rows [][]any
	for _, k := range keys {
		meta, err := json.Marshal(k.Meta)
		if err != nil {
			return fmt.Errorf("writing keys: %w", err)
		}
		rows = append(rows, []any{
			k.ID, k.Fingerprint[:], k.Owner, k.Name, k.Hint, k.Environment, strings.Join(k.Scopes, " "), strings.Join(k.Networks, " "), string(meta),
			k.CreatedAt, k.ExpiresAt, 0, 0, "", "", 0, 0, 0, 0, "", k.Format,
		})
	}
	tx.changed = true
	return tx.d.wrap("writing keys", tx.d.insertRows(ctx, tx.tx, t, rows))
}

// OwnersOf returns the owners of those keys that are there, by fingerprint.
func (d *DB) OwnersOf(ctx context.Context, fps []auth.Fingerprint) (map[auth.Fingerprint]string, error) {
	return d.ownersOf(ctx, d.current().Read, fps)
}

// OwnersOf is what the transaction sees.
func (tx *Tx) OwnersOf(ctx context.Context, fps []auth.Fingerprint) (map[auth.Fingerprint]string, error) {
	return tx.d.ownersOf(ctx, tx.tx, fps)
}

func (d *DB) ownersOf(ctx context.Context, src querier, fps []auth.Fingerprint) (map[auth.Fingerprint]string, error) {
	out := map[auth.Fingerprint]string{}
	for part := range slices.Chunk(fps, d.backend.Values()) {
		var marks []string
		var args []any
		for _, fp := range part {
			args = append(args, fp[:])
			marks = append(marks, fmt.Sprintf("$%d", len(args)))
		}
		rows, err := src.QueryContext(ctx, `SELECT fingerprint, owner FROM keys WHERE fingerprint IN (`+strings.Join(marks, ", ")+`)`, args...)
		if err != nil {
			return nil, d.wrap("looking for keys", err)
		}
		for rows.Next() {
			var fp []byte
			var owner string
			if err := rows.Scan(&fp, &owner); err != nil {
				return nil, errors.Join(d.wrap("looking for keys", err), rows.Close())
			}
			out[auth.Fingerprint(fp)] = owner
		}
		if err := rows.Err(); err != nil {
			return nil, d.wrap("looking for keys", err)
		}
	}
	return out, nil
}

// UpdateKey writes every field of a key that can change.
func (tx *Tx) UpdateKey(ctx context.Context, k *auth.Key) error {
	meta, err := json.Marshal(k.Meta)
	if err != nil {
		return fmt.Errorf("writing a key: %w", err)
	}
	return tx.exec(ctx, "writing a key", `UPDATE keys SET name = $2, scopes = $3, networks = $4, meta = $5, expires_at = $6, disabled_at = $7,
		revoked_at = $8, revoked_reason = $9, replaced_by = $10, replaced_at = $11, overlap_until = $12 WHERE id = $1`,
		k.ID, k.Name, strings.Join(k.Scopes, " "), strings.Join(k.Networks, " "), string(meta), k.ExpiresAt, k.DisabledAt,
		k.RevokedAt, k.RevokedReason, k.ReplacedBy, k.ReplacedAt, k.OverlapUntil)
}

// RevokeOwnerKeys revokes every key of an owner that is not revoked yet and
// returns how many.
func (tx *Tx) RevokeOwnerKeys(ctx context.Context, owner, reason string) (int64, error) {
	res, err := tx.tx.ExecContext(ctx, `UPDATE keys SET revoked_at = $2, revoked_reason = $3 WHERE owner = $1 AND revoked_at = 0`, owner, tx.now, reason)
	if err != nil {
		return 0, tx.d.wrap("revoking the owner's keys", err)
	}
	n, err := res.RowsAffected()
	tx.changed = tx.changed || n > 0
	return n, tx.d.wrap("revoking the owner's keys", err)
}

// nullableKey scans a key that an outer join may have left out.
type nullableKey struct {
	id, owner, name, hint, environment, scopes, networks, meta, revokedReason, replacedBy, refusedReason, format  sql.NullString
	fingerprint                                                                                                   []byte
	createdAt, expiresAt, disabledAt, revokedAt, replacedAt, overlapUntil, lastUsedAt, refusedAt, ownerDisabledAt sql.NullInt64
}

func (k *nullableKey) dest() []any {
	return []any{
		&k.id, &k.fingerprint, &k.owner, &k.name, &k.hint, &k.environment, &k.scopes, &k.networks, &k.meta, &k.createdAt, &k.expiresAt,
		&k.disabledAt, &k.revokedAt, &k.revokedReason, &k.replacedBy, &k.replacedAt, &k.overlapUntil, &k.lastUsedAt, &k.refusedAt, &k.refusedReason, &k.format, &k.ownerDisabledAt,
	}
}

func (k *nullableKey) key() (*auth.Key, error) {
	out := &auth.Key{
		ID: k.id.String, Owner: k.owner.String, Name: k.name.String, Hint: k.hint.String, Environment: k.environment.String,
		Scopes: strings.Fields(k.scopes.String), Networks: strings.Fields(k.networks.String),
		CreatedAt: k.createdAt.Int64, ExpiresAt: k.expiresAt.Int64, DisabledAt: k.disabledAt.Int64,
		RevokedAt: k.revokedAt.Int64, RevokedReason: k.revokedReason.String,
		ReplacedBy: k.replacedBy.String, ReplacedAt: k.replacedAt.Int64, OverlapUntil: k.overlapUntil.Int64, LastUsedAt: k.lastUsedAt.Int64,
		RefusedAt: k.refusedAt.Int64, RefusedReason: k.refusedReason.String, Format: k.format.String,
		OwnerDisabled: k.ownerDisabledAt.Int64 != 0,
	}
	if copy(out.Fingerprint[:], k.fingerprint) != len(k.fingerprint) || len(k.fingerprint) != len(out.Fingerprint) {
		return nil, fmt.Errorf("fingerprint of %s: %w", out.ID, auth.ErrCorrupt)
	}
	if err := json.Unmarshal([]byte(k.meta.String), &out.Meta); err != nil {
		return nil, fmt.Errorf("metadata of %s: %w", out.ID, auth.ErrCorrupt)
	}
	return out, nil
}
