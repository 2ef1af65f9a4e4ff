package store

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/caddy-auth/caddy-auth/internal/auth"
)

// The row and the point it was read at come from one statement, so from one
// snapshot (design 4.6, Point).
const pointed = `SELECT m.value, j.seq, j.id, (SELECT COUNT(*) FROM store_meta WHERE name = '` + metaMoved + `'), `

const fromPoint = `
	FROM store_meta m
	CROSS JOIN (SELECT seq, id FROM journal ORDER BY seq DESC LIMIT 1) j
	`

var (
	queryLookupToken = pointed + `t.id, t.fingerprint, t.client, t.key_id, t.scopes, t.issued_at, t.expires_at, t.revoked_at, ` + clientColumns + `, ` + tokenKeyColumns + fromPoint + `
	LEFT JOIN access_tokens t ON t.fingerprint = $1
	LEFT JOIN clients c ON c.id = t.client
	LEFT JOIN owners o ON o.name = c.owner
	LEFT JOIN keys k ON k.id = t.key_id
	LEFT JOIN owners ko ON ko.name = k.owner
	WHERE m.name = 'epoch'`

	queryLookupSecret = pointed + `s.fingerprint, s.hint, s.created_at, s.ends_at, ` + clientColumns + fromPoint + `
	LEFT JOIN client_secrets s ON s.fingerprint = $1
	LEFT JOIN clients c ON c.id = s.client
	LEFT JOIN owners o ON o.name = c.owner
	WHERE m.name = 'epoch'`

	queryLookupClient = pointed + clientColumns + fromPoint + `
	LEFT JOIN clients c ON c.id = $1
	LEFT JOIN owners o ON o.name = c.owner
	WHERE m.name = 'epoch'`
)

// tokenKeyColumns are keyColumns of a key whose owner has another alias.
var tokenKeyColumns = strings.Replace(keyColumns, "o.disabled_at", "ko.disabled_at", 1)

// LoadedToken is a token of our own with what it hangs on, or the certainty
// that there is none.
type LoadedToken struct {
	Point  auth.Point
	Moved  bool              // see Loaded
	Token  *auth.AccessToken // nil: no such token
	Client *auth.Client      // nil: it has none
	Key    *auth.Key         // that it was exchanged for; nil: none
}

// LoadedClient is a client that was looked for by a secret or by its id.
type LoadedClient struct {
	Point  auth.Point
	Moved  bool
	Client *auth.Client       // nil: no such client, or no such secret
	Secret *auth.ClientSecret // that it was looked for by
}

// pointDest scans what pointed selects.
type pointDest struct {
	epoch, row []byte
	point      auth.Point
	moved      bool
}

func (p *pointDest) dest() []any { return []any{&p.epoch, &p.point.Seq, &p.row, &p.moved} }

func (p *pointDest) read() auth.Point {
	copy(p.point.Epoch[:], p.epoch)
	copy(p.point.Row[:], p.row)
	return p.point
}

// pointedRow runs a query that begins with pointed.
func (d *DB) pointedRow(ctx context.Context, doing, query string, arg any, p *pointDest, dest ...any) error {
	err := d.current().Read.QueryRowContext(ctx, query, arg).Scan(append(p.dest(), dest...)...)
	if errors.Is(err, sql.ErrNoRows) {
		return fmt.Errorf("%s in %s: %w", doing, d.Describe(), auth.ErrNotInitialized)
	}
	return d.wrap(doing, err)
}

