package login

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"net/url"
	"time"

	"github.com/caddy-auth/caddy-auth/internal/auth"
	"github.com/caddy-auth/caddy-auth/internal/grant"
)

const (
	// refreshBefore is how long before its end an access token is refreshed; half
	// of its life at most.
	refreshBefore = time.Minute
	// expiryMargin is how long before its end a token is not used any more.
	expiryMargin = time.Second
	// leaseTTL is how long the fleet waits for a gateway that died while it was
	// refreshing: longer than that gateway may take.
	leaseTTL = 20 * time.Second
	// leasePoll is how often a gateway looks whether another has refreshed.
	leasePoll = 100 * time.Millisecond
	// refreshTimeout bounds one refresh, whoever waits for it.
	refreshTimeout = leaseTTL + 10*time.Second
	// putRetry is how often new tokens are tried to be kept while the store is
	// away, putFor how long, and putTimeout how long one try may take.
	putRetry   = 500 * time.Millisecond
	putFor     = 24 * time.Hour
	putTimeout = 5 * time.Second
	// putRetired is how long one is tried that was replaced, as by a reload.
	putRetired = 10 * time.Minute
	// takeoverWait is how long who takes over a lease that nobody gave back waits
	// for what its holder may still write.
	takeoverWait = 2 * time.Second
	// askFor bounds one question to the provider: well within the lease.
	askFor = 10 * time.Second
	// failedFor is how long a provider that could not be asked about a session is
	// left alone.
	failedFor = time.Second
)

// Tokens are what a provider gave for a session.
type Tokens struct {
	Version int    `json:"v"`
	Access  string `json:"access"`
	Refresh string `json:"refresh"` // "": none
	ID      string `json:"id"`      // the ID token of the sign-in
	Sub     string `json:"sub"`
	// Authority is whose they are: they are sent nowhere else.
	Authority string `json:"authority"`
	Issued    int64  `json:"issued"`  // unix milliseconds
	Expires   int64  `json:"expires"` // of the access token
}

const tokensVersion = 1

func tokensOf(r grant.Redeemed, sub, authority string) Tokens {
	return Tokens{tokensVersion, r.Token.Reveal(), r.Refresh.Reveal(), r.ID.Reveal(), sub, authority, r.Issued.UnixMilli(), r.Expires.UnixMilli()}
}

// Encode is what is sealed.
func (t *Tokens) Encode() ([]byte, error) { return json.Marshal(t) }

func decodeTokens(plain []byte) (t Tokens, ok bool) {
	err := json.Unmarshal(plain, &t)
	return t, err == nil && t.Version == tokensVersion
}

// due reports whether the access token is to be refreshed, usable whether it can
// still be used.
func (t *Tokens) due(now time.Time) bool {
	before := min(refreshBefore, time.Duration(t.Expires-t.Issued)*time.Millisecond/2)
	return !now.Before(time.UnixMilli(t.Expires).Add(-before))
}

func (t *Tokens) usable(now time.Time) bool {
	return t.Access != "" && now.Before(time.UnixMilli(t.Expires).Add(-expiryMargin))
}

// Kept are tokens as the store has them.
type Kept struct {
	Plain   []byte // nil: none
	Version int64
	Ended   bool // the session has
	// Authority is whose they are, by the session.
	Authority string
}

// tokens opens what was kept. Gateways of older releases wrote tokens that don't
// say whose they are.
func (k *Kept) tokens() (t Tokens, ok bool) {
	if t, ok = decodeTokens(k.Plain); t.Authority == "" {
		t.Authority = k.Authority
	}
	return t, ok
}

// Keeper keeps the tokens of sessions. Leases are by its own clock.
type Keeper interface {
	// Tokens reads them; auth.ErrNotFound: there is no such session.
	Tokens(ctx context.Context, id string) (Kept, error)
	// Lease says whether it is ours now, and whether somebody had it who never
	// gave it back.
	Lease(ctx context.Context, id string, version int64, by string, ttl time.Duration) (ours, after bool, err error)
	Release(ctx context.Context, id, by string) error
	// Put replaces those of a version, and gives the lease back.
	Put(ctx context.Context, id string, version int64, plain []byte) (did bool, err error)
	// End ends a session.
	End(ctx context.Context, id, reason string) error
}

