package storetest

import (
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/caddy-auth/caddy-auth/internal/auth"
	"github.com/caddy-auth/caddy-auth/internal/secret"
	"github.com/caddy-auth/caddy-auth/internal/store"
)

func newSession(n int) *auth.Session {
	return &auth.Session{
		ID: fmt.Sprintf("ses_%03d", n), Fingerprint: auth.FingerprintOf(fmt.Sprint(n)), Login: "corp", Subject: fmt.Sprintf("corp:é%d", n%3), Sub: fmt.Sprintf("é%d", n%3), SID: fmt.Sprintf("sid%d", n),
		Environment: "live", Scopes: "a b", Meta: auth.EncodeMeta([]string{"email"}, map[string]string{"email": "x\x1dy"}),
		JudgedBy: "j", Authority: "a",
	}
}

// testSessions: sessions are read as they were written, end by filters, and are
// used only as long as they have not ended.
func testSessions(t *testing.T, backend func(string) store.Backend) {
	ctx := t.Context()
	db, r := open(t, backend("a")), ring(t, 1)
	for n := range 6 {
		must(t, db.InsertSession(ctx, r, newSession(n), time.Now(), nil, time.Hour, 2*time.Hour))
	}
	want := newSession(0)
	l, err := db.LookupSession(ctx, want.Fingerprint)
	must(t, err)
	got := *l.Session
	if l.Point.Seq == 0 || got.CreatedAt == 0 || got.SeenAt != got.CreatedAt || got.IdleUntil != got.CreatedAt+time.Hour.Milliseconds() || got.ExpiresAt != got.CreatedAt+2*time.Hour.Milliseconds() || got.State(got.CreatedAt) != auth.SessionActive {
		t.Errorf("%+v", got)
	}
	got.CreatedAt, got.SeenAt, got.IdleUntil, got.ExpiresAt = 0, 0, 0, 0
	if got != *want {
		t.Errorf("%+v, want %+v", got, want)
	}
	if l, err := db.LookupSession(ctx, auth.FingerprintOf("nobody's")); err != nil || l.Session != nil || l.Point.Seq == 0 {
		t.Errorf("%+v %v", l, err)
	}
	if _, err := db.Session(ctx, "ses_nobody"); !errors.Is(err, auth.ErrNotFound) {
		t.Error(err)
	}
	must(t, db.TouchSession(ctx, want.Fingerprint, 90*time.Minute))
	after, err := db.Session(ctx, want.ID)
	must(t, err)
	if after.IdleUntil <= l.Session.IdleUntil || after.SeenAt < l.Session.SeenAt {
		t.Errorf("%+v", after)
	}
	must(t, db.TouchSession(ctx, want.Fingerprint, time.Minute)) // never shorter
	if again, _ := db.Session(ctx, want.ID); again.IdleUntil != after.IdleUntil {
		t.Errorf("%+v", again)
	}
	end := func(f store.SessionFilter) (ids string) {
		t.Helper()
		if f.Limit == 0 {
			f.Limit = 100
		}
		change(t, db, func(tx *store.Tx) error {
			ended, err := tx.EndSessions(ctx, f, "why")
			for _, s := range ended {
				ids += s.ID[4:] + " "
			}
			return err
		})
		return ids
	}
	for _, tc := range []struct {
		filter store.SessionFilter
		want   string
	}{
		{store.SessionFilter{Login: "other"}, ""},
		{store.SessionFilter{Login: "corp", Authority: "b"}, ""},
		{store.SessionFilter{Login: "corp", NotJudgedBy: "j"}, ""},
		{store.SessionFilter{Login: "corp", Before: after.CreatedAt - 1000}, ""},
		{store.SessionFilter{Subject: "corp:é1"}, "001 004 "},
		{store.SessionFilter{Subject: "corp:é1"}, ""}, // they have
		{store.SessionFilter{Login: "corp", SID: "sid2"}, "002 "},
		{store.SessionFilter{Login: "corp", Sub: "é2", NoSID: true}, ""},
		{store.SessionFilter{Fingerprint: auth.FingerprintOf("3")}, "003 "},
		{store.SessionFilter{Limit: 1}, "000 "},
		{store.SessionFilter{IDs: []string{"ses_005", "ses_004", "nobody"}}, "005 "},
	} {
		if ids := end(tc.filter); ids != tc.want {
			t.Errorf("%+v ended %q, want %q", tc.filter, ids, tc.want)
		}
	}
	if n := end(store.SessionFilter{NotJudgedBy: "another"}); n != "" {
		t.Errorf("ended twice: %s", n)
	}
	must(t, db.TouchSession(ctx, want.Fingerprint, 3*time.Hour))
	if ended, _ := db.Session(ctx, want.ID); ended.IdleUntil != after.IdleUntil || ended.RevokedReason != "why" || ended.State(0) != auth.SessionEnded {
		t.Errorf("%+v", ended)
	}
	// One that has expired does not come back.
	late := newSession(7)
	must(t, db.InsertSession(ctx, r, late, time.Now(), nil, time.Millisecond, time.Hour))
	for start := time.Now(); time.Since(start) < 5*time.Millisecond; {
		continue
	}
	must(t, db.TouchSession(ctx, late.Fingerprint, time.Hour))
	if s, _ := db.Session(ctx, late.ID); s.IdleUntil != late.IdleUntil {
		t.Errorf("%+v", s)
	}
	// A sign-in that began before who signs in was logged out comes to nothing,
	// one that began after it does.
	began := time.Now().Add(-time.Minute)
	must(t, db.NoteLogout(ctx, "corp", "a", "gone", "", time.Now()))
	must(t, db.NoteLogout(ctx, "corp", "a", "stays", "sid-gone", time.Now()))
	must(t, db.NoteLogout(ctx, "corp", "a", "gone", "", began.Add(-time.Hour))) // an old one that comes again changes nothing
	for n, tc := range []struct {
		login, sub, sid string
		began           time.Time
		conflict        bool
	}{
		{"corp", "gone", "x", began, true},
		{"corp", "gone", "", began, true},
		{"corp", "gone", "x", time.Now().Add(time.Second), false},
		{"other", "gone", "x", began, false},
		{"corp of b", "gone", "x", began, false},
		{"corp", "stays", "sid-gone", began, true},
		{"corp", "stays", "sid-other", began, false},
		{"corp", "stays", "", began, true},
		{"corp", "stays", "", time.Now().Add(time.Second), false},
		{"corp", "another", "", began, false},
	} {
		one := newSession(20 + n)
		one.Login, one.Sub, one.SID = tc.login, tc.sub, tc.sid
		if login, ok := strings.CutSuffix(tc.login, " of b"); ok { // the same name, another provider
			one.Login, one.Authority = login, "b"
		}
		if err := db.InsertSession(ctx, r, one, tc.began, nil, time.Hour, time.Hour); errors.Is(err, auth.ErrConflict) != tc.conflict || !tc.conflict && err != nil {
			t.Errorf("%+v: %v", tc, err)
		}
	}
	count := 0
	must(t, db.Sessions(ctx, store.SessionFilter{After: "ses_001", Limit: 3}, func(*auth.Session) error { count++; return nil }))
	if more, err := db.PruneSessions(ctx); err != nil || more || count != 3 {
		t.Errorf("%v %v, %d listed", more, err, count)
	}
	if _, err := db.Session(ctx, late.ID); err != nil { // for a day
		t.Error(err)
	}
}

