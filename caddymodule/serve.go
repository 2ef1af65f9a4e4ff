package caddymodule

import (
	"net/http"
	"net/netip"
	"strings"
	"time"

	"github.com/caddyserver/caddy/v2/modules/caddyhttp"
	"go.uber.org/zap"

	"github.com/caddy-auth/caddy-auth/internal/auth"
	"github.com/caddy-auth/caddy-auth/internal/login"
	"github.com/caddy-auth/caddy-auth/internal/stream"
	"github.com/caddy-auth/caddy-auth/internal/verifier"
)

// ServeHTTP implements caddyhttp.MiddlewareHandler.
func (h *Handler) ServeHTTP(w http.ResponseWriter, r *http.Request, next caddyhttp.Handler) error {
	rt := h.app.rt
	rt.enter()
	defer rt.leave()
	if h.login == nil && h.app.signIns.any() { // cookies of logins come to every site of their host
		next = guarded(next)
	}
	if c := callerOf(r); c != nil {
		return h.again(w, r, next, c)
	}
	var j judgement
	h.judge(r, &j)
	if j.refusal != nil {
		if h.login != nil && h.explain == nil {
			if done, err := h.lead(w, r, &j); done {
				return err
			}
		}
		return h.refuse(w, r, j.refusal, j.refused())
	}
	if j.anonymous {
		return h.passAnonymous(w, r, next, j.public)
	}
	c, refusal := h.pass(r, &j)
	if refusal != nil {
		return h.refuse(w, r, refusal, nil)
	}
	if j.session {
		h.login.touch(j.fp, &c.identity, j.began)
	}
	if h.Streams == "detached" { // a later handler may mind
		return next.ServeHTTP(w, r)
	}
	whole := r.Context()
	c.follow(w, r, j.fp, j.began, j.seen)
	return c.serveFollowed(whole, w, r, next)
}

// judgement is what a handler makes of a request.
type judgement struct {
	refusal   *auth.Refusal // nil: it may pass
	verdict   auth.Verdict  // on the credential, if one was verified
	anonymous bool          // it may pass without an identity
	public    bool          // because of its path
	session   bool          // the credential is a session's cookie
	cookies   []login.Cookie

	fp    auth.Fingerprint // what a stream is known by
	began time.Time
	seen  uint64 // the changes that were applied before it was verified
}

// refused is whom to name when a request is refused, or nil. It is a copy, so
// that a judgement costs nothing where nobody is refused.
func (j *judgement) refused() *auth.Identity {
	if j.verdict.Outcome == auth.CannotDecide {
		return nil
	}
	id := j.verdict.Identity
	return &id
}

// judge decides on a request. Its order is the design's: strip, scan, extract,
// verify, judge. Each step is told to whoever wants an explanation.
func (h *Handler) judge(r *http.Request, j *judgement) {
	rt := h.app.rt
	prefixes := rt.prefixes()
	var in admitted
	h.admit(r, &in)
	presented := in.presented
	j.cookies = in.cookies
	target := h.site.JudgeTarget(r.Method, originalTarget(r), verifier.IsPreflight(r.Method, r.Header), prefixes, rt.verifier.Imported())
	h.explain.target(h, r, &target)
	switch {
	case target.Refusal != nil:
		h.burn(r, target.Leaked)
		j.refusal = target.Refusal
		return
	case target.Public:
		j.anonymous, j.public = true, true
		return
	}
	if !h.explain.assumesKey() {
		h.explain.credential(h, &presented)
	}
	session := ""
	if len(j.cookies) > 0 && h.login != nil && presented.Refusal == nil {
		session, presented.Refusal = h.session(r, j.cookies, &presented)
	}
	switch {
	case presented.Refusal != nil:
		j.refusal = presented.Refusal
		return
	case h.tooEarly(r) && !verifier.SafeMethod(r.Method):
		j.refusal = verifier.TooEarlyRefusal()
		return
	case presented.Credential == "" && session == "" && !h.explain.assumesKey():
		if j.anonymous = h.Optional; !h.Optional {
			j.refusal = h.sources.MissingRefusal()
		}
		return
	}
	h.verify(r, &presented, session, j)
	h.explain.verdict(h, &j.verdict)
	switch j.verdict.Outcome {
	case auth.Allow:
	case auth.Deny:
		j.refusal = verifier.DenialRefusal(j.verdict.Reason)
		return
	default:
		j.refusal = verifier.UndecidedRefusal(j.verdict.Cause)
		return
	}
	address := h.addresses.of(r, &j.verdict.Identity)
	h.explain.identity(h, &j.verdict.Identity, address)
	if j.refusal = h.site.JudgeIdentity(&j.verdict.Identity, address); j.refusal == nil && j.verdict.Identity.Networks != "" && h.tooEarly(r) {
		j.refusal = verifier.TooEarlyRefusal()
	}
}

// verify verifies the credential that a request presented.
func (h *Handler) verify(r *http.Request, presented *verifier.Presented, session string, j *judgement) {
	rt := h.app.rt
	rt.awaitOpen(r.Context())
	j.seen, j.began = rt.streams.Changes(), time.Now()
	if h.explain.assumesKey() {
		j.fp = h.explain.fp
		j.verdict = rt.verifier.VerifyAgain(r.Context(), j.fp, &auth.Identity{}, j.began)
		return
	}
	if session != "" {
		j.session, j.fp = true, auth.SessionFingerprint(h.login.name, session)
		j.verdict = rt.verifier.VerifySession(r.Context(), j.fp, session, h.login.judgedBy, j.began)
		return
	}
	j.fp = auth.FingerprintOf(presented.Credential)
	if presented.Bearer {
		j.verdict, j.fp = rt.verifier.VerifyBearer(r.Context(), j.fp, presented.Credential, h.tokens, h.asks(r), j.began)
		return
	}
	j.verdict = rt.verifier.Verify(r.Context(), j.fp, presented.Credential, j.began)
}

