package caddymodule

import (
	"errors"
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

// redirectGuard stands before the routes of servers that redirect plain HTTP to
// HTTPS, as Caddy does by itself for every site. A credential in the URL of such a
// request has crossed the network in clear, and the redirect would repeat it in
// Location. The guard refuses the request as auth does, and audits the credential.
// What is answered otherwise than by a redirect it leaves alone: it may belong to a
// site without auth.
type redirectGuard struct {
	answer *Handler
	app    *App
	site   func() *verifier.Site
}

// guardRedirects puts a redirectGuard before every server that needs one. The first
// auth of a configuration does it for all: by then Caddy has made its redirects.
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
		if len(srv.TLSConnPolicies) > 0 || !redirectsURLs(srv, a.sites) {
			continue
		}
		guarded := true
		if isCompiled(srv) {
			guarded = wrapServer(srv, g)
		} else {
			for i := range srv.Routes { // in place: Caddy may be in the middle of them
				guarded = g.guardRoute(&srv.Routes[i]) && guarded
			}
		}
		if !guarded {
			a.log.Warn("this release of Caddy can't be kept from redirecting URLs that hold credentials to HTTPS", zap.Strings("listen", srv.Listen))
		}
	}
	return nil
}

// guardRoute puts the guard before the handlers of a route, if it may redirect. Of a
// route that Caddy has provisioned already, only an unexported field counts.
func (g *redirectGuard) guardRoute(route *caddyhttp.Route) bool {
	field := reflect.ValueOf(route).Elem().FieldByName("middleware")
	if !field.IsValid() || field.Type() != reflect.TypeFor[[]caddyhttp.Middleware]() {
		return false
	}
	if field.Len() == 0 {
		if routeRedirects(route) {
			route.Handlers = append([]caddyhttp.MiddlewareHandler{g}, route.Handlers...)
		}
		return true
	}
	chain := (*[]caddyhttp.Middleware)(field.Addr().UnsafePointer())
	*chain = append([]caddyhttp.Middleware{func(next caddyhttp.Handler) caddyhttp.Handler {
		return caddyhttp.HandlerFunc(func(w http.ResponseWriter, r *http.Request) error { return g.ServeHTTP(w, r, next) })
	}}, *chain...)
	return true
}

// routeRedirects reports whether a route that is not provisioned yet may redirect a
// request to its own URL elsewhere.
func routeRedirects(route *caddyhttp.Route) bool {
	for _, h := range route.Handlers { // Caddy's own stand there ready made
		if s, ok := h.(caddyhttp.StaticResponse); ok && strings.Contains(s.Headers.Get("Location"), requestPlaceholder) {
			return true
		}
	}
	for _, raw := range route.HandlersRaw {
		if strings.Contains(string(raw), "Location") && strings.Contains(string(raw), requestPlaceholder) {
			return true
		}
	}
	return false
}

// requestPlaceholder begins what a redirect to the same URL is made of.
const requestPlaceholder = "{http.request."

// redirectsURLs reports whether a server may redirect a request to its own URL
// elsewhere.
func redirectsURLs(srv *caddyhttp.Server, config []byte) bool {
	for i := range srv.Routes {
		if routeRedirects(&srv.Routes[i]) {
			return true
		}
	}
	for _, h := range handlersNamed(config, "static_response") {
		headers, _ := h["headers"].(map[string]any)
		for _, v := range asList(headers["Location"]) {
			if text, _ := v.(string); strings.Contains(text, requestPlaceholder) {
				return true
			}
		}
	}
	return false
}

func asList(v any) []any {
	list, _ := v.([]any)
	return list
}

// wrapServer puts a handler before the routes of a server that Caddy has compiled
// already: it compiles servers in random order, so that of the redirects may be the
// first. There is no exported way to do that.
func wrapServer(srv *caddyhttp.Server, before caddyhttp.MiddlewareHandler) bool {
	field := reflect.ValueOf(srv).Elem().FieldByName("primaryHandlerChain")
	if !field.IsValid() || field.Type() != reflect.TypeFor[caddyhttp.Handler]() || field.IsNil() {
		return false
	}
	chain := (*caddyhttp.Handler)(field.Addr().UnsafePointer())
	next := *chain
	*chain = caddyhttp.HandlerFunc(func(w http.ResponseWriter, r *http.Request) error { return before.ServeHTTP(w, r, next) })
	return true
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

// CaddyModule returns the Caddy module information. It is in no registry: only
// guardRedirects makes one.
func (*redirectGuard) CaddyModule() caddy.ModuleInfo {
	return caddy.ModuleInfo{ID: "http.handlers.auth_redirect_guard", New: func() caddy.Module { return new(redirectGuard) }}
}

// ServeHTTP implements caddyhttp.MiddlewareHandler.
func (g *redirectGuard) ServeHTTP(w http.ResponseWriter, r *http.Request, next caddyhttp.Handler) error {
	site, rt := g.site(), g.app.rt
	if r.TLS != nil || site == nil {
		return next.ServeHTTP(w, r)
	}
	target := site.JudgeTarget(http.MethodGet, r.RequestURI, false, rt.prefixes(), rt.verifier.Imported())
	if target.Refusal == nil || target.Refusal.Code != auth.CodeCredentialInQuery {
		return next.ServeHTTP(w, r)
	}
	rt.enter()
	defer rt.leave()
	guarded := &redirectWriter{ResponseWriterWrapper: &caddyhttp.ResponseWriterWrapper{ResponseWriter: w}}
	if err := next.ServeHTTP(guarded, r); !guarded.refused {
		return err
	}
	w.Header().Del("Location")
	g.answer.burn(r, target.Leaked)
	var in admitted
	g.answer.admit(r, &in)
	return g.answer.refuse(w, r, target.Refusal, nil)
}

// redirectWriter keeps back an answer that is a redirect.
type redirectWriter struct {
	*caddyhttp.ResponseWriterWrapper
	wrote, refused bool
}

// errRefused is what the body of an answer that was kept back is written into.
var errRefused = errors.New("a credential in the URL: the request is refused")

// WriteHeader implements http.ResponseWriter.
func (w *redirectWriter) WriteHeader(status int) {
	if w.wrote {
		return
	}
	w.wrote = status >= 200
	if status >= 300 && status < 400 && w.Header().Get("Location") != "" {
		w.refused = true
		return
	}
	w.ResponseWriterWrapper.WriteHeader(status)
}

// Write implements io.Writer.
func (w *redirectWriter) Write(p []byte) (int, error) {
	w.WriteHeader(http.StatusOK)
	if w.refused {
		return 0, errRefused
	}
	return w.ResponseWriterWrapper.Write(p)
}

var _ caddyhttp.MiddlewareHandler = (*redirectGuard)(nil)
