package store

import (
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

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

// KeyFilter selects keys. Zero fields select everything.
type KeyFilter struct {
	Owner         string
	Environment   string
	Scope         string
	State         auth.KeyState
	CreatedBefore int64  // unix milliseconds
	Hint          string // a part of the hint
	Limit         int    // 0: all
}

// Keys calls each for the keys that filter selects, oldest first, until it
// returns an error.
func (d *DB) Keys(ctx context.Context, f KeyFilter, each func(*auth.Key) error) error {
	rows, err := d.current().Read.QueryContext(ctx, queryKeys+`WHERE ($1 = '' OR k.owner = $1) AND ($2 = '' OR k.environment = $2)
		AND (k.created_at < $3 OR $3 = 0) ORDER BY k.id`, f.Owner, f.Environment, f.CreatedBefore)
	if err != nil {
		return d.wrap("listing keys", err)
	}
	defer rows.Close()
	now := time.Now()
	found := 0
	for rows.Next() {
		var k nullableKey
		if err := rows.Scan(k.dest()...); err != nil {
			return d.wrap("listing keys", err)
		}
		key, err := k.key()
		if err != nil {
			return d.wrap("listing keys", err)
		}
		if !f.selects(key, now) {
			continue
		}
		if err := each(key); err != nil {
			return err
		}
		if found++; f.Limit > 0 && found >= f.Limit {
			return nil
		}
	}
	return d.wrap("listing keys", rows.Err())
}

func (f KeyFilter) selects(k *auth.Key, now time.Time) bool {
	if f.State != "" && k.State(now) != f.State {
		return false
	}
	if f.Hint != "" && !strings.Contains(k.Hint, f.Hint) {
		return false
	}
	if f.Scope == "" {
		return true
	}
	for _, s := range k.Scopes {
		if s == f.Scope {
			return true
		}
	}
	return false
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
