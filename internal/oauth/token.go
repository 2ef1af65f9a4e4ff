package oauth

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/google/uuid"

	"github.com/caddy-auth/caddy-auth/internal/auth"
	"github.com/caddy-auth/caddy-auth/internal/secret"
	"github.com/caddy-auth/caddy-auth/internal/store"
)

// Issue is a token to be written.
type Issue = store.Issue

// Grant types (RFC 6749, 4.4; RFC 8693, 2.1).
const (
	GrantClientCredentials = "client_credentials"
	GrantTokenExchange     = "urn:ietf:params:oauth:grant-type:token-exchange"
)

// Types of tokens (RFC 8693, 3). A key has no registered type.
const (
	typeAccessToken = "urn:ietf:params:oauth:token-type:access_token"
	TypeAPIKey      = "urn:caddy-auth:token-type:api_key"
)

const (
	maxScopes    = 64
	issueTimeout = 5 * time.Second
)

// Issued is a token that a client was given.
type Issued struct {
	Grant string
	Token auth.AccessToken
}

// grant is what a request may have.
type grant struct {
	kind     string
	issue    *Issue
	scopes   string
	lifetime time.Duration
}

// ServeToken answers at the token endpoint (RFC 6749, 3.2). It returns what was
// issued, or why nothing was; the answer of a failure is the caller's to write.
func (s *Server) ServeToken(w http.ResponseWriter, r *http.Request, c Caller) (*Issued, *Failure) {
	f, failure := readForm(w, r)
	if failure != nil {
		return nil, failure
	}
	var g grant
	switch kind := f.get("grant_type"); {
	case kind == "":
		return nil, bad(invalidRequest, "grant_type is missing")
	case kind == GrantClientCredentials:
		g, failure = s.clientCredentials(r, f, c)
	case kind == GrantTokenExchange && s.cfg.Exchange:
		g, failure = s.exchange(r, f, c)
	default:
		return nil, bad(unsupportedGrantType, "this server has the grant types "+strings.Join(s.Grants(), " and "))
	}
	if failure != nil {
		return nil, failure
	}
	text, failure := s.issue(r.Context(), &g)
	if failure != nil {
		return nil, failure
	}
	answer := struct {
		AccessToken string `json:"access_token"`
		TokenType   string `json:"token_type"`
		ExpiresIn   int64  `json:"expires_in"`
		Scope       string `json:"scope,omitempty"`
		IssuedType  string `json:"issued_token_type,omitempty"`
	}{text.Reveal(), "Bearer", int64(g.lifetime / time.Second), g.scopes, ""}
	if g.kind == GrantTokenExchange {
		answer.IssuedType = typeAccessToken
	}
	_ = writeJSON(w, http.StatusOK, answer) // who does not read it has no token
	return &Issued{g.kind, g.issue.Token}, nil
}

// Grants are the grant types that are served.
func (s *Server) Grants() []string {
	if s.cfg.Exchange {
		return []string{GrantClientCredentials, GrantTokenExchange}
	}
	return []string{GrantClientCredentials}
}

// clientCredentials is RFC 6749, 4.4.
func (s *Server) clientCredentials(r *http.Request, f form, c Caller) (grant, *Failure) {
	p, failure := s.authenticate(r.Context(), r, f, c)
	if failure != nil {
		return grant{}, failure
	}
	if p.client == nil {
		return grant{}, noClient("no client authentication")
	}
	if failure := checkTarget(f, c); failure != nil {
		return grant{}, failure
	}
	scopes, failure := narrow(f.get("scope"), p.client)
	if failure != nil {
		return grant{}, failure
	}
	g := grant{kind: GrantClientCredentials, issue: p.assertion, scopes: scopes, lifetime: auth.ClientLifetime(p.client)}
	if g.issue == nil {
		g.issue = &Issue{}
	}
	if g.lifetime == 0 {
		g.lifetime = s.cfg.Lifetime
	}
	g.issue.Token.ClientID = p.client.ClientID
	return g, nil
}

