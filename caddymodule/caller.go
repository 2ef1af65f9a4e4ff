package caddymodule

import (
	"context"
	"net"
	"net/http"
	goruntime "runtime"
	"strings"
	"sync/atomic"
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
	stream.Stream     // while the request is under way
	cut           any // what ends the request: a net.Conn, or a writer; nil: it is not followed

	handler  *Handler // the first auth handler
	identity auth.Identity
	verified bool // identity is set
	public   bool // let through because the path is public
	state    atomic.Uint32
	values   [forward.UsualHeaders]string

	later *[]*Handler // every later auth handler so far; nil: none
}

// inject puts the identity's headers in, for every auth handler so far. It may
// be that none can be signed now.
func (c *caller) inject(r *http.Request) *auth.Refusal {
	if !c.verified {
		return nil
	}
	if refusal := c.handler.assert(r, c); refusal != nil {
		return refusal // and nothing is told
	}
	c.handler.policy.Inject(r.Header, &c.identity, c.values[:])
	if c.later == nil {
		return nil
	}
	for _, h := range *c.later {
		if refusal := h.assert(r, c); refusal != nil {
			return refusal
		}
		h.policy.Inject(r.Header, &c.identity, nil)
	}
	return nil
}

// add makes a later handler one of the caller's.
func (c *caller) add(h *Handler) {
	if c.later == nil {
		c.later = new([]*Handler)
	}
	*c.later = append(*c.later, h)
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

// placeholder answers {http.auth.user.*}: encoded, so that a value that a
// client, a provider or an issuer chose can't climb where it is put into a path;
// {http.auth.user.raw.*} is the value as it is.
func (c *caller) placeholder(key string) (any, bool) {
	name, ok := strings.CutPrefix(key, "http.auth.user.")
	if !ok {
		return nil, false
	}
	name, raw := strings.CutPrefix(name, "raw.")
	value, ok := identityField(&c.identity, name)
	if !ok {
		return nil, false
	}
	if raw {
		return value, true
	}
	return forward.EncodePlaceholder(value, name == "scopes"), true
}

// identityField reads a field of an identity by its name in placeholders.
func identityField(id *auth.Identity, name string) (value string, ok bool) {
	switch name {
	case "id":
		return id.Subject, true
	case "credential_id":
		return id.CredentialID, true
	case "method":
		return string(id.Method), true
	case "scopes":
		return id.Scopes, true
	case "environment":
		return id.Environment, true
	case "issuer":
		return id.Issuer, true
	}
	if meta, ok := strings.CutPrefix(name, "meta."); ok && !strings.HasPrefix(meta, ":") { // those are the gateway's own
		return id.MetaValue(meta), true
	}
	return "", false
}

// String keeps identities out of {http.vars.*}.
func (c *caller) String() string { return "" }

// States of a caller that is followed.
const (
	underWay uint32 = iota
	ending
	ended
	finished
)

// follow keeps what it takes to end the request, at no cost before that: the
// connection on HTTP/1, the writer otherwise. HTTP/3 needs a context of its
// own.
func (c *caller) follow(w http.ResponseWriter, r *http.Request, fp auth.Fingerprint, began time.Time, seen uint64) {
	if len(r.Header["Upgrade"]) > 0 || r.Method == http.MethodConnect {
		began = time.Time{} // no answer to wait for
	}
	c.cut = w
	switch {
	case r.ProtoMajor == 1:
		if conn, ok := r.Context().Value(connKey{}).(net.Conn); ok {
			c.cut = conn
		}
	case r.ProtoMajor > 2:
		ctx, cancel := context.WithCancel(r.Context())
		c.cut = &cancelledWriter{w, cancel}
		*r = *r.WithContext(ctx) // in place: the error routes get this request
	}
	c.handler.app.rt.streams.Add(&c.Stream, c, fp, began, seen)
}

// cancelledWriter is a writer that knows how to cancel its request.
type cancelledWriter struct {
	http.ResponseWriter
	cancel context.CancelFunc
}

// unfollow is called when the request has been answered. After it nothing that
// belonged to the request is touched.
func (c *caller) unfollow() {
	c.handler.app.rt.streams.Remove(&c.Stream)
	for !c.state.CompareAndSwap(underWay, finished) && c.state.Load() == ending {
		goruntime.Gosched()
	}
	if w, ok := c.cut.(*cancelledWriter); ok {
		w.cancel()
	}
}

// serveFollowed calls the next handler for a request that is followed. If it
// returns an error, the error routes may answer at length. whole is the
// request's context, which ends with it.
func (c *caller) serveFollowed(whole context.Context, w http.ResponseWriter, r *http.Request, next caddyhttp.Handler) (err error) {
	defer func() {
		if err == nil {
			c.unfollow()
			return
		}
		rt := c.handler.app.rt
		rt.enter()
		context.AfterFunc(whole, func() { c.unfollow(); rt.leave() })
	}()
	return next.ServeHTTP(w, r)
}

// Identity implements stream.Request.
func (c *caller) Identity() *auth.Identity { return &c.identity }

// End implements stream.Request: it cuts the connection, or on HTTP/2 and 3
// the request's stream.
func (c *caller) End(reason string) {
	if !c.state.CompareAndSwap(underWay, ending) {
		return
	}
	cutOff(c.cut)
	c.state.Store(ended)
	metrics.ended.WithLabelValues(reason).Inc()
	fields := []zap.Field{zap.String("code", "stream_ended"), zap.String("subject", c.identity.Subject)}
	if c.identity.Hint != "" {
		fields = append(fields, zap.String("hint", c.identity.Hint))
	}
	c.handler.decisions.write("ended", reason, c.identity.CredentialID, fields...)
}

// cutOff ends a request for good: nothing that is written or read after it
// gets through, whatever deadlines others set.
func cutOff(target any) {
	// A request that ended in the error routes may just have been answered:
	// then its writer is nobody's any more.
	defer func() { _ = recover() }()
	switch t := target.(type) {
	case net.Conn:
		if inner, ok := t.(interface{ NetConn() net.Conn }); ok {
			t = inner.NetConn() // no farewell that could block
		}
		_ = t.Close() // it is closed either way
	case *cancelledWriter:
		t.cancel()
		cutOff(t.ResponseWriter)
	case http.ResponseWriter:
		past := time.Unix(1, 0)
		// Beneath the writers of others, which are not made for two goroutines.
		control := http.NewResponseController(innermost(t))
		_, _ = control.SetWriteDeadline(past), control.SetReadDeadline(past)
	}
}

func innermost(w http.ResponseWriter) http.ResponseWriter {
	for {
		u, ok := w.(interface{ Unwrap() http.ResponseWriter })
		if !ok {
			return w
		}
		w = u.Unwrap()
	}
}

// connKey is where a request's connection is kept.
type connKey struct{}

// keepConn makes a server's requests know their connection.
func keepConn(srv *caddyhttp.Server) {
	srv.RegisterConnContext(func(ctx context.Context, conn net.Conn) context.Context {
		if ctx.Value(connKey{}) != nil { // another handler's doing
			return ctx
		}
		return context.WithValue(ctx, connKey{}, conn)
	})
}
