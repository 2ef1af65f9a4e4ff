package caddymodule

import (
	"context"
	"crypto/tls"
	"net/http"
	"slices"

	"github.com/caddyserver/caddy/v2/modules/caddyhttp"
	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
)

// heldRequest is a request that a logger was given by Logger.With, as it was in
// that moment. Caddy's proxy does that with each request, for entries that are
// hardly ever written; encoding and masking it waits for one that is.
type heldRequest struct {
	key string

	remote, clientIP, proto, method, host, uri string
	encoding                                   []string
	tls                                        *tls.ConnectionState
	headers                                    []heldHeader
	creds                                      bool
}

type heldHeader struct {
	name, first string
	values      []string // nil: only first
}

// holdRequest copies what is logged of a request, or returns nil if value is
// none. Later changes of the request do not show.
func holdRequest(key string, value zapcore.ObjectMarshaler) *heldRequest {
	loggable, ok := value.(caddyhttp.LoggableHTTPRequest)
	if !ok || loggable.Request == nil {
		return nil
	}
	r := loggable.Request
	clientIP, _ := caddyhttp.GetVar(r.Context(), caddyhttp.ClientIPVarKey).(string)
	h := &heldRequest{
		key: key, remote: r.RemoteAddr, clientIP: clientIP, proto: r.Proto, method: r.Method, host: r.Host, uri: r.RequestURI,
		encoding: slices.Clone(r.TransferEncoding), tls: r.TLS, headers: make([]heldHeader, 0, len(r.Header)), creds: loggable.ShouldLogCredentials,
	}
	for name, values := range r.Header {
		if len(values) == 1 {
			h.headers = append(h.headers, heldHeader{name: name, first: values[0]})
		} else {
			h.headers = append(h.headers, heldHeader{name: name, values: append([]string{}, values...)})
		}
	}
	return h
}

// field is the request for an encoder that masks.
func (h *heldRequest) field() zapcore.Field {
	ctx := context.Background()
	if h.clientIP != "" {
		ctx = context.WithValue(ctx, caddyhttp.VarsCtxKey, map[string]any{caddyhttp.ClientIPVarKey: h.clientIP})
	}
	header := make(http.Header, len(h.headers))
	for i := range h.headers {
		one := &h.headers[i]
		if one.values == nil {
			header[one.name] = []string{one.first}
		} else {
			header[one.name] = one.values
		}
	}
	r := (&http.Request{
		RemoteAddr: h.remote, Proto: h.proto, Method: h.method, Host: h.host, RequestURI: h.uri,
		TransferEncoding: h.encoding, TLS: h.tls, Header: header,
	}).WithContext(ctx)
	return zap.Object(h.key, caddyhttp.LoggableHTTPRequest{Request: r, ShouldLogCredentials: h.creds})
}