// narrow returns the scopes that were asked for, if the client, or key, has
// them; all it has if none were (RFC 6749, 3.3).
func narrow(asked string, has *auth.Identity) (string, *Failure) {
	if asked == "" {
		return has.Scopes, nil
	}
	words := strings.Split(asked, " ")
	if len(words) > maxScopes {
		return "", bad(invalidScope, "too many scopes")
	}
	for _, scope := range words {
		if auth.CheckScope(scope) != nil {
			return "", bad(invalidScope, "scope: want words separated by single spaces")
		}
		if !has.HasScope(scope) {
			f := bad(invalidScope, "a scope that may not be had")
			f.ClientID = has.ClientID
			return "", f
		}
	}
	slices.Sort(words)
	return strings.Join(slices.Compact(words), " "), nil
}

// exchange is RFC 8693, 2.1: a key for a token that lives shortly. The key is
// all it takes; a client that is named must prove to be it, and can't get more
// than both have.
func (s *Server) exchange(r *http.Request, f form, c Caller) (grant, *Failure) {
	if failure := checkExchange(f); failure != nil {
		return grant{}, failure
	}
	p, failure := s.authenticate(r.Context(), r, f, c)
	switch {
	case failure != nil:
		return grant{}, failure
	case p.client == nil && f.get("client_id") != "":
		return grant{}, noClient("a client_id without proof")
	}
	if failure := checkTarget(f, c); failure != nil {
		return grant{}, failure
	}
	now := s.now()
	v := s.credentials.VerifyKey(r.Context(), f.get("subject_token"), now)
	key := &v.Identity
	switch {
	case v.Outcome == auth.CannotDecide:
		return grant{}, unavailable(v.Cause)
	case v.Outcome != auth.Allow:
		return grant{}, subjectFailure(v.Reason.String())
	case key.Method != auth.MethodAPIKey:
		return grant{}, bad(invalidRequest, "the subject_token must be an API key")
	case !auth.InNetworks(key.Networks, c.Address):
		return grant{}, bad(invalidRequest, "the key may not be used from this address")
	}
	scopes, failure := narrow(f.get("scope"), key)
	if failure != nil {
		return grant{}, failure
	}
	g := grant{kind: GrantTokenExchange, issue: &Issue{}, scopes: scopes, lifetime: s.cfg.ExchangeLifetime}
	if client := p.client; client != nil {
		if client.Environment != key.Environment {
			return grant{}, bad(invalidRequest, "the client and the key are of two environments")
		}
		if g.scopes, failure = narrowBoth(f.get("scope"), scopes, client); failure != nil {
			return grant{}, failure
		}
		if p.assertion != nil {
			g.issue = p.assertion
		}
		g.issue.Token.ClientID = client.ClientID
		if own := auth.ClientLifetime(client); own != 0 {
			g.lifetime = min(g.lifetime, own)
		}
	}
	g.issue.Token.KeyID = key.CredentialID
	if key.NotAfter != 0 {
		g.lifetime = min(g.lifetime, time.UnixMilli(key.NotAfter).Sub(now))
	}
	if g.lifetime < time.Second {
		return grant{}, subjectFailure(auth.ReasonExpired.String())
	}
	return g, nil
}

// subjectFailure is the one answer to a key that is not good (RFC 8693, 2.2.2).
func subjectFailure(reason string) *Failure {
	f := bad(invalidRequest, "the subject_token is unknown, mistyped, expired, replaced, revoked or disabled")
	f.Reason = reason
	return f
}

// checkExchange judges what is asked for (RFC 8693, 2.1).
func checkExchange(f form) *Failure {
	kind, wanted := f.get("subject_token_type"), f.get("requested_token_type")
	_, acts := f["actor_token"]
	switch {
	case f.get("subject_token") == "":
		return bad(invalidRequest, "subject_token is missing")
	case kind == "":
		return bad(invalidRequest, "subject_token_type is missing: want "+TypeAPIKey)
	case kind != TypeAPIKey && kind != typeAccessToken:
		return bad(invalidRequest, "subject_token_type: want "+TypeAPIKey)
	case wanted != "" && wanted != typeAccessToken:
		return bad(invalidRequest, "requested_token_type: want "+typeAccessToken)
	case acts:
		return bad(invalidRequest, "there are no actor tokens here")
	}
	return nil
}

