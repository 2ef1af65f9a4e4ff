package store

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/caddy-auth/caddy-auth/internal/auth"
	"github.com/caddy-auth/caddy-auth/internal/secret"
)

// sessionColumns are what sessionDest.dest scans, in its order.
const sessionColumns = `s.id, s.fingerprint, s.login, s.subject, s.sub, s.sid, s.environment, s.scopes, s.meta,
	s.created_at, s.seen_at, s.idle_until, s.expires_at, s.revoked_at, s.revoked_reason,
	s.tokens_version, length(s.tokens), s.judged_by, s.authority`

var queryLookupSession = pointed + sessionColumns + fromPoint + `
	LEFT JOIN sessions s ON s.fingerprint = $1
	WHERE m.name = 'epoch'`

// LoadedSession is a session, or the certainty that there is none.
type LoadedSession struct {
	Point   auth.Point
	Moved   bool          // see Loaded
	Session *auth.Session // nil: no such session
}

// sessionDest scans sessionColumns, which are null where a join found none.
type sessionDest struct {
	id, login, subject, sub, sid, environment, scopes, meta, reason sql.NullString
	judgedBy, authority                                             sql.NullString
	created, seen, idle, expires, revoked, version, tokensLength    sql.NullInt64
	fp                                                              []byte
}

func (d *sessionDest) dest() []any {
	return []any{
		&d.id, &d.fp, &d.login, &d.subject, &d.sub, &d.sid, &d.environment, &d.scopes, &d.meta, &d.created, &d.seen, &d.idle, &d.expires, &d.revoked, &d.reason,
		&d.version, &d.tokensLength, &d.judgedBy, &d.authority,
	}
}

func (d *sessionDest) session() *auth.Session {
	if !d.id.Valid {
		return nil
	}
	s := &auth.Session{
		ID: d.id.String, Login: d.login.String, Subject: d.subject.String, Sub: d.sub.String, SID: d.sid.String, Environment: d.environment.String, Scopes: d.scopes.String,
		Meta: d.meta.String, CreatedAt: d.created.Int64, SeenAt: d.seen.Int64, IdleUntil: d.idle.Int64, ExpiresAt: d.expires.Int64, RevokedAt: d.revoked.Int64,
		RevokedReason: d.reason.String, HasTokens: d.tokensLength.Int64 > 0,
		JudgedBy: d.judgedBy.String, Authority: d.authority.String,
	}
	copy(s.Fingerprint[:], d.fp)
	return s
}

// LookupSession reads the session with a fingerprint. A missing one is no error.
func (d *DB) LookupSession(ctx context.Context, fp auth.Fingerprint) (LoadedSession, error) {
	const doing = "looking up a session"
	var l LoadedSession
	var p pointDest
	var s sessionDest
	if err := d.pointedRow(ctx, doing, queryLookupSession, fp[:], &p, s.dest()...); err != nil {
		return l, err
	}
	l.Point, l.Moved, l.Session = p.read(), p.moved, s.session()
	if l.Session != nil && l.Session.Fingerprint != fp {
		return l, fmt.Errorf("%s: another session was answered: %w", doing, auth.ErrCorrupt)
	}
	return l, nil
}

// InsertSession writes a new session with its tokens, sealed with ring; nil:
// none. It ends idle and life from now on by the store's clock; its times are
// set. It is no change in the sense of the journal: nobody can have asked for it.
// A sign-in that began before who signs in was logged out (see NoteLogout) is
// auth.ErrConflict.
func (d *DB) InsertSession(ctx context.Context, ring *secret.Ring, s *auth.Session, began time.Time, tokens []byte, idle, life time.Duration) error {
	const doing = "writing a session"
	sealed := []byte{}
	if tokens != nil {
		name, err := d.tokensName(ctx, s.ID)
		if err != nil {
			return err
		}
		sealed = ring.Seal(name, tokens)
	}
	return d.wrap(doing, d.write(ctx, d.current(), func(tx *sql.Tx, now int64) error {
		if out, err := loggedOut(ctx, tx, s, began); err != nil || out {
			return errors.Join(err, errLoggedOut(out))
		}
		s.CreatedAt, s.SeenAt, s.IdleUntil, s.ExpiresAt = now, now, now+idle.Milliseconds(), now+life.Milliseconds()
		_, err := tx.ExecContext(ctx, `INSERT INTO sessions (id, fingerprint, login, subject, sub, sid, environment, scopes, meta, created_at, seen_at, idle_until, expires_at, tokens, judged_by, authority)
			VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16)`,
			s.ID, s.Fingerprint[:], s.Login, s.Subject, s.Sub, s.SID, s.Environment, s.Scopes, s.Meta, s.CreatedAt, s.SeenAt, s.IdleUntil, s.ExpiresAt, sealed, s.JudgedBy, s.Authority)
		return err
	}))
}

