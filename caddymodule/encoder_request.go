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

// heldRequest is what is logged of a request, as it was when it was held.
type heldRequest struct {
	remote, clientIP, proto, method, host, uri string
	encoding                                   []string
	tls                                        *tls.ConnectionState
	headers                                    []heldHeader
	more                                       [][]string // values of headers that have not exactly one
	creds                                      bool
}

// heldHeader is a header with one value, or with the next of heldRequest.more.
type heldHeader struct {
	name, value string
	several     bool
}

// holdRequest copies what is logged of a request, or returns nil if value is
// none. Later changes of the request do not show.
func holdRequest(value zapcore.ObjectMarshaler) *heldRequest {
	loggable, ok := value.(caddyhttp.LoggableHTTPRequest)
	if !ok || loggable.Request == nil {
		return nil
	}
	r := loggable.Request
	clientIP, _ := caddyhttp.GetVar(r.Context(), caddyhttp.ClientIPVarKey).(string)
	h := &heldRequest{
		remote: r.RemoteAddr, clientIP: clientIP, proto: r.Proto, method: r.Method, host: r.Host, uri: r.RequestURI,
		encoding: slices.Clone(r.TransferEncoding), tls: r.TLS, headers: make([]heldHeader, 0, len(r.Header)), creds: loggable.ShouldLogCredentials,
	}
	for name, values := range r.Header {
		if len(values) == 1 {
			h.headers = append(h.headers, heldHeader{name: name, value: values[0]})
		} else {
			h.headers = append(h.headers, heldHeader{name: name, several: true})
			h.more = append(h.more, slices.Clone(values))
		}
	}
	return h
}

// field is the request for an encoder that masks.
func (h *heldRequest) field(key string) zapcore.Field {
	ctx := context.Background()
	if h.clientIP != "" {
		ctx = context.WithValue(ctx, caddyhttp.VarsCtxKey, map[string]any{caddyhttp.ClientIPVarKey: h.clientIP})
	}
	header, more := make(http.Header, len(h.headers)), h.more
	for _, one := range h.headers {
		if one.several {
			header[one.name], more = more[0], more[1:]
		} else {
			header[one.name] = []string{one.value}
		}
	}
	r := (&http.Request{
		RemoteAddr: h.remote, Proto: h.proto, Method: h.method, Host: h.host, RequestURI: h.uri,
		TransferEncoding: h.encoding, TLS: h.tls, Header: header,
	}).WithContext(ctx)
	return zap.Object(key, caddyhttp.LoggableHTTPRequest{Request: r, ShouldLogCredentials: h.creds})
}
