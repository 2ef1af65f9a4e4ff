package caddymodule

import (
	"context"
	"maps"
	"slices"

	"github.com/caddy-auth/caddy-auth/internal/fetch"
	"github.com/caddy-auth/caddy-auth/internal/jwks"
	"github.com/caddy-auth/caddy-auth/internal/login"
)

// logins asks each login's provider for its metadata and its keys.
func (e *examination) logins(ctx context.Context) {
	if e.t.app == nil {
		return
	}
	for _, name := range slices.Sorted(maps.Keys(e.t.app.Login)) {
		c, err := e.t.app.Login[name].withDefaults()
		if err != nil || c.check(name) != nil {
			continue // the configuration's finding
		}
		const advice = "while it does not answer, nobody can sign in; is the issuer right, and reachable from here?"
		client := fetch.New(keysTimeout, keysConns)
		m, err := login.NewProvider(c.Issuer, client).Metadata(ctx)
		if err == nil {
			_, _, err = jwks.New(jwks.Config{Issuer: c.Issuer}, client).Try(ctx)
		}
		client.Close()
		switch {
		case err != nil:
			e.found("login", named(name, err), advice)
		case m.Revocation == "":
			e.say(levelNote, "login", name+": the provider has no revocation endpoint: tokens of people who sign out are good there until they expire", "")
		default:
			e.ok("login", "%s: the provider answers", name)
		}
	}
}