// logoutNoted is how long a logout is remembered: longer than a sign-in may take.
const logoutNoted = 15 * time.Minute

// Logouts are kept where other things are that count once: what they name, under
// whose they are, until a while after they were.
func logoutName(login, authority, kind string) string {
	return "logout " + kind + ":" + login + " " + authority
}

func logoutHash(name string) []byte {
	fp := auth.FingerprintOf(name)
	return fp[:]
}

// NoteLogout remembers that the provider that an authority stands for logged
// somebody of a login out at a time: the session of a sid, and those of the sub that have none, or all of a sub. Call it before
// EndSessions; a sign-in under way then ends nowhere.
func (d *DB) NoteLogout(ctx context.Context, login, authority, sub, sid string, at time.Time) error {
	notes := map[string]string{"sub": sub}
	if sid != "" {
		notes = map[string]string{"sid": sid, "sub without sid": sub}
	}
	return d.wrap("noting a logout", d.write(ctx, d.current(), func(tx *sql.Tx, _ int64) error {
		for kind, name := range notes {
			if name == "" {
				continue
			}
			if _, err := tx.ExecContext(ctx, `INSERT INTO client_assertions (client, jti, expires_at) VALUES ($1, $2, $3) ON CONFLICT (client, jti) DO UPDATE
				SET expires_at = CASE WHEN client_assertions.expires_at > excluded.expires_at THEN client_assertions.expires_at ELSE excluded.expires_at END`,
				logoutName(login, authority, kind), logoutHash(name), Millis(at.Add(logoutNoted))); err != nil {
				return err
			}
		}
		return nil
	}))
}

// loggedOut reports whether who signs in was logged out since that began.
func loggedOut(ctx context.Context, tx *sql.Tx, s *auth.Session, began time.Time) (bool, error) {
	looks := map[string]string{"sub": s.Sub, "sid": s.SID}
	if s.SID == "" {
		looks = map[string]string{"sub": s.Sub, "sub without sid": s.Sub}
	}
	total := 0
	for kind, name := range looks {
		n := 0
		err := tx.QueryRowContext(ctx, `SELECT COUNT(*) FROM client_assertions WHERE client = $1 AND jti = $2 AND expires_at > $3`,
			logoutName(s.Login, s.Authority, kind), logoutHash(name), Millis(began.Add(logoutNoted))).Scan(&n)
		if err != nil {
			return false, err
		}
		total += n
	}
	return total > 0, nil
}

func errLoggedOut(out bool) error {
	if !out {
		return nil
	}
	return fmt.Errorf("who signs in was logged out meanwhile: %w", auth.ErrConflict)
}

// TouchSession lets a session that has not ended go on for idle from now.
func (d *DB) TouchSession(ctx context.Context, fp auth.Fingerprint, idle time.Duration) error {
	return d.wrap("noting the use of a session", d.note(ctx, d.current(), func(tx *sql.Tx, now int64) error {
		_, err := tx.ExecContext(ctx, `UPDATE sessions SET seen_at = $2, idle_until = $3 WHERE fingerprint = $1 AND revoked_at = 0 AND idle_until > $2 AND expires_at > $2 AND idle_until < $3`,
			fp[:], now, now+idle.Milliseconds())
		return err
	}))
}

// SessionFilter selects sessions. Zero fields select everything.
type SessionFilter struct {
	IDs         []string
	Fingerprint auth.Fingerprint
	Login       string
	Subject     string
	Sub         string
	SID         string
	Authority   string // only its, and those that don't say whose they are
	NotJudgedBy string // only those that another configuration judged
	NoSID       bool   // only those of which the provider gave no sid
	Before      int64  // only those that began before it, in unix milliseconds; 0: all
	Unrevoked   bool
	After       string // only those whose id sorts above it
	Limit       int    // 0: all
}

