package caddymodule

import (
	"maps"
	"slices"
	"strconv"
	"strings"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/caddyconfig"
	"github.com/caddyserver/caddy/v2/caddyconfig/caddyfile"
	"github.com/caddyserver/caddy/v2/caddyconfig/httpcaddyfile"
)

func init() {
	httpcaddyfile.RegisterGlobalOption("auth", parseGlobal)
	httpcaddyfile.RegisterDirective("auth", parseAuth)
	httpcaddyfile.RegisterHandlerDirective("auth_require", parseRequire)
	// Each goes directly before redir, so they end up in this order and after
	// everything that answers nothing.
	for _, name := range []string{"auth_token", "auth_revoke", "auth_introspect", "auth_wellknown"} {
		httpcaddyfile.RegisterDirectiveOrder(name, httpcaddyfile.Before, "redir")
	}
	httpcaddyfile.RegisterDirectiveOrder("auth_health", httpcaddyfile.Before, "redir")
	httpcaddyfile.RegisterDirectiveOrder("auth_login", httpcaddyfile.Before, "redir")
	httpcaddyfile.RegisterDirectiveOrder("auth", httpcaddyfile.Before, "redir")
	httpcaddyfile.RegisterDirectiveOrder("auth_require", httpcaddyfile.Before, "redir")
}

// once refuses a repeated subdirective.
type once map[string]bool

func (o once) check(d *caddyfile.Dispenser, name string) error {
	if o[name] {
		return d.Errf("%s is given twice", name)
	}
	o[name] = true
	return nil
}

// repeatable subdirectives add up.
var repeatable = map[string]bool{
	"public": true, "allow_query": true, "refuse_query": true, "require_scope": true, "allow_jwt_path": true,
	"map": true, "strip": true, "keep": true,
	"scope": true, "any_scope": true, "subject": true, "environment": true, "method": true, "meta": true,
	"issuer": true, "introspection": true, "outbound": true, "login": true, // each by its name
	"scopes": true, "resource": true, "param": true, "trusted_origins": true,
	"audience": true, "algorithms": true, "required_claims": true, "meta_claims": true,
}

// block calls each for every subdirective of the block that follows. A
// subdirective given twice is an error unless it is listed as repeatable.
func block(d *caddyfile.Dispenser, what string, each map[string]func(*caddyfile.Dispenser) error) error {
	seen := once{}
	for nesting := d.Nesting(); d.NextBlock(nesting); {
		name := d.Val()
		parse, ok := each[name]
		if !ok {
			return d.Errf("unrecognized subdirective of %s: %s: %s", what, name, thereAre(name, slices.Sorted(maps.Keys(each))))
		}
		if what != "auth_require" && name == "environment" || !repeatable[name] {
			if err := seen.check(d, name); err != nil {
				return err
			}
		}
		if err := parse(d); err != nil {
			return err
		}
	}
	return nil
}

// parseGlobal sets up the app from Caddyfile tokens. Syntax:
//
//	auth {
//		store sqlite [<path>] | postgres <dsn>
//		master_key <value> [<older values...>]
//		redis <url>|{...}
//		cache {
//			size <n>
//			ttl <duration>
//			negative_size <n>
//			negative_ttl <duration>
//		}
//		poll_interval <duration>
//		max_staleness <duration>
//		issuer <name> {...}
//		introspection <name> {...}
//		token_endpoint [<issuer>] {...}
//		outbound <name> {...}
//		login <name> {...}
//		key_prefix <text>
//		key_header <names...>
//		refuse_query <names...>
//		allow_query <names...> [<paths...>]
//		identity_headers {...}
//		problem_types <base>
//		leaked audit|revoke
//		refusal_rate <n>|off
//		unsafe_logs [<logs...>]
//	}
func parseGlobal(d *caddyfile.Dispenser, existing any) (any, error) {
	d.Next() // "auth"
	if existing != nil {
		return nil, d.Err("the global auth block is given twice")
	}
	file := d.File()
	adaptedFrom.Store(&file)
	app := new(App)
	if d.NextArg() {
		return nil, d.ArgErr()
	}
	err := block(d, "auth", map[string]func(*caddyfile.Dispenser) error{
		"store":            app.parseStore,
		"master_key":       app.parseMasterKey,
		"redis":            app.parseRedis,
		"cache":            app.parseCache,
		"poll_interval":    duration(&app.PollInterval),
		"max_staleness":    duration(&app.MaxStaleness),
		"issuer":           app.parseIssuer,
		"introspection":    app.parseIntrospection,
		"token_endpoint":   app.parseTokenEndpoint,
		"outbound":         app.parseOutbound,
		"login":            app.parseLogin,
		"key_prefix":       text(&app.KeyPrefix),
		"key_header":       words(&app.KeyHeaders),
		"refuse_query":     words(&app.RefuseQuery),
		"allow_query":      queryAllowance(&app.AllowQuery),
		"identity_headers": identityHeaders(&app.IdentityHeaders),
		"problem_types":    text(&app.ProblemTypes),
		"leaked":           choice(&app.Leaked, "audit", "revoke"),
		"refusal_rate":     app.parseRefusalRate,
		"unsafe_logs": func(d *caddyfile.Dispenser) error {
			app.UnsafeLogs = &UnsafeLogs{Loggers: d.RemainingArgs()}
			return nil
		},
	})
	if err != nil {
		return nil, err
	}
	return httpcaddyfile.App{Name: "auth", Value: caddyconfig.JSON(app, nil)}, nil
}

