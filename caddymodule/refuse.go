package caddymodule

import (
	"errors"
	"net/http"
	"time"

	"github.com/caddyserver/caddy/v2/modules/caddyhttp"
	"github.com/google/uuid"
	"go.uber.org/zap"

	"github.com/caddy-auth/caddy-auth/internal/auth"
	"github.com/caddy-auth/caddy-auth/internal/body"
	"github.com/caddy-auth/caddy-auth/internal/pace"
	"github.com/caddy-auth/caddy-auth/internal/problem"
	"github.com/caddy-auth/caddy-auth/internal/redact"
)

// refuse answers a request with a refusal, or hands it to the error routes,
// and writes the decision log. id may be nil; it is for the log only.
func (h *Handler) refuse(w http.ResponseWriter, r *http.Request, refusal *auth.Refusal, id *auth.Identity) error {
	instance := "urn:uuid:" + uuid.NewString()
	h.explain.refusal(h, refusal)
	h.logRefusal(r, refusal, id, instance)
	h.slowDown(w, r, refusal)
	rest := body.Leave(w, r)
	if h.Errors == "handle_errors" && !problem.IsGRPC(r) {
		if h.unguarded {
			rest.Discard()
			rest.Without(r)
		}
		status := h.problems.SetHeaders(w.Header(), refusal)
		return caddyhttp.Error(status, &refusedError{h, refusal, instance}) // the guard reads the rest
	}
	boundAnswer(w, r)
	rest.Settle()
	// The answer is given; that it could not be written is no error of the site's.
	_ = h.problems.Write(w, r, refusal, instance)
	rest.Finish()
	return nil
}

// answerTime is how long a client may take to read a refusal.
const answerTime = 10 * time.Second

// boundAnswer makes sure that a client of HTTP/2 or 3 that does not read can't
// keep a refused request for ever: its stream ends. On HTTP/1 a refusal fits into
// the buffers of the system, and a deadline would be the connection's.
func boundAnswer(w http.ResponseWriter, r *http.Request) {
	if r.ProtoMajor > 1 {
		_ = http.NewResponseController(w).SetWriteDeadline(time.Now().Add(answerTime)) // not every writer can do it
	}
}

// slowDown makes refusals that anybody can cause, and overload, wait when there are
// too many of them, so that good traffic keeps the processor. When too many wait, the
// rest lose their connections: on HTTP/2 it ends when what is under way has.
func (h *Handler) slowDown(w http.ResponseWriter, r *http.Request, refusal *auth.Refusal) {
	switch problem.Status(refusal.Code) {
	case http.StatusBadRequest, http.StatusUnauthorized, http.StatusTooEarly:
		h.pace(w, r)
	case http.StatusServiceUnavailable:
		if refusal.Overloaded {
			h.pace(w, r)
		}
	}
}

// pace makes an answer wait; see slowDown.
func (h *Handler) pace(w http.ResponseWriter, r *http.Request) {
	switch h.app.rt.pacer.Wait(r.Context()) {
	case pace.Waited:
		metrics.slowed.Inc()
	case pace.Full:
		w.Header().Set("Connection", "close")
	}
}

// refusedError is a refusal on its way to the error routes.
type refusedError struct {
	handler  *Handler
	refusal  *auth.Refusal
	instance string
}

// Error implements error. It contains no input.
func (e *refusedError) Error() string { return e.refusal.Error() }

// Unwrap gives the refusal.
func (e *refusedError) Unwrap() error { return e.refusal }

func (h *Handler) logRefusal(r *http.Request, refusal *auth.Refusal, id *auth.Identity, instance string) {
	reason := refusal.Reason
	if reason == "" || refusal.Code == auth.CodeUnavailable {
		reason = string(refusal.Code)
	}
	fields := []zap.Field{
		zap.String("code", string(refusal.Code)), zap.Int("status", problem.Status(refusal.Code)), zap.String("instance", instance),
		zap.String("client_ip", clientIP(r)), zap.String("host", h.loggable(r.Host)), zap.String("method", h.loggable(r.Method)), zap.String("path", loggedPath(r)),
	}
	if refusal.Code == auth.CodeUnavailable {
		fields = append(fields, zap.NamedError("cause", errors.New(refusal.Reason)))
	}
	credential, method := "", auth.Method("")
	if id != nil {
		method = id.Method
		credential = id.CredentialID
		if credential != "" && id.Method == auth.MethodAPIKey { // what others call their tokens is no key's id
			h.app.rt.refusals.note(credential, reason, time.Now())
		}
		if id.Hint != "" {
			fields = append(fields, zap.String("hint", id.Hint))
		}
		if id.Issuer != "" {
			fields = append(fields, zap.String("issuer", id.Issuer))
		}
		if id.Subject != "" {
			fields = append(fields, zap.String("subject", id.Subject))
		}
	}
	if refusal.Code == auth.CodeMissingCredential && h.site.WouldBePublic(r.Method, r.URL.EscapedPath()) {
		fields = append(fields, zap.String("note", "public matches the path the client sent; only the rewritten path would have matched"))
	}
	metrics.count(method, refusal.Code)
	h.logRefused(r, string(refusal.Code), instance, credential)
	h.decisions.write("refused", reason, credential, fields...)
}

// loggable is what may be logged of a text that a client chose: not a key,
// and not much.
func (h *Handler) loggable(s string) string {
	const most = 255 // the longest host name
	if len(s) > most || redact.HasKey(s, h.app.rt.prefixes()) {
		return "[redacted]"
	}
	return s
}