// LookupToken reads the token of our own with a fingerprint. A missing one is
// no error.
func (d *DB) LookupToken(ctx context.Context, fp auth.Fingerprint) (LoadedToken, error) {
	const doing = "looking up a token"
	var l LoadedToken
	var p pointDest
	var c nullableClient
	var k nullableKey
	var id, client, key, scopes sql.NullString
	var issued, expires, revoked sql.NullInt64
	var have []byte
	dest := slices.Concat([]any{&id, &have, &client, &key, &scopes, &issued, &expires, &revoked}, c.dest(), k.dest())
	if err := d.pointedRow(ctx, doing, queryLookupToken, fp[:], &p, dest...); err != nil {
		return l, err
	}
	l.Point, l.Moved = p.read(), p.moved
	if !id.Valid {
		return l, nil
	}
	l.Token = &auth.AccessToken{
		ID: id.String, ClientID: client.String, KeyID: key.String, Scopes: scopes.String,
		IssuedAt: issued.Int64, ExpiresAt: expires.Int64, RevokedAt: revoked.Int64,
	}
	if copy(l.Token.Fingerprint[:], have) != len(fp) || l.Token.Fingerprint != fp {
		return l, fmt.Errorf("%s: another token was answered: %w", doing, auth.ErrCorrupt)
	}
	var err error
	if l.Client, err = c.client(); err == nil && k.id.Valid {
		l.Key, err = k.key()
	}
	return l, d.wrap(doing, err)
}

// LookupSecret reads the client whose secret has a fingerprint. A missing one
// is no error.
func (d *DB) LookupSecret(ctx context.Context, fp auth.Fingerprint) (LoadedClient, error) {
	const doing = "looking up a client"
	var l LoadedClient
	var p pointDest
	var c nullableClient
	var have []byte
	var hint sql.NullString
	var created, ends sql.NullInt64
	if err := d.pointedRow(ctx, doing, queryLookupSecret, fp[:], &p, append([]any{&have, &hint, &created, &ends}, c.dest()...)...); err != nil {
		return l, err
	}
	l.Point, l.Moved = p.read(), p.moved
	if have == nil {
		return l, nil
	}
	l.Secret = &auth.ClientSecret{Hint: hint.String, CreatedAt: created.Int64, EndsAt: ends.Int64}
	if copy(l.Secret.Fingerprint[:], have) != len(fp) || l.Secret.Fingerprint != fp {
		return l, fmt.Errorf("%s: another secret was answered: %w", doing, auth.ErrCorrupt)
	}
	var err error
	l.Client, err = c.client()
	return l, d.wrap(doing, err)
}

// LookupClient reads a client, without its secrets, by its id. A missing one is
// no error.
func (d *DB) LookupClient(ctx context.Context, id string) (LoadedClient, error) {
	const doing = "looking up a client"
	var l LoadedClient
	var p pointDest
	var c nullableClient
	if err := d.pointedRow(ctx, doing, queryLookupClient, id, &p, c.dest()...); err != nil {
		return l, err
	}
	var err error
	l.Point, l.Moved = p.read(), p.moved
	l.Client, err = c.client()
	return l, d.wrap(doing, err)
}

// Issue is a token to be written, and what must hold for it.
type Issue struct {
	Token auth.AccessToken
	// JTI is the hash of the client assertion's jti, and AssertionEnds when that
	// one expires, unix milliseconds; empty: there was none.
	JTI           []byte
	AssertionEnds int64
	// Most is how many living tokens the client, or the key that one is exchanged
	// for, may have; 0: any number.
	Most int
	// Err is what became of it, set by IssueTokens: auth.ErrConflict says that
	// the assertion was used before, a *TooManyTokens that there are Most.
	Err error
}

// TooManyTokens says that a client, or a key, has all the tokens that it may. They
// stay.
type TooManyTokens struct {
	Most int
	Room int64 // when the first of them expires, unix milliseconds
}

// Error implements error.
func (e *TooManyTokens) Error() string { return fmt.Sprintf("there are %d living tokens", e.Most) }

// holder is whose tokens are counted together.
type holder struct{ client, key string }

func holderOf(t *auth.AccessToken) holder {
	if t.KeyID != "" {
		return holder{key: t.KeyID}
	}
	return holder{client: t.ClientID}
}

