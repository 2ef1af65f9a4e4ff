package caddymodule

import (
	"errors"
	"net/http"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp/caddyauth"

	"github.com/caddy-auth/caddy-auth/internal/auth"
	"github.com/caddy-auth/caddy-auth/internal/body"
	"github.com/caddy-auth/caddy-auth/internal/problem"
)

func init() { caddy.RegisterModule(Provider{}) }

// Provider lets Caddy's own authentication handler ask the same engine as the
// handler auth, with the same fields. What that handler can't express is left
// out or done otherwise:
//
//   - It answers every failure 401 and then runs the error routes. What is no
//     401 (400, 403, 503) the provider writes before that.
//   - It must be the only provider. Caddy asks providers in random order and
//     stops at the first that lets a request in: identity headers that the client
//     chose would then reach the upstream, since this provider never saw them.
//   - It does not end requests under way when their credential ends (streams).
//
// Use the handler auth where you can.
type Provider struct {
	Handler
}

// CaddyModule returns the Caddy module information.
func (Provider) CaddyModule() caddy.ModuleInfo {
	return caddy.ModuleInfo{ID: "http.authentication.providers.auth", New: func() caddy.Module { return new(Provider) }}
}

// Authenticate implements caddyauth.Authenticator. It never returns an error:
// Caddy would go on to another provider.
func (p *Provider) Authenticate(w http.ResponseWriter, r *http.Request) (user caddyauth.User, ok bool, _ error) {
	rt := p.app.rt
	rt.enter()
	defer rt.leave()
	var j judgement
	p.judge(r, &j)
	switch {
	case j.refusal != nil && problem.Status(j.refusal.Code) == http.StatusUnauthorized:
		p.problems.SetHeaders(w.Header(), j.refusal)
		p.logRefusal(r, j.refusal, j.refused(), newInstance())
		if j.refusal.Code != auth.CodeMissingCredential { // another provider may find one
			p.slowDown(w, r, j.refusal)
		}
		body.Leave(w, r) // the guard of the error routes reads it
		return user, false, nil
	case j.refusal != nil:
		_ = p.refuse(w, r, j.refusal, j.refused()) // "errors" is problem: it is answered
		return user, false, nil
	case j.anonymous:
		(&caller{handler: &p.Handler, public: j.public}).attach(r)
		return user, true, nil
	}
	c, refusal := p.pass(r, &j)
	if refusal != nil {
		_ = p.refuse(w, r, refusal, nil)
		return user, false, nil
	}
	user = caddyauth.User{Metadata: map[string]string{}} // Caddy makes placeholders of them
	for _, name := range []string{"id", "credential_id", "method", "scopes", "environment", "issuer"} {
		value, _ := c.placeholder("http.auth.user." + name)
		user.Metadata[name] = value.(string)
	}
	user.ID = user.Metadata["id"]
	return user, true, nil
}

// Provision compiles the site's rules.
func (p *Provider) Provision(ctx caddy.Context) error {
	for _, module := range ctx.Modules() {
		if a, ok := module.(*caddyauth.Authentication); ok && len(a.ProvidersRaw) > 1 {
			return errors.New("the provider auth must stand alone: where another provider lets a request in first, the identity headers that its client sent would reach the upstream; " +
				"use the handler auth, and authentication with the other providers before it")
		}
	}
	p.Errors, p.provides = "", true // the error routes are Caddy's doing
	return p.Handler.Provision(ctx)
}

var (
	_ caddyauth.Authenticator = (*Provider)(nil)
	_ caddy.Provisioner       = (*Provider)(nil)
)