func (a *App) parseRefusalRate(d *caddyfile.Dispenser) error {
	var value string
	if !d.Args(&value) || d.NextArg() {
		return d.ArgErr()
	}
	if value == "off" {
		a.RefusalRate = -1
		return nil
	}
	n, err := strconv.Atoi(value)
	if err != nil || n <= 0 {
		return d.Errf("refusal_rate %s: want a number of refusals a second, or off", value)
	}
	a.RefusalRate = n
	return nil
}

func (a *App) parseStore(d *caddyfile.Dispenser) error {
	if !d.NextArg() {
		return d.ArgErr()
	}
	name := d.Val()
	if _, err := caddy.GetModule("auth.stores." + name); err != nil {
		return d.WrapErr(unknownName("store", name, storeNames()))
	}
	mod, err := caddyfile.UnmarshalModule(d, "auth.stores."+name)
	if err != nil {
		return err
	}
	s, ok := mod.(Store)
	if !ok {
		return d.Errf("module auth.stores.%s (%T) is not a store", name, mod)
	}
	a.StoreRaw = caddyconfig.JSONModuleObject(s, "driver", name, nil)
	return nil
}

func (a *App) parseMasterKey(d *caddyfile.Dispenser) error {
	keys := d.RemainingArgs()
	if len(keys) == 0 {
		return d.ArgErr()
	}
	if slices.Contains(keys, "") {
		return d.Err("an empty value")
	}
	a.MasterKey, a.OlderMasterKeys = keys[0], keys[1:]
	return nil
}

func (a *App) parseCache(d *caddyfile.Dispenser) error {
	if d.NextArg() {
		return d.ArgErr()
	}
	a.Cache = new(CacheConfig)
	return block(d, "cache", map[string]func(*caddyfile.Dispenser) error{
		"size":          number(&a.Cache.Size),
		"ttl":           duration(&a.Cache.TTL),
		"negative_size": number(&a.Cache.NegativeSize),
		"negative_ttl":  duration(&a.Cache.NegativeTTL),
	})
}

// text parses one argument.
func text(into *string) func(*caddyfile.Dispenser) error {
	return func(d *caddyfile.Dispenser) error {
		if !d.AllArgs(into) {
			return d.ArgErr()
		}
		if *into == "" {
			return d.Err("an empty value")
		}
		return nil
	}
}

// words parses one or more arguments and adds them.
func words(into *[]string) func(*caddyfile.Dispenser) error {
	return func(d *caddyfile.Dispenser) error {
		args := d.RemainingArgs()
		if len(args) == 0 {
			return d.ArgErr()
		}
		*into = append(*into, args...)
		return nil
	}
}

// flag parses a subdirective without arguments.
func flag(into *bool) func(*caddyfile.Dispenser) error {
	return func(d *caddyfile.Dispenser) error {
		if d.NextArg() {
			return d.ArgErr()
		}
		*into = true
		return nil
	}
}

// noPlaceholder is what an error adds where a placeholder can't be the value.
func noPlaceholder(value string) string {
	if strings.Contains(value, "{") {
		return "; placeholders are not replaced here"
	}
	return ""
}

// choice parses one of several words.
func choice(into *string, allowed ...string) func(*caddyfile.Dispenser) error {
	return func(d *caddyfile.Dispenser) error {
		name := d.Val()
		if !d.AllArgs(into) {
			return d.ArgErr()
		}
		if err := oneOf(name, *into, allowed...); err != nil {
			return d.Errf("%v, want one of %q%s", err, allowed, noPlaceholder(*into))
		}
		return nil
	}
}

func duration(into *caddy.Duration) func(*caddyfile.Dispenser) error {
	return func(d *caddyfile.Dispenser) error {
		var s string
		if !d.AllArgs(&s) {
			return d.ArgErr()
		}
		v, err := caddy.ParseDuration(s)
		if err != nil {
			return d.Errf("bad duration %q: %v%s", s, err, noPlaceholder(s))
		}
		if v <= 0 {
			return d.Errf("bad duration %q: want more than zero", s)
		}
		*into = caddy.Duration(v)
		return nil
	}
}

func number(into *int) func(*caddyfile.Dispenser) error {
	return func(d *caddyfile.Dispenser) error {
		var s string
		if !d.AllArgs(&s) {
			return d.ArgErr()
		}
		n, err := strconv.Atoi(s)
		if err != nil || n <= 0 {
			return d.Errf("bad number %q: want a whole number above zero", s)
		}
		*into = n
		return nil
	}
}
