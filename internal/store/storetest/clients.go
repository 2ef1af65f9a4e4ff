package storetest

import (
	"bytes"
	"errors"
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/caddy-auth/caddy-auth/internal/auth"
	"github.com/caddy-auth/caddy-auth/internal/secret"
	"github.com/caddy-auth/caddy-auth/internal/store"
)

// change makes a change that journals and audits something.
func change(t *testing.T, db *store.DB, do func(tx *store.Tx) error) {
	t.Helper()
	must(t, db.Change(t.Context(), "test", func(tx *store.Tx) error {
		return errors.Join(do(tx), tx.Journal(t.Context(), "test", nil, auth.Parent{}), tx.Audit(t.Context(), "test", "test", nil))
	}))
}

// testClients: clients and their secrets are read as they were written, by id
// and by secret.
func testClients(t *testing.T, backend func(string) store.Backend) {
	ctx := t.Context()
	db := open(t, backend("a"))
	c := &auth.Client{
		ID: "client_1", Owner: "acme", Name: "é'%_", Environment: "test", Scopes: []string{"a", "b:*"}, Networks: []string{"10.0.0.0/8"},
		Meta: map[string]string{"tenant": "t"}, TokenLifetime: 90 * time.Second, JWKS: `{"keys":[]}`,
	}
	first, second := auth.FingerprintOf("first"), auth.FingerprintOf("second")
	var now int64
	change(t, db, func(tx *store.Tx) error {
		_, err := tx.EnsureOwner(ctx, "acme")
		c.CreatedAt, now = tx.Now(), tx.Now()
		return errors.Join(err, tx.InsertClient(ctx, c), tx.InsertClientSecret(ctx, c.ID, auth.ClientSecret{Fingerprint: first, Hint: "ca_cs_...1", CreatedAt: now}))
	})
	got, err := db.Client(ctx, c.ID)
	must(t, err)
	if got.Owner != c.Owner || got.Name != c.Name || !slices.Equal(got.Scopes, c.Scopes) || !slices.Equal(got.Networks, c.Networks) || got.Meta["tenant"] != "t" ||
		got.TokenLifetime != c.TokenLifetime || got.JWKS != c.JWKS || got.CreatedAt != now || len(got.Secrets) != 1 || got.Secrets[0].Fingerprint != first || got.State() != auth.KeyActive {
		t.Errorf("%+v", got)
	}
	change(t, db, func(tx *store.Tx) error {
		return errors.Join(tx.EndClientSecrets(ctx, c.ID, now+time.Hour.Milliseconds()), tx.InsertClientSecret(ctx, c.ID, auth.ClientSecret{Fingerprint: second, CreatedAt: now + 1}))
	})
	by, err := db.LookupSecret(ctx, first)
	must(t, err)
	if by.Client == nil || by.Client.ID != c.ID || by.Secret.EndsAt != now+time.Hour.Milliseconds() || by.Point.Seq == 0 {
		t.Errorf("%+v", by)
	}
	for _, fp := range []auth.Fingerprint{auth.FingerprintOf("nobody's"), {}} {
		if by, err := db.LookupSecret(ctx, fp); err != nil || by.Client != nil || by.Secret != nil || by.Point.Seq == 0 {
			t.Errorf("an unknown secret: %+v, %v", by, err)
		}
	}
	if by, err := db.LookupClient(ctx, c.ID); err != nil || by.Client == nil || by.Client.JWKS != c.JWKS {
		t.Errorf("%+v, %v", by, err)
	}
	if by, err := db.LookupClient(ctx, "client_2"); err != nil || by.Client != nil {
		t.Errorf("an unknown client: %+v, %v", by, err)
	}
	if _, err := db.Client(ctx, "client_2"); !errors.Is(err, auth.ErrNotFound) {
		t.Errorf("an unknown client: %v", err)
	}
	change(t, db, func(tx *store.Tx) error {
		c.Name, c.DisabledAt = "other", tx.Now()
		return errors.Join(tx.UpdateClient(ctx, c), tx.EndClientSecrets(ctx, c.ID, tx.Now()), tx.SetOwnerDisabled(ctx, "acme", tx.Now(), ""))
	})
	var listed []*auth.Client
	must(t, db.Clients(ctx, store.ClientFilter{Owner: "acme", Environment: "test", Scope: "a", State: auth.KeyDisabled}, func(c *auth.Client) error { listed = append(listed, c); return nil }))
	if len(listed) != 1 || listed[0].Name != "other" || !listed[0].OwnerDisabled {
		t.Errorf("%+v", listed)
	}
	for what, f := range map[string]store.ClientFilter{"owner": {Owner: "x"}, "environment": {Environment: "live"}, "scope": {Scope: "b"}, "state": {State: auth.KeyActive}} {
		must(t, db.Clients(ctx, f, func(*auth.Client) error { t.Errorf("the filter of the %s selects it", what); return nil }))
	}
}

