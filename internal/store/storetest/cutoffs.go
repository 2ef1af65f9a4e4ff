package storetest

import (
	"errors"
	"testing"

	"github.com/caddy-auth/caddy-auth/internal/auth"
	"github.com/caddy-auth/caddy-auth/internal/store"
)

// testCutOffs: what is cut off is kept as long as it matters, and only grows.
func testCutOffs(t *testing.T, backend func(string) store.Backend) {
	ctx := t.Context()
	db := open(t, backend("a"))
	cut := func(c auth.CutOff) (changed bool) {
		t.Helper()
		must(t, db.Change(ctx, "test", func(tx *store.Tx) error {
			var err error
			if changed, err = tx.CutOff(ctx, c); err != nil || !changed {
				return err
			}
			return errors.Join(tx.Journal(ctx, store.ChangeTokenRevoke, nil, c.Parent()), tx.Audit(ctx, "token.revoke", "issuer", nil))
		}))
		return changed
	}
	jti := auth.CutOff{Issuer: "corp", JTI: "é'%_:\n\"x", IssuedBefore: auth.AnyTime, KeptUntil: 1, Reason: "lost"}
	subject := auth.CutOff{Issuer: "corp", Subject: "alice", IssuedBefore: 5000}
	for what, tc := range map[string]struct {
		c    auth.CutOff
		want bool
	}{"a token": {jti, true}, "a subject": {subject, true}} {
		if got := cut(tc.c); got != tc.want {
			t.Errorf("%s: changed %v", what, got)
		}
	}
	earlier, later := subject, subject
	earlier.IssuedBefore, later.IssuedBefore, later.KeptUntil = 4000, 6000, 9
	if cut(jti) || cut(earlier) || !cut(later) {
		t.Error("only a later time changes anything")
	}
	got, err := db.CutOff(ctx, subject.Parent())
	must(t, err)
	if got.IssuedBefore != 6000 || got.KeptUntil != 0 || got.Subject != "alice" || got.CreatedAt == 0 {
		t.Errorf("%+v: the later time, kept for ever as before", got)
	}
	if got, err := db.CutOff(ctx, jti.Parent()); err != nil || got.JTI != jti.JTI || got.IssuedBefore != auth.AnyTime || got.Reason != "lost" {
		t.Errorf("%+v, %v", got, err)
	}
	if _, err := db.CutOff(ctx, auth.Parent{Kind: auth.ParentToken, Name: "corp:alice"}); !errors.Is(err, auth.ErrNotFound) {
		t.Errorf("a jti that is another's subject: %v", err)
	}
	must(t, db.PruneCutOffs(ctx))
	var left []auth.CutOff
	must(t, db.CutOffs(ctx, func(c auth.CutOff) error { left = append(left, c); return nil }))
	if len(left) != 1 || left[0].Subject != "alice" {
		t.Errorf("after pruning: %+v", left)
	}
}