// asks is whose share of the questions to an introspector a request takes.
func (h *Handler) asks(r *http.Request) netip.Addr {
	if !h.tokens.Asks() {
		return netip.Addr{}
	}
	return auth.ClientPrefix(h.addresses.ofSender(r))
}

// pass makes a request the identity's, unless it can't be told to the upstream.
func (h *Handler) pass(r *http.Request, j *judgement) (*caller, *auth.Refusal) {
	h.warnPlainHTTP(r)
	c := &caller{handler: h, verified: true, identity: j.verdict.Identity}
	c.Name(j.fp)
	if refusal := c.inject(r); refusal != nil {
		return nil, refusal
	}
	metrics.allowed[j.verdict.Identity.Method].Inc()
	if h.accessLogs {
		h.logBeside(r, zap.String(fieldCredential, c.identity.CredentialID))
	}
	c.attach(r)
	return c, nil
}

func (h *Handler) passAnonymous(w http.ResponseWriter, r *http.Request, next caddyhttp.Handler, public bool) error {
	if public {
		metrics.public.Inc()
	} else {
		metrics.anonymous.Inc()
	}
	c := &caller{handler: h, public: public}
	c.attach(r)
	return next.ServeHTTP(w, r)
}

// again is a later auth on a request that an earlier one let through: it
// keeps the identity and adds its own checks. It cleans first, as on every
// path, and puts the identity back.
func (h *Handler) again(w http.ResponseWriter, r *http.Request, next caddyhttp.Handler, c *caller) error {
	var in admitted
	h.admit(r, &in) // its credential headers go, unread
	c.add(h)
	if refusal := c.inject(r); refusal != nil {
		return h.refuse(w, r, refusal, nil)
	}
	target := h.site.JudgeTarget(r.Method, originalTarget(r), verifier.IsPreflight(r.Method, r.Header), h.app.rt.prefixes(), h.app.rt.verifier.Imported())
	h.explain.target(h, r, &target)
	if target.Refusal != nil {
		h.burn(r, target.Leaked)
		return h.refuse(w, r, target.Refusal, nil)
	}
	if !c.verified {
		if target.Public || h.Optional {
			c.public = c.public && target.Public
			return next.ServeHTTP(w, r)
		}
		j := judgement{refusal: h.sources.MissingRefusal(), cookies: in.cookies}
		if h.login != nil && h.explain == nil {
			if done, err := h.lead(w, r, &j); done {
				return err
			}
		}
		return h.refuse(w, r, j.refusal, nil)
	}
	if !target.Public {
		if refusal := h.judgeAgain(r, c); refusal != nil {
			return h.refuse(w, r, refusal, &c.identity)
		}
	}
	if c.verified && c.cut == nil && h.Streams != "detached" {
		whole := r.Context()
		c.follow(w, r, c.Named(), time.Now(), stream.Unseen)
		return c.serveFollowed(whole, w, r, next)
	}
	return next.ServeHTTP(w, r)
}

// judgeAgain applies a later handler's rules to the identity that is there.
func (h *Handler) judgeAgain(r *http.Request, c *caller) *auth.Refusal {
	if h.tooEarly(r) && (c.identity.Networks != "" || !verifier.SafeMethod(r.Method)) {
		return verifier.TooEarlyRefusal()
	}
	if c.identity.Expired(time.Now()) {
		return verifier.DenialRefusal(auth.ReasonExpired)
	}
	if h.login != nil && c.identity.Method == auth.MethodSession && c.identity.Issuer != h.login.name {
		return &auth.Refusal{Code: auth.CodeNotAllowed, Detail: "you are signed in elsewhere: this page is for those who sign in by " + h.login.name, Reason: "login"}
	}
	address := h.addresses.of(r, &c.identity)
	h.explain.identity(h, &c.identity, address)
	return h.site.JudgeIdentity(&c.identity, address)
}

// originalTarget is the request target as the client sent it, before any
// rewrite.
func originalTarget(r *http.Request) string {
	if or, ok := r.Context().Value(caddyhttp.OriginalRequestCtxKey).(http.Request); ok && or.RequestURI != "" {
		return or.RequestURI
	}
	return r.RequestURI
}

// tooEarly reports whether a request came as early data (RFC 8470), to us or,
// as it says, to a proxy before us, and this site minds. Who lies about it is
// only treated more strictly.
func (h *Handler) tooEarly(r *http.Request) bool {
	if h.EarlyData == "allow" {
		return false
	}
	if r.TLS != nil && !r.TLS.HandshakeComplete {
		return true
	}
	v := r.Header["Early-Data"]
	return len(v) > 0 && v[0] == "1"
}

// warnPlainHTTP says once that keys cross a network in clear.
func (h *Handler) warnPlainHTTP(r *http.Request) {
	if r.TLS != nil || h.plainHTTP.Load() {
		return
	}
	a := r.RemoteAddr
	if strings.HasPrefix(a, "127.") || strings.HasPrefix(a, "[::1]") || a == "" || a[0] == '@' || h.plainHTTP.Swap(true) {
		return
	}
	h.log.Warn("credentials arrive over plain HTTP from beyond this machine: anyone on the way can read them; serve this site over HTTPS")
}
