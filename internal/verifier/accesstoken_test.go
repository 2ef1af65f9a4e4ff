package verifier_test

import (
	"context"
	"errors"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/caddy-auth/caddy-auth/internal/auth"
	"github.com/caddy-auth/caddy-auth/internal/manage"
	"github.com/caddy-auth/caddy-auth/internal/secret"
	"github.com/caddy-auth/caddy-auth/internal/store"
)

// client makes a client with a secret.
func (n *node) client(owner string) manage.MadeClient {
	n.t.Helper()
	made, err := n.manage.CreateClient(n.t.Context(), manage.ClientSpec{Owner: owner, Scopes: []string{"a", "b"}, TokenLifetime: time.Minute})
	n.must(err)
	return made
}

// token writes a token.
func (n *node) token(client, key string) string {
	n.t.Helper()
	minter, err := n.db.Minter(n.t.Context(), n.ring)
	n.must(err)
	text, err := minter.MintKind("ca", secret.AccessToken)
	n.must(err)
	now := time.Now()
	i := &store.Issue{Token: auth.AccessToken{
		ID: "at_" + text.Reveal()[50:], Fingerprint: auth.FingerprintOf(text.Reveal()), ClientID: client, KeyID: key, Scopes: "a b",
		IssuedAt: now.UnixMilli(), ExpiresAt: now.Add(time.Hour).UnixMilli(),
	}}
	n.must(errors.Join(n.db.IssueTokens(n.t.Context(), []*store.Issue{i}), i.Err))
	return text.Reveal()
}

func (n *node) judge(text string) auth.Verdict {
	n.t.Helper()
	return n.verifier.VerifyKey(n.t.Context(), text, time.Now())
}

// TestToken_EveryChangeReachesTheCaches: a verdict on a token, in memory or in
// the shared tier, never outlives a change of what it hangs on.
func TestToken_EveryChangeReachesTheCaches(t *testing.T) {
	type made struct {
		n      *node
		client manage.MadeClient
		key    manage.Made
	}
	for what, tc := range map[string]struct {
		change func(ctx context.Context, m made) error
		reason auth.Reason
	}{
		"client disabled": {func(ctx context.Context, m made) error {
			_, err := m.n.manage.SetClientsDisabled(ctx, []string{m.client.Client.ID}, true, "")
			return err
		}, auth.ReasonClient},
		"client revoked": {func(ctx context.Context, m made) error {
			_, err := m.n.manage.RevokeClients(ctx, []string{m.client.Client.ID}, "")
			return err
		}, auth.ReasonClient},
		"key disabled": {func(ctx context.Context, m made) error {
			_, err := m.n.manage.SetDisabled(ctx, []string{m.key.Key.ID}, true, "")
			return err
		}, auth.ReasonParentKey},
		"key revoked": {func(ctx context.Context, m made) error {
			_, err := m.n.manage.Revoke(ctx, []string{m.key.Key.ID}, "")
			return err
		}, auth.ReasonParentKey},
		"key rotated": {func(ctx context.Context, m made) error {
			_, err := m.n.manage.Rotate(ctx, m.key.Key.ID, 0, nil)
			return err
		}, auth.ReasonReplaced},
		"client's owner disabled": {func(ctx context.Context, m made) error {
			_, err := m.n.manage.SetOwnerDisabled(ctx, "clients", true, "")
			return err
		}, auth.ReasonOwnerDisabled},
		"key's owner disabled": {func(ctx context.Context, m made) error {
			_, err := m.n.manage.SetOwnerDisabled(ctx, "keys", true, "")
			return err
		}, auth.ReasonOwnerDisabled},
		"owner's keys revoked": {func(ctx context.Context, m made) error {
			_, err := m.n.manage.RevokeOwner(ctx, "keys", "")
			return err
		}, auth.ReasonParentKey},
	} {
		t.Run(what, func(t *testing.T) {
			r := newRemote()
			m := made{n: newNode(t)}
			n := m.n
			n.share(r)
			m.client, m.key = n.client("clients"), n.create("keys")
			n.look()
			texts := []string{n.token(m.client.Client.ID, ""), n.token("", m.key.Key.ID), n.token(m.client.Client.ID, m.key.Key.ID)}
			for i, text := range texts {
				if v := n.judge(text); v.Outcome != auth.Allow || v.Identity.Method != auth.MethodAccessToken || v.Identity.Scopes != "a b" {
					t.Fatalf("token %d: %+v", i, v)
				}
			}
			r.eventuallyHas(t, len(texts))
			old := r.snapshot()
			other := n.beside(r)
			other.look()
			for i, text := range texts {
				if v := other.judge(text); v.Outcome != auth.Allow || v.Identity.MetaValue(auth.MetaRoots) == "" || v.Identity.IssuedAt == 0 {
					t.Fatalf("token %d at another gateway: %+v", i, v)
				}
			}
			if other.loads.Load() > 0 {
				t.Error("the other gateway asked the store")
			}
			n.must(tc.change(t.Context(), m))
			for _, g := range []*node{n, other} {
				g.look()
			}
			r.replay(old) // whoever can write to Redis brings back what was there
			ended := 0
			for _, g := range []*node{n, other} {
				for i, text := range texts {
					v := g.judge(text)
					concerned := i == 2 || i == 0 == strings.HasPrefix(what, "client")
					if !concerned {
						if v.Outcome != auth.Allow {
							t.Errorf("token %d is refused: %s", i, v.Reason)
						}
						continue
					}
					if ended++; v.Outcome != auth.Deny || v.Reason != tc.reason {
						t.Errorf("token %d: %d %s, want %s", i, v.Outcome, v.Reason, tc.reason)
					}
				}
			}
			if ended < 4 {
				t.Error("nothing was looked at")
			}
		})
	}
}

