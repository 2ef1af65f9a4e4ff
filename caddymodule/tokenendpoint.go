package caddymodule

import (
	"context"
	"fmt"
	"maps"
	"net/netip"
	"net/url"
	"slices"
	"time"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/caddyconfig/caddyfile"

	"github.com/caddy-auth/caddy-auth/internal/auth"
	"github.com/caddy-auth/caddy-auth/internal/manage"
	"github.com/caddy-auth/caddy-auth/internal/oauth"
)

// TokenEndpoint is the gateway as an authorization server: auth_token and its
// siblings serve it.
type TokenEndpoint struct {
	// The issuer (RFC 8414): the https URL that clients know this server by. The
	// URLs in metadata are made of it, never of what a request says. Without one
	// there is no metadata, and no private_key_jwt.
	Issuer string `json:"issuer,omitempty"`
	// How long tokens live, unless their client has a lifetime of its own.
	// Default: 1h, at most 24h.
	Lifetime caddy.Duration `json:"lifetime,omitempty"`
	// Take API keys for tokens (RFC 8693).
	Exchange bool `json:"exchange,omitempty"`
	// How long tokens live that keys were exchanged for. Default: 5m.
	ExchangeLifetime caddy.Duration `json:"exchange_lifetime,omitempty"`
	// How many living tokens a client, or a key that tokens are exchanged for, may
	// have. More are refused with 429 until one has expired. Default: 1000.
	MaxTokens int `json:"max_tokens,omitempty"`
}

// mostTokens is how much max_tokens may be set to.
const mostTokens = 1_000_000

// parseTokenEndpoint sets up the token endpoint from Caddyfile tokens. Syntax:
//
//	token_endpoint [<issuer>] {
//		issuer <url>
//		lifetime <duration>
//		exchange [<lifetime>]
//		max_tokens <number>
//	}
func (a *App) parseTokenEndpoint(d *caddyfile.Dispenser) error {
	c := new(TokenEndpoint)
	a.TokenEndpoint = c
	if d.NextArg() {
		c.Issuer = d.Val()
	}
	if d.NextArg() {
		return d.ArgErr()
	}
	return block(d, "token_endpoint", map[string]func(*caddyfile.Dispenser) error{
		"issuer": func(d *caddyfile.Dispenser) error {
			if c.Issuer != "" {
				return d.Err("issuer is given twice")
			}
			return text(&c.Issuer)(d)
		},
		"lifetime":   duration(&c.Lifetime),
		"max_tokens": number(&c.MaxTokens),
		"exchange": func(d *caddyfile.Dispenser) error {
			c.Exchange = true
			if d.CountRemainingArgs() == 0 {
				return nil
			}
			return duration(&c.ExchangeLifetime)(d)
		},
	})
}

func (c *TokenEndpoint) check() error {
	if c == nil {
		return nil
	}
	if c.Issuer != "" {
		if err := oauth.CheckIssuer(c.Issuer); err != nil {
			return fmt.Errorf("token_endpoint: %w", err)
		}
	}
	if c.MaxTokens < 0 || c.MaxTokens > mostTokens {
		return fmt.Errorf("token_endpoint: max_tokens %d: want 1 to %d", c.MaxTokens, mostTokens)
	}
	for name, d := range map[string]caddy.Duration{"lifetime": c.Lifetime, "exchange": c.ExchangeLifetime} {
		if d != 0 && (time.Duration(d) < 10*time.Second || time.Duration(d) > auth.MostOwnTokenLifetime) {
			return fmt.Errorf("token_endpoint: %s %s: want 10s to %s", name, time.Duration(d), auth.MostOwnTokenLifetime)
		}
	}
	return nil
}

// authority is the gateway as an authorization server, in one configuration.
type authority struct {
	*oauth.Server
	issuer    string
	endpoints oauth.Endpoints // as handlers make them known while they are provisioned
	resources []string        // that have a document
	issuers   []string        // whose tokens are taken, beside our own
	documents bool            // some site has auth_wellknown
}

