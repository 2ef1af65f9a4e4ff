package caddymodule

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/caddyserver/caddy/v2/modules/caddyhttp"
	"github.com/google/uuid"
	"go.uber.org/zap"

	"github.com/caddy-auth/caddy-auth/internal/auth"
	"github.com/caddy-auth/caddy-auth/internal/body"
	"github.com/caddy-auth/caddy-auth/internal/fetch"
	"github.com/caddy-auth/caddy-auth/internal/login"
	"github.com/caddy-auth/caddy-auth/internal/store"
	"github.com/caddy-auth/caddy-auth/internal/verifier"
)

// loginAnswer answers a path of a login.
type loginAnswer struct {
	methods string // what it takes, as Allow says it
	serve   func(h *Handler, w http.ResponseWriter, r *http.Request, cookies []login.Cookie) error
}

// endpoint returns what answers a path as the client sent it, or nil.
func (l *LoginHandler) endpoint(path string) *loginAnswer {
	s := l.Handler.login
	switch path {
	case pathOf(s.Redirect):
		return &loginAnswer{"GET", s.finish}
	case s.SignInPath:
		return &loginAnswer{"GET, HEAD", s.serveSignIn}
	case s.LogoutPath:
		return &loginAnswer{"GET, HEAD, POST", s.serveLogout}
	case s.BackChannelPath:
		return &loginAnswer{"POST", s.serveBackChannel}
	}
	return nil
}

// serveEndpoint answers a path of the login, or refuses it: first, as
// everywhere, for what is in its URL.
func (l *LoginHandler) serveEndpoint(w http.ResponseWriter, r *http.Request, answer *loginAnswer) error {
	h := &l.Handler
	rt := h.app.rt
	rt.enter()
	defer rt.leave()
	var in admitted
	h.admit(r, &in)
	target := h.site.JudgeTarget(r.Method, originalTarget(r), false, rt.prefixes(), rt.verifier.Imported())
	switch {
	case target.Refusal != nil:
		h.burn(r, target.Leaked)
		return h.refuse(w, r, target.Refusal, nil)
	case h.tooEarly(r):
		return h.refuse(w, r, verifier.TooEarlyRefusal(), nil)
	}
	w.Header().Set("Cache-Control", "no-store")
	if !strings.Contains(", "+answer.methods+",", ", "+r.Method+",") {
		w.Header().Set("Allow", answer.methods)
		rest := body.Leave(w, r)
		boundAnswer(w, r)
		rest.Settle()
		w.WriteHeader(http.StatusMethodNotAllowed)
		rest.Finish()
		return nil
	}
	rt.awaitOpen(r.Context())
	return answer.serve(h, w, r, in.cookies)
}

func newInstance() string { return "urn:uuid:" + uuid.NewString() }

// origin is where a request was sent to: what the browser shows. A proxy before
// us is believed only if it is trusted.
func origin(r *http.Request) string {
	scheme := "http"
	if trusted, _ := caddyhttp.GetVar(r.Context(), caddyhttp.TrustedProxyVarKey).(bool); r.TLS != nil || trusted && r.Header.Get("X-Forwarded-Proto") == "https" {
		scheme = "https"
	}
	return scheme + "://" + r.Host
}

// whole makes a place a whole URL.
func whole(r *http.Request, place string) string {
	if strings.HasPrefix(place, "/") {
		return origin(r) + place
	}
	return place
}

// begin leads a browser to the provider, and after it to a place here.
func (s *signIn) begin(h *Handler, w http.ResponseWriter, r *http.Request, cookies []login.Cookie, returnTo string) error {
	if at := origin(r); strings.HasPrefix(at, "http:") && !fetch.Loopback(hostOf(r)) {
		if !s.insecure.Swap(true) {
			s.log().Error("nobody can sign in over plain HTTP: browsers keep the session's cookie only over HTTPS; if a proxy before this gateway ends TLS, name it in trusted_proxies", zap.String("host", h.loggable(r.Host)))
		}
		return s.failed(h, w, r, &login.Error{Cause: login.CauseRefused, Detail: "sign-in over plain HTTP"}, http.StatusInternalServerError)
	}
	if to := whole(r, s.Redirect); !sameHost(r, to) { // the browser would not send its cookie there
		s.log().Error("nobody can sign in on this host: redirect is a URL on another; make it a path", zap.String("host", h.loggable(r.Host)), zap.String("redirect", to))
		return s.failed(h, w, r, &login.Error{Cause: login.CauseRefused, Detail: "redirect is on another host than the one that was asked"}, http.StatusInternalServerError)
	}
	b, err := s.client.Begin(r.Context(), whole(r, s.Redirect), returnTo, cookies)
	if err != nil {
		var e *login.Error
		if errors.As(err, &e) && login.SafeReturn(returnTo) {
			e.Return = returnTo
		}
		return s.failed(h, w, r, err, 0)
	}
	for _, name := range b.Forget {
		setCookie(w, name, "", -1)
	}
	setCookie(w, b.Cookie.Name, b.Cookie.Value, int(b.Life.Seconds()))
	metrics.logins.WithLabelValues(s.name, "begun").Inc()
	return redirectTo(w, b.URL, http.StatusFound)
}

