package caddymodule

import (
	"context"
	"fmt"
	"net/http"
	"net/url"
	"reflect"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp/tracing"
	"go.opentelemetry.io/otel/attribute"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/trace"
)

// spanMask masks the names and attributes of spans when they begin, which is when
// Caddy's tracing writes what the client sent: the path, the host, the user agent.
// What a configuration adds at their end is looked at when it is loaded (see
// checkExports).
type spanMask struct{ _ byte } // not empty: each is told from others by its address

// OnStart implements sdktrace.SpanProcessor.
func (*spanMask) OnStart(_ context.Context, s sdktrace.ReadWriteSpan) {
	if masked := masker.String(s.Name()); masked != s.Name() {
		s.SetName(masked)
	}
	maskState(s)
	for _, a := range s.Attributes() {
		_, secret := masker.Key(string(a.Key))
		switch a.Value.Type() {
		case attribute.STRING:
			if masked := maskValue(secret, a.Value.AsString()); masked != a.Value.AsString() {
				s.SetAttributes(a.Key.String(masked))
			}
		case attribute.STRINGSLICE:
			values := a.Value.AsStringSlice()
			for i := range values {
				values[i] = maskValue(secret, values[i])
			}
			s.SetAttributes(a.Key.StringSlice(values))
		}
	}
}

// maskState removes what clients send as tracestate (W3C Trace Context), if any of it
// would be masked: exporters send it as it is. There is no exported way to do that;
// nobody else has the span yet.
func maskState(s sdktrace.ReadWriteSpan) {
	state := s.SpanContext().TraceState().String()
	if state == "" || masker.String(state) == state {
		return
	}
	span := reflect.ValueOf(s)
	if span.Kind() != reflect.Pointer || span.Elem().Kind() != reflect.Struct {
		return
	}
	for _, name := range []string{"spanContext", "parent"} {
		if field := span.Elem().FieldByName(name); field.IsValid() && field.Type() == reflect.TypeFor[trace.SpanContext]() {
			c := (*trace.SpanContext)(field.Addr().UnsafePointer())
			*c = c.WithTraceState(trace.TraceState{})
		}
	}
}

// OnEnd implements sdktrace.SpanProcessor.
func (*spanMask) OnEnd(sdktrace.ReadOnlySpan) {}

// Shutdown implements sdktrace.SpanProcessor.
func (*spanMask) Shutdown(context.Context) error { return nil }

// ForceFlush implements sdktrace.SpanProcessor.
func (*spanMask) ForceFlush(context.Context) error { return nil }

// spanMasking is a spanMask in force. It holds one of Caddy's tracing handlers, so
// that their common provider lives as long.
type spanMasking struct {
	handler  *tracing.Tracing
	provider *sdktrace.TracerProvider
	mask     sdktrace.SpanProcessor
}

// maskSpans masks the spans of all sites of the process. Caddy's provider of tracers
// can be had only from a request that its handler has begun to trace, so one is made
// up; its headers ask not to record it.
func maskSpans(ctx caddy.Context) (*spanMasking, error) {
	m := &spanMasking{handler: new(tracing.Tracing), mask: &spanMask{}}
	if err := m.handler.Provision(ctx); err != nil {
		return nil, fmt.Errorf("setting up tracing: %w", err)
	}
	r := (&http.Request{
		Method: http.MethodGet, URL: &url.URL{Path: "/"}, Proto: "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1, Body: http.NoBody,
		Header: http.Header{"Traceparent": {"00-00000000000000000000000000000001-0000000000000001-00"}},
	}).WithContext(context.WithValue(ctx, caddy.ReplacerCtxKey, caddy.NewReplacer()))
	err := m.handler.ServeHTTP(nowhere{http.Header{}}, r, caddyhttp.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) error {
		m.provider, _ = trace.SpanFromContext(r.Context()).TracerProvider().(*sdktrace.TracerProvider)
		return nil
	}))
	if err == nil && m.provider == nil {
		err = fmt.Errorf("this release of Caddy traces otherwise: spans can't be masked; remove tracing")
	}
	if err != nil {
		_ = m.handler.Cleanup() // the first error is told
		return nil, err
	}
	m.provider.RegisterSpanProcessor(m.mask)
	return m, nil
}

// release lets go of the provider.
func (m *spanMasking) release() error {
	if m == nil {
		return nil
	}
	m.provider.UnregisterSpanProcessor(m.mask)
	return m.handler.Cleanup()
}

// nowhere is the writer of a request that nobody sent.
type nowhere struct{ header http.Header }

func (n nowhere) Header() http.Header         { return n.header }
func (n nowhere) Write(p []byte) (int, error) { return len(p), nil }
func (n nowhere) WriteHeader(int)             {}
