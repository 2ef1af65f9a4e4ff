package caddymodule

import (
	"slices"
	"strings"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/caddyconfig/caddyfile"
	"github.com/caddyserver/caddy/v2/caddyconfig/httpcaddyfile"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp"
	"go.uber.org/zap"

	"github.com/caddy-auth/caddy-auth/internal/auth"
	"github.com/caddy-auth/caddy-auth/internal/verifier"
)

// parseAuth sets up the handler from Caddyfile tokens. Syntax:
//
//	auth [<matcher>] {
//		realm <text>
//		public [<METHODS...>] <paths...>
//		environment <names...>|any
//		from header <names...>
//		accept <methods...>
//		issuers <names...>
//		require_scope <scopes...>
//		refuse_query <names...>
//		allow_query <names...> [<paths...>]
//		allow_jwt_path <paths...>
//		ambiguous_paths refuse|allow
//		preflight pass
//		early_data refuse|allow
//		optional
//		forward_credential
//		errors problem|handle_errors
//		streams until_revoked|detached
//		resource <url>
//		leaked audit|revoke
//		identity_headers {...}
//	}
func parseAuth(h httpcaddyfile.Helper) ([]httpcaddyfile.ConfigValue, error) {
	if !h.Next() {
		return nil, h.ArgErr()
	}
	file, line := h.File(), h.Line()
	matcher, err := h.ExtractMatcherSet()
	if err != nil {
		return nil, err
	}
	handler := new(Handler)
	if err := handler.UnmarshalCaddyfile(h.Dispenser); err != nil {
		return nil, err
	}
	if len(matcher) > 0 {
		caddy.Log().Named("config.adapter.caddyfile").Warn(
			"auth has a matcher: requests outside it keep the identity headers that clients send; use auth without a matcher and name what is open with public",
			zap.String("file", file), zap.Int("line", line))
	}
	return h.NewRoute(matcher, handler), nil
}

// UnmarshalCaddyfile implements caddyfile.Unmarshaler; see parseAuth.
func (h *Handler) UnmarshalCaddyfile(d *caddyfile.Dispenser) error {
	d.Next() // "auth"
	return h.unmarshalRest(d)
}

// unmarshalRest parses what stands behind the directive and its arguments.
func (h *Handler) unmarshalRest(d *caddyfile.Dispenser) error {
	if d.NextArg() {
		return d.ArgErr()
	}
	return block(d, "auth", h.Lines.mark(d, parsers{
		"realm":              text(&h.Realm),
		"public":             h.parsePublic,
		"environment":        h.parseEnvironment,
		"from":               h.parseFrom,
		"accept":             h.parseAccept,
		"issuers":            words(&h.Issuers),
		"require_scope":      h.parseScopes,
		"refuse_query":       words(&h.RefuseQuery),
		"allow_query":        queryAllowance(&h.AllowQuery),
		"allow_jwt_path":     h.parseJWTPaths,
		"ambiguous_paths":    choice(&h.AmbiguousPaths, "refuse", "allow"),
		"preflight":          choice(&h.Preflight, "pass"),
		"early_data":         choice(&h.EarlyData, "refuse", "allow"),
		"optional":           flag(&h.Optional),
		"forward_credential": flag(&h.ForwardCredential),
		"errors":             choice(&h.Errors, "problem", "handle_errors"),
		"streams":            choice(&h.Streams, "until_revoked", "detached"),
		"resource":           text(&h.Resource),
		"leaked":             choice(&h.Leaked, "audit", "revoke"),
		"identity_headers":   identityHeaders(&h.IdentityHeaders),
	}))
}

func (h *Handler) parsePublic(d *caddyfile.Dispenser) error {
	var rule PublicRule
	for _, arg := range d.RemainingArgs() {
		if strings.HasPrefix(arg, "/") {
			rule.Paths = append(rule.Paths, arg)
			continue
		}
		if len(rule.Paths) > 0 {
			return d.Errf("public: %q after a path: methods come first, and paths begin with a slash", arg)
		}
		if strings.Contains(arg, "{") {
			return d.Errf("public: %q: placeholders are not allowed here: what is open stands in the configuration", arg)
		}
		if strings.ToUpper(arg) != arg {
			return d.Errf("public: %q is no path, which begins with a slash (/%s), and no method, which has upper-case letters (GET)", arg, strings.TrimPrefix(arg, "/"))
		}
		rule.Methods = append(rule.Methods, arg)
	}
	if err := (verifier.PathRule{Methods: rule.Methods, Paths: rule.Paths}).Validate(); err != nil {
		return d.Errf("public: %v", err)
	}
	h.Public = append(h.Public, rule)
	return nil
}

func (h *Handler) parseEnvironment(d *caddyfile.Dispenser) error {
	if err := words(&h.Environments)(d); err != nil {
		return err
	}
	if len(h.Environments) > 1 && slices.Contains(h.Environments, verifier.AnyEnvironment) {
		return d.Err("environment: any stands alone")
	}
	for _, name := range h.Environments {
		if err := checkEnvironment(name); err != nil {
			return d.WrapErr(err)
		}
	}
	return nil
}

func (h *Handler) parseFrom(d *caddyfile.Dispenser) error {
	if !d.NextArg() || d.Val() != "header" {
		return d.Err("want: from header <names...>")
	}
	if err := words(&h.FromHeaders)(d); err != nil {
		return err
	}
	if _, err := verifier.NewSources(h.FromHeaders); err != nil && !strings.Contains(strings.Join(h.FromHeaders, ""), "{") {
		return d.Errf("from header: %v", err)
	}
	return nil
}

