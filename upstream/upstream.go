// Package upstream lets a service behind the gateway know who is calling, and
// that it was the gateway who said so: it checks the signed assertion that the
// gateway sends when identity_headers has an assertion.
//
//	gateway, err := upstream.New(upstream.Config{
//		KeysURL:  "https://api.example.com/.well-known/jwks.json",
//		Audience: "orders",
//	})
//	...
//	http.ListenAndServe(":9000", gateway.Middleware(mux))
//
// In a handler, upstream.FromContext tells who it is. Requests without an
// assertion, or with one for another service, method or path, never reach it.
package upstream

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"time"

	"github.com/caddy-auth/caddy-auth/internal/auth"
	"github.com/caddy-auth/caddy-auth/internal/fetch"
	"github.com/caddy-auth/caddy-auth/internal/jwks"
	"github.com/caddy-auth/caddy-auth/internal/jwt"
	"github.com/caddy-auth/caddy-auth/internal/strictjson"
)

// Header carries the assertion, unless the gateway was given another prefix.
const Header = "X-Auth-Assertion"

// What Verify returns, wrapped with why.
var (
	// ErrMissing: the request did not come through the gateway, or the route is
	// public there.
	ErrMissing = errors.New("no assertion")
	// ErrInvalid: it is not an assertion for this request.
	ErrInvalid = errors.New("invalid assertion")
	// ErrUnavailable: the gateway's keys are not known, so nobody can tell.
	ErrUnavailable = errors.New("the gateway's keys can't be had")
)

const (
	assertionType = "caddy-auth-assertion+jwt"
	// DefaultLeeway is how far the gateway's clock may be off.
	DefaultLeeway = 5 * time.Second
	maxLength     = 16 << 10
	fetchTimeout  = 5 * time.Second
)

var algorithms = []string{"EdDSA", "ES256"}

// Config says whose assertions are taken. KeysURL or KeySet, and Audience, are
// required.
type Config struct {
	// KeysURL is where the gateway publishes its keys. They are fetched in the
	// background, and again when one is unknown.
	KeysURL string
	// KeySet is the keys themselves (RFC 7517, 5), where there is no way to the
	// gateway.
	KeySet []byte
	// Audience is what the gateway's configuration calls this service.
	Audience string
	// Issuer is the iss that assertions must have; empty: any.
	Issuer string
	// Header is where the assertion is. Default: X-Auth-Assertion.
	Header string
	// Leeway is how far the gateway's clock may be off. Default: 5s.
	Leeway time.Duration
	// Optional lets requests without an assertion through, without an identity.
	// One that is wrong is refused all the same.
	Optional bool
	// Now is the clock. Default: time.Now.
	Now func() time.Time
}

// Identity is who is calling, as the gateway says.
type Identity struct {
	Subject      string
	Method       string // how the gateway knows: api_key, access_token, jwt, introspection, session
	CredentialID string
	ClientID     string
	Issuer       string // of tokens of others, by the name the gateway has for it
	Environment  string
	Scopes       []string
	Meta         map[string][]string
	ID           string // jti: alike requests that change nothing share one for a while, others don't
	Expires      time.Time
}

// HasScope reports whether one of the scopes is scope, or ends in ":*" and
// covers it.
func (i *Identity) HasScope(scope string) bool {
	id := auth.Identity{Scopes: strings.Join(i.Scopes, " ")}
	return id.HasScope(scope)
}

// Verifier checks assertions. It is safe for concurrent use.
type Verifier struct {
	cfg    Config
	keys   keys
	remote *jwks.Set // nil: the keys were given
	client *fetch.Client
}

// keys returns the key that an assertion says it is signed with. Errors:
// auth.ErrNotFound, auth.ErrUnavailable.
type keys func(ctx context.Context, kid, alg string, issued time.Time) (*jwt.Key, error)

// New returns a Verifier. One with a KeysURL fetches keys until it is closed;
// New does not wait for the first.
func New(cfg Config) (*Verifier, error) {
	if cfg.Header == "" {
		cfg.Header = Header
	}
	if cfg.Leeway == 0 {
		cfg.Leeway = DefaultLeeway
	}
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	v := &Verifier{cfg: cfg}
	switch {
	case cfg.Audience == "":
		return nil, errors.New("upstream: no audience: want what the gateway calls this service")
	case (cfg.KeysURL == "") == (len(cfg.KeySet) == 0):
		return nil, errors.New("upstream: want either a KeysURL or a KeySet")
	case len(cfg.KeySet) > 0:
		given, err := readKeys(cfg.KeySet)
		if err != nil {
			return nil, fmt.Errorf("upstream: %w", err)
		}
		v.keys = given
		return v, nil
	}
	if err := fetch.CheckURL(cfg.KeysURL); err != nil {
		return nil, fmt.Errorf("upstream: %w", err)
	}
	v.client = fetch.New(fetchTimeout, 2)
	v.remote = jwks.New(jwks.Config{KeysURL: cfg.KeysURL}, v.client)
	v.remote.Start()
	v.keys = v.remote.Key
	return v, nil
}

// Close ends the fetching of keys.
func (v *Verifier) Close() {
	if v.remote != nil {
		v.remote.Stop()
		v.client.Close()
	}
}

func readKeys(set []byte) (keys, error) {
	o, err := strictjson.Decode(set)
	if err != nil {
		return nil, fmt.Errorf("reading the key set: %w", err)
	}
	list, _ := o["keys"].([]any)
	byID := map[string]*jwt.Key{}
	for _, one := range list {
		member, _ := one.(strictjson.Object)
		if k, err := jwt.ParseKey(member); err == nil && k.ID != "" && byID[k.ID] == nil {
			byID[k.ID] = k
		}
	}
	if len(byID) == 0 {
		return nil, errors.New("a key set without a key that can be used")
	}
	return func(_ context.Context, kid, _ string, _ time.Time) (*jwt.Key, error) {
		if k := byID[kid]; k != nil {
			return k, nil
		}
		return nil, auth.ErrNotFound
	}, nil
}