// testAssertionKeys: they open with the master key only, also after it was
// rotated, and go when nobody publishes them any more.
func testAssertionKeys(t *testing.T, backend func(string) store.Backend) {
	ctx := t.Context()
	db := open(t, backend("a"))
	change(t, db, func(tx *store.Tx) error {
		return errors.Join(
			tx.InsertAssertionKey(ctx, ring(t, 1), auth.AssertionKey{ID: "later", Algorithm: "ES256", Private: []byte("second"), SignsFrom: 20}),
			tx.InsertAssertionKey(ctx, ring(t, 1), auth.AssertionKey{ID: "now", Algorithm: "EdDSA", Private: []byte("first"), SignsFrom: 10, CreatedAt: 5}))
	})
	read := func(r *secret.Ring) (out []string) {
		t.Helper()
		keys, err := db.AssertionKeys(ctx, r)
		must(t, err)
		for _, k := range keys {
			out = append(out, k.ID+" "+k.Algorithm+" "+string(k.Private))
		}
		return out
	}
	if got := read(ring(t, 1)); !slices.Equal(got, []string{"now EdDSA first", "later ES256 second"}) {
		t.Errorf("%q", got)
	}
	if got := read(nil); !slices.Equal(got, []string{"now EdDSA ", "later ES256 "}) {
		t.Errorf("without a ring: %q", got)
	}
	both, err := secret.NewRing("test", bytes.Repeat([]byte{2}, 32), bytes.Repeat([]byte{1}, 32))
	must(t, err)
	must(t, db.Change(ctx, "test", func(tx *store.Tx) error { return tx.RotateSecrets(ctx, both) }))
	if _, err := db.AssertionKeys(ctx, ring(t, 1)); !errors.Is(err, secret.ErrWrongKey) || auth.Hint(err) == "" {
		t.Errorf("the old master key: %v", err)
	}
	change(t, db, func(tx *store.Tx) error {
		return errors.Join(tx.EndAssertionKey(ctx, "now", tx.Now()), tx.EndAssertionKey(ctx, "later", tx.Now()+1e6))
	})
	if got := read(ring(t, 2)); !slices.Equal(got, []string{"later ES256 second"}) {
		t.Errorf("%q", got)
	}
}

