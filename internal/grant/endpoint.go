package grant

import (
	"context"
	"encoding/json"
	"fmt"
	"math"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/caddy-auth/caddy-auth/internal/auth"
	"github.com/caddy-auth/caddy-auth/internal/fetch"
	"github.com/caddy-auth/caddy-auth/internal/strictjson"
)

// Ways to say who we are at a token endpoint (RFC 6749, 2.3; RFC 7523, 2.2).
const (
	AuthBasic         = "basic"
	AuthPost          = "post"
	AuthPrivateKeyJWT = "private_key_jwt"
	AuthNone          = "none" // a public client: it has no secret
)

const (
	// DefaultTimeout bounds one question to a token endpoint.
	DefaultTimeout = 5 * time.Second
	// MaxTimeout is how much that may be set to.
	MaxTimeout = time.Minute
	// UnknownLifetime is how long a token is used that does not say how long it
	// lives, MostLifetime how long any is.
	UnknownLifetime = 5 * time.Minute
	MostLifetime    = 24 * time.Hour
	// leastLifetime: with less, nothing could be done with a token.
	leastLifetime = time.Second
	// maxAnswer is the longest answer, in bytes.
	maxAnswer = 64 << 10
	// mostRetryAfter is how long a token endpoint may make us wait.
	mostRetryAfter = time.Minute
)

// Config says which token is got, and how.
type Config struct {
	TokenURL string // see fetch.CheckURL
	ClientID string
	Auth     string // default AuthBasic
	Secret   Secret // the client's, or its private key for AuthPrivateKeyJWT
	Key      KeyConfig
	Scopes   []string
	// Audiences and Resources say what the token is for, where the server wants
	// to know: audience is a habit of some, resource is RFC 8707.
	Audiences []string
	Resources []string
	Timeout   time.Duration // default DefaultTimeout
}

// Grant is a token that was issued.
type Grant struct {
	Token   auth.Secret
	Issued  time.Time // when it was asked for, so that it never seems to live longer
	Expires time.Time
	// Scopes are the token's as the server has them; as asked for, if it did not
	// say.
	Scopes []string
	// Told is whether the server said how long the token lives.
	Told bool
	// By is what it was got with.
	By auth.Fingerprint
}

// Endpoint asks one token endpoint for one kind of token. It is safe for
// concurrent use.
type Endpoint struct {
	cfg    Config
	client *fetch.Client
}

// NewEndpoint returns an endpoint. Its secret must be usable.
func NewEndpoint(cfg Config) (*Endpoint, error) {
	if cfg.Auth == "" {
		cfg.Auth = AuthBasic
	}
	if cfg.Timeout <= 0 {
		cfg.Timeout = DefaultTimeout
	}
	if err := CheckClientSecret(cfg.Auth, cfg.Key)(cfg.Secret.Current().Reveal()); err != nil {
		return nil, err
	}
	return &Endpoint{cfg, fetch.New(cfg.Timeout, 2)}, nil
}

// Beside returns the same endpoint with connections of its own, at most so many.
func (e *Endpoint) Beside(conns int) *Endpoint {
	return &Endpoint{e.cfg, fetch.New(e.cfg.Timeout, conns)}
}

// Close gives connections back.
func (e *Endpoint) Close() { e.client.Close() }

// Timeout bounds Ask.
func (e *Endpoint) Timeout() time.Duration { return e.cfg.Timeout }

// By is what tokens would be got with now.
func (e *Endpoint) By() auth.Fingerprint { return auth.FingerprintOf(e.cfg.Secret.Current().Reveal()) }

// Identity is the same for endpoints that get the same tokens, whatever secret
// they get them with.
func (e *Endpoint) Identity() auth.Fingerprint {
	c := e.cfg
	return auth.FingerprintOf(fmt.Sprintf("%q %q %q %q %q", c.TokenURL, c.ClientID, c.Scopes, c.Audiences, c.Resources))
}

// CheckClientSecret returns what says what is wrong with the secret of a client.
func CheckClientSecret(method string, key KeyConfig) func(text string) error {
	return func(text string) error {
		if method == AuthNone {
			if text != "" {
				return auth.Invalidf("a client with a secret proves that it has it: want another auth than none")
			}
			return nil
		}
		if method == AuthPrivateKeyJWT {
			_, err := parseSigningKey(text, key)
			return err
		}
		if text == "" {
			return auth.Invalidf("it is empty")
		}
		for _, r := range text {
			if r < 0x20 || r == 0x7f || r == '�' {
				return auth.Invalidf("it holds a control character or is no text")
			}
		}
		return nil
	}
}

// Ask gets a token (RFC 6749, 4.4.2). Any error is a *Failure.
func (e *Endpoint) Ask(ctx context.Context) (Grant, error) {
	form := url.Values{"grant_type": {"client_credentials"}}
	if len(e.cfg.Scopes) > 0 {
		form.Set("scope", strings.Join(e.cfg.Scopes, " "))
	}
	r, err := e.Redeem(ctx, form)
	return r.Grant, err
}