// Verify checks an assertion for a request with a method and a path, which is
// what stands before "?" in the request target, as it was sent. Errors:
// ErrMissing, ErrInvalid, ErrUnavailable.
func (v *Verifier) Verify(ctx context.Context, text, method, path string) (*Identity, error) {
	if text == "" {
		return nil, ErrMissing
	}
	if len(text) > maxLength {
		return nil, fmt.Errorf("%w: too long", ErrInvalid)
	}
	t, reason := jwt.Parse(text)
	if reason != auth.ReasonNone {
		return nil, fmt.Errorf("%w: %s", ErrInvalid, reason)
	}
	if t.KeyID == "" || !t.IsType(assertionType) { // a token for another purpose is none (RFC 8725, 3.11)
		return nil, fmt.Errorf("%w: %s", ErrInvalid, auth.ReasonTokenType)
	}
	issued, _, ok := t.Claims.Date("iat")
	if !ok {
		return nil, fmt.Errorf("%w: iat", ErrInvalid)
	}
	key, err := v.keys(ctx, t.KeyID, t.Algorithm, time.UnixMilli(issued))
	switch {
	case errors.Is(err, auth.ErrNotFound):
		return nil, fmt.Errorf("%w: %s", ErrInvalid, auth.ReasonKeyID)
	case err != nil:
		return nil, fmt.Errorf("%w: %w", ErrUnavailable, err)
	}
	if reason := t.Verify(key, algorithms); reason != auth.ReasonNone {
		return nil, fmt.Errorf("%w: %s", ErrInvalid, reason)
	}
	return v.read(t.Claims, method, path)
}

// read judges what is signed.
func (v *Verifier) read(c strictjson.Object, method, path string) (*Identity, error) {
	text := func(name string) string { // what is no text is as good as missing: all that must be there is compared
		s, _ := c.Text(name)
		return s
	}
	exp, hasExp, ok1 := c.Date("exp")
	nbf, _, ok2 := c.Date("nbf")
	at, slack := v.cfg.Now().UnixMilli(), v.cfg.Leeway.Milliseconds()
	wrong := ""
	switch {
	case !ok1 || !ok2 || !hasExp:
		wrong = "exp or nbf"
	case at >= exp+slack:
		wrong = "expired"
	case nbf > at+slack:
		wrong = "not valid yet"
	case text("aud") != v.cfg.Audience:
		wrong = "for another audience"
	case v.cfg.Issuer != "" && text("iss") != v.cfg.Issuer:
		wrong = "of another issuer"
	case text("htm") != method || method == "":
		wrong = "for another method"
	case text("path") != path || path == "":
		wrong = "for another path"
	case text("sub") == "":
		wrong = "no subject"
	}
	if wrong != "" {
		return nil, fmt.Errorf("%w: %s", ErrInvalid, wrong)
	}
	id := &Identity{
		Subject: text("sub"), Method: text("auth_method"), CredentialID: text("credential_id"), ClientID: text("client_id"), Issuer: text("auth_issuer"),
		Environment: text("environment"), Scopes: strings.Fields(text("scope")), ID: text("jti"), Expires: time.UnixMilli(exp),
	}
	if meta, ok := c["meta"].(strictjson.Object); ok {
		id.Meta = map[string][]string{}
		for name, value := range meta {
			if words, ok := strictjson.Strings(value); ok {
				id.Meta[name] = words
			}
		}
	}
	return id, nil
}

type contextKey struct{}

// FromContext returns who is calling; false: nobody whom the gateway knows.
func FromContext(ctx context.Context) (*Identity, bool) {
	id, ok := ctx.Value(contextKey{}).(*Identity)
	return id, ok
}

// Middleware lets requests through that the gateway vouches for, with the
// identity in their context. Others get 401, or 503 if the gateway's keys can't
// be had, in plain text.
func (v *Verifier) Middleware(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		id, err := v.identify(r)
		switch {
		case err == nil:
			next.ServeHTTP(w, r.WithContext(context.WithValue(r.Context(), contextKey{}, id)))
		case errors.Is(err, ErrMissing) && v.cfg.Optional:
			next.ServeHTTP(w, r)
		case errors.Is(err, ErrUnavailable):
			w.Header().Set("Retry-After", "1")
			refuse(w, http.StatusServiceUnavailable, ErrUnavailable)
		default:
			refuse(w, http.StatusUnauthorized, err)
		}
	})
}

func refuse(w http.ResponseWriter, status int, err error) {
	w.Header().Set("Cache-Control", "no-store")
	http.Error(w, err.Error(), status) // it says what is wrong, and nothing that was sent
}

func (v *Verifier) identify(r *http.Request) (*Identity, error) {
	values := r.Header.Values(v.cfg.Header)
	if len(values) > 1 {
		return nil, fmt.Errorf("%w: more than one", ErrInvalid)
	}
	if len(values) == 0 {
		return nil, ErrMissing
	}
	return v.Verify(r.Context(), values[0], r.Method, sentPath(r))
}

// sentPath is the path as it was sent, whatever a router before us made of it.
func sentPath(r *http.Request) string {
	if path, _, _ := strings.Cut(r.RequestURI, "?"); strings.HasPrefix(path, "/") {
		return path
	}
	return r.URL.EscapedPath()
}