// ErrOver says that a session has no token any more, and can get none: who has it
// must sign in again.
var ErrOver = errors.New("the session has no token, and can get none")

// Refresh gets new tokens for old ones (RFC 6749, 6). Another refresh token than
// the old one replaces it. Errors: ErrOver, a *grant.Failure.
func (c *Client) Refresh(ctx context.Context, old Tokens) (Tokens, error) {
	if old.Authority != c.cfg.Authority {
		return old, fmt.Errorf("%w: another provider, or another client's, gave it", ErrOver)
	}
	ctx, cancel := context.WithTimeout(ctx, askFor)
	defer cancel()
	m, err := c.provider.Metadata(ctx)
	if err != nil {
		return old, grant.Unavailable("the provider", err)
	}
	r, err := c.tokens.At(m.Token).Redeem(ctx, url.Values{"grant_type": {"refresh_token"}, "refresh_token": {old.Refresh}})
	var f *grant.Failure
	if errors.As(err, &f) && f.Code == "invalid_grant" { // RFC 6749, 5.2: it has expired or was revoked
		return old, fmt.Errorf("%w: the provider refuses the refresh token", ErrOver)
	}
	if err != nil {
		return old, err
	}
	next := tokensOf(r, old.Sub, old.Authority)
	next.ID = old.ID
	if next.Refresh == "" {
		next.Refresh = old.Refresh
	}
	return next, c.sameSubject(r.ID, old.Sub)
}

// sameSubject checks an ID token that came with a refresh (OpenID Connect Core,
// 12.2): it must be of the same person. What it says besides is not used, so its
// signature is left to TLS.
func (c *Client) sameSubject(id auth.Secret, sub string) error {
	if id.Reveal() == "" {
		return nil
	}
	iss, have := peek(id.Reveal())
	if iss != c.cfg.Issuer || have != sub {
		return fmt.Errorf("%w: the provider gave the tokens of somebody else", ErrOver)
	}
	return nil
}

// ErrCantRevoke says that a provider has no way to be told that tokens have
// ended (RFC 7009).
var ErrCantRevoke = errors.New("the provider has no revocation endpoint")

// ErrOthers says that tokens are not of this provider and client, who therefore
// never see them.
var ErrOthers = errors.New("the tokens are of another provider, or another client")

// RevokeTokens tells the provider that tokens have ended (RFC 7009): the refresh
// token, which counts, then the access token, which many providers can't revoke.
// An error that may pass comes before all others.
func (c *Client) RevokeTokens(ctx context.Context, t Tokens) error {
	if t.Authority != c.cfg.Authority {
		return ErrOthers
	}
	m, err := c.provider.Metadata(ctx)
	if err != nil {
		return grant.Unavailable("the provider", err)
	}
	if m.Revocation == "" {
		return ErrCantRevoke
	}
	revoke := func(text, hint string) error {
		if text == "" {
			return nil
		}
		err := c.tokens.Revoke(ctx, m.Revocation, auth.NewSecret(text), hint)
		var f *grant.Failure
		if errors.As(err, &f) && f.Code == "unsupported_token_type" { // 2.2.1
			return nil
		}
		return err
	}
	refresh, access := revoke(t.Refresh, "refresh_token"), revoke(t.Access, "access_token")
	if Passes(access) && !Passes(refresh) {
		return access
	}
	return refresh
}

// newLessee names one attempt to refresh.
func newLessee() string { return rand.Text() }

// IDTokenOf returns the ID token among a session's tokens, or "": also where
// another provider made it.
func (c *Client) IDTokenOf(kept Kept) string {
	t, ok := kept.tokens()
	if !ok || t.Authority != c.cfg.Authority {
		return ""
	}
	return t.ID
}
