package caddymodule

import (
	"net/http"
	"reflect"
	"slices"
	"strings"

	"cel.dev/cel-go/cel"
	"cel.dev/cel-go/common/types/ref"
	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/caddyconfig/caddyfile"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp"

	"github.com/caddy-auth/caddy-auth/internal/auth"
)

func init() {
	caddy.RegisterModule(MatchScope{})
	caddy.RegisterModule(MatchSubject{})
	caddy.RegisterModule(MatchEnvironment{})
	caddy.RegisterModule(MatchMethod{})
}

// MatchScope matches requests whose identity holds all of the scopes. Before
// an auth handler ran, and without an identity, nothing matches.
type MatchScope []string

// MatchSubject matches requests whose identity has one of the subjects.
type MatchSubject []string

// MatchEnvironment matches requests whose identity is of one of the
// environments.
type MatchEnvironment []string

// MatchMethod matches requests whose identity was established by one of the
// methods, such as api_key or jwt.
type MatchMethod []string

// CaddyModule returns the Caddy module information.
func (MatchScope) CaddyModule() caddy.ModuleInfo {
	return caddy.ModuleInfo{ID: "http.matchers.auth_scope", New: func() caddy.Module { return new(MatchScope) }}
}

// CaddyModule returns the Caddy module information.
func (MatchSubject) CaddyModule() caddy.ModuleInfo {
	return caddy.ModuleInfo{ID: "http.matchers.auth_subject", New: func() caddy.Module { return new(MatchSubject) }}
}

// CaddyModule returns the Caddy module information.
func (MatchEnvironment) CaddyModule() caddy.ModuleInfo {
	return caddy.ModuleInfo{ID: "http.matchers.auth_environment", New: func() caddy.Module { return new(MatchEnvironment) }}
}

// CaddyModule returns the Caddy module information.
func (MatchMethod) CaddyModule() caddy.ModuleInfo {
	return caddy.ModuleInfo{ID: "http.matchers.auth_method", New: func() caddy.Module { return new(MatchMethod) }}
}

// identityOf is what an auth handler established for a request, or nil.
func identityOf(r *http.Request) *auth.Identity {
	if c := callerOf(r); c != nil && c.verified {
		return &c.identity
	}
	return nil
}

// MatchWithError implements caddyhttp.RequestMatcherWithError. Placeholders in
// scopes are replaced; one that is empty never matches.
func (m MatchScope) MatchWithError(r *http.Request) (bool, error) {
	id, expand := identityOf(r), expander(r)
	return id != nil && len(m) > 0 && !slices.ContainsFunc(m, func(s string) bool { return !id.HasScope(expand(s)) }), nil
}

// MatchWithError implements caddyhttp.RequestMatcherWithError. Placeholders in
// subjects are replaced and compared exactly; one that is empty never matches.
func (m MatchSubject) MatchWithError(r *http.Request) (bool, error) {
	id, expand := identityOf(r), expander(r)
	return id != nil && slices.ContainsFunc(m, func(s string) bool { want := expand(s); return want != "" && want == id.Subject }), nil
}

// MatchWithError implements caddyhttp.RequestMatcherWithError.
func (m MatchEnvironment) MatchWithError(r *http.Request) (bool, error) {
	id, expand := identityOf(r), expander(r)
	return id != nil && id.Environment != "" && slices.ContainsFunc(m, func(s string) bool { return expand(s) == id.Environment }), nil
}

// MatchWithError implements caddyhttp.RequestMatcherWithError.
func (m MatchMethod) MatchWithError(r *http.Request) (bool, error) {
	id, expand := identityOf(r), expander(r)
	return id != nil && slices.ContainsFunc(m, func(s string) bool { return expand(s) == string(id.Method) }), nil
}

// Match implements caddyhttp.RequestMatcher.
func (m MatchScope) Match(r *http.Request) bool { ok, _ := m.MatchWithError(r); return ok }

// Match implements caddyhttp.RequestMatcher.
func (m MatchSubject) Match(r *http.Request) bool { ok, _ := m.MatchWithError(r); return ok }

// Match implements caddyhttp.RequestMatcher.
func (m MatchEnvironment) Match(r *http.Request) bool { ok, _ := m.MatchWithError(r); return ok }

// Match implements caddyhttp.RequestMatcher.
func (m MatchMethod) Match(r *http.Request) bool { ok, _ := m.MatchWithError(r); return ok }