// sameHost reports whether a URL is on the host that a browser asked, as far as is
// known: a proxy that is trusted may have asked us by another name.
func sameHost(r *http.Request, to string) bool {
	trusted, _ := caddyhttp.GetVar(r.Context(), caddyhttp.TrustedProxyVarKey).(bool)
	u, err := url.Parse(to)
	return trusted || err == nil && strings.EqualFold(u.Hostname(), hostOf(r))
}

func hostOf(r *http.Request) string {
	u := url.URL{Host: r.Host}
	return u.Hostname()
}

// redirectTo leads a browser elsewhere. Nothing of where it was goes along.
func redirectTo(w http.ResponseWriter, to string, status int) error {
	w.Header().Set("Cache-Control", "no-store")
	w.Header().Set("Referrer-Policy", "no-referrer")
	w.Header().Set("Location", to)
	w.WriteHeader(status)
	return nil
}

// again lets a browser ask for the same page without the session that has ended.
func (s *signIn) again(w http.ResponseWriter, r *http.Request) error {
	s.dropSession(w)
	to := originalTarget(r)
	if !login.SafeReturn(to) {
		to = "/"
	}
	return redirectTo(w, to, http.StatusFound)
}

func (s *signIn) dropSession(w http.ResponseWriter) {
	setCookie(w, login.SessionCookie(s.name), "", -1)
}

// serveSignIn begins a sign-in that somebody asked for.
func (s *signIn) serveSignIn(h *Handler, w http.ResponseWriter, r *http.Request, cookies []login.Cookie) error {
	to := r.URL.Query().Get("return")
	if to == "" {
		to = "/"
	}
	return s.begin(h, w, r, cookies, to)
}

// finish takes what the provider sent the browser back with.
func (s *signIn) finish(h *Handler, w http.ResponseWriter, r *http.Request, cookies []login.Cookie) error {
	query := ""
	if i := strings.IndexByte(originalTarget(r), '?'); i >= 0 {
		query = originalTarget(r)[i+1:]
	}
	in, used, err := s.client.Finish(r.Context(), s.sender(h, r, cookies), query, cookies)
	if used != "" {
		setCookie(w, used, "", -1)
	}
	if err != nil {
		return s.failed(h, w, r, err, 0)
	}
	text, err := s.open(r, in, cookies)
	if err != nil {
		s.dropTokens(in.Tokens)
	}
	if errors.Is(err, auth.ErrConflict) {
		return s.failed(h, w, r, &login.Error{Cause: login.CauseState, Detail: "the provider logged them out meanwhile", Return: in.Return}, 0)
	}
	if err != nil {
		return s.failed(h, w, r, &login.Error{Cause: login.CauseUnavailable, Detail: "the session could not be written", Return: in.Return}, 0)
	}
	setCookie(w, login.SessionCookie(s.name), text, 0)
	metrics.logins.WithLabelValues(s.name, "signed_in").Inc()
	s.log().Info("signed in", zap.String("subject", in.Session.Subject), zap.String("session", in.Session.ID), zap.String("client_ip", clientIP(r)))
	return redirectTo(w, in.Return, http.StatusSeeOther) // RFC 9700, 4.12
}

// sender is who sent the browser's answer here.
func (s *signIn) sender(h *Handler, r *http.Request, cookies []login.Cookie) login.Sender {
	by := login.ClaimedSender(clientIP(r))
	if address := h.addresses.ofSender(r); address.IsValid() {
		by = login.AddressSender(address)
	}
	text, n := login.Session(cookies, s.name)
	if m := s.rt.verifier.Minter(); n == 1 && m != nil && login.MayBeSession(text) && m.CheckTagged(text) {
		by = by.SignedInBefore(auth.SessionFingerprint(s.name, text))
	}
	return by
}

