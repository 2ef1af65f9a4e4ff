package caddymodule

import (
	"net/http"
	"strings"

	"github.com/caddyserver/caddy/v2/modules/caddyhttp"
	"go.uber.org/zap"
)

// Fields that access lines have too, so that they can be joined with the decision
// log, the audit log and what a client reports.
const (
	fieldCredential = "credential_id"
	fieldCode       = "auth_code"
	fieldInstance   = "instance"
)

// logBeside adds fields to a request's access line. Without access logs it does
// nothing.
func (h *Handler) logBeside(r *http.Request, fields ...zap.Field) {
	if !h.accessLogs {
		return
	}
	extra, ok := r.Context().Value(caddyhttp.ExtraLogFieldsCtxKey).(*caddyhttp.ExtraLogFields)
	if !ok {
		return
	}
	for _, f := range fields {
		if f.String != "" {
			extra.Set(f)
		}
	}
}

// logRefused adds what a refusal is known by to a request's access line.
func (h *Handler) logRefused(r *http.Request, code, instance, credential string) {
	h.logBeside(r, zap.String(fieldCode, code), zap.String(fieldInstance, instance), zap.String(fieldCredential, credential))
}

// maxLoggedPath bounds the path in a line of the decision log, in bytes.
const maxLoggedPath = 512

// loggedPath is the path that a client sent, as it may be logged and kept: masked,
// then cut to what people read.
func loggedPath(r *http.Request) string {
	path, _, _ := strings.Cut(originalTarget(r), "?")
	path = masker.String(path)
	if len(path) > maxLoggedPath {
		path = strings.ToValidUTF8(path[:maxLoggedPath], "") + "…"
	}
	return path
}