// testTokens: tokens are found with what they hang on, an assertion is good
// once, and what has expired goes.
func testTokens(t *testing.T, backend func(string) store.Backend) {
	ctx := t.Context()
	db := open(t, backend("a"))
	key := &auth.Key{ID: "key_1", Fingerprint: auth.FingerprintOf("key"), Owner: "keys", Environment: "live", Meta: map[string]string{}}
	var now int64
	change(t, db, func(tx *store.Tx) error {
		now = tx.Now()
		_, err1 := tx.EnsureOwner(ctx, "clients")
		_, err2 := tx.EnsureOwner(ctx, "keys")
		return errors.Join(err1, err2, tx.InsertClient(ctx, &auth.Client{ID: "client_1", Owner: "clients", Environment: "live", Meta: map[string]string{}}), tx.InsertKey(ctx, key))
	})
	token := func(name, client, key string, expires int64) auth.AccessToken {
		return auth.AccessToken{ID: "at_" + name, Fingerprint: auth.FingerprintOf(name), ClientID: client, KeyID: key, Scopes: "a b", IssuedAt: now, ExpiresAt: expires}
	}
	hour := now + time.Hour.Milliseconds()
	issues := []*store.Issue{
		{Token: token("client's", "client_1", "", hour), JTI: []byte("jti"), AssertionEnds: hour},
		{Token: token("key's", "", "key_1", hour)},
		{Token: token("both", "client_1", "key_1", hour)},
		{Token: token("again", "client_1", "", hour), JTI: []byte("jti"), AssertionEnds: hour},
		{Token: token("old", "client_1", "", now-time.Hour.Milliseconds()), JTI: []byte("old"), AssertionEnds: now - time.Hour.Milliseconds()},
	}
	must(t, db.IssueTokens(ctx, issues))
	for _, i := range issues {
		if again := i.Token.ID == "at_again"; errors.Is(i.Err, auth.ErrConflict) != again {
			t.Errorf("%s: %v", i.Token.ID, i.Err)
		}
	}
	// The client has one living token of its own, the key two.
	many := []*store.Issue{
		{Token: token("second", "client_1", "", hour+1), Most: 2},
		{Token: token("third", "client_1", "", hour), Most: 2, JTI: []byte("kept"), AssertionEnds: hour},
		{Token: token("key's third", "", "key_1", hour), Most: 2},
		{Token: token("both third", "client_1", "key_1", hour), Most: 2},
		{Token: token("another's", "client_2", "", hour), Most: 2},
	}
	must(t, db.IssueTokens(ctx, many))
	for n, want := range []bool{false, true, true, true, false} {
		var full *store.TooManyTokens
		if errors.As(many[n].Err, &full) != want || want && (full.Room != hour || full.Most != 2) {
			t.Errorf("%s: %v %+v", many[n].Token.ID, many[n].Err, full)
		}
	}
	change(t, db, func(tx *store.Tx) error {
		_, err := tx.RevokeToken(ctx, many[0].Token.Fingerprint)
		return err
	})
	retry := []*store.Issue{many[1]} // one was revoked, and its assertion is still good
	if must(t, db.IssueTokens(ctx, retry)); retry[0].Err != nil {
		t.Errorf("with room again: %v", retry[0].Err)
	}
	// Who revokes each token does not write for ever either.
	for n := range 10 {
		one := []*store.Issue{{Token: token(fmt.Sprint("revoked", n), "client_3", "", hour), Most: 3}}
		must(t, db.IssueTokens(ctx, one))
		if full := n >= 6; (one[0].Err != nil) != full {
			t.Errorf("%d: %v", n, one[0].Err)
		}
		change(t, db, func(tx *store.Tx) error {
			_, err := tx.RevokeToken(ctx, one[0].Token.Fingerprint)
			return err
		})
	}
	if err := db.UseAssertion(ctx, issues[0]); !errors.Is(err, auth.ErrConflict) {
		t.Errorf("an assertion that was used: %v", err)
	}
	must(t, db.UseAssertion(ctx, &store.Issue{Token: auth.AccessToken{ClientID: "client_2"}, JTI: []byte("jti"), AssertionEnds: hour})) // another client's
	for name, want := range map[string][2]bool{"client's": {true, false}, "key's": {false, true}, "both": {true, true}} {
		l, err := db.LookupToken(ctx, auth.FingerprintOf(name))
		must(t, err)
		if l.Token == nil || l.Token.Scopes != "a b" || l.Token.ExpiresAt != hour || (l.Client != nil) != want[0] || (l.Key != nil) != want[1] || l.Point.Seq == 0 {
			t.Errorf("%s: %+v", name, l)
		}
	}
	for _, name := range []string{"again", "nobody's"} {
		if l, err := db.LookupToken(ctx, auth.FingerprintOf(name)); err != nil || l.Token != nil {
			t.Errorf("%s: %+v, %v", name, l, err)
		}
	}
	change(t, db, func(tx *store.Tx) error { return tx.SetOwnerDisabled(ctx, "keys", tx.Now(), "") })
	if l, err := db.LookupToken(ctx, auth.FingerprintOf("both")); err != nil || l.Client.OwnerDisabled || !l.Key.OwnerDisabled {
		t.Errorf("the owners are mixed up: %+v %+v, %v", l.Client, l.Key, err)
	}
	change(t, db, func(tx *store.Tx) error {
		for range 2 {
			if _, err := tx.RevokeToken(ctx, auth.FingerprintOf("both")); err != nil {
				return err
			}
		}
		some, err := tx.Exchanged(ctx, "key_1")
		if none, _ := tx.Exchanged(ctx, "key_2"); none || !some {
			t.Error("which keys were exchanged?")
		}
		return err
	})
	var revoked []string
	must(t, db.RevokedTokens(ctx, now, func(t auth.AccessToken) error { revoked = append(revoked, t.ID); return nil }))
	if !slices.Equal(revoked, []string{"at_both", "at_revoked0", "at_revoked1", "at_revoked2", "at_revoked3", "at_revoked4", "at_revoked5", "at_second"}) {
		t.Errorf("revoked: %v", revoked)
	}
	more, err := db.PruneTokens(ctx)
	must(t, err)
	if l, err := db.LookupToken(ctx, auth.FingerprintOf("old")); more || err != nil || l.Token != nil {
		t.Errorf("an expired token is kept: %+v, %v", l, err)
	}
	if l, err := db.LookupToken(ctx, auth.FingerprintOf("client's")); err != nil || l.Token == nil {
		t.Errorf("a token went: %v", err)
	}
	must(t, db.UseAssertion(ctx, issues[4])) // it has long expired: nobody takes it
	if c, err := db.Client(ctx, "client_1"); err != nil || c.LastTokenAt == 0 {
		t.Errorf("%+v, %v", c, err)
	}
}