// living counts a holder's living tokens, up to most, and says when the first of
// them expires. Revoked ones are rows too until they expire: with as many of those
// as there may be living ones, the holder counts as having most.
func living(ctx context.Context, tx *sql.Tx, h holder, most int, now int64) (n int, first int64, err error) {
	which, name := `client = $1 AND key_id = ''`, h.client
	if h.key != "" {
		which, name = `key_id = $1 AND key_id <> ''`, h.key
	}
	var all int
	var until, any sql.NullInt64
	err = tx.QueryRowContext(ctx, `SELECT COUNT(*), COUNT(CASE WHEN revoked_at = 0 THEN 1 END), MIN(CASE WHEN revoked_at = 0 THEN expires_at END), MIN(expires_at) FROM
		(SELECT expires_at, revoked_at FROM access_tokens WHERE `+which+` AND expires_at > $2 ORDER BY expires_at LIMIT $3) found`, name, now, 2*most).Scan(&all, &n, &until, &any)
	if all >= 2*most && n < most {
		return most, any.Int64, err
	}
	return n, until.Int64, err
}

// IssueTokens writes tokens of our own in one transaction. It is no change in
// the sense of the journal: nobody can have asked for a token before it was
// made, so no verdict is wrong because of it.
func (d *DB) IssueTokens(ctx context.Context, issues []*Issue) error {
	return d.wrap("writing tokens", d.write(ctx, d.current(), func(tx *sql.Tx, now int64) error {
		clients := map[string]bool{}
		counts := map[holder]int{}
		for _, i := range issues {
			i.Err = nil
			if full, err := d.full(ctx, tx, i, counts, now); err != nil || full != nil {
				if err != nil {
					return err
				}
				i.Err = full // and its assertion is still good
				continue
			}
			if len(i.JTI) > 0 {
				used, err := useAssertion(ctx, tx, i)
				if err != nil {
					return err
				}
				if used {
					i.Err = fmt.Errorf("the client assertion was used before: %w", auth.ErrConflict)
					continue
				}
			}
			t := &i.Token
			if _, err := tx.ExecContext(ctx, `INSERT INTO access_tokens (fingerprint, id, client, key_id, scopes, issued_at, expires_at) VALUES ($1, $2, $3, $4, $5, $6, $7)`,
				t.Fingerprint[:], t.ID, t.ClientID, t.KeyID, t.Scopes, t.IssuedAt, t.ExpiresAt); err != nil {
				return err
			}
			counts[holderOf(t)]++
			if t.ClientID != "" {
				clients[t.ClientID] = true
			}
		}
		for id := range clients {
			if _, err := tx.ExecContext(ctx, `UPDATE clients SET last_token_at = $2 WHERE id = $1 AND last_token_at < $3`, id, now, now-lastTokenStep); err != nil {
				return err
			}
		}
		return nil
	}))
}

// full reports whether a token's holder has all that it may. counts are of this
// transaction.
func (d *DB) full(ctx context.Context, tx *sql.Tx, i *Issue, counts map[holder]int, now int64) (*TooManyTokens, error) {
	if i.Most <= 0 {
		return nil, nil
	}
	h := holderOf(&i.Token)
	n, counted := counts[h]
	if counted && n < i.Most/2 { // with revoked ones there may be less room
		return nil, nil
	}
	n, first, err := living(ctx, tx, h, i.Most, now)
	if err != nil || n < i.Most {
		counts[h] = n
		return nil, err
	}
	counts[h] = n
	return &TooManyTokens{i.Most, first}, nil
}

// lastTokenStep is how exact a client's last token's time is, in milliseconds.
const lastTokenStep = 10_000

// useAssertion marks a client assertion as used and reports whether it was.
func useAssertion(ctx context.Context, tx *sql.Tx, i *Issue) (used bool, err error) {
	res, err := tx.ExecContext(ctx, `INSERT INTO client_assertions (client, jti, expires_at) VALUES ($1, $2, $3) ON CONFLICT (client, jti) DO NOTHING`,
		i.Token.ClientID, i.JTI, i.AssertionEnds)
	if err != nil {
		return false, err
	}
	n, err := res.RowsAffected()
	return n == 0, err
}

// UseAssertion marks a client assertion as used where no token is written. One
// that was used before is auth.ErrConflict.
func (d *DB) UseAssertion(ctx context.Context, i *Issue) error {
	used := false
	err := d.wrap("marking a client assertion", d.write(ctx, d.current(), func(tx *sql.Tx, _ int64) (err error) {
		used, err = useAssertion(ctx, tx, i)
		return err
	}))
	if err == nil && used {
		return fmt.Errorf("the client assertion was used before: %w", auth.ErrConflict)
	}
	return err
}

