package caddymodule

import (
	"errors"
	"net/http"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/caddyconfig/caddyfile"
	"github.com/caddyserver/caddy/v2/caddyconfig/httpcaddyfile"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp"

	"github.com/caddy-auth/caddy-auth/internal/problem"
)

func init() {
	caddy.RegisterModule(Problem{})
	httpcaddyfile.RegisterHandlerDirective("auth_problem", parseBare[Problem]("auth_problem"))
	httpcaddyfile.RegisterDirectiveOrder("auth_problem", httpcaddyfile.Before, "respond")
}

// Problem writes an error as a problem (RFC 9457). It belongs into
// handle_errors, on sites whose auth has "errors handle_errors": there it
// writes the refusal as auth itself would have. Other errors get a problem
// with nothing but their status.
type Problem struct{}

// CaddyModule returns the Caddy module information.
func (Problem) CaddyModule() caddy.ModuleInfo {
	return caddy.ModuleInfo{ID: "http.handlers.auth_problem", New: func() caddy.Module { return new(Problem) }}
}

// ServeHTTP implements caddyhttp.MiddlewareHandler.
func (Problem) ServeHTTP(w http.ResponseWriter, r *http.Request, next caddyhttp.Handler) error {
	err, _ := r.Context().Value(caddyhttp.ErrorCtxKey).(error)
	if err == nil {
		return next.ServeHTTP(w, r)
	}
	var refused *refusedError
	if errors.As(err, &refused) {
		return refused.handler.problems.Write(w, r, refused.refusal, refused.instance)
	}
	status := http.StatusInternalServerError
	var he caddyhttp.HandlerError
	if errors.As(err, &he) && he.StatusCode != 0 {
		status = he.StatusCode
	}
	return problem.WriteStatus(w, r, status)
}

// parseBare parses a directive without arguments.
func parseBare[T any, P interface {
	*T
	caddyhttp.MiddlewareHandler
}](name string,
) httpcaddyfile.UnmarshalHandlerFunc {
	return func(h httpcaddyfile.Helper) (caddyhttp.MiddlewareHandler, error) {
		h.Next()
		if err := bare(h.Dispenser, name); err != nil {
			return nil, err
		}
		return P(new(T)), nil
	}
}

func bare(d *caddyfile.Dispenser, name string) error {
	if d.NextArg() {
		return d.ArgErr()
	}
	if d.NextBlock(d.Nesting()) {
		return d.Errf("%s has no subdirectives", name)
	}
	return nil
}

var _ caddyhttp.MiddlewareHandler = Problem{}
