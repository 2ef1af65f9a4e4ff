package caddymodule

import (
	"net/http"
	"reflect"
	"slices"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp"

	"github.com/caddy-auth/caddy-auth/internal/body"
	"github.com/caddy-auth/caddy-auth/internal/login"
	"github.com/caddy-auth/caddy-auth/internal/verifier"
)

// admitted is what a request carried that was ours to take.
type admitted struct {
	presented verifier.Presented
	cookies   []login.Cookie
}

// admit takes off a request what a client must not choose and what nobody
// behind the gateway may see: every spelling of an identity header, what
// Connection names, trailers, the credential, the cookies of logins. A handler of
// ours calls it before it can refuse a request or return an error, which may end
// in an error route that proxies.
func (h *Handler) admit(r *http.Request, in *admitted) {
	prefixes := h.app.rt.prefixes()
	in.presented = h.sources.Take(r.Header, prefixes, h.ForwardCredential)
	if h.app.signIns.any() {
		in.cookies = takeCookies(r)
	}
	h.sources.RemoveOurs(r.Header, prefixes, h.app.rt.verifier.Imported(), h.ForwardCredential)
	h.policy.Clean(r, h.sources.Aliases())
}

// errorGuard is the first of a server's error routes. A request can fail before
// any handler of this module sees it: a matcher fails, the SNI is wrong, or a
// handler before auth refuses it. Such a request reaches the error routes with
// everything its client sent. The guard removes the identity headers that sites of
// this server set, in every spelling, and anything shaped like a key or token of
// this gateway. It hides the cookies of logins from services behind the error
// routes. It leaves alone what belongs to a site without auth.
type errorGuard struct {
	handlers []*Handler // that differ in what is removed
	app      *App
}

// CaddyModule returns the Caddy module information. It is in no registry: only
// guardErrors makes one.
func (*errorGuard) CaddyModule() caddy.ModuleInfo {
	return caddy.ModuleInfo{ID: "http.handlers.auth_error_guard", New: func() caddy.Module { return new(errorGuard) }}
}

// ServeHTTP implements caddyhttp.MiddlewareHandler.
func (g *errorGuard) ServeHTTP(w http.ResponseWriter, r *http.Request, next caddyhttp.Handler) error {
	if callerOf(r) == nil { // else they are the gateway's
		prefixes := g.app.rt.prefixes()
		for _, h := range g.handlers {
			h.policy.RemoveOwn(r)
			h.sources.RemoveOurs(r.Header, prefixes, g.app.rt.verifier.Imported(), false)
		}
	}
	if w.Header().Get("Connection") == "close" { // a handler refused the request, unread
		rest := body.Leave(w, r)
		rest.Settle()
		rest.Without(r) // the error routes answer a request that is refused, not its body
		defer rest.Finish()
	}
	if !g.app.signIns.any() {
		return next.ServeHTTP(w, r)
	}
	takeCookies(r)
	return guarded(next).ServeHTTP(w, r)
}

// guardErrors puts an errorGuard before a server's error routes, or makes the one
// that is there remove what a handler would. Caddy provisions error routes after
// the others, but before named routes: where auth is in those only, nothing can be
// put before the error routes any more, which is logged.
func (h *Handler) guardErrors(srv *caddyhttp.Server) {
	if srv.Errors == nil {
		srv.Errors = new(caddyhttp.HTTPErrorConfig)
	}
	routes := srv.Errors.Routes
	if len(routes) == 0 && !h.leavesErrors() {
		return
	}
	if len(routes) > 0 && len(routes[0].Handlers) == 1 {
		if g, ok := routes[0].Handlers[0].(*errorGuard); ok {
			if !slices.ContainsFunc(g.handlers, h.removesAsMuchAs) {
				g.handlers = append(g.handlers, h)
			}
			return
		}
	}
	if isCompiled(srv) {
		h.unguarded = true
		if len(routes) > 0 {
			h.log.Warn("auth stands in a named route or an error route only: what fails before it reaches the error routes with the identity headers that its client sent; use auth in a route of the site too, or don't proxy in handle_errors")
		}
		return
	}
	guard := caddyhttp.Route{Handlers: []caddyhttp.MiddlewareHandler{&errorGuard{[]*Handler{h}, h.app}}}
	srv.Errors.Routes = append(caddyhttp.RouteList{guard}, routes...)
}

// isCompiled reports whether it is too late to change a server's error routes.
// Caddy keeps what it has compiled of the other routes in an unexported field; once
// that is set, the error routes can't be changed.
func isCompiled(srv *caddyhttp.Server) bool {
	main := reflect.ValueOf(srv).Elem().FieldByName("primaryHandlerChain")
	return !main.IsValid() || main.Kind() != reflect.Interface || !main.IsNil()
}

// leavesErrors reports whether refusals are answered by Caddy: by error routes, or
// with the bare status.
func (h *Handler) leavesErrors() bool { return h.Errors == "handle_errors" || h.provides }

// removesAsMuchAs reports whether two handlers remove the same from a request.
func (h *Handler) removesAsMuchAs(o *Handler) bool {
	return h.policy.Same(o.policy) && h.sources.Same(o.sources)
}
