package store

import (
	"context"
	"database/sql"
	"fmt"
	"time"

	"github.com/caddy-auth/caddy-auth/internal/auth"
	"github.com/caddy-auth/caddy-auth/internal/secret"
)

// Tokens of sessions are sealed as the store's secrets are, each under a name of
// its own.
func tokensName(storeID []byte, id string) string { return fmt.Sprintf("%x/session/%s", storeID, id) }

func (d *DB) tokensName(ctx context.Context, id string) (string, error) {
	storeID, err := d.ID(ctx)
	return tokensName(storeID, id), err
}

// SessionTokens are the tokens of a session, opened.
type SessionTokens struct {
	Plain   []byte // nil: none
	Version int64  // rises with every change
	Ended   bool   // the session has
	// Authority is whose they are; see auth.Session.
	Authority string
}

// SessionTokens reads a session's tokens. A session that is not there is
// auth.ErrNotFound.
func (d *DB) SessionTokens(ctx context.Context, ring *secret.Ring, id string) (SessionTokens, error) {
	const doing = "reading a session's tokens"
	var t SessionTokens
	var sealed []byte
	var revoked int64
	name, err := d.tokensName(ctx, id)
	if err != nil {
		return t, err
	}
	err = d.current().Fresh.QueryRowContext(ctx, `SELECT tokens, tokens_version, revoked_at, authority FROM sessions WHERE id = $1`, id).Scan(&sealed, &t.Version, &revoked, &t.Authority)
	if noRow(err) {
		return t, errNoSession(id)
	}
	t.Ended = revoked != 0
	if err != nil || len(sealed) == 0 {
		return t, d.wrap(doing, err)
	}
	if t.Plain, err = ring.Open(name, sealed); err != nil {
		return t, auth.WithHint(fmt.Errorf("opening the tokens of session %s of %s: %w", id, d.Describe(), err), "the master key must be the one this store was made with")
	}
	return t, nil
}

// LeaseSession reports whether by may change a session's tokens, of that version,
// for a while: nobody else may meanwhile. after says that somebody had a lease who
// never gave it back.
func (d *DB) LeaseSession(ctx context.Context, id string, version int64, by string, ttl time.Duration) (ours, after bool, err error) {
	err = d.wrap("leasing a session's tokens", d.write(ctx, d.current(), func(tx *sql.Tx, now int64) error {
		var before string
		if err := tx.QueryRowContext(ctx, `SELECT leased_by FROM sessions WHERE id = $1`, id).Scan(&before); err != nil && !noRow(err) {
			return err
		}
		res, err := tx.ExecContext(ctx, `UPDATE sessions SET leased_by = $3, leased_until = $4 WHERE id = $1 AND tokens_version = $2 AND leased_until <= $5`,
			id, version, by, now+ttl.Milliseconds(), now)
		after = before != ""
		return changedOne(res, err, &ours)
	}))
	return ours, after, err
}

// ReleaseSession gives a lease back.
func (d *DB) ReleaseSession(ctx context.Context, id, by string) error {
	return d.wrap("giving a lease back", d.write(ctx, d.current(), func(tx *sql.Tx, _ int64) error {
		_, err := tx.ExecContext(ctx, `UPDATE sessions SET leased_by = '', leased_until = 0 WHERE id = $1 AND leased_by = $2`, id, by)
		return err
	}))
}

// PutSessionTokens replaces the tokens of a session, if they are still of that
// version, and gives the lease back. Nil tokens leave none.
func (d *DB) PutSessionTokens(ctx context.Context, ring *secret.Ring, id string, version int64, tokens []byte) (did bool, err error) {
	sealed := []byte{}
	if tokens != nil {
		name, err := d.tokensName(ctx, id)
		if err != nil {
			return false, err
		}
		sealed = ring.Seal(name, tokens)
	}
	err = d.wrap("writing a session's tokens", d.write(ctx, d.current(), func(tx *sql.Tx, _ int64) error {
		res, err := tx.ExecContext(ctx, `UPDATE sessions SET tokens = $3, tokens_version = tokens_version + 1, leased_by = '', leased_until = 0 WHERE id = $1 AND tokens_version = $2`,
			id, version, sealed)
		return changedOne(res, err, &did)
	}))
	return did, err
}

func changedOne(res sql.Result, err error, did *bool) error {
	if err != nil {
		return err
	}
	n, err := res.RowsAffected()
	*did = n > 0
	return err
}

// SessionsToRevoke returns sessions, at most limit, that have ended and whose
// tokens, which are an authority's, it does not know of that yet: those whose id
// sorts above after. now is in unix milliseconds.
func (d *DB) SessionsToRevoke(ctx context.Context, authority, after string, now int64, limit int) (found []*auth.Session, err error) {
	const doing = "looking for tokens to revoke"
	rows, err := d.current().Read.QueryContext(ctx, `SELECT `+sessionColumns+` FROM sessions s
		WHERE s.authority = $3 AND s.id > $4 AND length(s.tokens) > 0 AND s.leased_until <= $1 AND (s.revoked_at <> 0 OR s.expires_at <= $1 OR s.idle_until <= $1) ORDER BY s.id LIMIT $2`, now, limit, authority, after)
	if err != nil {
		return nil, d.wrap(doing, err)
	}
	defer rows.Close()
	for rows.Next() {
		var s sessionDest
		if err := rows.Scan(s.dest()...); err != nil {
			return nil, d.wrap(doing, err)
		}
		found = append(found, s.session())
	}
	return found, d.wrap(doing, rows.Err())
}

// resealSessions seals the tokens of all sessions under ring's first key. What
// does not open is lost: its session ends when its tokens are wanted.
func (tx *Tx) resealSessions(ctx context.Context, ring *secret.Ring, storeID []byte) error {
	const doing = "sealing the tokens of sessions"
	for after := ""; ; {
		sealed, last, err := tx.sessionTokensAfter(ctx, after)
		if err != nil || len(sealed) == 0 {
			return tx.d.wrap(doing, err)
		}
		for id, text := range sealed {
			plain, err := ring.Open(tokensName(storeID, id), text)
			if err != nil {
				continue
			}
			if err := tx.exec(ctx, doing, `UPDATE sessions SET tokens = $2 WHERE id = $1`, id, ring.Seal(tokensName(storeID, id), plain)); err != nil {
				return err
			}
		}
		after = last
	}
}

func (tx *Tx) sessionTokensAfter(ctx context.Context, after string) (sealed map[string][]byte, last string, err error) {
	rows, err := tx.tx.QueryContext(ctx, `SELECT id, tokens FROM sessions WHERE id > $1 AND length(tokens) > 0 ORDER BY id LIMIT 500`, after)
	if err != nil {
		return nil, "", err
	}
	defer rows.Close()
	sealed = map[string][]byte{}
	for rows.Next() {
		var text []byte
		if err := rows.Scan(&last, &text); err != nil {
			return nil, "", err
		}
		sealed[last] = text
	}
	return sealed, last, rows.Err()
}
