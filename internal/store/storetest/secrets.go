package storetest

import (
	"bytes"
	"errors"
	"testing"
	"time"

	"github.com/caddy-auth/caddy-auth/internal/auth"
	"github.com/caddy-auth/caddy-auth/internal/secret"
	"github.com/caddy-auth/caddy-auth/internal/store"
)

// testRotateSecrets: keys of before stay good, the old master key opens
// nothing any more, and new keys are made with the old secret until every
// gateway knows the new one.
func testRotateSecrets(t *testing.T, backend func(string) store.Backend) {
	db, ctx := open(t, backend("a")), t.Context()
	mint := func(r *secret.Ring) (*secret.Minter, string) {
		t.Helper()
		m, err := db.Minter(ctx, r)
		must(t, err)
		key, err := m.Mint("ca", "live")
		must(t, err)
		return m, key.Reveal()
	}
	atFirst, before := mint(ring(t, 1))
	if err := db.Change(ctx, "test", func(tx *store.Tx) error { return tx.RotateSecrets(ctx, ring(t, 2)) }); !errors.Is(err, secret.ErrWrongKey) || auth.Hint(err) == "" {
		t.Fatalf("with another master key: %v", err)
	}
	both, err := secret.NewRing("test", bytes.Repeat([]byte{2}, 32), bytes.Repeat([]byte{1}, 32))
	must(t, err)
	name := func(r *secret.Ring) string {
		t.Helper()
		e, err := db.Envelope(ctx, r)
		must(t, err)
		return e.Name("key", nil, auth.Fingerprint{})
	}
	oldName := name(ring(t, 1))
	head, err := db.Look(ctx, 0)
	must(t, err)
	must(t, db.Change(ctx, "test", func(tx *store.Tx) error { return tx.RotateSecrets(ctx, both) }))
	if _, err := db.Minter(ctx, ring(t, 1)); !errors.Is(err, secret.ErrWrongKey) {
		t.Errorf("the old master key alone: %v", err)
	}
	if name(ring(t, 2)) == oldName {
		t.Error("what is shared is sealed as before")
	}
	l, err := db.Look(ctx, head.Head)
	must(t, err)
	if len(l.Rows) != 1 || l.Rows[0].Kind != store.ChangeSecrets {
		t.Errorf("gateways are told: %+v", l.Rows)
	}
	now, soon := mint(ring(t, 2))
	if now.Check(before) != auth.ReasonNone || atFirst.Check(soon) != auth.ReasonNone {
		t.Error("a key made right after a rotation is called forged by a gateway that did not hear of it, or an old one is not good any more")
	}
	long, err := db.MinterAt(ctx, ring(t, 2), time.Now().Add(2*store.MintingDelay))
	must(t, err)
	later, err := long.Mint("ca", "live")
	must(t, err)
	if atFirst.Check(later.Reveal()) == auth.ReasonNone || now.Check(later.Reveal()) != auth.ReasonNone || long.Check(before) != auth.ReasonNone {
		t.Error("later the new secret mints, and both are good")
	}
}
