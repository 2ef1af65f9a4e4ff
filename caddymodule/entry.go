package caddymodule

import (
	"net/http"
	"reflect"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp"

	"github.com/caddy-auth/caddy-auth/internal/forward"
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
// Connection names, trailers, the credential, the cookies of logins. Every
// handler of ours calls it before anything else: whatever it returns then, a
// refusal or an error, may end in an error route that proxies.
func (h *Handler) admit(r *http.Request, in *admitted) {
	in.presented = h.sources.Take(r.Header, h.app.rt.prefixes(), h.ForwardCredential)
	if h.app.signIns.any() {
		in.cookies = takeCookies(r)
	}
	h.policy.Clean(r, h.sources.Aliases())
}

// errorGuard is the first of a server's error routes. Requests that fail before
// a handler of ours has seen them come here with all that their client sent: a
// matcher that fails, a wrong SNI, a handler that stands before auth. It removes
// the identity headers that sites of this server set, as their clients spell
// them, and keeps the cookies of logins from services behind the error routes.
type errorGuard struct {
	policies []*forward.Policy
	logins   bool // people sign in on this server
}

// CaddyModule returns the Caddy module information. It is in no registry: only
// guardErrors makes one.
func (*errorGuard) CaddyModule() caddy.ModuleInfo {
	return caddy.ModuleInfo{ID: "http.handlers.auth_error_guard", New: func() caddy.Module { return new(errorGuard) }}
}

// ServeHTTP implements caddyhttp.MiddlewareHandler.
func (g *errorGuard) ServeHTTP(w http.ResponseWriter, r *http.Request, next caddyhttp.Handler) error {
	if callerOf(r) == nil { // else they are the gateway's
		for _, p := range g.policies {
			p.RemoveOwn(r)
		}
	}
	if !g.logins {
		return next.ServeHTTP(w, r)
	}
	takeCookies(r)
	return guarded(next).ServeHTTP(w, r)
}

// guardErrors puts an errorGuard before a server's error routes, or gives the one
// that is there another policy. It returns nil where there are no error routes.
// Caddy provisions them after all others.
func guardErrors(srv *caddyhttp.Server, p *forward.Policy) *errorGuard {
	if srv.Errors == nil || len(srv.Errors.Routes) == 0 {
		return nil
	}
	// Caddy keeps what it has compiled of the other routes in an unexported field;
	// once it is set, the error routes are being provisioned, and can't be changed.
	main := reflect.ValueOf(srv).Elem().FieldByName("primaryHandlerChain")
	first := srv.Errors.Routes[0].Handlers
	if len(first) == 1 {
		if g, ok := first[0].(*errorGuard); ok {
			g.policies = append(g.policies, p)
			return g
		}
	}
	if !main.IsValid() || main.Kind() != reflect.Interface || !main.IsNil() {
		return nil
	}
	guard := &errorGuard{policies: []*forward.Policy{p}}
	srv.Errors.Routes = append(caddyhttp.RouteList{{Handlers: []caddyhttp.MiddlewareHandler{guard}}}, srv.Errors.Routes...)
	return guard
}