// Redeemed is all that a token endpoint gave.
type Redeemed struct {
	Grant
	Refresh auth.Secret // RFC 6749, 1.5; zero: none
	ID      auth.Secret // the ID token (OpenID Connect Core, 3.1.3.3); zero: none
}

// Redeem trades what a form holds for tokens (RFC 6749, 4.1.3, 4.4.2 and 6),
// with who we are added. The form is changed. Any error is a *Failure.
func (e *Endpoint) Redeem(ctx context.Context, form url.Values) (Redeemed, error) {
	ctx, cancel := context.WithTimeout(ctx, e.cfg.Timeout)
	defer cancel()
	secret := e.cfg.Secret.Current() // it may change meanwhile
	g := Redeemed{Grant: Grant{Issued: time.Now(), By: auth.FingerprintOf(secret.Reveal())}}
	for name, values := range map[string][]string{"audience": e.cfg.Audiences, "resource": e.cfg.Resources} {
		if len(values) > 0 {
			form[name] = values
		}
	}
	sign, err := e.authenticate(form, secret, g.Issued)
	if err != nil {
		return g, &Failure{Cause: CauseRefused, Detail: "signing for the token endpoint", err: err}
	}
	a, err := e.client.PostForm(ctx, e.cfg.TokenURL, form, sign)
	if err != nil {
		return g, Unavailable("the token endpoint gives no answer", err)
	}
	if a.Status != http.StatusOK {
		return g, refusal(a)
	}
	if err := e.read(a, &g); err != nil {
		return g, &Failure{Cause: CauseAnswer, Detail: "the token endpoint's answer is no token", Status: a.Status, err: err}
	}
	return g, nil
}

// authenticate adds who we are to a form, or returns what adds it to the
// request.
func (e *Endpoint) authenticate(form url.Values, secret auth.Secret, now time.Time) (sign func(*http.Request), err error) {
	switch e.cfg.Auth {
	case AuthPost:
		form.Set("client_id", e.cfg.ClientID)
		form.Set("client_secret", secret.Reveal())
	case AuthPrivateKeyJWT:
		assertion, err := e.assertion(secret, now)
		if err != nil {
			return nil, err
		}
		form.Set("client_id", e.cfg.ClientID) // RFC 7521, 4.2: optional; some want it
		form.Set("client_assertion_type", "urn:ietf:params:oauth:client-assertion-type:jwt-bearer")
		form.Set("client_assertion", assertion)
	case AuthNone:
		form.Set("client_id", e.cfg.ClientID) // RFC 6749, 3.2.1
	default:
		return fetch.Basic(e.cfg.ClientID, secret), nil
	}
	return nil, nil
}

// errorCodes are those that may be repeated (RFC 6749, 5.2; RFC 8707, 2): a
// server could put anything there, what we sent it too.
var errorCodes = map[string]bool{
	"invalid_request": true, "invalid_client": true, "invalid_grant": true, "unauthorized_client": true, "unsupported_grant_type": true,
	"invalid_scope": true, "invalid_target": true, "access_denied": true, "temporarily_unavailable": true, "server_error": true, "slow_down": true, "unsupported_token_type": true,
}

// refusal is what an answer says that is not 200.
func refusal(a *fetch.Answer) *Failure {
	f := &Failure{Cause: CauseUnavailable, Status: a.Status, Detail: fmt.Sprintf("the token endpoint answers with status %d", a.Status)}
	code := ""
	if o, err := strictjson.Decode(a.Body); a.JSON() && len(a.Body) <= maxAnswer && err == nil {
		code, _ = o.Text("error")
	}
	if errorCodes[code] {
		f.Code = code
		f.Detail += " and the error " + code
	}
	busy := code == "temporarily_unavailable" || code == "server_error" || code == "slow_down"
	switch {
	case a.Status == http.StatusTooManyRequests, a.Status >= 500, busy:
		f.RetryAfter = retryAfter(a.Header.Get("Retry-After"), time.Now())
	case a.Status < 300 || a.Status == http.StatusRequestTimeout || a.Status == http.StatusTooEarly: // no refusal, and no token
		f.Cause = CauseAnswer
	case a.Status < 400:
		f.Cause = CauseAnswer
		f.Detail += ": a redirect, which is not followed with a secret"
	default:
		f.Cause = CauseRefused
		f.err = auth.WithHint(fmt.Errorf("this gateway is refused"), hintFor(code))
	}
	return f
}

func hintFor(code string) string {
	switch code {
	case "invalid_client", "":
		return "check token_url, client_id, client_secret and auth (basic, post or private_key_jwt)"
	case "invalid_scope":
		return "check scopes: the server gives this client others"
	case "invalid_target":
		return "check resource and audience"
	case "unauthorized_client", "unsupported_grant_type", "access_denied":
		return "the server must allow this client the grant client_credentials"
	}
	return "check scopes, audience, resource and auth"
}

