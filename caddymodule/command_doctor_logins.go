package caddymodule

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/caddy-auth/caddy-auth/internal/auth"
	"github.com/caddy-auth/caddy-auth/internal/fetch"
	"github.com/caddy-auth/caddy-auth/internal/jwks"
	"github.com/caddy-auth/caddy-auth/internal/login"
	"github.com/caddy-auth/caddy-auth/internal/store"
)

// sessions tells how many sessions end when the configuration is loaded, because
// another one judged who signed in.
func (e *examination) sessions(ctx context.Context, db *store.DB) {
	if e.t.app == nil {
		return
	}
	now := time.Now().UnixMilli()
	for _, name := range slices.Sorted(maps.Keys(e.t.app.Login)) {
		c, err := e.t.app.Login[name].withDefaults()
		if err != nil || c.check(name) != nil {
			continue // the configuration's finding
		}
		claims, err := c.rules(e.t.app)
		if err != nil {
			continue
		}
		judgedBy, _, err := c.judgement(claims).Digests()
		n := 0
		if err == nil {
			err = db.Sessions(ctx, store.SessionFilter{Login: name, NotJudgedBy: judgedBy, Unrevoked: true}, func(s *auth.Session) error {
				if s.State(now) == auth.SessionActive {
					n++
				}
				return nil
			})
		}
		switch {
		case err != nil:
			e.found("sessions", named(name, err), "")
		case n > 0:
			e.say(levelNote, "sessions", fmt.Sprintf("%s: %d end when this configuration is loaded: another issuer, client_id, algorithms, scopes or claims judged who signed in", name, n), "those people sign in anew")
		}
	}
}

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
