package verifier_test

import (
	"errors"
	"path/filepath"
	"testing"
	"time"

	"github.com/caddy-auth/caddy-auth/internal/auth"
	"github.com/caddy-auth/caddy-auth/internal/manage"
	"github.com/caddy-auth/caddy-auth/internal/store"
	"github.com/caddy-auth/caddy-auth/internal/store/sqlite"
)

// TestMoved: at a gateway that still follows a store that was moved, good keys
// pass, and a key that may be good at the new place is not called bad.
func TestMoved(t *testing.T) {
	n := newNode(t)
	ctx := t.Context()
	make1 := func(owner string) manage.Made {
		t.Helper()
		made, err := n.manage.Create(ctx, manage.KeySpec{Owner: owner})
		n.must(err)
		return made
	}
	good, revoked, disabled, stopped := make1("acme"), make1("acme"), make1("acme"), make1("beta")
	_, err := n.manage.Revoke(ctx, []string{revoked.Key.ID}, "")
	n.must(err)
	_, err = n.manage.SetDisabled(ctx, []string{disabled.Key.ID}, true, "")
	n.must(err)
	_, err = n.manage.SetOwnerDisabled(ctx, "beta", true, "")
	n.must(err)
	minter, err := n.db.Minter(ctx, n.ring)
	n.must(err)
	elsewhere, err := minter.Mint("ca", "live")
	n.must(err)
	to, err := store.Open(ctx, sqlite.New(filepath.Join(t.TempDir(), "to.db")), store.Create)
	n.must(err)
	defer to.Close()
	_, err = store.Copy(ctx, n.db, to, "test", true, func(string, string, int64, int64) {})
	n.must(err)
	n.must(n.follower.Look(ctx)) // looks go on; heartbeats do not
	for what, c := range map[string]struct {
		key  auth.Secret
		want auth.Outcome
	}{
		"a good key": {good.Text, auth.Allow}, "a revoked one": {revoked.Text, auth.Deny}, "a disabled one": {disabled.Text, auth.CannotDecide},
		"one of a disabled owner": {stopped.Text, auth.CannotDecide}, "one that is only at the new place": {elsewhere, auth.CannotDecide},
	} {
		v := n.verifier.VerifyKey(ctx, c.key.Reveal(), time.Now())
		if v.Outcome != c.want || c.want == auth.CannotDecide && !errors.Is(v.Cause, auth.ErrMoved) {
			t.Errorf("%s: %v (%v)", what, v.Outcome, v.Cause)
		}
	}
	strange := auth.NewSecret("sk_hT4fQ9zLw2Xs8Rk1Vb6NcY3p")
	if v := n.verifier.VerifyKey(ctx, strange.Reveal(), time.Now()); v.Outcome != auth.Deny {
		t.Errorf("a key of no form we know: %v", v.Outcome)
	}
	n.verifier.SetMoved(true) // as the journal's row makes the gateway do
	if v := n.verifier.VerifyKey(ctx, strange.Reveal(), time.Now()); v.Outcome != auth.CannotDecide {
		t.Errorf("a key that may have been imported at the new place: %v", v.Outcome)
	}
	if err := n.follower.Beat(ctx); !errors.Is(err, auth.ErrMoved) {
		t.Errorf("a heartbeat at the old place: %v", err)
	}
}

// TestImported_Untrusted: a node that may have missed an import calls no key of
// that form bad; what can be no key of ours at all stays refused.
func TestImported_Untrusted(t *testing.T) {
	n := newNode(t)
	ctx := t.Context()
	p, err := manage.NewPattern("legacy", "sk_[A-Za-z0-9]{24}")
	n.must(err)
	rows := make([]*manage.Imported, 0, 1)
	const known, unknown = "sk_hT4fQ9zLw2Xs8Rk1Vb6NcY3p", "sk_kZ8mQ2vX9rT4wB7nL1cY5hJ3"
	row, err := p.CheckImport(manage.ImportRow{KeySpec: manage.KeySpec{Owner: "acme"}, Key: auth.NewSecret(known)}, time.Now())
	n.must(err)
	_, err = n.manage.Import(ctx, p, append(rows, row))
	n.must(err)
	all, _, err := n.db.Imported(ctx)
	n.must(err)
	n.verifier.SetImported(all)
	n.look()
	later := time.Now().Add(time.Hour) // beyond max_staleness
	for _, c := range []struct {
		what, key string
		at        time.Time
		want      auth.Outcome
	}{
		{"imported", known, time.Now(), auth.Allow},
		{"of the form, and unknown", unknown, time.Now(), auth.Deny},
		{"of no form", "hello", time.Now(), auth.Deny},
		{"imported, untrusted", known, later, auth.CannotDecide},
		{"of the form, untrusted", unknown, later, auth.CannotDecide},
		{"of no form, untrusted", "hello", later, auth.Deny},
	} {
		if v := n.verifier.VerifyKey(ctx, c.key, c.at); v.Outcome != c.want {
			t.Errorf("%s: %v (%v)", c.what, v.Outcome, v.Cause)
		}
	}
}