// retryAfter reads RFC 9110, 10.2.3.
func retryAfter(text string, now time.Time) time.Duration {
	var d time.Duration
	if n, err := strconv.ParseUint(text, 10, 31); err == nil {
		d = time.Duration(n) * time.Second
	} else if at, err := http.ParseTime(text); err == nil {
		d = at.Sub(now)
	}
	return min(max(d, 0), mostRetryAfter)
}

// read reads RFC 6749, 5.1.
func (e *Endpoint) read(a *fetch.Answer, g *Redeemed) error {
	if len(a.Body) > maxAnswer {
		return auth.Invalidf("it is longer than %d bytes", maxAnswer)
	}
	if !a.JSON() {
		return auth.Invalidf("it is no JSON")
	}
	o, err := strictjson.Decode(a.Body)
	if err != nil {
		return fmt.Errorf("reading it: %w", err)
	}
	token, ok := o.Text("access_token")
	if !ok || token == "" {
		return auth.Invalidf("it has no access_token")
	}
	if err := CheckValue(token); err != nil || strings.Contains(token, " ") {
		return auth.Invalidf("its access_token can't be in a header")
	}
	// RFC 6749, 7.1: a token of a type that we don't know must not be used. Some
	// servers leave the type out.
	if kind, ok := o.Text("token_type"); !ok || kind != "" && !strings.EqualFold(kind, "Bearer") {
		return auth.Invalidf("its token_type is not Bearer")
	}
	life, told, err := lifetime(o)
	if err != nil {
		return err
	}
	g.Token, g.Expires, g.Told = auth.NewSecret(token), g.Issued.Add(life), told
	g.Scopes = e.cfg.Scopes
	if scope, ok := o.Text("scope"); ok && scope != "" {
		g.Scopes = scopesOf(scope, token)
	}
	return g.readOthers(o)
}

// readOthers reads what comes beside an access token.
func (g *Redeemed) readOthers(o strictjson.Object) error {
	refresh, ok1 := o.Text("refresh_token")
	id, ok2 := o.Text("id_token")
	if !ok1 || !ok2 || len(refresh) > maxToken || len(id) > maxToken {
		return auth.Invalidf("its refresh_token or id_token is no text, or too long")
	}
	g.Refresh, g.ID = auth.NewSecret(refresh), auth.NewSecret(id)
	return nil
}

// At is the same client at another token endpoint.
func (e *Endpoint) At(tokenURL string) *Endpoint {
	cfg := e.cfg
	cfg.TokenURL = tokenURL
	return &Endpoint{cfg, e.client}
}

// Revoke ends a token at a revocation endpoint (RFC 7009, 2.1). A token that is
// unknown there has ended. Any error is a *Failure.
func (e *Endpoint) Revoke(ctx context.Context, at string, token auth.Secret, hint string) error {
	ctx, cancel := context.WithTimeout(ctx, e.cfg.Timeout)
	defer cancel()
	form := url.Values{"token": {token.Reveal()}, "token_type_hint": {hint}}
	sign, err := e.authenticate(form, e.cfg.Secret.Current(), time.Now())
	if err != nil {
		return &Failure{Cause: CauseRefused, Detail: "signing for the revocation endpoint", err: err}
	}
	a, err := e.client.PostForm(ctx, at, form, sign)
	if err != nil {
		return Unavailable("the revocation endpoint gives no answer", err)
	}
	if a.Status != http.StatusOK {
		return refusal(a)
	}
	return nil
}

// scopesOf reads scopes for people and logs: what is none, or holds the token,
// is left out.
func scopesOf(text, token string) []string {
	const most = 100
	var out []string
	for scope := range strings.FieldsSeq(text) {
		if auth.CheckScope(scope) == nil && !strings.Contains(scope, token) && len(out) < most {
			out = append(out, scope)
		}
	}
	return out
}

// lifetime reads expires_in. Some servers write it as a string, some leave it
// out or write 0 where they do not say; far too much is cut, so that a new
// secret is used some day.
func lifetime(o strictjson.Object) (life time.Duration, told bool, err error) {
	var text string
	switch v := o["expires_in"].(type) {
	case json.Number:
		text = string(v)
	case string:
		text = v
	}
	seconds, parseErr := strconv.ParseFloat(text, 64)
	if len(text) > 32 || parseErr != nil && !math.IsInf(seconds, 0) || math.IsNaN(seconds) || seconds == 0 {
		return UnknownLifetime, false, nil
	}
	if seconds > MostLifetime.Seconds() {
		return MostLifetime, true, nil
	}
	if seconds < leastLifetime.Seconds() {
		return 0, true, auth.Invalidf("its token lives for less than a second")
	}
	return time.Duration(seconds * float64(time.Second)), true, nil
}