// checkTarget refuses who asks for a token for somebody else (RFC 8707, 2;
// RFC 8693, 2.1): a token is for all that this gateway protects.
func checkTarget(f form, c Caller) *Failure {
	for _, resource := range f["resource"] {
		if !slices.ContainsFunc(c.Resources, func(ours string) bool { return within(resource, ours) }) {
			return bad(invalidTarget, "tokens are for this gateway only")
		}
	}
	for _, audience := range f["audience"] {
		if !slices.Contains(c.Resources, strings.TrimSuffix(audience, "/")) {
			return bad(invalidTarget, "tokens are for this gateway only")
		}
	}
	return nil
}

// within reports whether a resource is one of ours, or a path below it: an
// absolute URI without fragment (RFC 8707, 2) that has one reading.
func within(resource, ours string) bool {
	a, err1 := url.Parse(resource)
	b, err2 := url.Parse(ours)
	if err1 != nil || err2 != nil || a.Opaque != "" || a.User != nil || a.RawQuery != "" || strings.ContainsAny(resource, "#\\% ") {
		return false
	}
	if a.Scheme != b.Scheme || !strings.EqualFold(a.Host, b.Host) { // schemes are folded
		return false
	}
	rest, ok := strings.CutPrefix(a.Path, b.Path)
	if !ok || rest != "" && rest[0] != '/' {
		return false
	}
	for part := range strings.SplitSeq(strings.Trim(rest, "/"), "/") {
		if part == "." || part == ".." || part == "" && strings.Contains(rest, "//") {
			return false
		}
	}
	return true
}

// narrowBoth leaves what a client has of a key's scopes.
func narrowBoth(asked, scopes string, client *auth.Identity) (string, *Failure) {
	if asked != "" {
		return narrow(asked, client)
	}
	both := auth.CommonScopes(scopes, client.Scopes)
	if both == "" && scopes != "" {
		return "", bad(invalidScope, "the client and the key have no scope in common")
	}
	return both, nil
}

// issue mints and writes a token.
func (s *Server) issue(ctx context.Context, g *grant) (auth.Secret, *Failure) {
	minter := s.credentials.Minter()
	if minter == nil || len(minter.Prefixes()) == 0 {
		return auth.Secret{}, unavailable(fmt.Errorf("the store's secrets were not read yet: %w", auth.ErrUnavailable))
	}
	prefix := s.cfg.Prefix
	if !slices.Contains(minter.Prefixes(), prefix) { // a new one that not every gateway knows yet
		prefix = minter.Prefixes()[0]
	}
	text, err := minter.MintKind(prefix, secret.AccessToken)
	if err != nil {
		return auth.Secret{}, unavailable(err)
	}
	id, err := uuid.NewV7()
	if err != nil {
		return auth.Secret{}, unavailable(fmt.Errorf("making an id: %w", err))
	}
	now := s.now()
	t := &g.issue.Token
	t.ID, t.Fingerprint, t.Scopes = "at_"+id.String(), auth.FingerprintOf(text.Reveal()), g.scopes
	t.IssuedAt, t.ExpiresAt = now.UnixMilli(), now.Add(g.lifetime).UnixMilli()
	g.issue.Most = s.cfg.MaxTokens
	if wait := s.failures.full.wait(t, now); wait > 0 { // the store is not asked again and again
		return auth.Secret{}, tooManyTokens(s.cfg.MaxTokens, wait, t.ClientID)
	}
	ctx, cancel := context.WithTimeout(ctx, issueTimeout)
	defer cancel()
	var full *store.TooManyTokens
	switch err := s.tokens.Issue(ctx, g.issue); {
	case errors.As(err, &full):
		wait := time.UnixMilli(full.Room).Sub(now)
		s.failures.full.note(t, now, wait)
		return auth.Secret{}, tooManyTokens(s.cfg.MaxTokens, wait, t.ClientID)
	case errors.Is(err, auth.ErrConflict):
		return auth.Secret{}, noClient("a client assertion that was used before")
	case err != nil:
		return auth.Secret{}, unavailable(err)
	}
	return text, nil
}