// TestSecret_IsACredentialForNothingElse: a client's secret that memory knows
// lets nobody in, and a key is no secret.
func TestSecret_IsACredentialForNothingElse(t *testing.T) {
	n := newNode(t)
	c, k := n.client("acme"), n.create("acme")
	n.look()
	text := c.Secret.Reveal()
	v := n.verifier.VerifySecret(t.Context(), text, time.Now())
	if v.Outcome != auth.Allow || v.Identity.ClientID != c.Client.ID || auth.ClientLifetime(&v.Identity) != time.Minute || v.Identity.Scopes != "a b" {
		t.Fatalf("%+v", v)
	}
	loads := n.loads.Load()
	for range 3 {
		n.verifier.VerifySecret(t.Context(), text, time.Now())
	}
	forged := text[:len(text)-1] + string(text[len(text)-1]^1)
	for what, v := range map[string]auth.Verdict{
		"the secret as a key":   n.judge(text),
		"a key as a secret":     n.verifier.VerifySecret(t.Context(), k.Text.Reveal(), time.Now()),
		"a token as a secret":   n.verifier.VerifySecret(t.Context(), n.token(c.Client.ID, ""), time.Now()),
		"a forged secret":       n.verifier.VerifySecret(t.Context(), forged, time.Now()),
		"nonsense":              n.verifier.VerifySecret(t.Context(), "x", time.Now()),
		"a refresh token's env": n.judge(strings.Replace(text, "_cs_", "_rt_", 1)),
	} {
		if v.Outcome != auth.Deny {
			t.Errorf("%s: %+v", what, v)
		}
	}
	if n.loads.Load() != loads {
		t.Errorf("%d lookups for what is known or forged", n.loads.Load()-loads)
	}
	n.away.Store(true)
	unknown := func() string {
		minter, err := n.db.Minter(t.Context(), n.ring)
		n.must(err)
		s, err := minter.MintKind("ca", secret.ClientSecret)
		n.must(err)
		return s.Reveal()
	}()
	if v := n.verifier.VerifySecret(t.Context(), unknown, time.Now()); v.Outcome != auth.CannotDecide {
		t.Errorf("with the store away: %+v", v)
	}
	if v := n.verifier.VerifySecret(t.Context(), text, time.Now()); v.Outcome != auth.Allow {
		t.Errorf("a secret that memory knows, with the store away: %+v", v)
	}
}

