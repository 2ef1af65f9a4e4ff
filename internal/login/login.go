package login

import (
	"context"
	"crypto/subtle"
	"errors"
	"fmt"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/google/uuid"

	"github.com/caddy-auth/caddy-auth/internal/auth"
	"github.com/caddy-auth/caddy-auth/internal/grant"
	"github.com/caddy-auth/caddy-auth/internal/limit"
	"github.com/caddy-auth/caddy-auth/internal/strictjson"
)

// Defaults of a login.
const (
	DefaultIdle     = time.Hour
	DefaultLifetime = 12 * time.Hour
	// MostLifetime is the longest that a session may live.
	MostLifetime = 90 * 24 * time.Hour
)

// Config is one login, as configured.
type Config struct {
	Name       string
	JudgedBy   string // see auth.Session
	Authority  string
	Issuer     string // iss, to the last character
	ClientID   string
	Scopes     []string // with openid
	Algorithms []string // of ID tokens
	Params     map[string]string
	// Identify makes an identity of an ID token's claims and the scopes that were
	// granted; its errors say what is missing.
	Identify func(claims strictjson.Object, granted []string) (auth.Identity, error)
	// Attempts counts codes that were no good; nil: a count of this client's own.
	Attempts *Attempts
	// Once marks something as used until a time; auth.ErrConflict: it was before.
	Once func(ctx context.Context, kind string, hash []byte, until time.Time) error
}

// Client signs people in at one provider. It is safe for concurrent use.
type Client struct {
	cfg      Config
	provider *Provider
	codes    *grant.Endpoint // asked about codes, which anybody can send
	tokens   *grant.Endpoint // asked about tokens, with connections of its own
	keys     KeySet
	sealer   func() Sealer // nil: not known now
	now      func() time.Time
	slots    *limit.Slots[string] // by turn
}

// refreshConns is how many connections there are for the tokens of people who are
// signed in.
const refreshConns = 64

// New returns a client that asks e, over connections of its own. sealer may return nil while the store
// can't be read.
func New(cfg Config, p *Provider, e *grant.Endpoint, keys KeySet, sealer func() Sealer) *Client {
	if cfg.Attempts == nil {
		cfg.Attempts = NewAttempts()
	}
	return &Client{
		cfg: cfg, provider: p, codes: e.Beside(maxRedeeming), tokens: e.Beside(refreshConns), keys: keys, sealer: sealer, now: time.Now,
		slots: limit.NewSlots[string](maxRedeeming, shareRedeeming, waitRedeeming),
	}
}

// Close gives connections back.
func (c *Client) Close() { c.codes.Close(); c.tokens.Close() }

// Cause is why nobody was signed in.
type Cause string

// The causes.
const (
	// CauseUnavailable: somebody could not be asked; it says nothing of who asks.
	CauseUnavailable Cause = "unavailable"
	// CauseState: the answer belongs to no sign-in of this browser.
	CauseState Cause = "state"
	// CauseCode: the provider does not know the code.
	CauseCode Cause = "code"
	// CauseTooMany: too many codes of the same sender were no good.
	CauseTooMany Cause = "too_many"
	// CauseDenied: the person, or the provider, said no.
	CauseDenied Cause = "denied"
	// CauseRefused: what the provider says can't be believed, or it refuses us.
	CauseRefused Cause = "refused"
)

// Error says that nobody was signed in, and why, for an operator.
type Error struct {
	Cause  Cause
	Detail string
	// Return is where the person wanted to go, if that is known.
	Return string
	// RetryAfter is when to come back; of CauseTooMany.
	RetryAfter time.Duration
	err        error
}

// Error implements error.
func (e *Error) Error() string {
	if e.err != nil {
		return e.Detail + ": " + e.err.Error()
	}
	return e.Detail
}

// Unwrap gives what happened.
func (e *Error) Unwrap() error { return e.err }

func unavailableError(err error) *Error {
	return &Error{Cause: CauseUnavailable, Detail: "somebody can't be asked now", err: err}
}

func refusedError(detail string, err error) *Error {
	return &Error{Cause: CauseRefused, Detail: detail, err: err}
}

// Begun is a sign-in that began: where to, and what the browser keeps.
type Begun struct {
	URL    string
	Cookie Cookie
	Forget []string // names of cookies of others that are too many
	Life   time.Duration
}

