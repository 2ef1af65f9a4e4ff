package caddymodule

import (
	"net/http"
	"reflect"
	"strings"
	"sync"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp"
	"go.uber.org/zap"

	"github.com/caddy-auth/caddy-auth/internal/auth"
	"github.com/caddy-auth/caddy-auth/internal/redact"
	"github.com/caddy-auth/caddy-auth/internal/verifier"
)

// redirectGuard stands before the redirects from HTTP to HTTPS that Caddy makes by
// itself. A credential in the URL of such a request has crossed the network in
// clear, and the redirect would repeat it in Location. The guard refuses the request
// as auth does, and audits the credential. What a site answers itself it leaves alone.
type redirectGuard struct {
	answer *Handler
	app    *App
	site   func() *verifier.Site
}

// guardRedirects puts a redirectGuard before every redirect of Caddy's own. The first
// auth of a configuration does it for all: by then Caddy has made them, and nobody is
// served yet.
func (a *App) guardRedirects(ctx caddy.Context) error {
	if a.redirects != nil || a.explain != nil {
		return nil
	}
	var web *caddyhttp.App
	for _, module := range ctx.Modules() {
		if found, ok := module.(*caddyhttp.App); ok {
			web = found
		}
	}
	if web == nil {
		return nil
	}
	g := &redirectGuard{answer: &Handler{answersOnly: true}, app: a, site: sync.OnceValue(a.siteOfRedirects)}
	a.redirects = g
	if err := g.answer.Provision(ctx); err != nil {
		return err
	}
	for _, srv := range web.Servers {
		for i := range srv.Routes { // in place: Caddy may be in the middle of them, or through
			if redirect, ok := ownRedirect(&srv.Routes[i]); ok && !g.guard(&srv.Routes[i], redirect) {
				a.log.Warn("this release of Caddy can't be kept from redirecting URLs that hold credentials to HTTPS", zap.Strings("listen", srv.Listen))
			}
		}
	}
	return nil
}

// ownRedirect returns the handler of a route that Caddy made to redirect to HTTPS.
// Handlers that a configuration names are pointers.
func ownRedirect(route *caddyhttp.Route) (redirect caddyhttp.StaticResponse, ok bool) {
	if len(route.Handlers) != 1 {
		return redirect, false
	}
	redirect, ok = route.Handlers[0].(caddyhttp.StaticResponse)
	return redirect, ok && strings.Contains(redirect.Headers.Get("Location"), "{http.request.uri}")
}

// guard puts the guard before a route's redirect. Of a route that Caddy has
// provisioned already, only an unexported field counts.
func (g *redirectGuard) guard(route *caddyhttp.Route, redirect caddyhttp.StaticResponse) bool {
	field := reflect.ValueOf(route).Elem().FieldByName("middleware")
	if !field.IsValid() || field.Type() != reflect.TypeFor[[]caddyhttp.Middleware]() {
		return false
	}
	if field.Len() == 0 {
		route.Handlers[0] = &guardedRedirect{redirect, g}
		return true
	}
	chain := *(*[]caddyhttp.Middleware)(field.Addr().UnsafePointer())
	old := chain[0] // what was compiled of the route has the same chain
	chain[0] = func(next caddyhttp.Handler) caddyhttp.Handler {
		behind := old(next)
		return caddyhttp.HandlerFunc(func(w http.ResponseWriter, r *http.Request) error { return g.serve(w, r, behind) })
	}
	return true
}

// guardedRedirect is a redirect of Caddy's with the guard before it.
type guardedRedirect struct {
	caddyhttp.StaticResponse
	guard *redirectGuard
}

// ServeHTTP implements caddyhttp.MiddlewareHandler.
func (d *guardedRedirect) ServeHTTP(w http.ResponseWriter, r *http.Request, next caddyhttp.Handler) error {
	return d.guard.serve(w, r, caddyhttp.HandlerFunc(func(w http.ResponseWriter, r *http.Request) error { return d.StaticResponse.ServeHTTP(w, r, next) }))
}

// siteOfRedirects refuses in a URL what no site of this configuration allows there.
func (a *App) siteOfRedirects() *verifier.Site {
	query := redact.Rules{Refuse: a.RefuseQuery, Allow: a.allowedInURLs}
	if len(a.allowedJWTs) > 0 {
		query.AllowJWTPaths = a.allowedJWTs
	}
	site, err := verifier.NewSite(verifier.SiteRules{AllowAmbiguous: true, Query: query})
	if err != nil { // each part was checked with its site
		a.log.Error("reading what may stand in URLs", zap.Error(err))
		return nil
	}
	return site
}

// serve refuses a request whose URL holds a credential, or redirects it.
func (g *redirectGuard) serve(w http.ResponseWriter, r *http.Request, redirect caddyhttp.Handler) error {
	site, rt := g.site(), g.app.rt
	if site == nil {
		return redirect.ServeHTTP(w, r)
	}
	target := site.JudgeTarget(http.MethodGet, r.RequestURI, false, rt.prefixes(), rt.verifier.Imported())
	if target.Refusal == nil || target.Refusal.Code != auth.CodeCredentialInQuery {
		return redirect.ServeHTTP(w, r)
	}
	rt.enter()
	defer rt.leave()
	g.answer.burn(r, target.Leaked)
	var in admitted
	g.answer.admit(r, &in)
	return g.answer.refuse(w, r, target.Refusal, nil)
}

var _ caddyhttp.MiddlewareHandler = (*guardedRedirect)(nil)