// open writes a new session, with an id that nobody knew before, and ends the one
// that the browser had.
func (s *signIn) open(r *http.Request, in *login.SignedIn, cookies []login.Cookie) (text string, err error) {
	rt := s.rt
	minter, ring := rt.verifier.Minter(), rt.ring.Load()
	db, err := rt.openDB()
	if err != nil || minter == nil || ring == nil {
		return "", errors.Join(err, auth.ErrUnavailable)
	}
	tokens, err := in.Tokens.Encode()
	if err != nil {
		return "", err
	}
	text = minter.Tagged(login.NewSession())
	in.Session.Fingerprint = auth.SessionFingerprint(s.name, text)
	if err := db.InsertSession(r.Context(), ring, in.Session, in.Began, tokens, time.Duration(s.Idle), time.Duration(s.Lifetime)); err != nil {
		if !errors.Is(err, auth.ErrConflict) {
			s.log().Error("a session could not be written", zap.Error(hinted(err)))
		}
		return "", err
	}
	if old, n := login.Session(cookies, s.name); n == 1 && minter.CheckTagged(old) {
		if _, err := rt.endSessions(r.Context(), in.Session.Subject, store.SessionFilter{Fingerprint: auth.SessionFingerprint(s.name, old)}, "signed in again"); err != nil {
			s.log().Warn("the session before could not be ended", zap.Error(hinted(err)))
		}
	}
	return text, nil
}

// dropTokens tells the provider that nobody will use tokens. It does not wait.
func (s *signIn) dropTokens(t login.Tokens) {
	s.rt.enter()
	go func() {
		defer s.rt.leave()
		ctx, cancel := context.WithTimeout(context.Background(), touchTimeout)
		defer cancel()
		if err := s.client.RevokeTokens(ctx, t); err != nil {
			s.log().Warn("tokens of a sign-in that came to nothing could not be revoked", zap.Error(hinted(err)))
		}
	}()
}

// failed shows why nobody was signed in. Who runs the gateway finds more in the
// log.
func (s *signIn) failed(h *Handler, w http.ResponseWriter, r *http.Request, err error, status int) error {
	e := &login.Error{Cause: login.CauseUnavailable}
	errors.As(err, &e)
	page, code := pageError, http.StatusBadGateway
	switch e.Cause {
	case login.CauseState, login.CauseCode:
		code = http.StatusBadRequest
	case login.CauseTooMany:
		code = http.StatusTooManyRequests
		w.Header().Set("Retry-After", strconv.Itoa(int(e.RetryAfter.Seconds())+1))
	case login.CauseDenied:
		page, code = pageDenied, http.StatusForbidden
	case login.CauseUnavailable:
		page, code = pageUnavailable, http.StatusServiceUnavailable
		w.Header().Set("Retry-After", "1")
	}
	if status != 0 {
		code = status
	}
	instance := newInstance()
	metrics.logins.WithLabelValues(s.name, string(e.Cause)).Inc()
	h.logRefused(r, "login_"+string(e.Cause), instance, "")
	h.decisions.write("sign-in failed", string(e.Cause), "", zap.String("code", "login_"+string(e.Cause)), zap.Int("status", code), zap.String("instance", instance),
		zap.String("login", s.name), zap.String("client_ip", clientIP(r)), zap.String("path", loggedPath(r)), zap.NamedError("cause", hinted(err)))
	if code < http.StatusInternalServerError || errors.Is(err, auth.ErrOverloaded) {
		h.pace(w, r)
	}
	return s.showInstance(w, r, page, code, e.Return, instance)
}

// serveLogout shows the page that asks, or ends the session.
func (s *signIn) serveLogout(h *Handler, w http.ResponseWriter, r *http.Request, cookies []login.Cookie) error {
	text, n := login.Session(cookies, s.name)
	if r.Method != http.MethodPost {
		if n == 0 {
			return s.show(w, r, pageSignedOut, http.StatusOK, "/")
		}
		return s.show(w, r, pageSignOut, http.StatusOK, "/")
	}
	rest := body.Leave(w, r)
	defer rest.Finish()
	rest.Settle()
	if !s.same.Allows(r) {
		return h.refuse(w, r, &auth.Refusal{Code: auth.CodeNotAllowed, Reason: "cross_site", Detail: "people are logged out only from pages of the same origin"}, nil)
	}
	if n > 1 {
		return h.refuse(w, r, &auth.Refusal{Code: auth.CodeInvalidRequest, Detail: "more than one session's cookie"}, nil)
	}
	back := whole(r, s.AfterLogout)
	if m := s.rt.verifier.Minter(); n != 1 || m != nil && !m.CheckTagged(text) {
		s.dropSession(w)
		return redirectTo(w, s.LogoutPath, http.StatusSeeOther)
	}
	hint, err := s.logOut(r, auth.SessionFingerprint(s.name, text))
	if err != nil { // the cookie stays: nobody is told to be logged out who is not
		return s.failed(h, w, r, &login.Error{Cause: login.CauseUnavailable, Detail: "the session could not be ended: " + err.Error()}, 0)
	}
	s.dropSession(w)
	metrics.logins.WithLabelValues(s.name, "signed_out").Inc()
	if at := s.client.LogoutURL(r.Context(), hint, back); at != "" {
		return redirectTo(w, at, http.StatusSeeOther)
	}
	return redirectTo(w, back, http.StatusSeeOther)
}

