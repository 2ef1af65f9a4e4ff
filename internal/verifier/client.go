package verifier

import (
	"context"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/caddy-auth/caddy-auth/internal/auth"
	"github.com/caddy-auth/caddy-auth/internal/cache"
	"github.com/caddy-auth/caddy-auth/internal/secret"
	"github.com/caddy-auth/caddy-auth/internal/store"
)

// Kinds of shared records about clients, and what memory knows each by: no
// secret of a client is ever met where a key or a token is looked for.
const (
	kindSecret = "client_secret"
	kindClient = "client"
)

var (
	secretSalt = sourceOf(kindSecret, nil)
	clientSalt = sourceOf(kindClient, nil)
)

// VerifySecret verifies a client's secret. The identity is the client's, with
// the scopes it may ask for. One that is forged is refused without I/O, whoever
// is said to have it.
func (v *Verifier) VerifySecret(ctx context.Context, text string, now time.Time) (verdict auth.Verdict) {
	raw := auth.FingerprintOf(text)
	q := question{fp: under(raw, secretSalt), about: cache.About{Kind: kindSecret}, ask: func(ctx context.Context) (answer, error) {
		l, err := v.keys.LookupSecret(ctx, raw)
		return answer{verdictOfClient(&l, ""), l.Point, l.Moved}, err
	}}
	trusted := v.fence.Trusted(now)
	if trusted && v.memory.Lookup(&verdict, q.fp, now) {
		v.meter.Lookup(TierMemory, hitOf(&verdict))
		judgeExpiry(&verdict, now)
		return verdict
	}
	minter := v.minter.Load()
	if minter == nil {
		return auth.Undecided(fmt.Errorf("the store's secrets were not read yet: %w", auth.ErrUnavailable))
	}
	if r := minter.CheckKind(secret.ClientSecret, text); r != auth.ReasonNone {
		return auth.Denied(r)
	}
	if !trusted {
		return auth.Undecided(auth.ErrStale)
	}
	return v.load(ctx, q, now)
}

// FindClient returns the verdict on a client that has not proved to be it. An id
// that somebody made up costs no I/O.
func (v *Verifier) FindClient(ctx context.Context, id string, now time.Time) (verdict auth.Verdict) {
	if !v.fence.Trusted(now) {
		return auth.Undecided(auth.ErrStale)
	}
	q := question{fp: under(auth.FingerprintOf(id), clientSalt), about: cache.About{Kind: kindClient}, ask: func(ctx context.Context) (answer, error) {
		l, err := v.keys.LookupClient(ctx, id)
		return answer{verdictOfClient(&l, id), l.Point, l.Moved}, err
	}}
	if v.memory.Lookup(&verdict, q.fp, now) {
		v.meter.Lookup(TierMemory, hitOf(&verdict))
		return verdict
	}
	minter := v.minter.Load()
	if minter == nil {
		return auth.Undecided(fmt.Errorf("the store's secrets were not read yet: %w", auth.ErrUnavailable))
	}
	if !minter.CheckTagged(id) {
		return auth.Denied(auth.ReasonUnknown)
	}
	return v.load(ctx, q, now)
}

// verdictOfClient turns a client into what is cached. asked is the id that was
// asked for, if it was: making such a client reaches the denial.
func verdictOfClient(l *store.LoadedClient, asked string) auth.Verdict {
	c := l.Client
	if c == nil {
		v := auth.Denied(auth.ReasonUnknown)
		v.Identity.ClientID = asked
		return v
	}
	meta := withRoots(c.Meta, auth.RootOf(auth.ParentOwner, c.Owner))
	if c.TokenLifetime != 0 {
		meta[auth.MetaLifetime] = strconv.FormatInt(c.TokenLifetime.Milliseconds(), 10)
	}
	if c.JWKS != "" {
		meta[auth.MetaJWKS] = c.JWKS
	}
	v := auth.Verdict{Outcome: auth.Allow, Identity: auth.Identity{
		Subject: auth.ClientSubject(c.ID), ClientID: c.ID, CredentialID: c.ID, Scopes: strings.Join(c.Scopes, " "),
		Environment: c.Environment, Networks: strings.Join(c.Networks, " "), Meta: encodeMeta(meta),
	}}
	if l.Secret != nil {
		v.Identity.Hint, v.Identity.NotAfter, v.Identity.Replaced = l.Secret.Hint, l.Secret.EndsAt, l.Secret.EndsAt != 0
	}
	switch c.State() {
	case auth.KeyRevoked:
		v.Outcome, v.Reason = auth.Deny, auth.ReasonRevoked
	case auth.KeyDisabled:
		v.Outcome, v.Reason = auth.Deny, auth.ReasonDisabled
	case auth.KeyOwnerDisabled:
		v.Outcome, v.Reason = auth.Deny, auth.ReasonOwnerDisabled
	}
	return v
}
