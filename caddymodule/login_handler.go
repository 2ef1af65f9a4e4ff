package caddymodule

import (
	"bufio"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"slices"
	"strings"
	"sync/atomic"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/caddyconfig/httpcaddyfile"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp"
	"go.uber.org/zap"

	"github.com/caddy-auth/caddy-auth/internal/auth"
	"github.com/caddy-auth/caddy-auth/internal/login"
	"github.com/caddy-auth/caddy-auth/internal/redact"
	"github.com/caddy-auth/caddy-auth/internal/verifier"
)

func init() {
	caddy.RegisterModule(LoginHandler{})
	httpcaddyfile.RegisterDirective("auth_login", parseLoginHandler)
}

// LoginHandler is auth that people can also sign in to: who opens a page and is
// not signed in is led to the provider, everybody else gets the answers of auth.
// It answers the paths of its login itself.
type LoginHandler struct {
	// Everything that the handler auth has.
	Handler

	// Which login: its name in the auth app.
	Login string `json:"login,omitempty"`
	// Answer the login's paths and let everything else pass: for a site whose
	// other auth_login has a matcher.
	OnlyPaths bool `json:"only_paths,omitempty"`
}

// signIn is a login in one configuration.
type signIn struct {
	*LoginConfig
	*loginSource
	name  string
	same  *login.SameOrigin
	pages *pages

	insecure atomic.Bool // told that nobody can sign in over plain HTTP
}

// CaddyModule returns the Caddy module information.
func (LoginHandler) CaddyModule() caddy.ModuleInfo {
	return caddy.ModuleInfo{ID: "http.handlers.auth_login", New: func() caddy.Module { return new(LoginHandler) }}
}

// Provision compiles the site's rules.
func (l *LoginHandler) Provision(ctx caddy.Context) error {
	app, err := ctx.App("auth")
	if err != nil {
		return err
	}
	known := app.(*App).signIns
	if l.Login, err = expandText(l.Login); err != nil {
		return fmt.Errorf("auth_login: %w", err)
	}
	s := known.byName[l.Login]
	if s == nil {
		return fmt.Errorf("auth_login: %w%s", unknownName("login", l.Login, slices.Sorted(maps.Keys(known.byName))), lineOf("auth_login", l.Login))
	}
	l.Handler.login = s
	// A code may have any form, also that of a token.
	l.Handler.answerParams = []redact.Allowance{{Names: []string{"code"}, Paths: verifier.Paths{pathOf(s.Redirect)}}}
	if err := l.Handler.Provision(ctx); err != nil {
		return err
	}
	if srv, ok := ctx.Value(caddyhttp.ServerCtxKey).(*caddyhttp.Server); ok {
		known.share(srv, s, l.Handler.log)
	}
	return nil
}

// share warns of two logins on one server that have a path in common: on one host
// the second would never be asked.
func (s *signIns) share(srv *caddyhttp.Server, one *signIn, log *zap.Logger) {
	if s.onServer == nil {
		s.onServer = map[*caddyhttp.Server][]*signIn{}
	}
	for _, other := range s.onServer[srv] {
		if other == one {
			return
		}
		for _, path := range one.paths() {
			if slices.Contains(other.paths(), path) {
				log.Warn("two logins have a path in common: if they are on one host, the second never works; give each its own redirect, sign_in_path, logout_path and backchannel_path",
					zap.String("login", one.name), zap.String("other", other.name), zap.String("path", path))
				break
			}
		}
	}
	s.onServer[srv] = append(s.onServer[srv], one)
}

// paths are those that the login answers itself.
func (s *signIn) paths() []string {
	return []string{pathOf(s.Redirect), s.SignInPath, s.LogoutPath, s.BackChannelPath}
}

// ServeHTTP implements caddyhttp.MiddlewareHandler.
func (l *LoginHandler) ServeHTTP(w http.ResponseWriter, r *http.Request, next caddyhttp.Handler) error {
	if parts, ok := redact.SplitTarget(originalTarget(r)); ok {
		if answer := l.endpoint(parts.Path); answer != nil && l.Handler.explain == nil {
			return l.serveEndpoint(w, r, answer)
		} else if answer != nil {
			w.Header().Set(reachedHeader, "auth_login")
			return nil
		}
	}
	if !l.OnlyPaths {
		return l.Handler.ServeHTTP(w, r, guarded(next))
	}
	if callerOf(r) != nil { // another one has let it through
		return next.ServeHTTP(w, r)
	}
	takeCookies(r) // the credential is not ours here
	l.Handler.policy.Clean(r, l.Handler.sources.Aliases())
	return guarded(next).ServeHTTP(w, r)
}

