package caddymodule

import (
	"net/http"
	"strings"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp"

	"github.com/caddy-auth/caddy-auth/internal/auth"
	"github.com/caddy-auth/caddy-auth/internal/forward"
)

const callerVar = "auth.caller"

// caller is what an auth handler leaves on a request it lets through. It
// belongs to that one request.
type caller struct {
	handler  *Handler
	identity auth.Identity
	verified bool // identity is set
	public   bool // let through because the path is public
	values   [forward.MaxHeaders]string

	policies    []*forward.Policy // of every auth handler so far
	firstPolicy [1]*forward.Policy
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