// logOut ends a session everywhere, its tokens too. It returns its ID token.
func (s *signIn) logOut(r *http.Request, fp auth.Fingerprint) (hint string, err error) {
	db, err := s.rt.openDB()
	if err != nil {
		return "", err
	}
	l, err := db.LookupSession(r.Context(), fp)
	if err != nil || l.Session == nil {
		return "", err
	}
	if kept, err := s.keeper.Tokens(r.Context(), l.Session.ID); err == nil {
		hint = s.client.IDTokenOf(kept)
	}
	n, err := s.rt.endSessions(r.Context(), l.Session.Subject, store.SessionFilter{Fingerprint: fp}, "logout")
	if err != nil {
		return "", err
	}
	if n > 0 {
		s.log().Info("logged out", zap.String("subject", l.Session.Subject), zap.String("session", l.Session.ID))
	}
	return hint, nil
}

// maxLogoutBody is the longest form of a back-channel logout, in bytes.
const maxLogoutBody = 32 << 10

// serveBackChannel honours that the provider says somebody logged out elsewhere
// (OpenID Connect Back-Channel Logout 1.0, 2.5 to 2.8).
func (s *signIn) serveBackChannel(h *Handler, w http.ResponseWriter, r *http.Request, _ []login.Cookie) error {
	refuse := func(status int, code string, cause error) error {
		rest := body.Leave(w, r)
		h.logRefused(r, "login_"+code, "", "")
		h.decisions.write("refused", "backchannel_logout", "", zap.String("code", "login_"+code), zap.Int("status", status), zap.String("login", s.name),
			zap.String("client_ip", clientIP(r)), zap.String("path", loggedPath(r)), zap.NamedError("cause", cause))
		if status < http.StatusInternalServerError {
			h.pace(w, r)
		} else {
			w.Header().Set("Retry-After", "1")
		}
		w.Header().Set("Content-Type", "application/json")
		boundAnswer(w, r)
		rest.Settle()
		w.WriteHeader(status)
		_, _ = io.WriteString(w, `{"error":"`+code+`"}`) // the provider may be gone
		rest.Finish()
		return nil
	}
	if kind, _, _ := strings.Cut(r.Header.Get("Content-Type"), ";"); !strings.EqualFold(strings.TrimSpace(kind), "application/x-www-form-urlencoded") {
		return refuse(http.StatusBadRequest, "invalid_request", errors.New("no form"))
	}
	text, err := body.Read(w, r, maxLogoutBody)
	if err != nil {
		return refuse(http.StatusBadRequest, "invalid_request", fmt.Errorf("reading the form: %w", err))
	}
	form, err := url.ParseQuery(string(text))
	if err != nil || len(form["logout_token"]) != 1 {
		return refuse(http.StatusBadRequest, "invalid_request", errors.New("want one logout_token"))
	}
	out, err := s.client.JudgeLogout(r.Context(), form.Get("logout_token"))
	var e *login.Error
	switch {
	case errors.As(err, &e) && e.Cause != login.CauseUnavailable:
		return refuse(http.StatusBadRequest, "invalid_request", err)
	case err != nil:
		return refuse(http.StatusServiceUnavailable, "temporarily_unavailable", err)
	}
	n, err := s.loggedOut(r.Context(), out)
	if err != nil {
		return refuse(http.StatusServiceUnavailable, "temporarily_unavailable", err)
	}
	s.log().Info("the provider says that somebody logged out", zap.Int("sessions", n))
	w.WriteHeader(http.StatusOK)
	return nil
}

// loggedOut ends what a provider says has ended: the session of a sid, and those
// of the sub of which it never told a sid; or all of a sub.
func (s *signIn) loggedOut(ctx context.Context, out login.LoggedOut) (ended int, err error) {
	db, err := s.rt.openDB()
	if err != nil {
		return 0, err
	}
	if err := db.NoteLogout(ctx, s.name, s.authority, out.Sub, out.SID, out.At); err != nil {
		return 0, err
	}
	filters := []store.SessionFilter{{SID: out.SID}}
	if out.SID == "" {
		filters[0] = store.SessionFilter{Sub: out.Sub}
	} else if out.Sub != "" {
		filters = append(filters, store.SessionFilter{Sub: out.Sub, NoSID: true})
	}
	for _, f := range filters {
		f.Login, f.Authority, f.Before = s.name, s.authority, out.Before.UnixMilli()
		n, err := s.rt.endSessions(ctx, "login:"+s.name, f, "logged out at the provider")
		if err != nil {
			return ended, err
		}
		ended += n
	}
	return ended, nil
}
