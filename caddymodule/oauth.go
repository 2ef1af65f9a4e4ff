package caddymodule

import (
	"fmt"
	"net/http"
	"net/netip"
	"net/url"
	"strings"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/caddyconfig/caddyfile"
	"github.com/caddyserver/caddy/v2/caddyconfig/httpcaddyfile"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp"
	"go.uber.org/zap"

	"github.com/caddy-auth/caddy-auth/internal/auth"
	"github.com/caddy-auth/caddy-auth/internal/body"
	"github.com/caddy-auth/caddy-auth/internal/oauth"
	"github.com/caddy-auth/caddy-auth/internal/verifier"
)

func init() {
	caddy.RegisterModule(Token{})
	caddy.RegisterModule(Revoke{})
	caddy.RegisterModule(Introspect{})
	httpcaddyfile.RegisterDirective("auth_token", parseEndpoint("auth_token", defaultTokenPath, func() endpointHandler { return new(Token) }))
	httpcaddyfile.RegisterDirective("auth_revoke", parseEndpoint("auth_revoke", defaultRevokePath, func() endpointHandler { return new(Revoke) }))
	httpcaddyfile.RegisterDirective("auth_introspect", parseEndpoint("auth_introspect", defaultIntrospectPath, func() endpointHandler { return new(Introspect) }))
}

// Where the endpoints are unless a matcher says otherwise.
const (
	defaultTokenPath      = "/oauth/token"
	defaultRevokePath     = "/oauth/revoke"
	defaultIntrospectPath = "/oauth/introspect"
)

// Endpoint is what the token, revocation and introspection endpoints have in
// common. Each answers every request that reaches it.
type Endpoint struct {
	// The path that clients know it by, on the host of the issuer. Default:
	// /oauth/token, /oauth/revoke or /oauth/introspect. It is for metadata: which
	// requests reach the endpoint is its route's to say.
	Path string `json:"path,omitempty"`
	// The whole URL instead, where it is not on the issuer's host or a prefix of
	// the path was stripped.
	URL string `json:"url,omitempty"`

	name   string
	answer *Handler // scans, logs and slows down; it verifies nothing
}

// Token is the token endpoint (RFC 6749, 3.2): clients get tokens for their
// secret or a signed assertion, and, where exchange is on, for an API key.
type Token struct{ Endpoint }

// Revoke is the revocation endpoint (RFC 7009): clients end their tokens.
type Revoke struct{ Endpoint }

// Introspect is the introspection endpoint (RFC 7662): clients ask what a token
// is.
type Introspect struct{ Endpoint }

// CaddyModule returns the Caddy module information.
func (Token) CaddyModule() caddy.ModuleInfo {
	return caddy.ModuleInfo{ID: "http.handlers.auth_token", New: func() caddy.Module { return new(Token) }}
}

// CaddyModule returns the Caddy module information.
func (Revoke) CaddyModule() caddy.ModuleInfo {
	return caddy.ModuleInfo{ID: "http.handlers.auth_revoke", New: func() caddy.Module { return new(Revoke) }}
}

// CaddyModule returns the Caddy module information.
func (Introspect) CaddyModule() caddy.ModuleInfo {
	return caddy.ModuleInfo{ID: "http.handlers.auth_introspect", New: func() caddy.Module { return new(Introspect) }}
}

// Provision makes the endpoint known to metadata.
func (t *Token) Provision(ctx caddy.Context) error {
	return t.provision(ctx, "token", defaultTokenPath, func(e *oauth.Endpoints) *string { return &e.Token })
}

// Provision makes the endpoint known to metadata.
func (v *Revoke) Provision(ctx caddy.Context) error {
	return v.provision(ctx, "revocation", defaultRevokePath, func(e *oauth.Endpoints) *string { return &e.Revocation })
}

// Provision makes the endpoint known to metadata.
func (i *Introspect) Provision(ctx caddy.Context) error {
	return i.provision(ctx, "introspection", defaultIntrospectPath, func(e *oauth.Endpoints) *string { return &e.Introspection })
}