// testSessionTokens: tokens are sealed, changed by one at a time, and survive a
// rotation of the secrets.
func testSessionTokens(t *testing.T, backend func(string) store.Backend) {
	ctx := t.Context()
	db, r := open(t, backend("a")), ring(t, 1)
	s := newSession(1)
	must(t, db.InsertSession(ctx, r, s, time.Now(), []byte("tokens 0"), time.Hour, time.Hour))
	read := func(r *secret.Ring) store.SessionTokens {
		t.Helper()
		got, err := db.SessionTokens(ctx, r, s.ID)
		must(t, err)
		return got
	}
	if got := read(r); string(got.Plain) != "tokens 0" || got.Version != 0 || got.Ended {
		t.Errorf("%+v", got)
	}
	if _, err := db.SessionTokens(ctx, ring(t, 2), s.ID); !errors.Is(err, secret.ErrWrongKey) {
		t.Error(err)
	}
	if _, err := db.SessionTokens(ctx, r, "nobody"); !errors.Is(err, auth.ErrNotFound) {
		t.Error(err)
	}
	lease := func(version int64, by string, ttl time.Duration) bool {
		t.Helper()
		ours, after, err := db.LeaseSession(ctx, s.ID, version, by, ttl)
		must(t, err)
		if ours && after != (by == "c") { // who takes over from b
			t.Errorf("%s: taken over %v", by, after)
		}
		return ours
	}
	if lease(1, "a", time.Hour) || !lease(0, "a", time.Hour) || lease(0, "b", time.Hour) || lease(0, "a", time.Hour) {
		t.Error("a lease that is another's, or of another version")
	}
	must(t, db.ReleaseSession(ctx, s.ID, "b"))
	if lease(0, "b", time.Hour) {
		t.Error("released by another")
	}
	must(t, db.ReleaseSession(ctx, s.ID, "a"))
	if !lease(0, "b", time.Nanosecond) || !lease(0, "c", time.Hour) { // one that has ended
		t.Error("a lease that ended")
	}
	put := func(version int64, text []byte) bool {
		t.Helper()
		did, err := db.PutSessionTokens(ctx, r, s.ID, version, text)
		must(t, err)
		return did
	}
	if put(1, []byte("x")) || !put(0, []byte("tokens 1")) || put(0, []byte("x")) || !lease(1, "a", time.Nanosecond) {
		t.Error("written over")
	}
	// Sealed by name: one session's tokens are not another's.
	other := newSession(2)
	must(t, db.InsertSession(ctx, r, other, time.Now(), []byte("others"), time.Hour, time.Hour))
	both, err := secret.NewRing("test", key(9), key(1))
	must(t, err)
	change(t, db, func(tx *store.Tx) error { return tx.RotateSecrets(ctx, both) })
	if got := read(ring(t, 9)); string(got.Plain) != "tokens 1" || got.Version != 1 {
		t.Errorf("%+v", got)
	}
	now := time.Now().Add(time.Minute).UnixMilli()
	due := func() (ids string) {
		t.Helper()
		found, err := db.SessionsToRevoke(ctx, "a", "", now, 10)
		must(t, err)
		for _, s := range found {
			ids += s.ID[4:] + " "
		}
		return ids
	}
	if got := due(); got != "" {
		t.Errorf("to revoke: %q", got)
	}
	change(t, db, func(tx *store.Tx) error {
		_, err := tx.EndSessions(ctx, store.SessionFilter{IDs: []string{s.ID}, Limit: 1}, "why")
		return err
	})
	if got := due(); got != "001 " || !read(ring(t, 9)).Ended {
		t.Errorf("to revoke: %q", got)
	}
	if found, _ := db.SessionsToRevoke(ctx, "b", "", now, 10); len(found) != 0 {
		t.Error("of another authority")
	}
	if !put(1, nil) || due() != "" || read(ring(t, 9)).Plain != nil {
		t.Error("wiped, and there")
	}
	now = time.Now().Add(2 * time.Hour).UnixMilli()
	if got := due(); got != "002 " { // it has expired
		t.Errorf("to revoke: %q", got)
	}
}

func key(b byte) []byte {
	k := make([]byte, 32)
	for i := range k {
		k[i] = b
	}
	return k
}
