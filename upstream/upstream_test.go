package upstream_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/caddy-auth/caddy-auth/upstream"
)

// gateway signs as the gateway does, and publishes its keys.
type gateway struct {
	signing
	*httptest.Server
	keys []any
}

func newGateway(t *testing.T) *gateway {
	g := &gateway{signing: newSigning(t, "k1", "EdDSA")}
	g.keys = []any{g.jwk()}
	g.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/jwk-set+json")
		_ = json.NewEncoder(w).Encode(map[string]any{"keys": g.keys})
	}))
	t.Cleanup(g.Close)
	return g
}

func (g *gateway) assert(method, path string, now time.Time) string {
	return g.signing.sign(map[string]any{"alg": "EdDSA", "typ": "caddy-auth-assertion+jwt", "kid": g.kid}, map[string]any{
		"iss": "x", "sub": "acme", "aud": "orders", "exp": now.Unix() + 60, "nbf": now.Unix() - 5, "iat": now.Unix(), "jti": "j", "htm": method, "path": path,
		"scope": "orders:*", "auth_method": "api_key", "credential_id": "key_1", "environment": "live", "meta": map[string]any{"tenant": []any{"t1"}},
	})
}

func newVerifier(t *testing.T, cfg upstream.Config) *upstream.Verifier {
	t.Helper()
	v, err := upstream.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(v.Close)
	return v
}

// TestMiddleware: what passes has the identity, what does not never reaches the
// service.
func TestMiddleware(t *testing.T) {
	g := newGateway(t)
	now := time.Now()
	reached := 0
	handler := newVerifier(t, upstream.Config{KeysURL: g.URL, Audience: "orders"}).Middleware(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		reached++
		id, ok := upstream.FromContext(r.Context())
		if !ok {
			t.Error("no identity")
			return
		}
		fmt.Fprintf(w, "%s %s %s %v %v %v", id.Subject, id.Method, id.CredentialID, id.HasScope("orders:write"), id.HasScope("users:read"), id.Meta["tenant"])
	}))
	ask := func(method, target string, headers ...string) *httptest.ResponseRecorder {
		r := httptest.NewRequest(method, target, strings.NewReader(""))
		for _, h := range headers {
			r.Header.Add(upstream.Header, h)
		}
		w := httptest.NewRecorder()
		handler.ServeHTTP(w, r)
		return w
	}
	good := g.assert("GET", "/orders/7", now)
	if w := ask("GET", "/orders/7?page=2", good); w.Code != 200 || w.Body.String() != "acme api_key key_1 true false [t1]" {
		t.Fatalf("%d %s", w.Code, w.Body)
	}
	reached = 0
	for what, w := range map[string]*httptest.ResponseRecorder{
		"none":           ask("GET", "/orders/7"),
		"two":            ask("GET", "/orders/7", good, good),
		"empty":          ask("GET", "/orders/7", ""),
		"another method": ask("POST", "/orders/7", good),
		"another path":   ask("GET", "/orders/8", good),
		"expired":        ask("GET", "/orders/7", g.assert("GET", "/orders/7", now.Add(-2*time.Minute))),
		"unsigned":       ask("GET", "/orders/7", good[:strings.LastIndexByte(good, '.')+1]),
	} {
		if w.Code != http.StatusUnauthorized || w.Header().Get("Cache-Control") != "no-store" {
			t.Errorf("%s: %d %s", what, w.Code, w.Body)
		}
		if strings.Contains(w.Body.String(), good[:40]) {
			t.Errorf("%s: the answer repeats the assertion: %s", what, w.Body)
		}
	}
	if reached > 0 {
		t.Error("a refused request reached the service")
	}
}

func TestMiddleware_Optional(t *testing.T) {
	g := newGateway(t)
	handler := newVerifier(t, upstream.Config{KeysURL: g.URL, Audience: "orders", Optional: true}).Middleware(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_, ok := upstream.FromContext(r.Context())
		fmt.Fprint(w, ok)
	}))
	for header, want := range map[string]string{"": "200 false", "nonsense": "401"} {
		r := httptest.NewRequest("GET", "/", nil)
		if header != "" {
			r.Header.Set(upstream.Header, header)
		}
		w := httptest.NewRecorder()
		handler.ServeHTTP(w, r)
		if got := fmt.Sprint(w.Code, " ", w.Body); !strings.HasPrefix(got, want) {
			t.Errorf("%q: %s, want %s", header, got, want)
		}
	}
}

// TestVerify_KeysAway: an outage is never a bad assertion, and rotation needs no
// restart.
func TestVerify_KeysAway(t *testing.T) {
	g := newGateway(t)
	now := time.Now()
	gone := httptest.NewServer(http.NotFoundHandler())
	away := newVerifier(t, upstream.Config{KeysURL: gone.URL, Audience: "orders"})
	if _, err := away.Verify(t.Context(), g.assert("GET", "/", now), "GET", "/"); !errors.Is(err, upstream.ErrUnavailable) {
		t.Errorf("without keys: %v", err)
	}
	gone.Close()
	v := newVerifier(t, upstream.Config{KeysURL: g.URL, Audience: "orders"})
	if _, err := v.Verify(t.Context(), g.assert("GET", "/", now), "GET", "/"); err != nil {
		t.Fatal(err)
	}
	old := g.assert("GET", "/", now)
	g.signing = newSigning(t, "k2", "ES256")
	g.keys = append(g.keys, g.jwk())
	fresh := g.signing.sign(map[string]any{"alg": "ES256", "typ": "caddy-auth-assertion+jwt", "kid": "k2"}, map[string]any{
		"sub": "acme", "aud": "orders", "exp": now.Unix() + 60, "iat": now.Unix(), "htm": "GET", "path": "/",
	})
	for _, text := range []string{fresh, old} {
		if _, err := v.Verify(t.Context(), text, "GET", "/"); err != nil {
			t.Errorf("after a rotation: %v", err)
		}
	}
}

func TestNew_Refuses(t *testing.T) {
	for what, cfg := range map[string]upstream.Config{
		"no audience":    {KeysURL: "https://api.example.com/"},
		"no keys":        {Audience: "orders"},
		"both":           {Audience: "orders", KeysURL: "https://api.example.com/", KeySet: []byte(`{"keys":[]}`)},
		"plain http":     {Audience: "orders", KeysURL: "http://api.example.com/"},
		"an empty set":   {Audience: "orders", KeySet: []byte(`{"keys":[]}`)},
		"not a set":      {Audience: "orders", KeySet: []byte(`x`)},
		"symmetric keys": {Audience: "orders", KeySet: []byte(`{"keys":[{"kty":"oct","kid":"a","k":"AAAA"}]}`)},
	} {
		if v, err := upstream.New(cfg); err == nil {
			v.Close()
			t.Errorf("%s: accepted", what)
		}
	}
}
