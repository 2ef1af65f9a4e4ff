package caddymodule

import (
	"errors"
	"fmt"
	"maps"
	"net/http"
	"slices"
	"sync/atomic"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp"
	"go.uber.org/zap"

	"github.com/caddy-auth/caddy-auth/internal/assertion"
	"github.com/caddy-auth/caddy-auth/internal/auth"
	"github.com/caddy-auth/caddy-auth/internal/forward"
	"github.com/caddy-auth/caddy-auth/internal/problem"
	"github.com/caddy-auth/caddy-auth/internal/redact"
	"github.com/caddy-auth/caddy-auth/internal/verifier"
)

// Handler protects what comes after it: it refuses credentials in URLs,
// verifies the one in a header, and tells the upstream who is calling. Without
// any field everything is protected and only live credentials pass.
type Handler struct {
	// The realm of challenges. Default: api.
	Realm string `json:"realm,omitempty"`

	// Requests that need no credential, by the path the client sent.
	Public []PublicRule `json:"public,omitempty"`

	// The environments whose credentials pass, or "any". Default: live.
	Environments []string `json:"environments,omitempty"`

	// The headers that carry credentials on this site; others pass untouched.
	// Default: the app's key headers and Authorization.
	FromHeaders []string `json:"from_headers,omitempty"`

	// The methods whose identities pass. Default: all.
	Accept []string `json:"accept,omitempty"`

	// The issuers, of those that the app knows, whose tokens pass. Our own keys
	// are not concerned. Default: all.
	Issuers []string `json:"issuers,omitempty"`

	// Scopes that every credential needs here.
	RequireScopes []string `json:"require_scopes,omitempty"`

	// More query parameter names to refuse.
	RefuseQuery []string `json:"refuse_query,omitempty"`

	// Query parameter names that are allowed although they look like
	// credentials.
	AllowQuery []QueryAllowance `json:"allow_query,omitempty"`

	// Paths that may contain what is shaped like a JWT.
	AllowJWTPaths []string `json:"allow_jwt_paths,omitempty"`

	// What to do with paths that can be read in several ways: "refuse" (the
	// default) or "allow". Such a path is never public.
	AmbiguousPaths string `json:"ambiguous_paths,omitempty"`

	// "pass" lets CORS preflight requests through without a credential.
	Preflight string `json:"preflight,omitempty"`

	// "allow" lets requests that came as TLS early data through, which anybody
	// can replay: by default those with an unsafe method, or with a credential
	// that is bound to networks, get 425 and are sent again by their client.
	EarlyData string `json:"early_data,omitempty"`

	// Let requests without a credential through, as anonymous.
	Optional bool `json:"optional,omitempty"`

	// Leave the credential in the request.
	ForwardCredential bool `json:"forward_credential,omitempty"`

	// Who answers refusals: "problem" (the default) or "handle_errors", which
	// hands them to the site's error routes.
	Errors string `json:"errors,omitempty"`

	// What becomes of requests under way, such as websockets, when their
	// credential ends: "until_revoked" (the default) ends them too, "detached"
	// lets them go on.
	Streams string `json:"streams,omitempty"`

	// What this site protects, as auth_wellknown calls it (RFC 9728): challenges
	// name its document. Default: the issuer of token_endpoint.
	Resource string `json:"resource,omitempty"`

	// What to do with a live key in a URL beside refusing it: "audit" or
	// "revoke". Default: the app's.
	Leaked string `json:"leaked,omitempty"`

	// The identity headers of this site, added to the app's.
	IdentityHeaders *IdentityHeaders `json:"identity_headers,omitempty"`

	// Where the Caddyfile says what is here. Only the command explain sets it.
	Lines lines `json:"lines,omitempty"`

	app       *App
	log       *zap.Logger
	decisions *decisionLog
	site      *verifier.Site
	sources   *verifier.Sources
	tokens    *verifier.Tokens // nil: none are taken
	policy    *forward.Policy
	asserter  *assertion.Asserter // nil: none
	problems  *problem.Writer
	addresses addressJudge
	plainHTTP *atomic.Bool // a key was seen over plain HTTP
	explain   *explanation // nil: nobody wants one

	answersOnly bool // it verifies nothing
	accessLogs  bool // its server writes access logs
	unguarded   bool // no errorGuard could be put before the error routes
	provides    bool // it is a provider of Caddy's authentication, which answers

	login        *signIn // nil: nobody can sign in here
	answerParams []redact.Allowance
}