func (e *Endpoint) provision(ctx caddy.Context, name, path string, known func(*oauth.Endpoints) *string) error {
	e.name = name
	for _, text := range []*string{&e.Path, &e.URL} {
		out, err := expandText(*text)
		if err != nil {
			return err
		}
		*text = out
	}
	e.answer = &Handler{answersOnly: true, ForwardCredential: true} // clients prove who they are to the endpoint itself
	if err := e.answer.Provision(ctx); err != nil {
		return err
	}
	if e.Path == "" {
		e.Path = path
	}
	if !strings.HasPrefix(e.Path, "/") {
		return fmt.Errorf("path %q: want one that begins with a slash", e.Path)
	}
	if e.URL != "" {
		if u, err := url.Parse(e.URL); err != nil || u.Host == "" || u.RawQuery != "" || u.Fragment != "" {
			return fmt.Errorf("url %q: want a whole URL without query", e.URL)
		}
	}
	authority := e.answer.app.authority
	at := e.URL
	if at == "" {
		at = authority.urlOf(e.Path)
	}
	e.URL = at
	if have := known(&authority.endpoints); *have == "" {
		*have = at
	} else if *have != at {
		e.answer.log.Warn("the "+name+" endpoint is at more than one URL: metadata says the first", zap.String("first", *have), zap.String("other", at))
	}
	return nil
}

// ServeHTTP implements caddyhttp.MiddlewareHandler.
func (t *Token) ServeHTTP(w http.ResponseWriter, r *http.Request, _ caddyhttp.Handler) error {
	return t.serve(w, r, func(s *oauth.Server, c oauth.Caller) *oauth.Failure {
		issued, failure := s.ServeToken(w, r, c)
		if failure == nil {
			metrics.issued.WithLabelValues(grantLabel(issued.Grant)).Inc()
			t.answer.log.Debug("issued a token", zap.String("token_id", issued.Token.ID), zap.String("client_id", issued.Token.ClientID),
				zap.String("key_id", issued.Token.KeyID), zap.String("scopes", issued.Token.Scopes))
		}
		return failure
	})
}

func grantLabel(grant string) string {
	if grant == oauth.GrantTokenExchange {
		return "token_exchange"
	}
	return grant
}

// ServeHTTP implements caddyhttp.MiddlewareHandler.
func (v *Revoke) ServeHTTP(w http.ResponseWriter, r *http.Request, _ caddyhttp.Handler) error {
	return v.serve(w, r, func(s *oauth.Server, c oauth.Caller) *oauth.Failure { return s.ServeRevocation(w, r, c) })
}

// ServeHTTP implements caddyhttp.MiddlewareHandler.
func (i *Introspect) ServeHTTP(w http.ResponseWriter, r *http.Request, _ caddyhttp.Handler) error {
	return i.serve(w, r, func(s *oauth.Server, c oauth.Caller) *oauth.Failure { return s.ServeIntrospection(w, r, c) })
}

// serve answers a request, or refuses it: first, as everywhere, for what is in
// its URL.
func (e *Endpoint) serve(w http.ResponseWriter, r *http.Request, answer func(*oauth.Server, oauth.Caller) *oauth.Failure) error {
	h := e.answer
	rt := h.app.rt
	rt.enter()
	defer rt.leave()
	var in admitted
	h.admit(r, &in)
	h.warnPlainHTTP(r)
	if h.tooEarly(r) { // it could be a replay
		return h.refuse(w, r, verifier.TooEarlyRefusal(), nil)
	}
	prefixes := rt.prefixes()
	target := h.site.JudgeTarget(r.Method, originalTarget(r), false, prefixes, rt.verifier.Imported())
	if target.Refusal != nil {
		h.burn(r, target.Leaked)
		f := oauth.InURL(target.Refusal.Detail)
		f.Unread = true
		return e.refuse(w, r, f)
	}
	rt.awaitOpen(r.Context())
	failure := answer(h.app.authority.Server, h.app.authority.caller(h.addresses.any(r), e.URL))
	if failure != nil {
		return e.refuse(w, r, failure)
	}
	return nil
}