// UnmarshalCaddyfile sets up the matcher from Caddyfile tokens. Syntax:
//
//	auth_scope <scopes...>
func (m *MatchScope) UnmarshalCaddyfile(d *caddyfile.Dispenser) error {
	if err := matcherWords(d, (*[]string)(m)); err != nil {
		return err
	}
	for _, s := range *m {
		if err := auth.CheckNewScope(s); err != nil && !strings.Contains(s, "{") {
			return d.WrapErr(hinted(wrapIf("auth_scope", err)))
		}
	}
	return nil
}

// UnmarshalCaddyfile sets up the matcher from Caddyfile tokens. Syntax:
//
//	auth_subject <subjects...>
func (m *MatchSubject) UnmarshalCaddyfile(d *caddyfile.Dispenser) error {
	return matcherWords(d, (*[]string)(m))
}

// UnmarshalCaddyfile sets up the matcher from Caddyfile tokens. Syntax:
//
//	auth_environment <names...>
func (m *MatchEnvironment) UnmarshalCaddyfile(d *caddyfile.Dispenser) error {
	if err := matcherWords(d, (*[]string)(m)); err != nil {
		return err
	}
	for _, name := range *m {
		if err := checkEnvironment(name); err != nil {
			return d.Errf("auth_environment: %v", err)
		}
	}
	return nil
}

// UnmarshalCaddyfile sets up the matcher from Caddyfile tokens. Syntax:
//
//	auth_method <methods...>
func (m *MatchMethod) UnmarshalCaddyfile(d *caddyfile.Dispenser) error {
	if err := matcherWords(d, (*[]string)(m)); err != nil {
		return err
	}
	for _, name := range *m {
		if err := checkMethod(name); err != nil && !strings.Contains(name, "{") {
			return d.Errf("auth_method: %v", err)
		}
	}
	return nil
}

func matcherWords(d *caddyfile.Dispenser, into *[]string) error {
	for d.Next() {
		if err := words(into)(d); err != nil {
			return err
		}
		if d.NextBlock(d.Nesting()) {
			return d.Err("values stand on the line, not in a block")
		}
	}
	return nil
}

// celLibrary makes a matcher usable in expressions, under its own name.
func celLibrary(name string, matcher func([]string) caddyhttp.RequestMatcherWithError) (cel.Library, error) {
	return caddyhttp.CELMatcherImpl(name, name+"_request_list", []*cel.Type{cel.ListType(cel.StringType)},
		func(data ref.Val) (caddyhttp.RequestMatcherWithError, error) {
			values, err := data.ConvertToNative(reflect.TypeFor[[]string]())
			if err != nil {
				return nil, err
			}
			return matcher(values.([]string)), nil
		})
}

// CELLibrary makes auth_scope usable in expressions: auth_scope('orders:read').
func (MatchScope) CELLibrary(caddy.Context) (cel.Library, error) {
	return celLibrary("auth_scope", func(v []string) caddyhttp.RequestMatcherWithError { return MatchScope(v) })
}

// CELLibrary makes auth_subject usable in expressions.
func (MatchSubject) CELLibrary(caddy.Context) (cel.Library, error) {
	return celLibrary("auth_subject", func(v []string) caddyhttp.RequestMatcherWithError { return MatchSubject(v) })
}

// CELLibrary makes auth_environment usable in expressions.
func (MatchEnvironment) CELLibrary(caddy.Context) (cel.Library, error) {
	return celLibrary("auth_environment", func(v []string) caddyhttp.RequestMatcherWithError { return MatchEnvironment(v) })
}

// CELLibrary makes auth_method usable in expressions.
func (MatchMethod) CELLibrary(caddy.Context) (cel.Library, error) {
	return celLibrary("auth_method", func(v []string) caddyhttp.RequestMatcherWithError { return MatchMethod(v) })
}

var (
	_ caddyhttp.RequestMatcherWithError = MatchScope(nil)
	_ caddyhttp.RequestMatcherWithError = MatchSubject(nil)
	_ caddyhttp.RequestMatcherWithError = MatchEnvironment(nil)
	_ caddyhttp.RequestMatcherWithError = MatchMethod(nil)
	_ caddyhttp.CELLibraryProducer      = MatchScope(nil)
	_ caddyfile.Unmarshaler             = (*MatchScope)(nil)
	_ caddyfile.Unmarshaler             = (*MatchSubject)(nil)
	_ caddyfile.Unmarshaler             = (*MatchEnvironment)(nil)
	_ caddyfile.Unmarshaler             = (*MatchMethod)(nil)
)