// PublicRule selects requests that need no credential.
type PublicRule struct {
	// Methods in upper case. None: any.
	Methods []string `json:"methods,omitempty"`
	// Paths as the client sends them, exact or ending in /*, case-sensitive.
	Paths []string `json:"paths,omitempty"`
}

// IdentityHeaders says which headers tell upstreams who is calling.
type IdentityHeaders struct {
	// The beginning of their names. Default: X-Auth-
	Prefix string `json:"prefix,omitempty"`
	// More headers, by name, and the field each carries: subject, method,
	// credential_id, scopes, environment, issuer, client_id or meta.NAME.
	Map map[string]string `json:"map,omitempty"`
	// More names to remove from requests; a trailing * makes a prefix.
	Strip []string `json:"strip,omitempty"`
	// Headers that are removed although they are not ours, and may pass: identity
	// headers of other gateways, client certificates, overrides of method and path.
	Keep []string `json:"keep,omitempty"`
	// A signed assertion beside them. A site's replaces the app's.
	Assertion *Assertion `json:"assertion,omitempty"`
}

// CaddyModule returns the Caddy module information.
func (Handler) CaddyModule() caddy.ModuleInfo {
	return caddy.ModuleInfo{ID: "http.handlers.auth", New: func() caddy.Module { return new(Handler) }}
}

// Provision compiles the site's rules.
func (h *Handler) Provision(ctx caddy.Context) error {
	app, err := ctx.App("auth")
	if err != nil {
		return err
	}
	h.app, h.log = app.(*App), ctx.Logger()
	if err := expandAll(h); err != nil {
		return err
	}
	h.explain = h.app.explain
	h.decisions = newDecisionLog(h.app.log)
	h.plainHTTP = new(atomic.Bool)
	var errs []error
	h.site, err = h.compileSite()
	errs = append(errs, err)
	names := h.FromHeaders
	if len(names) == 0 {
		names = append(append(names, h.app.KeyHeaders...), "Authorization")
	}
	h.sources, err = verifier.NewSources(names)
	errs = append(errs, wrapIf("from header", err))
	if !h.answersOnly {
		names, onlyPeople := h.app.withoutLogins(h.Issuers)
		if !onlyPeople {
			h.tokens, err = h.app.issuers.tokens(names)
			errs = append(errs, wrapIf("issuers", err))
		}
	}
	h.policy, err = forward.Compile(h.IdentityHeaders.over(h.app.IdentityHeaders))
	errs = append(errs, wrapIf("identity_headers", err))
	h.asserter, err = h.compileAssertion()
	errs = append(errs, wrapIf("identity_headers", err))
	h.problems, err = problem.NewWriter(h.Realm, h.app.ProblemTypes, func() string { return h.app.authority.metadataURL(h.Resource) })
	errs = append(errs, err)
	if err := errors.Join(errs...); err != nil {
		return err
	}
	srv, _ := ctx.Value(caddyhttp.ServerCtxKey).(*caddyhttp.Server)
	h.addresses = newAddressJudge(srv, h.log)
	if srv != nil {
		h.guardErrors(srv)
		h.accessLogs = srv.Logs != nil
	}
	if srv != nil && h.Streams != "detached" {
		keepConn(srv)
	}
	if err := h.app.guardRedirects(ctx); err != nil {
		return err
	}
	return h.checkServer(srv)
}

// checkServer refuses what would let clients past the strip, or leave a
// credential where it should not be.
func (h *Handler) checkServer(srv *caddyhttp.Server) error {
	var errs []error
	for _, name := range h.sources.KeyHeaders() {
		if h.policy.Claims(name) && !h.answersOnly { // it reads no key

			errs = append(errs, fmt.Errorf("header %[1]s carries credentials, and its name is also one of the identity headers (%[2]s*): "+
				"give the latter another prefix, as in identity_headers { prefix X-Gateway- }, which upstreams then read; or use another header for keys", name, h.policy.Prefix()))
		}
	}
	h.policy.Exempt(h.sources.KeyHeaders()...)
	masker.AddHeaders(h.sources.KeyHeaders()...)
	masker.AddParams(h.RefuseQuery...)
	if srv == nil {
		return errors.Join(errs...)
	}
	if !h.answersOnly {
		for _, name := range h.sources.KeyHeaders() {
			errs = append(errs, checkArrives(srv, name))
		}
	}
	if srv.Logs != nil && srv.Logs.ShouldLogCredentials && h.app.UnsafeLogs == nil {
		errs = append(errs, errors.New("log_credentials makes Caddy print Authorization headers and cookies: remove it from the servers options, or put unsafe_logs into the global auth block"))
	}
	for _, name := range append(append([]string{}, srv.ExpectedUnderscoreHeaders...), srv.ExpectedDotHeaders...) {
		if h.policy.Claims(name) {
			errs = append(errs, fmt.Errorf("the server expects the header %s, which is a spelling of an identity header: remove it from the server's options", name))
		}
	}
	return errors.Join(errs...)
}

