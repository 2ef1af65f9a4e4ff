package caddymodule

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
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
			use(zap.New(zapcore.NewCore(&RedactEncoder{Encoder: inner.Clone()}, zapcore.AddSync(&out), zapcore.DebugLevel)))
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
		"redact": &RedactEncoder{Encoder: zapcore.NewJSONEncoder(zap.NewProductionEncoderConfig())},
	} {
		b.Run(name, func(b *testing.B) {
			log := zap.New(zapcore.NewCore(enc, zapcore.AddSync(discard{}), zapcore.InfoLevel))
			b.ReportAllocs()
			for b.Loop() {
				log.With(zap.Object("request", caddyhttp.LoggableHTTPRequest{Request: upstream}), zap.String("upstream", "127.0.0.1:9000")).Debug("upstream roundtrip")
				log.With(zap.Object("request", caddyhttp.LoggableHTTPRequest{Request: request})).Info("handled request",
					zap.Int("bytes_read", 0), zap.String("user_id", "acme"), zap.Duration("duration", 12345), zap.Int("size", 17), zap.Int("status", 200),
					zap.Object("resp_headers", caddyhttp.LoggableHTTPHeader{Header: answer}))
			}
		})
	}
}

type discard struct{}

func (discard) Write(p []byte) (int, error) { return len(p), nil }