// Begin leads a browser to the provider, and after it to returnTo, which must be
// SafeReturn, else to "/". redirect is the redirect URI. Errors: an *Error.
func (c *Client) Begin(ctx context.Context, redirect, returnTo string, have []Cookie) (*Begun, error) {
	m, err := c.provider.Metadata(ctx)
	if err != nil {
		return nil, unavailableError(err)
	}
	sealer := c.sealer()
	if sealer == nil {
		return nil, unavailableError(fmt.Errorf("the store's secrets were not read yet: %w", auth.ErrUnavailable))
	}
	if !SafeReturn(returnTo) {
		returnTo = "/"
	}
	s := newState(c.cfg.Name, c.cfg.JudgedBy, redirect, returnTo, c.now())
	text, err := s.seal(sealer)
	if err != nil {
		return nil, unavailableError(err)
	}
	params := url.Values{
		"response_type": {"code"}, "client_id": {c.cfg.ClientID}, "redirect_uri": {redirect}, "scope": {strings.Join(c.cfg.Scopes, " ")},
		"state": {s.State}, "nonce": {s.Nonce}, "code_challenge": {s.challenge()}, "code_challenge_method": {"S256"},
	}
	for name, value := range c.cfg.Params {
		params.Set(name, value)
	}
	return &Begun{withQuery(m.Authorization, params), Cookie{stateCookie(c.cfg.Name, s.State), text}, c.tooMany(have, sealer), stateLife}, nil
}

// tooMany returns the names of state cookies that are one too many with the next
// one: what can't be opened any more, else the oldest.
func (c *Client) tooMany(have []Cookie, sealer Sealer) (names []string) {
	type tab struct {
		name string
		at   int64
	}
	var tabs []tab
	for _, cookie := range have {
		if !strings.HasPrefix(cookie.Name, stateCookies(c.cfg.Name)) {
			continue
		}
		s, ok := openState(sealer, c.cfg.Name, c.cfg.JudgedBy, cookie.Value, c.now())
		if !ok {
			names = append(names, cookie.Name)
			continue
		}
		tabs = append(tabs, tab{cookie.Name, s.At})
	}
	slices.SortFunc(tabs, func(a, b tab) int { return int(a.at - b.at) })
	for len(tabs) >= maxTabs {
		names, tabs = append(names, tabs[0].name), tabs[1:]
	}
	return names
}

// SignedIn is somebody who signed in.
type SignedIn struct {
	Session *auth.Session // without times and a fingerprint
	Tokens  Tokens
	Return  string
	Began   time.Time // when this sign-in did
}

// Finish reads what the provider sent the browser back with (RFC 6749, 4.1.2)
// and redeems the code that by sent. Errors: an *Error; used is the name of the
// cookie that is used up, if any.
func (c *Client) Finish(ctx context.Context, by Sender, rawQuery string, have []Cookie) (in *SignedIn, used string, err error) {
	q, err := url.ParseQuery(rawQuery)
	if err != nil {
		return nil, "", &Error{Cause: CauseState, Detail: "the answer can't be read"}
	}
	for _, name := range []string{"state", "code", "error", "iss"} {
		if len(q[name]) > 1 {
			return nil, "", &Error{Cause: CauseState, Detail: "the answer has more than one " + name}
		}
	}
	sealer := c.sealer()
	if sealer == nil {
		return nil, "", unavailableError(fmt.Errorf("the store's secrets were not read yet: %w", auth.ErrUnavailable))
	}
	name := stateCookie(c.cfg.Name, q.Get("state"))
	s, ok := openState(sealer, c.cfg.Name, c.cfg.JudgedBy, value(have, name), c.now())
	if q.Get("state") == "" || !ok || subtle.ConstantTimeCompare([]byte(s.State), []byte(q.Get("state"))) != 1 {
		return nil, "", &Error{Cause: CauseState, Detail: "no sign-in of this browser is under way that the answer belongs to: it took too long, was answered before, or cookies are blocked"}
	}
	in, failed := c.finish(ctx, by, q, s)
	if failed != nil {
		failed.Return = s.Return
		if failed.Cause == CauseTooMany || failed.Cause == CauseUnavailable && errors.Is(failed, errNotBegun) {
			name = "" // the person may load the page again
		}
		return nil, name, failed
	}
	in.Return, in.Began = s.Return, time.UnixMilli(s.At)
	return in, name, nil
}

// errNotBegun marks failures before the code was used.
var errNotBegun = errors.New("nothing was used up")

