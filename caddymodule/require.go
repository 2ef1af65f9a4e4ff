package caddymodule

import (
	"errors"
	"fmt"
	"maps"
	"net/http"
	"slices"
	"strings"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp"

	"github.com/caddy-auth/caddy-auth/internal/auth"
	"github.com/caddy-auth/caddy-auth/internal/verifier"
)

// Require demands more of an identity that an auth handler established. All
// requirements on a request apply. Public requests pass; requests without an
// identity get 401.
type Require struct {
	// Scopes, all of which are needed. Placeholders are replaced.
	Scopes []string `json:"scopes,omitempty"`
	// Scopes, one of which is needed. Placeholders are replaced.
	AnyScopes []string `json:"any_scopes,omitempty"`
	// Subjects, one of which is needed. Placeholders are replaced; an empty
	// value never matches.
	Subjects []string `json:"subjects,omitempty"`
	// Environments, one of which is needed.
	Environments []string `json:"environments,omitempty"`
	// Methods, one of which is needed.
	Methods []string `json:"methods,omitempty"`
	// Issuers by their names in the configuration, one of which is needed. Our
	// own credentials have none.
	Issuers []string `json:"issuers,omitempty"`
	// Metadata by name, and the values of which each must have one.
	// Placeholders are replaced.
	Meta map[string][]string `json:"meta,omitempty"`

	// Where the Caddyfile says so. Only the command explain sets it.
	Lines lines `json:"lines,omitempty"`

	requirement verifier.Requirement
	fallback    *Handler // answers where no auth handler ran
}

// CaddyModule returns the Caddy module information.
func (Require) CaddyModule() caddy.ModuleInfo {
	return caddy.ModuleInfo{ID: "http.handlers.auth_require", New: func() caddy.Module { return new(Require) }}
}

// Provision compiles the requirement.
func (q *Require) Provision(ctx caddy.Context) error {
	q.requirement = verifier.Requirement{
		Scopes: q.Scopes, AnyScopes: q.AnyScopes, Subjects: q.Subjects, Environments: q.Environments, Methods: q.Methods, Issuers: q.Issuers,
	}
	for _, name := range slices.Sorted(maps.Keys(q.Meta)) {
		q.requirement.Meta = append(q.requirement.Meta, verifier.Claim{Name: name, Values: q.Meta[name]})
	}
	if q.requirement.Empty() {
		return errors.New("auth_require demands nothing: name a " + demands)
	}
	q.fallback = &Handler{answersOnly: true}
	if err := q.fallback.Provision(ctx); err != nil {
		return err
	}
	return q.check()
}

// check refuses names that nothing can have.
func (q *Require) check() error {
	var errs []error
	for _, s := range slices.Concat(q.Scopes, q.AnyScopes) {
		if err := auth.CheckNewScope(s); err != nil && !strings.Contains(s, "{") {
			errs = append(errs, hinted(wrapIf("auth_require", err)))
		}
	}
	for _, name := range q.Environments {
		errs = append(errs, wrapIf("auth_require", checkEnvironment(name)))
	}
	for _, m := range q.Methods {
		if !strings.Contains(m, "{") {
			errs = append(errs, checkMethod(m))
		}
	}
	known := q.fallback.app.issuers.names()
	for _, name := range q.Issuers {
		if !strings.Contains(name, "{") && !slices.Contains(known, name) {
			errs = append(errs, fmt.Errorf("auth_require: %w%s", unknownName("issuer", name, known), lineOf("auth_require", name)))
		}
	}
	return errors.Join(errs...)
}

func checkMethod(m string) error {
	if slices.Contains(auth.Methods(), auth.Method(m)) {
		return nil
	}
	return fmt.Errorf("unknown method %q, want one of %v", m, auth.Methods())
}

const demands = "scope, any_scope, subject, environment, method, issuer or meta"

// ServeHTTP implements caddyhttp.MiddlewareHandler.
func (q *Require) ServeHTTP(w http.ResponseWriter, r *http.Request, next caddyhttp.Handler) error {
	c, explain := callerOf(r), q.fallback.explain
	switch {
	case c == nil:
		var in admitted
		q.fallback.admit(r, &in)
		missing := q.fallback.sources.MissingRefusal()
		explain.requirement(q, missing, "")
		return q.fallback.refuse(w, r, missing, nil)
	case !c.verified && c.public:
		explain.requirement(q, nil, "public requests pass")
		return next.ServeHTTP(w, r)
	case !c.verified:
		missing := c.handler.sources.MissingRefusal()
		explain.requirement(q, missing, "")
		return c.handler.refuse(w, r, missing, nil)
	}
	refusal := q.requirement.Judge(&c.identity, expander(r))
	explain.requirement(q, refusal, "")
	if refusal != nil {
		return c.handler.refuse(w, r, refusal, &c.identity)
	}
	return next.ServeHTTP(w, r)
}

// expander replaces placeholders in configured values. An unknown or empty
// one makes the value empty, which never matches.
func expander(r *http.Request) func(string) string {
	repl, ok := r.Context().Value(caddy.ReplacerCtxKey).(*caddy.Replacer)
	if !ok {
		return func(s string) string { return s }
	}
	return func(s string) string {
		out, err := repl.ReplaceOrErr(s, true, true)
		if err != nil {
			return ""
		}
		return out
	}
}

var (
	_ caddy.Provisioner           = (*Require)(nil)
	_ caddyhttp.MiddlewareHandler = (*Require)(nil)
	_ error                       = (*auth.Refusal)(nil)
)
