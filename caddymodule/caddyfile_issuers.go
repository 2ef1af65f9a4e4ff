package caddymodule

import (
	"maps"

	"github.com/caddyserver/caddy/v2/caddyconfig/caddyfile"

	"github.com/caddy-auth/caddy-auth/internal/fetch"
	"github.com/caddy-auth/caddy-auth/internal/jwt"
	"github.com/caddy-auth/caddy-auth/internal/verifier"
)

type parsers = map[string]func(*caddyfile.Dispenser) error

// parseIssuer parses an issuer. Syntax:
//
//	issuer <name> {
//		url <issuer>
//		jwks <url>
//		audience <values...>
//		audience_claim <claim>
//		algorithms <names...>
//		token_type <typ>
//		leeway <duration>
//		max_token_lifetime <duration>
//		keys_kept <duration>
//		subject_claim <claim>
//		subject_format prefixed|raw
//		scope_claim <claim>
//		environment <name>
//		required_claims <claim> [<values...>]
//		meta_claims <claims...>
//	}
func (a *App) parseIssuer(d *caddyfile.Dispenser) error {
	name, err := newName(d, "issuer", a.Issuers)
	if err != nil {
		return err
	}
	c := new(IssuerConfig)
	parts := parsers{
		"url": text(&c.URL), "jwks": issuerURL(&c.JWKS), "audience": words(&c.Audiences), "audience_claim": text(&c.AudienceClaim), "algorithms": algorithms(&c.Algorithms),
		"token_type": text(&c.TokenType), "leeway": duration(&c.Leeway), "max_token_lifetime": duration(&c.MaxTokenLifetime), "keys_kept": duration(&c.KeysKept),
	}
	maps.Copy(parts, c.parsers())
	if err := block(d, "issuer", parts); err != nil {
		return err
	}
	if a.Issuers == nil {
		a.Issuers = map[string]*IssuerConfig{}
	}
	a.Issuers[name] = c
	switch {
	case c.URL == "" && c.JWKS == "":
		return d.Errf("issuer %s: want its url, or the jwks with its keys", name)
	case len(c.Audiences) == 0:
		return d.Errf("issuer %s: want an audience: without one, tokens that were made for others would be good here", name)
	}
	return nil
}

// parseIntrospection parses an introspection server. Syntax:
//
//	introspection <name> {
//		url <url>
//		client_id <text>
//		client_secret <value>
//		client_auth basic|post
//		audience <values...>
//		ttl <duration>
//		rate <n>
//		timeout <duration>
//		subject_claim <claim>
//		subject_format prefixed|raw
//		scope_claim <claim>
//		environment <name>
//		required_claims <claim> [<values...>]
//		meta_claims <claims...>
//	}
func (a *App) parseIntrospection(d *caddyfile.Dispenser) error {
	name, err := newName(d, "introspection", a.Introspection)
	if err != nil {
		return err
	}
	c := new(IntrospectionConfig)
	parts := parsers{
		"url": issuerURL(&c.URL), "client_id": text(&c.ClientID), "client_secret": text(&c.ClientSecret), "client_auth": choice(&c.ClientAuth, "basic", "post"),
		"audience": words(&c.Audiences), "ttl": duration(&c.TTL), "rate": number(&c.Rate), "timeout": duration(&c.Timeout),
	}
	maps.Copy(parts, c.parsers())
	if err := block(d, "introspection", parts); err != nil {
		return err
	}
	if a.Introspection == nil {
		a.Introspection = map[string]*IntrospectionConfig{}
	}
	a.Introspection[name] = c
	if c.URL == "" || c.ClientID == "" {
		return d.Errf("introspection %s: want the url of the endpoint, and the client_id to ask with", name)
	}
	return nil
}

func newName[T any](d *caddyfile.Dispenser, what string, have map[string]T) (name string, err error) {
	if !d.AllArgs(&name) {
		return "", d.ArgErr()
	}
	if err := verifier.CheckName(what, name); err != nil {
		return "", d.Errf("%v", err)
	}
	if _, twice := have[name]; twice {
		return "", d.Errf("%s %s is given twice", what, name)
	}
	return name, nil
}

func (c *ClaimConfig) parsers() parsers {
	return parsers{
		"subject_claim": text(&c.SubjectClaim), "subject_format": choice(&c.SubjectFormat, "prefixed", "raw"), "scope_claim": text(&c.ScopeClaim),
		"environment": text(&c.Environment), "required_claims": c.parseRequired, "meta_claims": words(&c.MetaClaims),
	}
}

// parseRequired parses a claim and its values, or a block with one a line.
func (c *ClaimConfig) parseRequired(d *caddyfile.Dispenser) error {
	if c.RequiredClaims == nil {
		c.RequiredClaims = map[string][]string{}
	}
	add := func(claim string, values []string) error {
		if _, twice := c.RequiredClaims[claim]; twice || claim == "" {
			return d.Errf("required_claims: %q is empty or given twice", claim)
		}
		c.RequiredClaims[claim] = values
		return nil
	}
	if args := d.RemainingArgs(); len(args) > 0 {
		return add(args[0], args[1:])
	}
	for nesting := d.Nesting(); d.NextBlock(nesting); {
		if err := add(d.Val(), d.RemainingArgs()); err != nil {
			return err
		}
	}
	if len(c.RequiredClaims) == 0 {
		return d.ArgErr()
	}
	return nil
}

// issuerURL parses a URL that an issuer is asked at.
func issuerURL(into *string) func(*caddyfile.Dispenser) error {
	return func(d *caddyfile.Dispenser) error {
		name := d.Val()
		if err := text(into)(d); err != nil {
			return err
		}
		if placeholder.MatchString(*into) {
			return nil
		}
		if err := fetch.CheckURL(*into); err != nil {
			return d.Errf("%s: %v", name, err)
		}
		return nil
	}
}

func algorithms(into *[]string) func(*caddyfile.Dispenser) error {
	return func(d *caddyfile.Dispenser) error {
		if err := words(into)(d); err != nil {
			return err
		}
		for _, name := range *into {
			if err := jwt.CheckAlgorithm(name); err != nil {
				return d.Errf("%v", err)
			}
		}
		return nil
	}
}