func (h *Handler) parseAccept(d *caddyfile.Dispenser) error {
	if err := words(&h.Accept)(d); err != nil {
		return err
	}
	for _, m := range h.Accept {
		if !strings.Contains(m, "{") && !slices.Contains(auth.Methods(), auth.Method(m)) {
			return d.Errf("accept: unknown method %q, want one of %v", m, auth.Methods())
		}
	}
	return nil
}

func (h *Handler) parseScopes(d *caddyfile.Dispenser) error {
	if err := words(&h.RequireScopes)(d); err != nil {
		return err
	}
	for _, s := range h.RequireScopes {
		if err := auth.CheckNewScope(s); err != nil && !strings.Contains(s, "{") {
			return d.WrapErr(hinted(wrapIf("require_scope", err)))
		}
	}
	return nil
}

func (h *Handler) parseJWTPaths(d *caddyfile.Dispenser) error {
	if err := words(&h.AllowJWTPaths)(d); err != nil {
		return err
	}
	if err := verifier.Paths(h.AllowJWTPaths).Validate(); err != nil {
		return d.Errf("allow_jwt_path: %v", err)
	}
	return nil
}

// queryAllowance parses names, then paths, which begin with a slash.
func queryAllowance(into *[]QueryAllowance) func(*caddyfile.Dispenser) error {
	return func(d *caddyfile.Dispenser) error {
		var a QueryAllowance
		for _, arg := range d.RemainingArgs() {
			switch {
			case strings.HasPrefix(arg, "/"):
				a.Paths = append(a.Paths, arg)
			case len(a.Paths) > 0:
				return d.Errf("allow_query: %q after a path: names come first", arg)
			default:
				a.Names = append(a.Names, arg)
			}
		}
		if len(a.Names) == 0 {
			return d.ArgErr()
		}
		if err := verifier.Paths(a.Paths).Validate(); err != nil {
			return d.Errf("allow_query: %v", err)
		}
		*into = append(*into, a)
		return nil
	}
}

// identityHeaders parses the identity_headers block. Syntax:
//
//	identity_headers {
//		prefix <text>
//		map <header> <field>
//		strip <patterns...>
//		keep <names...>
//		assertion {
//			audience <text>
//			ttl <duration>
//			algorithm EdDSA|ES256
//			issuer <text>
//		}
//	}
func identityHeaders(into **IdentityHeaders) func(*caddyfile.Dispenser) error {
	return func(d *caddyfile.Dispenser) error {
		if d.NextArg() {
			return d.ArgErr()
		}
		c := new(IdentityHeaders)
		*into = c
		return block(d, "identity_headers", map[string]func(*caddyfile.Dispenser) error{
			"prefix": text(&c.Prefix),
			"strip":  words(&c.Strip),
			"keep":   words(&c.Keep),

			"assertion": parseAssertion(&c.Assertion),
			"map": func(d *caddyfile.Dispenser) error {
				var header, field string
				if !d.AllArgs(&header, &field) {
					return d.ArgErr()
				}
				if c.Map == nil {
					c.Map = map[string]string{}
				}
				if _, ok := c.Map[header]; ok {
					return d.Errf("map %s is given twice", header)
				}
				c.Map[header] = field
				return nil
			},
		})
	}
}

// valuesOf parses a name and one or more values.
func valuesOf(into *map[string][]string) func(*caddyfile.Dispenser) error {
	return func(d *caddyfile.Dispenser) error {
		args := d.RemainingArgs()
		if len(args) < 2 {
			return d.ArgErr()
		}
		if *into == nil {
			*into = map[string][]string{}
		}
		if _, twice := (*into)[args[0]]; twice {
			return d.Errf("%s is given twice", args[0])
		}
		(*into)[args[0]] = args[1:]
		return nil
	}
}

// parseRequire sets up auth_require from Caddyfile tokens. Syntax:
//
//	auth_require [<matcher>] scope|any_scope|subject|environment|method|issuer <values...>
//	auth_require [<matcher>] meta <name> <values...>
//	auth_require [<matcher>] {
//		scope|any_scope|subject|environment|method|issuer <values...>
//		meta <name> <values...>
//	}
func parseRequire(h httpcaddyfile.Helper) (caddyhttp.MiddlewareHandler, error) {
	q := new(Require)
	return q, q.UnmarshalCaddyfile(h.Dispenser)
}

// UnmarshalCaddyfile implements caddyfile.Unmarshaler; see parseRequire.
func (q *Require) UnmarshalCaddyfile(d *caddyfile.Dispenser) error {
	d.Next() // "auth_require"
	parts := q.Lines.mark(d, parsers{
		"scope":       words(&q.Scopes),
		"any_scope":   words(&q.AnyScopes),
		"subject":     words(&q.Subjects),
		"environment": words(&q.Environments),
		"method":      words(&q.Methods),
		"issuer":      words(&q.Issuers),
		"meta":        valuesOf(&q.Meta),
	})
	if d.NextArg() {
		parse, ok := parts[d.Val()]
		if !ok {
			return d.Errf("auth_require: unknown demand %q, want %s", d.Val(), demands)
		}
		if err := parse(d); err != nil {
			return err
		}
		if d.NextBlock(d.Nesting()) {
			return d.Err("auth_require: demands stand on the line or in a block, not both")
		}
		return nil
	}
	if err := block(d, "auth_require", parts); err != nil {
		return err
	}
	if len(q.Scopes)+len(q.AnyScopes)+len(q.Subjects)+len(q.Environments)+len(q.Methods)+len(q.Issuers)+len(q.Meta) == 0 {
		return d.Err("auth_require demands nothing: name a " + demands)
	}
	return nil
}

var (
	_ caddyfile.Unmarshaler = (*Handler)(nil)
	_ caddyfile.Unmarshaler = (*Require)(nil)
)
