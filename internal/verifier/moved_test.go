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
	if err := n.follower.Beat(ctx); !errors.Is(err, auth.ErrMoved) {
		t.Errorf("a heartbeat at the old place: %v", err)
	}
}