func (a *App) newAuthority() *authority {
	c := a.TokenEndpoint
	if c == nil {
		c = &TokenEndpoint{}
	}
	out := &authority{issuer: c.Issuer}
	for _, name := range slices.Sorted(maps.Keys(a.Issuers)) {
		if u := a.Issuers[name].URL; u != "" {
			out.issuers = append(out.issuers, u)
		}
	}
	out.Server = oauth.New(oauth.Config{
		Issuer: c.Issuer, Lifetime: time.Duration(c.Lifetime), Exchange: c.Exchange, ExchangeLifetime: time.Duration(c.ExchangeLifetime), Prefix: a.KeyPrefix, MaxTokens: c.MaxTokens,
	}, a.rt.verifier, ownTokens{a.rt}, a.rt.failures, nil)
	return out
}

// caller is what the server needs to know of a request to an endpoint.
func (a *authority) caller(address netip.Addr, endpoint string) oauth.Caller {
	c := oauth.Caller{Address: address, Resources: a.resources}
	if a.issuer != "" {
		c.Resources = append(slices.Clone(a.resources), a.issuer)
	}
	for _, at := range []string{endpoint, a.endpoints.Token} {
		if at != "" {
			c.Endpoints = append(c.Endpoints, at)
		}
	}
	return c
}

// urlOf is the URL of a path on the issuer's host, or "" without an issuer.
func (a *authority) urlOf(path string) string {
	u, err := url.Parse(a.issuer)
	if a.issuer == "" || err != nil {
		return ""
	}
	return u.Scheme + "://" + u.Host + path
}

// resource is what the gateway protects, as metadata calls it, unless a site
// says otherwise; "" if nobody said.
func (a *authority) resource() string { return a.issuer }

// metadataURL is where the document about a resource is, if it is served.
func (a *authority) metadataURL(resource string) string {
	if resource == "" {
		resource = a.resource()
	}
	if resource == "" || !slices.Contains(a.resources, resource) {
		return ""
	}
	at, err := oauth.WellKnown(oauth.ResourceMetadataPath, resource)
	if err != nil {
		return ""
	}
	return at
}

// ownTokens is the runtime as oauth.Tokens.
type ownTokens struct{ rt *runtime }

// Issue implements oauth.Tokens.
func (t ownTokens) Issue(ctx context.Context, i *oauth.Issue) error {
	return t.rt.issuing.Issue(ctx, i)
}

// UseAssertion implements oauth.Tokens.
func (t ownTokens) UseAssertion(ctx context.Context, i *oauth.Issue) error {
	db, err := t.rt.openDB()
	if err != nil {
		return err
	}
	return db.UseAssertion(ctx, i)
}

// Find implements oauth.Tokens.
func (t ownTokens) Find(ctx context.Context, fp auth.Fingerprint) (*auth.AccessToken, error) {
	l, err := t.rt.LookupToken(ctx, fp)
	if err == nil && l.Token == nil && l.Moved {
		err = auth.ErrMoved
	}
	return l.Token, err
}

// Revoke implements oauth.Tokens: when it returns nil, this gateway has applied
// it.
func (t ownTokens) Revoke(ctx context.Context, fp auth.Fingerprint, id, client string) error {
	db, err := t.rt.openDB()
	if err != nil {
		return err
	}
	actor := "holder"
	if client != "" {
		actor = auth.ClientSubject(client)
	}
	m := manage.New(db, actor, "", nil)
	m.SetBell(t.rt)
	if _, err := m.RevokeOwnToken(ctx, fp, id, client, "by "+actor); err != nil {
		return err
	}
	return t.rt.follower.LookSoon(ctx)
}

// writeTokens writes tokens of our own to the store.
func (rt *runtime) writeTokens(ctx context.Context, issues []*oauth.Issue) error {
	db, err := rt.openDB()
	if err != nil {
		return err
	}
	return db.IssueTokens(ctx, issues)
}