// guarded is a handler whose answers don't touch our cookies.
func guarded(next caddyhttp.Handler) caddyhttp.Handler {
	return caddyhttp.HandlerFunc(func(w http.ResponseWriter, r *http.Request) error {
		defer func() { login.GuardTrailers(w.Header()) }()
		return next.ServeHTTP(&guardedWriter{ResponseWriterWrapper: &caddyhttp.ResponseWriterWrapper{ResponseWriter: w}, request: r}, r)
	})
}

// session returns the session's cookie of a request whose cookies were taken.
func (h *Handler) session(r *http.Request, cookies []login.Cookie, p *verifier.Presented) (text string, refusal *auth.Refusal) {
	text, n := login.Session(cookies, h.login.name)
	switch {
	case n == 0:
		return "", nil
	case n > 1 || p.Credential != "":
		return "", &auth.Refusal{Code: auth.CodeInvalidRequest, Detail: "more than one credential: a session's cookie, and another beside it"}
	case !h.login.same.Allows(r):
		return "", &auth.Refusal{
			Code: auth.CodeNotAllowed, Reason: "cross_site",
			Detail: "a session may change something only from pages of its own origin: this request comes from another",
		}
	}
	return text, nil
}

// lead answers a request of somebody who is not signed in, if it is a browser's
// that shows pages, and reports whether it did.
func (h *Handler) lead(w http.ResponseWriter, r *http.Request, j *judgement) (done bool, err error) {
	code := j.refusal.Code
	over := code == auth.CodeInvalidCredential && j.session
	if over && h.Optional && login.Navigates(r) {
		return true, h.login.again(w, r) // without the cookie, as anybody
	}
	switch {
	case code == auth.CodeMissingCredential || over:
		// The cookie stays: another tab may have got a new one meanwhile.
		if login.Navigates(r) {
			h.logLed(r, j)
			return true, h.login.begin(h, w, r, j.cookies, originalTarget(r))
		}
		if login.ShowsPages(r) { // a form, which can't be sent again from elsewhere
			h.logLed(r, j)
			return true, h.login.show(w, r, pageExpired, http.StatusUnauthorized, "/")
		}
		if !over {
			j.refusal.Detail += "; people sign in with a browser, at " + h.login.SignInPath
		}
	case code == auth.CodeUnavailable && j.session && login.ShowsPages(r):
		instance := newInstance()
		h.logRefusal(r, j.refusal, nil, instance)
		return true, h.login.showInstance(w, r, pageUnavailable, http.StatusServiceUnavailable, "/", instance)
	}
	return false, nil
}

// logLed writes the decision log for who is led to the provider: a good session
// that has ended is worth a line, a first visit is not.
func (h *Handler) logLed(r *http.Request, j *judgement) {
	if j.session {
		h.logRefusal(r, j.refusal, j.refused(), newInstance())
	}
}

// guardedWriter keeps our cookies out of what upstreams set, and pages of
// somebody who is signed in out of caches, where upstreams say nothing.
type guardedWriter struct {
	*caddyhttp.ResponseWriterWrapper
	request *http.Request
	own     []string // what handlers of ours behind it set
	wrote   bool
}

// cookiesVar is where the cookies of ours are that were taken off a request.
const cookiesVar = "auth.cookies"

// takenCookies are a request's, which no placeholder shows.
type takenCookies struct{ all []login.Cookie }

// String keeps them out of {http.vars.*}.
func (*takenCookies) String() string { return "" }

// takeCookies takes our cookies off a request and returns them, with those that
// an earlier handler took.
func takeCookies(r *http.Request) []login.Cookie {
	vars, _ := r.Context().Value(caddyhttp.VarsCtxKey).(map[string]any)
	before, _ := vars[cookiesVar].(*takenCookies)
	taken := login.TakeCookies(r.Header)
	if before != nil {
		before.all = append(before.all, taken...)
		return before.all
	}
	if len(taken) > 0 {
		caddyhttp.SetVar(r.Context(), cookiesVar, &takenCookies{taken})
	}
	return taken
}

