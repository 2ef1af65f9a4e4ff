package caddymodule

import (
	"github.com/caddy-auth/caddy-auth/internal/grant"

	"github.com/caddyserver/caddy/v2/caddyconfig/caddyfile"
)

// parseOutbound parses a credential toward upstreams. Syntax:
//
//	outbound <name> {
//		token_url <url>
//		client_id <text>
//		client_secret <value> | file <path>
//		private_key <value> | file <path>
//		auth basic|post|private_key_jwt
//		key_id <text>
//		algorithm <name>
//		assertion_audience <text>
//		scopes <names...>
//		audience <values...>
//		resource <uris...>
//		refresh_before <duration>
//		timeout <duration>
//	}
//	outbound <name> {
//		header <name> [<prefix>] <value> | file <path>
//	}
func (a *App) parseOutbound(d *caddyfile.Dispenser) error {
	name, err := newName(d, "outbound", a.Outbound)
	if err != nil {
		return err
	}
	c := new(OutboundConfig)
	key := ""
	err = block(d, "outbound", parsers{
		"token_url": issuerURL(&c.TokenURL), "client_id": text(&c.ClientID), "client_secret": valueOrFile(&c.ClientSecret, &c.ClientSecretFile),
		"private_key": func(d *caddyfile.Dispenser) error {
			if key = d.Val(); c.ClientSecret+c.ClientSecretFile != "" {
				return d.Err("client_secret and private_key: want one of them")
			}
			return valueOrFile(&c.ClientSecret, &c.ClientSecretFile)(d)
		},
		"auth":   choice(&c.Auth, grant.AuthBasic, grant.AuthPost, grant.AuthPrivateKeyJWT),
		"key_id": text(&c.KeyID), "algorithm": choice(&c.Algorithm, grant.Algorithms()...), "assertion_audience": text(&c.AssertionAudience),
		"scopes": words(&c.Scopes), "audience": words(&c.Audiences), "resource": words(&c.Resources),
		"refresh_before": duration(&c.RefreshBefore), "timeout": duration(&c.Timeout), "header": c.parseHeader,
	})
	if err != nil {
		return err
	}
	if key != "" && c.Auth == "" {
		c.Auth = grant.AuthPrivateKeyJWT
	}
	if key != "" && c.Auth != grant.AuthPrivateKeyJWT {
		return d.Errf("outbound %s: private_key is for auth %s", name, grant.AuthPrivateKeyJWT)
	}
	if err := c.check(name); err != nil {
		return d.Errf("outbound %s: %v", name, err)
	}
	if a.Outbound == nil {
		a.Outbound = map[string]*OutboundConfig{}
	}
	a.Outbound[name] = c
	return nil
}

// valueOrFile parses a secret: a value, or file and a path.
func valueOrFile(value, file *string) func(*caddyfile.Dispenser) error {
	return func(d *caddyfile.Dispenser) error {
		name, args := d.Val(), d.RemainingArgs()
		if *value+*file != "" {
			return d.Errf("%s: a secret is given twice", name)
		}
		switch {
		case len(args) == 2 && args[0] == "file":
			*file = args[1]
		case len(args) == 1 && args[0] != "file":
			*value = args[0]
		default:
			return d.Errf("%s: want a value such as {env.X}, or file and a path", name)
		}
		if *value+*file == "" {
			return d.Err("an empty value")
		}
		return nil
	}
}

// parseHeader parses a key in a header.
func (c *OutboundConfig) parseHeader(d *caddyfile.Dispenser) error {
	args := d.RemainingArgs()
	h := new(OutboundHeader)
	c.Header = h
	n := len(args)
	switch {
	case n > 1 && args[n-1] == "file":
		return d.Err("header: want a path after file")
	case n >= 3 && n <= 4 && args[n-2] == "file":
		h.File = args[n-1]
		args = args[:n-2]
	case n == 2 || n == 3:
		h.Value = args[n-1]
		args = args[:n-1]
	default:
		return d.Err("header: want its name and a value such as {env.X}, or file and a path; a word such as Bearer may stand before either")
	}
	h.Name = args[0]
	if len(args) > 1 {
		h.Prefix = args[1]
	}
	if h.Value+h.File == "" {
		return d.Err("an empty value")
	}
	return nil
}
