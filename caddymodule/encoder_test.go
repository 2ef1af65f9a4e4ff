package caddymodule

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"reflect"
	"strings"
	"testing"

	"github.com/caddyserver/caddy/v2/modules/caddyhttp"
	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
)

const loggedKey = "acme_live_0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmno"

type talkative struct{ short, long string }

func (t talkative) Error() string  { return t.short }
func (t talkative) String() string { return t.long }
func (t talkative) Format(f fmt.State, verb rune) {
	if f.Flag('+') {
		_, _ = fmt.Fprint(f, t.long)
		return
	}
	_, _ = fmt.Fprint(f, t.short)
}

type several []error

func (several) Error() string     { return "several" }
func (s several) Errors() []error { return s }

type nilStringer struct{ s string }

func (n *nilStringer) String() string { return n.s }

// TestEncoder_EveryKindOfField logs secrets in every way that zap has, with
// With and with Write, and looks for them.
func TestEncoder_EveryKindOfField(t *testing.T) {
	request := httptest.NewRequest(http.MethodGet, "/x?api_key=s3cret", nil)
	request.Header = http.Header{"X-Api-Key": {"s3cret"}, "X_Api_Key": {"s3cret"}, "Referer": {"https://h/?token=s3cret"}, "X-" + loggedKey: {"x"}, "X-Other": {"visible"}}
	header := caddyhttp.LoggableHTTPHeader{Header: request.Header}
	tree := map[string]any{"Header": map[string]any{"X-Api-Key": []string{"s3cret"}, "Cookie": "s3cret"}, "list": []any{loggedKey, 7}, loggedKey: 1, "password": "s3cret", "n": json.Number("12345678901234567890")}
	dict := zap.Dict("d", zap.String("HTTP_X_API_KEY", "s3cret"), zap.String("QUERY_STRING", "api_key=s3cret"), zap.Strings("Authorization", []string{"s3cret"}))
	fields := []zapcore.Field{
		zap.String("s", loggedKey), zap.String("X-Api-Key", "s3cret"), zap.String(loggedKey, "x"), zap.ByteString("b", []byte(loggedKey)), zap.Binary("bin", []byte(loggedKey)),
		zap.Any("any", tree), zap.Reflect("raw", json.RawMessage(`{"k":"acme\u005flive\u005f`+loggedKey[10:]+`"}`)), zap.Reflect("h", request.Header),
		zap.Object("request", caddyhttp.LoggableHTTPRequest{Request: request}), zap.Object("resp_headers", header), zap.Object("pointer", &header), zap.Inline(header), dict,
		zap.Error(errors.New("Get \"http://h/?api_key=s3cret\": EOF")), zap.Error(talkative{"short", "long " + loggedKey}), zap.NamedError("e", several{several{errors.New(loggedKey)}}), zap.Dict("x-api-key", zap.String("value", "s3cret")), zap.Reflect("twice", json.RawMessage(`{"api_key":"s3cret","api_key":""}`)),
		zap.Stringer("str", talkative{"short", loggedKey}), zap.Stringer("nil", (*nilStringer)(nil)), zap.Strings("ss", []string{loggedKey}), zap.Errors("errs", []error{errors.New(loggedKey)}),
		zap.Any("pointers", []*string{new(string)}), zap.Namespace(loggedKey), zap.Int("plain", 7), zap.String("text", "visible too"),
	}
	for _, inner := range []zapcore.Encoder{zapcore.NewJSONEncoder(zap.NewProductionEncoderConfig()), zapcore.NewConsoleEncoder(zap.NewDevelopmentEncoderConfig())} {
		for name, use := range map[string]func(*zap.Logger){
			"With":  func(l *zap.Logger) { l.With(fields...).Info("seen " + loggedKey) },
			"Write": func(l *zap.Logger) { l.Named(loggedKey).Info("api_key=s3cret", fields...) },
		} {
			var out strings.Builder
			use(zap.New(zapcore.NewCore(&RedactEncoder{inner: inner.Clone()}, zapcore.AddSync(&out), zapcore.DebugLevel)))
			text := out.String()
			for _, secret := range []string{"s3cret", loggedKey, loggedKey[10:]} {
				if i := strings.Index(text, secret); i >= 0 {
					t.Errorf("%s: %q shows: …%s…", name, secret, text[max(0, i-80):i+len(secret)])
				}
			}
			for _, visible := range []string{"visible", "visible too", "12345678901234567890", "REDACTED"} {
				if !strings.Contains(text, visible) {
					t.Errorf("%s: %q is gone: %s", name, visible, text)
				}
			}
		}
	}
	if request.Header.Get("X-Api-Key") != "s3cret" || tree["password"] != "s3cret" {
		t.Error("the logged values themselves were changed")
	}
}