// setCookie sets one of our cookies, so that guards before us let it pass.
func setCookie(w http.ResponseWriter, name, value string, seconds int) {
	line := login.SetCookie(name, value, seconds)
	for at := w; at != nil; {
		if g, ok := at.(*guardedWriter); ok {
			g.own = append(g.own, line)
		}
		u, ok := at.(interface{ Unwrap() http.ResponseWriter })
		if !ok {
			break
		}
		at = u.Unwrap()
	}
	w.Header().Add("Set-Cookie", line)
}

// WriteHeader implements http.ResponseWriter.
func (g *guardedWriter) WriteHeader(status int) {
	if !g.wrote {
		g.guard()
		g.wrote = status < 100 || status > 199 || status == http.StatusSwitchingProtocols
	}
	g.ResponseWriterWrapper.WriteHeader(status)
}

func (g *guardedWriter) guard() {
	h := g.Header()
	login.GuardCookies(h, g.own)
	c := callerOf(g.request)
	if c == nil || !c.verified || c.identity.Method != auth.MethodSession || len(h["Cache-Control"]) > 0 {
		return
	}
	value := "private"
	if kind := strings.ToLower(h.Get("Content-Type")); strings.HasPrefix(kind, "text/html") {
		value = "no-store" // else the back button shows it to who comes next
	}
	h.Set("Cache-Control", value)
}

// Write implements http.ResponseWriter.
func (g *guardedWriter) Write(p []byte) (int, error) {
	if !g.wrote {
		g.WriteHeader(http.StatusOK)
	}
	return g.ResponseWriterWrapper.Write(p)
}

// ReadFrom implements io.ReaderFrom.
func (g *guardedWriter) ReadFrom(r io.Reader) (int64, error) {
	if !g.wrote {
		g.WriteHeader(http.StatusOK)
	}
	return g.ResponseWriterWrapper.ReadFrom(r)
}

// Flush implements http.Flusher.
func (g *guardedWriter) Flush() {
	if !g.wrote {
		g.WriteHeader(http.StatusOK)
	}
	_ = http.NewResponseController(g.ResponseWriterWrapper.ResponseWriter).Flush() // not every writer can
}

// Hijack implements http.Hijacker.
func (g *guardedWriter) Hijack() (net.Conn, *bufio.ReadWriter, error) {
	return http.NewResponseController(g.ResponseWriterWrapper.ResponseWriter).Hijack()
}

// parseLoginHandler sets up the handler from Caddyfile tokens. Syntax:
//
//	auth_login [<matcher>] <name> {
//		<everything that auth has>
//	}
func parseLoginHandler(h httpcaddyfile.Helper) ([]httpcaddyfile.ConfigValue, error) {
	if !h.Next() {
		return nil, h.ArgErr()
	}
	file, line := h.File(), h.Line()
	matcher, err := h.ExtractMatcherSet()
	if err != nil {
		return nil, err
	}
	handler := new(LoginHandler)
	h.Next() // the directive
	if !h.NextArg() {
		return nil, h.Err("want the name of a login of the global auth block")
	}
	handler.Login = h.Val()
	if err := handler.unmarshalRest(h.Dispenser); err != nil {
		return nil, err
	}
	if len(matcher) == 0 {
		return h.NewRoute(nil, handler), nil
	}
	caddy.Log().Named("config.adapter.caddyfile").Warn("auth_login has a matcher: requests outside it are not protected; use auth_login without a matcher and name what is open with public",
		zap.String("file", file), zap.Int("line", line))
	// Whoever comes back from the provider is to be let in too.
	return append(h.NewRoute(matcher, handler), h.NewRoute(nil, &LoginHandler{Login: handler.Login, OnlyPaths: true})...), nil
}

var (
	_ caddy.Provisioner           = (*LoginHandler)(nil)
	_ caddyhttp.MiddlewareHandler = (*LoginHandler)(nil)
	_ http.Flusher                = (*guardedWriter)(nil)
	_ http.Hijacker               = (*guardedWriter)(nil)
)
