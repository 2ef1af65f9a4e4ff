package caddymodule

import (
	"context"
	"errors"
	"net/http"
	"slices"
	"time"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/caddyconfig/caddyfile"
	"go.uber.org/zap"

	"github.com/caddy-auth/caddy-auth/internal/assertion"
	"github.com/caddy-auth/caddy-auth/internal/auth"
	"github.com/caddy-auth/caddy-auth/internal/manage"
	"github.com/caddy-auth/caddy-auth/internal/verifier"
)

// Assertion is a signed statement of who is calling, in the header
// X-Auth-Assertion: a JWT for one upstream, bound to the request's method and
// path.
type Assertion struct {
	// Whom it is for: what the upstream calls itself. Required.
	Audience string `json:"audience,omitempty"`
	// How long it is good. Default: 1m, at most 5m.
	TTL caddy.Duration `json:"ttl,omitempty"`
	// EdDSA (the default) or ES256.
	Algorithm string `json:"algorithm,omitempty"`
	// Its iss. Default: the issuer of token_endpoint, or else caddy-auth.
	Issuer string `json:"issuer,omitempty"`
}

const defaultAssertionIssuer = "caddy-auth"

func parseAssertion(into **Assertion) func(*caddyfile.Dispenser) error {
	return func(d *caddyfile.Dispenser) error {
		if d.NextArg() {
			return d.ArgErr()
		}
		a := new(Assertion)
		*into = a
		return block(d, "assertion", map[string]func(*caddyfile.Dispenser) error{
			"audience":  text(&a.Audience),
			"ttl":       duration(&a.TTL),
			"algorithm": choice(&a.Algorithm, assertion.Algorithms()...),
			"issuer":    text(&a.Issuer),
		})
	}
}

// compileAssertion makes what signs on a site; nil: nothing does.
func (h *Handler) compileAssertion() (*assertion.Asserter, error) {
	c := h.IdentityHeaders.assertion()
	if c == nil {
		c = h.app.IdentityHeaders.assertion()
	}
	if c == nil || h.answersOnly {
		return nil, nil
	}
	issuer := c.Issuer
	if issuer == "" && h.app.TokenEndpoint != nil {
		issuer = h.app.TokenEndpoint.Issuer
	}
	if issuer == "" {
		issuer = defaultAssertionIssuer
	}
	a, err := assertion.NewAsserter(assertion.Rules{Issuer: issuer, Audience: c.Audience, TTL: time.Duration(c.TTL), Algorithm: c.Algorithm})
	if err != nil {
		return nil, hinted(err)
	}
	if _, keeps := h.app.rt.backend.(keyKeeper); !keeps && len(h.app.rt.masters) == 0 {
		return nil, errors.New("assertion needs a master_key in the global auth block: without one the keys it is signed with would lie open in the database")
	}
	if !slices.Contains(h.app.settings.assertions, a.Algorithm()) {
		h.app.settings.assertions = append(h.app.settings.assertions, a.Algorithm())
	}
	return a, nil
}

func (c *IdentityHeaders) assertion() *Assertion {
	if c == nil {
		return nil
	}
	return c.Assertion
}

// assert puts a signed assertion into a request, if the site has one.
func (h *Handler) assert(r *http.Request, c *caller) *auth.Refusal {
	if h.asserter == nil {
		return nil
	}
	if h.explain != nil { // nobody reads it, and nothing is written, a key least of all
		h.explain.add("assertion", checkOK, "the upstream gets one for "+h.asserter.Audience(), h.Lines.of("identity_headers"))
		return nil
	}
	text, err := h.asserter.Assert(h.app.rt.signer.Load(), c.Named(), &c.identity, assertedMethod(r), assertedPath(r), time.Now())
	if err != nil {
		return verifier.UndecidedRefusal(err)
	}
	r.Header[h.policy.AssertionHeader()] = []string{text}
	return nil
}

// assertedMethod is the method that the upstream sees: Caddy's proxy makes a
// websocket over HTTP/2 or 3 (RFC 8441) one over HTTP/1.
func assertedMethod(r *http.Request) string {
	if r.Method == http.MethodConnect && r.ProtoMajor > 1 && (r.Header.Get(":protocol") == "websocket" || r.Proto == "websocket") {
		return http.MethodGet
	}
	return r.Method
}

// assertedPath is what the upstream sees of the target before "?".
func assertedPath(r *http.Request) string {
	if path := r.URL.EscapedPath(); path != "" {
		return path
	}
	return "/"
}

// readAssertionKeys reads what assertions are signed with. Without it requests
// that need one get 503.
func (rt *runtime) readAssertionKeys(ctx context.Context) {
	rt.assertMu.Lock() // who reads later knows more
	defer rt.assertMu.Unlock()
	db, ring := rt.db.Load(), rt.ring.Load()
	if db == nil || ring == nil {
		return
	}
	keys, err := db.AssertionKeys(ctx, ring)
	if err == nil {
		var s *assertion.Signer
		if s, err = assertion.NewSigner(keys); err == nil {
			rt.signer.Store(s)
			rt.assertLate.Store(false)
			return
		}
	}
	if !errors.Is(err, auth.ErrUnavailable) { // what was read before is trusted as long as everything else is
		rt.signer.Store(nil)
	}
	rt.assertLate.Store(true)
	if lately(&rt.lastAssertion) {
		rt.logger().Error("reading the keys that assertions are signed with; requests that need one get 503 until they are read", zap.Error(hinted(err)))
	}
}

func (rt *runtime) assertionKeysChanged() {
	ctx, cancel := context.WithTimeout(context.Background(), openTimeout)
	defer cancel()
	rt.readAssertionKeys(ctx)
}

// ensureAssertionKeys makes the keys that the configuration needs, and reads
// them if that failed before.
func (rt *runtime) ensureAssertionKeys() {
	wanted := rt.now.Load().assertions
	db, ring := rt.db.Load(), rt.ring.Load()
	if db == nil || ring == nil {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), openTimeout)
	defer cancel()
	if rt.signer.Load() == nil || rt.assertLate.Load() {
		rt.readAssertionKeys(ctx)
	}
	for _, algorithm := range wanted {
		s := rt.signer.Load()
		if s == nil || s.Has(algorithm) {
			continue
		}
		m := manage.New(db, "gateway", "", nil)
		m.SetBell(rt)
		if err := m.EnsureAssertionKey(ctx, ring, algorithm); err != nil {
			if lately(&rt.lastAssertion) {
				rt.logger().Error("a key to sign assertions with could not be made; requests that need one get 503 until it can", zap.Error(hinted(err)))
			}
			continue
		}
		rt.readAssertionKeys(ctx)
	}
}