func (h *Handler) compileSite() (*verifier.Site, error) {
	rules := verifier.SiteRules{
		Environments: h.Environments, RequireScopes: h.RequireScopes, Issuers: h.Issuers, Optional: h.Optional,
		Query: redact.Rules{Refuse: append(append([]string{}, h.app.RefuseQuery...), h.RefuseQuery...)},
	}
	var errs []error
	for _, a := range append(append([]QueryAllowance{}, h.app.AllowQuery...), h.AllowQuery...) {
		paths := verifier.Paths(a.Paths)
		errs = append(errs, wrapIf("allow_query", paths.Validate()))
		rules.Query.Allow = append(rules.Query.Allow, redact.Allowance{Names: a.Names, Paths: paths})
	}
	if len(h.AllowJWTPaths) > 0 {
		paths := verifier.Paths(h.AllowJWTPaths)
		errs = append(errs, wrapIf("allow_jwt_path", paths.Validate()))
		rules.Query.AllowJWTPaths = paths
	}
	rules.Query.Allow = append(rules.Query.Allow, h.answerParams...)
	h.app.allowedInURLs = append(h.app.allowedInURLs, rules.Query.Allow...)
	h.app.allowedJWTs = append(h.app.allowedJWTs, h.AllowJWTPaths...)
	for _, p := range h.Public {
		rules.Public = append(rules.Public, verifier.PathRule{Methods: p.Methods, Paths: p.Paths})
	}
	for _, m := range h.Accept {
		rules.Accept = append(rules.Accept, auth.Method(m))
	}
	errs = append(errs,
		oneOf("ambiguous_paths", h.AmbiguousPaths, "", "refuse", "allow"),
		oneOf("preflight", h.Preflight, "", "pass"),
		oneOf("early_data", h.EarlyData, "", "refuse", "allow"),
		oneOf("streams", h.Streams, "", "until_revoked", "detached"),
		oneOf("leaked", h.Leaked, "", "audit", "revoke"),
		oneOf("errors", h.Errors, "", "problem", "handle_errors"))
	rules.AllowAmbiguous, rules.PreflightPass = h.AmbiguousPaths == "allow", h.Preflight == "pass"
	site, err := verifier.NewSite(rules)
	return site, errors.Join(append(errs, err)...)
}

// over adds a site's block to the app's: its prefix goes before, maps, strips
// and keeps add up. The app's prefix is removed on the site too, since its
// upstream may know both.
func (c *IdentityHeaders) over(app *IdentityHeaders) forward.Config {
	out := forward.Config{Prefix: forward.DefaultPrefix}
	mapped := map[string]string{}
	for _, block := range []*IdentityHeaders{app, c} {
		if block == nil {
			continue
		}
		if block.Prefix != "" {
			out.Former = append(out.Former, out.Prefix)
			out.Prefix = block.Prefix
		}
		for header, field := range block.Map {
			mapped[http.CanonicalHeaderKey(header)] = field
		}
		out.Strip = append(out.Strip, block.Strip...)
		out.Keep = append(out.Keep, block.Keep...)
	}
	for _, header := range slices.Sorted(maps.Keys(mapped)) {
		out.Map = append(out.Map, forward.Mapping{Header: header, Field: mapped[header]})
	}
	return out
}

func oneOf(what, have string, allowed ...string) error {
	for _, a := range allowed {
		if have == a {
			return nil
		}
	}
	return fmt.Errorf("%s: unknown value %q", what, have)
}

func wrapIf(what string, err error) error {
	if err == nil {
		return nil
	}
	if masker.Name(what) { // a log would take what follows for the secret
		return fmt.Errorf("%s can't be used: %w", what, err)
	}
	return fmt.Errorf("%s: %w", what, err)
}

var (
	_ caddy.Provisioner           = (*Handler)(nil)
	_ caddyhttp.MiddlewareHandler = (*Handler)(nil)
)
