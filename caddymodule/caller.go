package caddymodule

import (
	"context"
	"net/http"
	"strings"
	"time"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp"
	"go.uber.org/zap"

	"github.com/caddy-auth/caddy-auth/internal/auth"
	"github.com/caddy-auth/caddy-auth/internal/forward"
	"github.com/caddy-auth/caddy-auth/internal/stream"
)

const callerVar = "auth.caller"

// caller is what an auth handler leaves on a request it lets through. It
// belongs to that one request.
type caller struct {
	stream.Stream // while the request is under way
	writer        http.ResponseWriter

	handler  *Handler // the first auth handler
	identity auth.Identity
	verified bool // identity is set
	public   bool // let through because the path is public
	values   [forward.UsualHeaders]string

	later *[]*forward.Policy // of every later auth handler so far; nil: none
}

// inject puts the identity's headers in, for every auth handler so far.
func (c *caller) inject(h http.Header) {
	if !c.verified {
		return
	}
	c.handler.policy.Inject(h, &c.identity, c.values[:])
	if c.later == nil {
		return
	}
	for _, p := range *c.later {
		p.Inject(h, &c.identity, nil)
	}
}

// add makes a later handler's policy one of the caller's.
func (c *caller) add(p *forward.Policy) {
	if c.later == nil {
		c.later = new([]*forward.Policy)
	}
	*c.later = append(*c.later, p)
}

// callerOf returns what an earlier auth handler left, or nil.
func callerOf(r *http.Request) *caller {
	vars, _ := r.Context().Value(caddyhttp.VarsCtxKey).(map[string]any)
	c, _ := vars[callerVar].(*caller)
	return c
}

// attach makes the caller known to later handlers and, through placeholders,
// to the rest of the configuration and the access log.
func (c *caller) attach(r *http.Request) {
	caddyhttp.SetVar(r.Context(), callerVar, c)
	if !c.verified {
		return
	}
	if repl, ok := r.Context().Value(caddy.ReplacerCtxKey).(*caddy.Replacer); ok {
		repl.Map(c.placeholder)
	}
}

// placeholder answers {http.auth.user.*}.
func (c *caller) placeholder(key string) (any, bool) {
	name, ok := strings.CutPrefix(key, "http.auth.user.")
	if !ok {
		return nil, false
	}
	switch name {
	case "id":
		return c.identity.Subject, true
	case "credential_id":
		return c.identity.CredentialID, true
	case "method":
		return string(c.identity.Method), true
	case "scopes":
		return c.identity.Scopes, true
	case "environment":
		return c.identity.Environment, true
	case "issuer":
		return c.identity.Issuer, true
	}
	if meta, ok := strings.CutPrefix(name, "meta."); ok {
		return c.identity.MetaValue(meta), true
	}
	return nil, false
}

// String keeps identities out of {http.vars.*}.
func (c *caller) String() string { return "" }

// follow keeps what it takes to end the request. A deadline that has passed
// ends it on HTTP/1 and 2, silent streams included, at no cost before that.
// HTTP/3 needs a context of its own.
func (c *caller) follow(w http.ResponseWriter, r *http.Request) *http.Request {
	c.writer = w
	if r.ProtoMajor < 3 {
		return r
	}
	ctx, cancel := context.WithCancel(r.Context())
	c.writer = &cancelledWriter{w, cancel}
	return r.WithContext(ctx)
}

// cancelledWriter is a writer that knows how to cancel its request.
type cancelledWriter struct {
	http.ResponseWriter
	cancel context.CancelFunc
}

// Unwrap is for http.ResponseController.
func (w *cancelledWriter) Unwrap() http.ResponseWriter { return w.ResponseWriter }

// unfollow is called when the request has been answered.
func (c *caller) unfollow() {
	c.handler.app.rt.streams.Remove(&c.Stream)
	if w, ok := c.writer.(*cancelledWriter); ok {
		w.cancel()
	}
}

// Identity implements stream.Request.
func (c *caller) Identity() *auth.Identity { return &c.identity }

// End implements stream.Request: it cuts the connection, or on HTTP/2 and 3
// the request's stream.
func (c *caller) End(reason string) {
	metrics.ended.WithLabelValues(reason).Inc()
	fields := []zap.Field{zap.String("code", "stream_ended"), zap.String("subject", c.identity.Subject)}
	if c.identity.Hint != "" {
		fields = append(fields, zap.String("hint", c.identity.Hint))
	}
	c.handler.decisions.write(reason, c.identity.CredentialID, fields...)
	past := time.Unix(1, 0)
	// Not every writer can do both; one that can do neither is in no server.
	control := http.NewResponseController(c.writer)
	_, _ = control.SetWriteDeadline(past), control.SetReadDeadline(past)
	if w, ok := c.writer.(*cancelledWriter); ok {
		w.cancel()
	}
}
