package caddymodule

import (
	"maps"

	"github.com/caddyserver/caddy/v2/caddyconfig/caddyfile"

	"github.com/caddy-auth/caddy-auth/internal/grant"
)

// parseLogin parses where people log in. Syntax:
//
//	login <name> {
//		issuer <url>
//		client_id <text>
//		client_secret <value> | file <path>
//		auth basic|post|private_key_jwt|none
//		scopes <names...>
//		param <name> <value>
//		algorithms <names...>
//		timeout <duration>
//		redirect <path>|<url>
//		sign_in_path <path>
//		logout_path <path>
//		backchannel_path <path>
//		after_logout <path>|<url>
//		idle <duration>
//		lifetime <duration>
//		trusted_origins <origins...>
//		templates <directory>
//		subject_claim <claim>
//		subject_format prefixed|raw
//		scope_claim <claim>
//		environment <name>
//		required_claims <claim> [<values...>]
//		meta_claims <claims...>
//	}
func (a *App) parseLogin(d *caddyfile.Dispenser) error {
	name, err := newName(d, "login", a.Login)
	if err != nil {
		return err
	}
	c := new(LoginConfig)
	parts := parsers{
		"issuer": text(&c.Issuer), "client_id": text(&c.ClientID), "client_secret": valueOrFile(&c.ClientSecret, &c.ClientSecretFile),
		"auth":   choice(&c.Auth, grant.AuthBasic, grant.AuthPost, grant.AuthPrivateKeyJWT, grant.AuthNone),
		"scopes": words(&c.Scopes), "param": c.parseParam, "algorithms": algorithms(&c.Algorithms), "timeout": duration(&c.Timeout),
		"redirect": text(&c.Redirect), "sign_in_path": text(&c.SignInPath), "logout_path": text(&c.LogoutPath), "backchannel_path": text(&c.BackChannelPath),
		"after_logout": text(&c.AfterLogout), "idle": duration(&c.Idle), "lifetime": duration(&c.Lifetime),
		"trusted_origins": words(&c.TrustedOrigins), "templates": text(&c.Templates),
	}
	maps.Copy(parts, c.parsers())
	if err := block(d, "login", parts); err != nil {
		return err
	}
	if a.Login == nil {
		a.Login = map[string]*LoginConfig{}
	}
	a.Login[name] = c
	if c.Issuer == "" || c.ClientID == "" {
		return d.Errf("login %s: want the issuer, and the client_id that it gave to this gateway", name)
	}
	return nil
}

func (c *LoginConfig) parseParam(d *caddyfile.Dispenser) error {
	var name, value string
	if !d.AllArgs(&name, &value) {
		return d.ArgErr()
	}
	if _, twice := c.Params[name]; twice {
		return d.Errf("param %s is given twice", name)
	}
	if c.Params == nil {
		c.Params = map[string]string{}
	}
	c.Params[name] = value
	return nil
}