func (c *Client) finish(ctx context.Context, by Sender, q url.Values, s *state) (in *SignedIn, failed *Error) {
	m, err := c.provider.Metadata(ctx)
	if err != nil {
		return nil, unavailableError(errors.Join(err, errNotBegun))
	}
	// RFC 9207, 2.4: who answers must be whom we asked.
	if iss, there := q["iss"]; there && iss[0] != c.cfg.Issuer || !there && m.SendsIssuer {
		return nil, refusedError("the answer is not the provider's", errToken("iss is missing or another's"))
	}
	if code := q.Get("error"); code != "" || q.Has("error") {
		return nil, answeredError(code)
	}
	code := q.Get("code")
	if code == "" {
		return nil, refusedError("the provider's answer", errToken("it has neither a code nor an error"))
	}
	release, failed := c.turn(ctx, by)
	if failed != nil {
		return nil, failed
	}
	defer release()
	done, failed := c.cfg.Attempts.begin(by, c.now)
	if failed != nil {
		return nil, failed
	}
	defer func() { done(failed) }()
	// Who hangs up is counted like everybody else.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), redeemTime)
	defer cancel()
	// Each state is good once, so a code that somebody sends again never reaches
	// the provider, which would end what it gave for it (RFC 6749, 4.1.2).
	switch err := c.cfg.Once(ctx, "login", s.hash(), time.UnixMilli(s.At).Add(stateLife+2*leeway)); {
	case errors.Is(err, auth.ErrConflict):
		return nil, &Error{Cause: CauseState, Detail: "this sign-in was answered before"}
	case err != nil:
		return nil, unavailableError(errors.Join(err, errNotBegun))
	}
	return c.redeem(ctx, m, code, s)
}

// answeredError is what an error of the provider means (RFC 6749, 4.1.2.1). Its
// words are not repeated: anybody could have written them.
func answeredError(code string) *Error {
	switch code {
	case "access_denied":
		return &Error{Cause: CauseDenied, Detail: "the provider says access_denied: the person, or the provider, said no"}
	case "temporarily_unavailable", "server_error":
		return &Error{Cause: CauseUnavailable, Detail: "the provider says " + code}
	case "invalid_request", "unauthorized_client", "unsupported_response_type", "invalid_scope", "login_required", "interaction_required", "consent_required", "account_selection_required":
		return &Error{Cause: CauseRefused, Detail: "the provider says " + code}
	}
	return &Error{Cause: CauseRefused, Detail: "the provider says an error that is not known"}
}

func (c *Client) redeem(ctx context.Context, m *Metadata, code string, s *state) (*SignedIn, *Error) {
	r, err := c.codes.At(m.Token).Redeem(ctx, url.Values{
		"grant_type": {"authorization_code"}, "code": {code}, "redirect_uri": {s.Redirect}, "code_verifier": {s.Verifier},
	})
	var f *grant.Failure
	switch {
	case errors.As(err, &f) && f.Code == "invalid_grant": // RFC 6749, 5.2: no code of this provider's, or not any more
		return nil, &Error{Cause: CauseCode, Detail: "redeeming the code", err: f}
	case errors.As(err, &f) && f.Cause != grant.CauseUnavailable:
		return nil, refusedError("redeeming the code", f)
	case err != nil:
		return nil, unavailableError(err)
	}
	claims, err := c.judgeID(ctx, r.ID.Reveal(), s.Nonce, r.Token.Reveal())
	var bad errToken
	switch {
	case errors.As(err, &bad):
		return nil, refusedError("the ID token", bad)
	case err != nil:
		return nil, unavailableError(err)
	}
	sid, _ := claims.Text("sid")
	if len(sid) > maxName {
		return nil, refusedError("the ID token", errToken("its sid is too long"))
	}
	onlyVerified(claims)
	id, err := c.cfg.Identify(claims, r.Scopes)
	if err != nil {
		return nil, refusedError("the ID token", err)
	}
	sub, _ := claims.Text("sub")
	return &SignedIn{
		Session: &auth.Session{
			ID: "ses_" + uuid.Must(uuid.NewV7()).String(), Login: c.cfg.Name, Subject: id.Subject, Sub: sub, SID: sid, Environment: id.Environment, Scopes: id.Scopes, Meta: id.Meta,
			JudgedBy: c.cfg.JudgedBy, Authority: c.cfg.Authority,
		},
		Tokens: tokensOf(r, sub, c.cfg.Authority),
	}, nil
}

// onlyVerified drops an address that the provider does not vouch for: somebody
// else may have written it.
func onlyVerified(claims strictjson.Object) {
	if verified, _ := claims["email_verified"].(bool); !verified {
		delete(claims, "email")
	}
}

// LogoutURL is where a browser goes so that the provider's session ends too
// (RP-Initiated Logout 1.0, 2); "" if the provider has no such place. back is
// where it comes back to.
func (c *Client) LogoutURL(ctx context.Context, idToken, back string) string {
	m, err := c.provider.Metadata(ctx)
	if err != nil || m.EndSession == "" {
		return ""
	}
	params := url.Values{"client_id": {c.cfg.ClientID}, "post_logout_redirect_uri": {back}}
	if idToken != "" {
		params.Set("id_token_hint", idToken)
	}
	return withQuery(m.EndSession, params)
}