// TestEncoder_HoldsRequests: a request given by With is written as it was then,
// as the stock encoder writes it, and in its place; one that is not written is
// not encoded.
func TestEncoder_HoldsRequests(t *testing.T) {
	request := httptest.NewRequest(http.MethodGet, "/v1/orders?page=2", nil)
	request.RemoteAddr, request.TransferEncoding, request.TLS = "192.0.2.1:1234", []string{"chunked"}, &tls.ConnectionState{ServerName: "example.com"}
	request.Header = http.Header{"Accept": {"a", "b"}, "Empty": nil}
	vars := map[string]any{caddyhttp.ClientIPVarKey: "203.0.113.7"}
	request = request.WithContext(context.WithValue(t.Context(), caddyhttp.VarsCtxKey, vars))
	uses := map[string]func(*zap.Logger) *zap.Logger{
		"last":  func(l *zap.Logger) *zap.Logger { return l.With(zap.Int("n", 1), loggable(request)) },
		"first": func(l *zap.Logger) *zap.Logger { return l.With(loggable(request), zap.String("s", "x")) },
		"twice": func(l *zap.Logger) *zap.Logger { return l.With(loggable(request)).With(loggable(request)) },
		"space": func(l *zap.Logger) *zap.Logger {
			return l.With(loggable(request), zap.Namespace("more"), zap.Int("n", 1))
		},
		"in space": func(l *zap.Logger) *zap.Logger { return l.With(zap.Namespace("more")).With(loggable(request)) },
		"children": func(l *zap.Logger) *zap.Logger { l = l.With(loggable(request)); l.With(zap.String("s", "x")); return l },
	}
	for name, use := range uses {
		request.Header["Accept"], vars[caddyhttp.ClientIPVarKey] = []string{"a", "b"}, "203.0.113.7"
		var stock, masked strings.Builder
		config := zap.NewProductionEncoderConfig()
		config.TimeKey = ""
		write := func(out *strings.Builder, enc zapcore.Encoder) func() {
			l := use(zap.New(zapcore.NewCore(enc, zapcore.AddSync(out), zapcore.InfoLevel)))
			return func() { l.Info("once", zap.Int("status", 200)); l.Info("again") }
		}
		one, two := write(&stock, zapcore.NewJSONEncoder(config)), write(&masked, &RedactEncoder{inner: zapcore.NewJSONEncoder(config)})
		request.Header["Accept"][0], vars[caddyhttp.ClientIPVarKey] = "changed", "changed" // after With
		one()
		two()
		if stock.String() != masked.String() && !sameJSON(t, stock.String(), masked.String()) {
			t.Errorf("%s: got\n%swant\n%s", name, masked.String(), stock.String())
		}
	}
	request.Header = http.Header{"Accept": {"*/*"}, "Accept-Encoding": {"gzip"}, "User-Agent": {"test"}, "X-Api-Key": {"s3cret"}}
	unwritten := func(enc zapcore.Encoder) float64 {
		log := zap.New(zapcore.NewCore(enc, zapcore.AddSync(discard{}), zapcore.InfoLevel))
		return testing.AllocsPerRun(100, func() { log.With(loggable(request)).Debug("not written") })
	}
	stock := unwritten(zapcore.NewJSONEncoder(zap.NewProductionEncoderConfig()))
	if n := unwritten(&RedactEncoder{inner: zapcore.NewJSONEncoder(zap.NewProductionEncoderConfig())}); n > stock-4 {
		t.Errorf("%v allocations for an entry that is not written, %v by the stock encoder", n, stock)
	}
}

func loggable(r *http.Request) zap.Field {
	return zap.Object("request", caddyhttp.LoggableHTTPRequest{Request: r})
}

// sameJSON compares lines: headers have no order.
func sameJSON(t *testing.T, a, b string) bool {
	t.Helper()
	lines := func(text string) (all []any) {
		for line := range strings.Lines(text) {
			var v any
			if err := json.Unmarshal([]byte(line), &v); err != nil {
				t.Fatal(err)
			}
			all = append(all, v)
		}
		return all
	}
	return reflect.DeepEqual(lines(a), lines(b))
}

// BenchmarkEncoder encodes what a proxied request with an access log does:
// two contexts and an entry.
func BenchmarkEncoder(b *testing.B) {
	request := httptest.NewRequest(http.MethodGet, "/v1/orders/4711?page=2", nil)
	request.Header = http.Header{"User-Agent": {"Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36 (KHTML, like Gecko)"}, "Accept": {"*/*"}, "Accept-Encoding": {"gzip, deflate, br"}, "X-Api-Key": {"s3cret"}}
	out := http.Header{"X-Forwarded-For": {"127.0.0.1"}, "X-Forwarded-Proto": {"https"}, "X-Forwarded-Host": {"localhost"}, "User-Agent": {"Mozilla/5.0"}, "Via": {"1.1 Caddy"}, "X-Auth-Subject": {"acme"}, "X-Auth-Method": {"api_key"}, "X-Auth-Credential-Id": {"key_01931f1a-8c5b-7a7b-9c3e-1f2d3c4b5a69"}, "X-Auth-Scopes": {"orders:read"}, "X-Auth-Environment": {"live"}}
	upstream := request.Clone(b.Context())
	upstream.Header = out
	answer := http.Header{"Server": {"Caddy"}, "Content-Type": {"application/json"}, "Content-Length": {"17"}, "Date": {"Sun, 22 Nov 2026 05:00:00 GMT"}}
	for name, enc := range map[string]zapcore.Encoder{
		"stock":  zapcore.NewJSONEncoder(zap.NewProductionEncoderConfig()),
		"redact": &RedactEncoder{inner: zapcore.NewJSONEncoder(zap.NewProductionEncoderConfig())},
	} {
		b.Run(name, func(b *testing.B) {
			log := zap.New(zapcore.NewCore(enc, zapcore.AddSync(discard{}), zapcore.InfoLevel))
			b.ReportAllocs()
			for b.Loop() {
				log.With(zap.String("upstream", "127.0.0.1:9000"), zap.Duration("duration", 12345), zap.Object("request", caddyhttp.LoggableHTTPRequest{Request: upstream})).Debug("upstream roundtrip")
				log.With(zap.Object("request", caddyhttp.LoggableHTTPRequest{Request: request})).Info("handled request",
					zap.Int("bytes_read", 0), zap.String("user_id", "acme"), zap.Duration("duration", 12345), zap.Int("size", 17), zap.Int("status", 200),
					zap.Object("resp_headers", caddyhttp.LoggableHTTPHeader{Header: answer}))
			}
		})
	}
}

type discard struct{}

func (discard) Write(p []byte) (int, error) { return len(p), nil }