// TestClient_ChangesReachTheCaches: what memory knows of clients ends with them.
func TestClient_ChangesReachTheCaches(t *testing.T) {
	n := newNode(t)
	c := n.client("acme")
	n.look()
	ctx, id := t.Context(), c.Client.ID
	check := func(what string, want auth.Outcome, reason auth.Reason) {
		t.Helper()
		n.look()
		for how, v := range map[string]auth.Verdict{"secret": n.verifier.VerifySecret(ctx, c.Secret.Reveal(), time.Now()), "id": n.verifier.FindClient(ctx, id, time.Now())} {
			if v.Outcome != want || v.Reason != reason {
				t.Errorf("%s, by its %s: %d %s, want %d %s", what, how, v.Outcome, v.Reason, want, reason)
			}
		}
	}
	check("made", auth.Allow, 0)
	_, err := n.manage.SetClientsDisabled(ctx, []string{id}, true, "")
	n.must(err)
	check("disabled", auth.Deny, auth.ReasonDisabled)
	_, err = n.manage.SetClientsDisabled(ctx, []string{id}, false, "")
	n.must(err)
	check("enabled", auth.Allow, 0)
	_, err = n.manage.SetOwnerDisabled(ctx, "acme", true, "")
	n.must(err)
	check("the owner disabled", auth.Deny, auth.ReasonOwnerDisabled)
	_, err = n.manage.SetOwnerDisabled(ctx, "acme", false, "")
	n.must(err)
	check("the owner enabled", auth.Allow, 0)
	n.must(n.manage.EndClientSecret(ctx, id, auth.FingerprintOf(c.Secret.Reveal()), "leaked"))
	n.look()
	if v := n.verifier.VerifySecret(ctx, c.Secret.Reveal(), time.Now()); v.Outcome != auth.Deny {
		t.Errorf("a secret that was ended: %+v", v)
	}
	before := n.loads.Load()
	for _, made := range []string{"client_nobody", id[:len(id)-1], id + "0", strings.Replace(id, "client_0", "client_1", 1), "", "-", strings.Repeat("x", 200)} {
		if v := n.verifier.FindClient(ctx, made, time.Now()); v.Outcome != auth.Deny || v.Reason != auth.ReasonUnknown {
			t.Errorf("%s: %+v", made, v)
		}
	}
	if n.loads.Load() != before {
		t.Error("an id that somebody made up was looked for")
	}
}

// TestToken_HasNoMoreThanItHangsOn: scopes, networks and the end of a token are
// those of all it hangs on, as they are now.
func TestToken_HasNoMoreThanItHangsOn(t *testing.T) {
	n := newNode(t)
	ctx := t.Context()
	c := n.client("acme")
	soon := time.Now().Add(10 * time.Minute).UnixMilli()
	k, err := n.manage.Create(ctx, manage.KeySpec{Owner: "keys", Scopes: []string{"b", "c"}, Networks: []string{"10.1.0.0/16", "192.0.2.7"}, ExpiresAt: soon, Meta: map[string]string{"tenant": "t"}})
	n.must(err)
	n.look()
	text := n.token(c.Client.ID, k.Key.ID) // asked for a and b
	v := n.judge(text)
	if id := &v.Identity; v.Outcome != auth.Allow || id.Scopes != "b" || id.Subject != "keys" || id.ClientID != c.Client.ID || id.NotAfter != soon || id.MetaValue("tenant") != "t" {
		t.Errorf("%+v", v)
	}
	edit := func(change func(*manage.ClientSpec)) auth.Identity {
		t.Helper()
		_, err := n.manage.EditClients(ctx, []string{c.Client.ID}, change)
		n.must(err)
		n.look()
		return n.judge(text).Identity
	}
	if id := edit(func(s *manage.ClientSpec) { s.Scopes = []string{"a", "c"} }); id.Scopes != "" {
		t.Errorf("scopes %q", id.Scopes)
	}
	for networks, want := range map[string]string{
		"":                         "10.1.0.0/16 192.0.2.7/32",
		"10.0.0.0/8":               "10.1.0.0/16",
		"10.1.2.0/24 192.0.2.0/24": "10.1.2.0/24 192.0.2.7/32",
		"203.0.113.0/24":           "nowhere",
		"2001:db8::/32":            "nowhere",
	} {
		id := edit(func(s *manage.ClientSpec) { s.Networks = strings.Fields(networks) })
		if id.Networks != want {
			t.Errorf("the client from %q, the key from %v: the token from %q, want %q", networks, k.Key.Networks, id.Networks, want)
		}
		if want == "nowhere" && auth.InNetworks(id.Networks, netip.MustParseAddr("203.0.113.1")) {
			t.Error("nowhere is somewhere")
		}
	}
	other, err := n.manage.CreateClient(ctx, manage.ClientSpec{Owner: "acme", Environment: "test"})
	n.must(err)
	n.look()
	if v := n.judge(n.token(other.Client.ID, k.Key.ID)); v.Outcome != auth.Deny {
		t.Errorf("a client and a key of two environments: %+v", v)
	}
}
