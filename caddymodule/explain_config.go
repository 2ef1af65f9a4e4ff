package caddymodule

import (
	"encoding/json"
	"fmt"
	"net"
	"net/url"
	"slices"
	"strings"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp"

	"github.com/caddy-auth/caddy-auth/internal/auth"
)

// handlersThatRun are those that decide, or change what others decide on, and
// do nothing beyond the request.
var handlersThatRun = []string{"auth", "auth_login", "auth_require", "auth_problem", "subroute", "vars", "map", "rewrite", "headers", "error", "static_response", "invoke", "authentication"}

// handlersThatPass are those that only change answers, or count: they are left
// out without a word.
var handlersThatPass = []string{"encode", "templates", "push", "request_body", "tracing", "log_append", "intercept", "copy_response", "copy_response_headers"}

// handlersThatEnd answer themselves: a request that gets to one has passed.
var handlersThatEnd = []string{"reverse_proxy", "file_server", "acme_server", "auth_health", "metrics"}

// withoutEffects returns a configuration whose auth handlers and routes are
// the same, and which proxies, serves, listens and logs nothing. notes say what
// may come out differently for it. With logs they stay, to be looked at.
func withoutEffects(config []byte, logs bool) (out []byte, notes []string, err error) {
	var all struct {
		Apps    map[string]json.RawMessage `json:"apps"`
		Logging json.RawMessage            `json:"logging"`
	}
	if err := json.Unmarshal(config, &all); err != nil {
		return nil, nil, fmt.Errorf("reading the configuration: %w", err)
	}
	if all.Apps["http"] == nil {
		return nil, nil, auth.Invalidf("the configuration has no sites")
	}
	var web map[string]any
	if err := json.Unmarshal(all.Apps["http"], &web); err != nil {
		return nil, nil, fmt.Errorf("reading the sites: %w", err)
	}
	strip := stripper{}
	servers, _ := web["servers"].(map[string]any)
	for _, v := range servers {
		srv, _ := v.(map[string]any)
		for _, name := range []string{"tls_connection_policies", "listener_wrappers", "packet_conn_wrappers"} {
			delete(srv, name)
		}
		if !logs {
			delete(srv, "logs")
		}
		srv["automatic_https"] = map[string]any{"disable": true}
		for _, name := range []string{"routes", "errors", "named_routes"} {
			strip.walk(srv[name])
		}
	}
	apps := map[string]any{"http": map[string]any{"servers": servers}}
	if raw := all.Apps["auth"]; raw != nil {
		apps["auth"] = raw
	}
	if logs {
		made := map[string]any{"admin": map[string]any{"disabled": true}, "apps": apps}
		if all.Logging != nil {
			made["logging"] = all.Logging
		}
		out, err = json.Marshal(made)
		return out, strip.notes, err
	}
	out, err = json.Marshal(map[string]any{
		"admin": map[string]any{"disabled": true}, "apps": apps,
		// Discarding it would be logged.
		"logging": map[string]any{"logs": map[string]any{"default": map[string]any{"level": "PANIC", "encoder": map[string]any{"format": "auth_redact"}}}},
	})
	return out, strip.notes, err
}

// stripper replaces handlers.
type stripper struct{ notes []string }

// walk goes through routes, however they are nested.
func (s *stripper) walk(n any) {
	switch n := n.(type) {
	case []any:
		for _, x := range n {
			s.walk(x)
		}
	case map[string]any:
		if list, ok := n["handle"].([]any); ok {
			n["handle"] = s.handlers(list)
		}
		for _, x := range n {
			s.walk(x)
		}
	}
}

func (s *stripper) handlers(list []any) (out []any) {
	for _, v := range list {
		h, _ := v.(map[string]any)
		name, _ := h["handler"].(string)
		_, asks := h["handle_response"] // as forward_auth does, which then goes on
		switch {
		case slices.Contains(handlersThatRun, name):
			out = append(out, h)
		case name == "reverse_proxy" && asks:
			s.note("a proxy that looks at the answer (forward_auth) was not asked: in the gateway it may answer, or change the request")
		case slices.Contains(handlersThatEnd, name):
			out = append(out, map[string]any{"handler": "static_response", "status_code": 200, "headers": map[string]any{reachedHeader: []any{name}}})
		case !slices.Contains(handlersThatPass, name):
			s.note(name + " was not run: in the gateway it may answer, or change the request")
		}
	}
	return out
}

func (s *stripper) note(text string) {
	if !slices.Contains(s.notes, text) {
		s.notes = append(s.notes, text)
	}
}

// serverFor is the server that listens where a URL leads.
func serverFor(app *caddyhttp.App, u *url.URL) (*caddyhttp.Server, error) {
	port := u.Port()
	if port == "" {
		port = map[string]string{"http": "80", "https": "443"}[u.Scheme]
	}
	var ports []string
	var names []string
	for name, srv := range app.Servers {
		names = append(names, name)
		for _, listen := range srv.Listen {
			a, err := caddy.ParseNetworkAddress(listen)
			if err != nil {
				continue
			}
			for p := a.StartPort; p <= a.EndPort; p++ {
				if text := fmt.Sprint(p); text == port {
					return srv, nil
				} else if len(ports) < 10 {
					ports = append(ports, text)
				}
			}
		}
	}
	if len(names) == 1 && len(ports) == 0 { // a socket
		return app.Servers[names[0]], nil
	}
	slices.Sort(ports)
	return nil, auth.WithHint(fmt.Errorf("no server of the configuration listens on port %s: %w", port, auth.ErrNotFound), "they listen on "+strings.Join(ports, ", ")+": put the port into --url")
}

// targetOf is what a client sends of a URL: all behind the host, to the last
// byte.
func targetOf(text string) string {
	_, rest, _ := strings.Cut(text, "://")
	rest, _, _ = strings.Cut(rest, "#")
	if i := strings.IndexAny(rest, "/?"); i >= 0 {
		rest = rest[i:]
	} else {
		rest = ""
	}
	if !strings.HasPrefix(rest, "/") {
		rest = "/" + rest
	}
	return rest
}

func netJoin(from string) string {
	if _, _, err := net.SplitHostPort(from); err == nil {
		return from
	}
	return net.JoinHostPort(from, "40000")
}
