package caddymodule

import (
	"net/http"
	"strings"
	"time"

	"github.com/caddyserver/caddy/v2/modules/caddyhttp"

	"github.com/caddy-auth/caddy-auth/internal/auth"
	"github.com/caddy-auth/caddy-auth/internal/stream"
	"github.com/caddy-auth/caddy-auth/internal/verifier"
)

// ServeHTTP implements caddyhttp.MiddlewareHandler. Its order is the design's:
// strip, scan, extract, verify, judge, inject.
func (h *Handler) ServeHTTP(w http.ResponseWriter, r *http.Request, next caddyhttp.Handler) error {
	rt := h.app.rt
	rt.enter()
	defer rt.leave()
	if c := callerOf(r); c != nil {
		return h.again(w, r, next, c)
	}
	prefixes := h.app.rt.prefixes()
	presented := h.sources.Take(r.Header, prefixes, h.ForwardCredential)
	h.policy.Clean(r, h.sources.Aliases())
	target := h.site.JudgeTarget(r.Method, originalTarget(r), verifier.IsPreflight(r.Method, r.Header), prefixes, h.app.rt.verifier.Imported())
	switch {
	case target.Refusal != nil:
		h.burn(r, target.Leaked)
		return h.refuse(w, r, target.Refusal, nil)
	case target.Public:
		return h.passAnonymous(w, r, next, true)
	case presented.Refusal != nil:
		return h.refuse(w, r, presented.Refusal, nil)
	case h.tooEarly(r) && !verifier.SafeMethod(r.Method):
		return h.refuse(w, r, verifier.TooEarlyRefusal(), nil)
	case presented.Credential == "":
		if h.Optional {
			return h.passAnonymous(w, r, next, false)
		}
		return h.refuse(w, r, h.sources.MissingRefusal(), nil)
	}
	h.app.rt.awaitOpen(r.Context())
	seen, fp := rt.streams.Changes(), auth.FingerprintOf(presented.Credential)
	now := time.Now()
	var verdict auth.Verdict
	if presented.Bearer {
		verdict, fp = rt.verifier.VerifyBearer(r.Context(), fp, presented.Credential, h.tokens, now)
	} else {
		verdict = rt.verifier.Verify(r.Context(), fp, presented.Credential, now)
	}
	switch verdict.Outcome {
	case auth.Allow:
	case auth.Deny:
		return h.refuse(w, r, verifier.DenialRefusal(verdict.Reason), &verdict.Identity)
	default:
		return h.refuse(w, r, verifier.UndecidedRefusal(verdict.Cause), nil)
	}
	if refusal := h.site.JudgeIdentity(&verdict.Identity, h.addresses.of(r, &verdict.Identity)); refusal != nil {
		return h.refuse(w, r, refusal, &verdict.Identity)
	}
	if verdict.Identity.Networks != "" && h.tooEarly(r) {
		return h.refuse(w, r, verifier.TooEarlyRefusal(), &verdict.Identity)
	}
	h.warnPlainHTTP(r)
	metrics.allowed[verdict.Identity.Method].Inc()
	c := &caller{handler: h, verified: true, identity: verdict.Identity}
	c.inject(r.Header)
	c.attach(r)
	if h.Streams == "detached" {
		c.Name(fp) // a later handler may mind
		return next.ServeHTTP(w, r)
	}
	whole := r.Context()
	c.follow(w, r, fp, now, seen)
	return c.serveFollowed(whole, w, r, next)
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
	h.sources.Take(r.Header, h.app.rt.prefixes(), h.ForwardCredential) // its credential headers go, unread
	h.policy.Clean(r, h.sources.Aliases())
	c.add(h.policy)
	c.inject(r.Header)
	target := h.site.JudgeTarget(r.Method, originalTarget(r), verifier.IsPreflight(r.Method, r.Header), h.app.rt.prefixes(), h.app.rt.verifier.Imported())
	if target.Refusal != nil {
		h.burn(r, target.Leaked)
		return h.refuse(w, r, target.Refusal, nil)
	}
	if !c.verified {
		if target.Public || h.Optional {
			c.public = c.public && target.Public
			return next.ServeHTTP(w, r)
		}
		return h.refuse(w, r, h.sources.MissingRefusal(), nil)
	}
	if !target.Public {
		if h.tooEarly(r) && (c.identity.Networks != "" || !verifier.SafeMethod(r.Method)) {
			return h.refuse(w, r, verifier.TooEarlyRefusal(), &c.identity)
		}
		if c.identity.Expired(time.Now()) {
			return h.refuse(w, r, verifier.DenialRefusal(auth.ReasonExpired), &c.identity)
		}
		if refusal := h.site.JudgeIdentity(&c.identity, h.addresses.of(r, &c.identity)); refusal != nil {
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