// where is the condition, with its arguments.
func (f *SessionFilter) where() (string, []any) {
	conds, args := []string{"1 = 1"}, []any(nil)
	add := func(cond string, arg any) {
		args = append(args, arg)
		conds = append(conds, strings.ReplaceAll(cond, "?", fmt.Sprintf("$%d", len(args))))
	}
	if len(f.IDs) > 0 {
		var marks []string
		for _, id := range f.IDs {
			args = append(args, id)
			marks = append(marks, fmt.Sprintf("$%d", len(args)))
		}
		conds = append(conds, "s.id IN ("+strings.Join(marks, ", ")+")")
	}
	if f.Fingerprint != (auth.Fingerprint{}) {
		add("s.fingerprint = ?", f.Fingerprint[:])
	}
	for column, value := range map[string]string{"login": f.Login, "subject": f.Subject, "sub": f.Sub, "sid": f.SID} {
		if value != "" {
			add("s."+column+" = ?", value)
		}
	}
	if f.Authority != "" {
		add("s.authority IN (?, '')", f.Authority)
	}
	if f.NotJudgedBy != "" {
		add("s.judged_by <> ?", f.NotJudgedBy)
	}
	if f.Before != 0 {
		add("s.created_at < ?", f.Before)
	}
	if f.NoSID {
		conds = append(conds, "s.sid = ''")
	}
	if f.Unrevoked {
		conds = append(conds, "s.revoked_at = 0")
	}
	if f.After != "" {
		add("s.id > ?", f.After)
	}
	return strings.Join(conds, " AND "), args
}

// Sessions calls each for the sessions that a filter selects, by id and so the
// oldest first, until it returns an error. No snapshot is held meanwhile.
func (d *DB) Sessions(ctx context.Context, f SessionFilter, each func(*auth.Session) error) error {
	left := f.Limit
	for {
		page := f
		if page.Limit = listPage; f.Limit > 0 {
			page.Limit = min(listPage, left)
		}
		found, err := d.sessionsPage(ctx, d.current().Read, page)
		if err != nil {
			return err
		}
		for _, s := range found {
			if err := each(s); err != nil {
				return err
			}
			f.After = s.ID
		}
		if left -= len(found); len(found) < page.Limit || f.Limit > 0 && left <= 0 {
			return nil
		}
	}
}

func (d *DB) sessionsPage(ctx context.Context, src querier, f SessionFilter) ([]*auth.Session, error) {
	const doing = "reading sessions"
	cond, args := f.where()
	rows, err := src.QueryContext(ctx, `SELECT `+sessionColumns+` FROM sessions s WHERE `+cond+fmt.Sprintf(` ORDER BY s.id LIMIT %d`, f.Limit), args...)
	if err != nil {
		return nil, d.wrap(doing, err)
	}
	defer rows.Close()
	var out []*auth.Session
	for rows.Next() {
		var s sessionDest
		if err := rows.Scan(s.dest()...); err != nil {
			return nil, d.wrap(doing, err)
		}
		out = append(out, s.session())
	}
	return out, d.wrap(doing, rows.Err())
}

// EndSessions ends what a filter selects and has not ended, in the order of
// ids, at most f.Limit, which must be set. It returns them as they were.
func (tx *Tx) EndSessions(ctx context.Context, f SessionFilter, reason string) ([]*auth.Session, error) {
	f.Unrevoked = true
	found, err := tx.d.sessionsPage(ctx, tx.tx, f)
	if err != nil {
		return nil, err
	}
	for _, s := range found {
		if err := tx.exec(ctx, "ending a session", `UPDATE sessions SET revoked_at = $2, revoked_reason = $3 WHERE id = $1 AND revoked_at = 0`, s.ID, tx.now, reason); err != nil {
			return nil, err
		}
	}
	return found, nil
}

// keptSession is how long a session that has ended is kept for those who look,
// and its tokens for being revoked, in milliseconds.
const keptSession = 24 * 60 * 60 * 1000

// PruneSessions removes sessions that ended a day ago, by the store's clock. It
// returns whether there may be more.
func (d *DB) PruneSessions(ctx context.Context) (more bool, err error) {
	err = d.wrap("removing old sessions", d.write(ctx, d.current(), func(tx *sql.Tx, now int64) error {
		res, err := tx.ExecContext(ctx, `DELETE FROM sessions WHERE id IN (SELECT id FROM sessions WHERE expires_at < $1 OR idle_until < $1 OR (revoked_at <> 0 AND revoked_at < $1) LIMIT $2)`,
			now-keptSession, pruneTokens)
		if err != nil {
			return err
		}
		n, err := res.RowsAffected()
		more = n >= pruneTokens
		return err
	}))
	return more, err
}

// errNoSession says that there is no such session.
func errNoSession(id string) error { return fmt.Errorf("session %s: %w", id, auth.ErrNotFound) }

// Session returns the session with an id; a missing one is auth.ErrNotFound.
func (d *DB) Session(ctx context.Context, id string) (*auth.Session, error) {
	found, err := d.sessionsPage(ctx, d.current().Read, SessionFilter{IDs: []string{id}, Limit: 1})
	if err == nil && len(found) == 0 {
		err = errNoSession(id)
	}
	if err != nil {
		return nil, err
	}
	return found[0], nil
}

func noRow(err error) bool { return errors.Is(err, sql.ErrNoRows) }