// Used reports whether something was marked as used by UseAssertion.
func (d *DB) Used(ctx context.Context, whose string, hash []byte) (bool, error) {
	var n int
	err := d.current().Read.QueryRowContext(ctx, `SELECT COUNT(*) FROM client_assertions WHERE client = $1 AND jti = $2`, whose, hash).Scan(&n)
	return n > 0, d.wrap("looking for what was used", err)
}

// RevokeToken ends a token of our own, if it had not ended, and reports whether
// it did.
func (tx *Tx) RevokeToken(ctx context.Context, fp auth.Fingerprint) (changed bool, err error) {
	res, err := tx.tx.ExecContext(ctx, `UPDATE access_tokens SET revoked_at = $2 WHERE fingerprint = $1 AND revoked_at = 0 AND expires_at > $2`, fp[:], tx.now)
	if err != nil {
		return false, tx.d.wrap("ending a token", err)
	}
	n, err := res.RowsAffected()
	tx.changed = tx.changed || n > 0
	return n > 0, tx.d.wrap("ending a token", err)
}

// RevokedTokens calls each for the tokens of our own that were revoked and have
// not expired at now (unix milliseconds), until it returns an error.
func (d *DB) RevokedTokens(ctx context.Context, now int64, each func(auth.AccessToken) error) error {
	const query = `SELECT fingerprint, id, client, key_id, scopes, issued_at, expires_at, revoked_at FROM access_tokens WHERE revoked_at <> 0 ORDER BY id`
	return d.each(ctx, "reading revoked tokens", query, func(rows *sql.Rows) error {
		var t auth.AccessToken
		var fp []byte
		if err := rows.Scan(&fp, &t.ID, &t.ClientID, &t.KeyID, &t.Scopes, &t.IssuedAt, &t.ExpiresAt, &t.RevokedAt); err != nil {
			return err
		}
		if copy(t.Fingerprint[:], fp); t.ExpiresAt <= now {
			return nil
		}
		return each(t)
	})
}

// Exchanged reports whether tokens were exchanged for a key.
func (tx *Tx) Exchanged(ctx context.Context, keyID string) (bool, error) {
	var n int
	err := tx.queryRow(ctx, `SELECT COUNT(*) FROM (SELECT 1 FROM access_tokens WHERE key_id = $1 AND key_id <> '' LIMIT 1) found`, keyID).Scan(&n)
	return n > 0, tx.d.wrap("looking for a key's tokens", err)
}

// pruneTokens is how many rows one statement removes: the writer's lock is not
// held for long.
const pruneTokens = 5000

// PruneTokens removes tokens of our own and client assertions that have
// expired, by the store's clock. It returns whether there may be more.
func (d *DB) PruneTokens(ctx context.Context) (more bool, err error) {
	err = d.wrap("removing expired tokens", d.write(ctx, d.current(), func(tx *sql.Tx, now int64) error {
		for _, q := range []string{
			`DELETE FROM access_tokens WHERE fingerprint IN (SELECT fingerprint FROM access_tokens WHERE expires_at < $1 ORDER BY expires_at LIMIT $2)`,
			`DELETE FROM client_assertions WHERE (client, jti) IN (SELECT client, jti FROM client_assertions WHERE expires_at < $1 ORDER BY expires_at LIMIT $2)`,
			`DELETE FROM client_secrets WHERE fingerprint IN (SELECT fingerprint FROM client_secrets WHERE ends_at <> 0 AND ends_at < $1 LIMIT $2)`,
		} {
			res, err := tx.ExecContext(ctx, q, now-keptAfterEnd, pruneTokens)
			if err != nil {
				return err
			}
			n, err := res.RowsAffected()
			if err != nil {
				return err
			}
			more = more || n >= pruneTokens
		}
		return nil
	}))
	return more, err
}

// keptAfterEnd is how long an expired token is told from an unknown one, in
// milliseconds: clocks of gateways differ.
const keptAfterEnd = 10 * 60 * 1000