// refuse answers with a failure and writes the decision log.
func (e *Endpoint) refuse(w http.ResponseWriter, r *http.Request, f *oauth.Failure) error {
	h := e.answer
	reason := f.Reason
	if reason == "" {
		reason = f.Code
	}
	instance := newInstance()
	h.logRefused(r, f.Code, instance, f.ClientID)
	fields := []zap.Field{
		zap.String("code", f.Code), zap.Int("status", f.Status), zap.String("endpoint", e.name), zap.String("instance", instance), zap.String("path", loggedPath(r)),
		zap.String("client_ip", clientIP(r)), zap.String("host", h.loggable(r.Host)), zap.String("detail", h.loggable(f.Description)),
	}
	if f.Cause != nil {
		fields = append(fields, zap.NamedError("cause", f.Cause))
	}
	metrics.endpointRefusals.WithLabelValues(e.name, f.Code).Inc()
	h.decisions.write("refused", reason, f.ClientID, fields...)
	if f.Status < http.StatusInternalServerError {
		h.pace(w, r)
	}
	var rest *body.Rest
	if f.Unread {
		rest = body.Leave(w, r)
	}
	boundAnswer(w, r)
	rest.Settle()
	_ = f.Write(w, realmOf(h)) // the answer is given; that it could not be written is no error of the site's
	rest.Finish()
	return nil
}

func realmOf(h *Handler) string {
	if h.Realm == "" {
		return "api"
	}
	return h.Realm
}

// any is the address of a request, judged as networks are; invalid, if it is
// not known.
func (j addressJudge) any(r *http.Request) netip.Addr {
	return j.of(r, &auth.Identity{Networks: "any"})
}

// endpointHandler is one of the three.
type endpointHandler interface {
	caddyhttp.MiddlewareHandler
	endpoint() *Endpoint
}

func (e *Endpoint) endpoint() *Endpoint { return e }

// parseEndpoint sets up an endpoint from Caddyfile tokens. Without a matcher it
// is at its default path. Syntax:
//
//	auth_token|auth_revoke|auth_introspect [<matcher>] {
//		url <url>
//	}
func parseEndpoint(name, path string, make func() endpointHandler) httpcaddyfile.UnmarshalFunc {
	return func(h httpcaddyfile.Helper) ([]httpcaddyfile.ConfigValue, error) {
		h.Next()
		at := path
		if h.NextArg() {
			at = h.Val()
			h.Prev()
		}
		matcher, err := h.ExtractMatcherSet()
		if err != nil {
			return nil, err
		}
		handler := make()
		e := handler.endpoint()
		h.Next() // the matcher is gone
		if err := parseEndpointBlock(h.Dispenser, name, e); err != nil {
			return nil, err
		}
		if len(matcher) == 0 {
			matcher = caddy.ModuleMap{"path": h.JSON(caddyhttp.MatchPath{path})}
		}
		switch plain := strings.HasPrefix(at, "/") && !strings.ContainsAny(at, "*{%"); {
		case plain && at != path:
			e.Path = at
		case !plain && e.URL == "":
			caddy.Log().Named("config.adapter.caddyfile").Warn("metadata can't tell from its matcher where "+name+" is, and says "+path+": say it with url",
				zap.String("file", h.File()), zap.Int("line", h.Line()))
		}
		return h.NewRoute(matcher, handler), nil
	}
}

func parseEndpointBlock(d *caddyfile.Dispenser, name string, e *Endpoint) error {
	if d.NextArg() {
		return d.ArgErr()
	}
	return block(d, name, map[string]func(*caddyfile.Dispenser) error{"url": text(&e.URL)})
}

var (
	_ caddyhttp.MiddlewareHandler = (*Token)(nil)
	_ caddyhttp.MiddlewareHandler = (*Revoke)(nil)
	_ caddyhttp.MiddlewareHandler = (*Introspect)(nil)
)
