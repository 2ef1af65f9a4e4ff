package grant

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"

	"github.com/caddy-auth/caddy-auth/internal/auth"
)

func serve(t *testing.T, cfg Config, answer http.HandlerFunc) *Endpoint {
	t.Helper()
	srv := httptest.NewServer(answer)
	cfg.TokenURL = srv.URL + "/token"
	if cfg.Secret == nil {
		cfg.Secret = Fixed(auth.NewSecret("hunter2-secret"))
	}
	if cfg.Timeout == 0 {
		cfg.Timeout = 300 * time.Millisecond
	}
	e, err := NewEndpoint(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { e.Close(); srv.CloseClientConnections(); srv.Close() })
	return e
}

func say(status int, text string) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/json;charset=UTF-8")
		w.WriteHeader(status)
		_, _ = io.WriteString(w, text)
	}
}

const goodAnswer = `{"access_token":"t0ken","token_type":"Bearer","expires_in":3600,"scope":"b a"}`

// TestAsk_Request is RFC 6749, 4.4.2 and 2.3.1, and RFC 8707, 2.
func TestAsk_Request(t *testing.T) {
	for _, method := range []string{"", AuthBasic, AuthPost} {
		var got *http.Request
		e := serve(t, Config{
			ClientID: "a b:c", Secret: Fixed(auth.NewSecret("p&%ä")), Auth: method,
			Scopes: []string{"orders:read", "orders:write"}, Audiences: []string{"x"}, Resources: []string{"https://a.example/", "https://b.example/"},
		}, func(w http.ResponseWriter, r *http.Request) {
			_ = r.ParseForm()
			got = r
			say(200, goodAnswer)(w, r)
		})
		g, err := e.Ask(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		want := url.Values{"grant_type": {"client_credentials"}, "scope": {"orders:read orders:write"}, "audience": {"x"}, "resource": {"https://a.example/", "https://b.example/"}}
		id, secret, basic := got.BasicAuth()
		if method == AuthPost {
			want["client_id"], want["client_secret"] = []string{"a b:c"}, []string{"p&%ä"}
		} else if !basic || id != "a+b%3Ac" || secret != "p%26%25%C3%A4" {
			t.Errorf("%q %q", id, secret)
		}
		if basic == (method == AuthPost) || got.Method != http.MethodPost || got.URL.RawQuery != "" || !reflect.DeepEqual(got.PostForm, want) {
			t.Errorf("%s: %s %s %v", method, got.Method, got.URL, got.PostForm)
		}
		if life := g.Expires.Sub(g.Issued); g.Token.Reveal() != "t0ken" || life != time.Hour || !g.Told || strings.Join(g.Scopes, " ") != "b a" || g.By != auth.FingerprintOf("p&%ä") {
			t.Errorf("%+v", g)
		}
	}
}

// TestAsk_Lifetime: missing, absurd and odd values of expires_in.
func TestAsk_Lifetime(t *testing.T) {
	for text, want := range map[string]time.Duration{
		`60`: time.Minute, `"60"`: time.Minute, `60.5`: 60500 * time.Millisecond, `1`: time.Second, `86400`: 24 * time.Hour, `1e2`: 100 * time.Second,
		`86401`: MostLifetime, `99999999999999999999`: MostLifetime, `1e300`: MostLifetime, `1e999`: MostLifetime, `"1e999"`: MostLifetime,
		`0`: UnknownLifetime, `null`: UnknownLifetime, `"soon"`: UnknownLifetime, `""`: UnknownLifetime, `{}`: UnknownLifetime, `true`: UnknownLifetime, `"NaN"`: UnknownLifetime, `[60]`: UnknownLifetime,
		`0.5`: 0, `-1`: 0, `-3600`: 0, `"-1"`: 0, `-1e999`: 0, `1e-320`: 0,
	} {
		e := serve(t, Config{ClientID: "gw"}, say(200, `{"access_token":"x","token_type":"bearer","expires_in":`+text+`}`))
		g, err := e.Ask(t.Context())
		var f *Failure
		switch {
		case want == 0 && (!errors.As(err, &f) || f.Cause != CauseAnswer):
			t.Errorf("%s: %v", text, err)
		case want > 0 && (err != nil || g.Expires.Sub(g.Issued) != want):
			t.Errorf("%s: %s, %v", text, g.Expires.Sub(g.Issued), err)
		}
	}
	e := serve(t, Config{ClientID: "gw"}, say(200, `{"access_token":"x0ken","scope":"a x0ken b\u001b[2J ax0kenb \"c"}`))
	if g, err := e.Ask(t.Context()); err != nil || strings.Join(g.Scopes, " ") != "a" {
		t.Errorf("%q, %v", g.Scopes, err)
	}
	e = serve(t, Config{ClientID: "gw", Scopes: []string{"asked"}}, say(200, `{"access_token":"x"}`))
	if g, err := e.Ask(t.Context()); err != nil || g.Told || g.Expires.Sub(g.Issued) != UnknownLifetime || strings.Join(g.Scopes, " ") != "asked" {
		t.Errorf("%+v, %v", g, err)
	}
}

// TestAsk_Hostile: whatever a token endpoint answers is a token or a failure of
// the right kind, in bounded time, and no failure repeats a secret.
func TestAsk_Hostile(t *testing.T) {
	const secret = "hunter2-secret"
	retry := func(status int, after string) http.HandlerFunc {
		return func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Retry-After", after)
			say(status, `{"error":"`+secret+`","error_description":"`+secret+`"}`)(w, r)
		}
	}
	for name, tc := range map[string]struct {
		answer http.HandlerFunc
		cause  Cause
		wait   time.Duration
	}{
		"html": {func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "<html>"+secret) }, CauseAnswer, 0},
		"html that is one": {func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Type", "text/html")
			_, _ = io.WriteString(w, goodAnswer)
		}, CauseAnswer, 0},
		"empty":            {say(200, ``), CauseAnswer, 0},
		"half":             {say(200, goodAnswer[:40]), CauseAnswer, 0},
		"twice":            {say(200, `{"access_token":"a","access_token":"b"}`), CauseAnswer, 0},
		"folded":           {say(200, `{"ACCESS_TOKEN":"a"}`), CauseAnswer, 0},
		"a list":           {say(200, `[`+goodAnswer+`]`), CauseAnswer, 0},
		"no token":         {say(200, `{"token_type":"Bearer"}`), CauseAnswer, 0},
		"empty token":      {say(200, `{"access_token":"","token_type":"Bearer"}`), CauseAnswer, 0},
		"number token":     {say(200, `{"access_token":7,"token_type":"Bearer"}`), CauseAnswer, 0},
		"header injection": {say(200, `{"access_token":"a\r\nX-Evil: 1","token_type":"Bearer"}`), CauseAnswer, 0},
		"blank":            {say(200, `{"access_token":"a b","token_type":"Bearer"}`), CauseAnswer, 0},
		"no ASCII":         {say(200, `{"access_token":"ä","token_type":"Bearer"}`), CauseAnswer, 0},
		"huge token":       {say(200, `{"access_token":"`+strings.Repeat("x", maxToken+1)+`"}`), CauseAnswer, 0},
		"huge":             {say(200, `{"access_token":"x","y":"`+strings.Repeat("y", maxAnswer)+`"}`), CauseAnswer, 0},
		"DPoP":             {say(200, `{"access_token":"x","token_type":"DPoP"}`), CauseAnswer, 0},
		"mac":              {say(200, `{"access_token":"x","token_type":7}`), CauseAnswer, 0},
		"201":              {say(201, goodAnswer), CauseAnswer, 0},
		"204":              {func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(204) }, CauseAnswer, 0},
		"a redirect": {func(w http.ResponseWriter, r *http.Request) {
			http.Redirect(w, r, "/other", http.StatusTemporaryRedirect)
		}, CauseAnswer, 0},
		"400":          {say(400, `{"error":"invalid_scope"}`), CauseRefused, 0},
		"400 busy":     {say(400, `{"error":"temporarily_unavailable"}`), CauseUnavailable, 0},
		"401":          {say(401, `{"error":"invalid_client","error_description":"`+secret+`"}`), CauseRefused, 0},
		"401 odd":      {say(401, `{"error":"`+secret+`"}`), CauseRefused, 0},
		"403":          {say(403, secret), CauseRefused, 0},
		"404":          {say(404, ``), CauseRefused, 0},
		"429":          {retry(429, "17"), CauseUnavailable, 17 * time.Second},
		"429 for ever": {retry(429, "999999999"), CauseUnavailable, mostRetryAfter},
		"429 odd":      {retry(429, "-5"), CauseUnavailable, 0},
		"500":          {say(500, secret), CauseUnavailable, 0},
		"503":          {retry(503, "3"), CauseUnavailable, 3 * time.Second},
		"hangs":        {func(_ http.ResponseWriter, r *http.Request) { _ = r.ParseForm(); <-r.Context().Done() }, CauseUnavailable, 0},
		"hangs up":     {func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) }, CauseUnavailable, 0},
		"drips": {func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Content-Type", "application/json")
			_, _ = io.WriteString(w, goodAnswer[:10])
			w.(http.Flusher).Flush()
			_ = r.ParseForm()
			<-r.Context().Done()
		}, CauseUnavailable, 0},
		"cut off": {func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Length", "999")
			_, _ = io.WriteString(w, goodAnswer)
		}, CauseUnavailable, 0},
	} {
		e := serve(t, Config{ClientID: "gw"}, tc.answer)
		began := time.Now()
		g, err := e.Ask(t.Context())
		var f *Failure
		if !errors.As(err, &f) || f.Cause != tc.cause || f.RetryAfter != tc.wait {
			t.Errorf("%s: %+v, %v", name, g, err)
			continue
		}
		if took := time.Since(began); took > 3*time.Second {
			t.Errorf("%s: it took %s", name, took)
		}
		if all := fmt.Sprintf("%v %+v %#v %s", err, err, f, auth.Hint(err)); strings.Contains(all, secret) || strings.Contains(all, "t0ken") {
			t.Errorf("%s: a secret in %s", name, all)
		}
	}
}

// TestRetryAfter_Date is the other form of RFC 9110, 10.2.3.
func TestRetryAfter_Date(t *testing.T) {
	now := time.Date(2026, 1, 1, 12, 0, 0, 0, time.UTC)
	for text, want := range map[string]time.Duration{
		"Thu, 01 Jan 2026 12:00:20 GMT": 20 * time.Second, "Thu, 01 Jan 2026 11:00:20 GMT": 0, "Thu, 01 Jan 2036 12:00:20 GMT": mostRetryAfter, "": 0, "1.5": 0, "18446744073709551616": 0,
	} {
		if got := retryAfter(text, now); got != want {
			t.Errorf("%q: %s, want %s", text, got, want)
		}
	}
}

// TestAsk_PrivateKeyJWT: every kind of key in every form, checked by another
// library (RFC 7523, 3).
func TestAsk_PrivateKeyJWT(t *testing.T) {
	rsaKey, _ := rsa.GenerateKey(rand.Reader, 2048)
	p256, _ := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	p384, _ := ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	_, ed, _ := ed25519.GenerateKey(rand.Reader)
	pemOf := func(kind string, der []byte, err error) string {
		if err != nil {
			t.Fatal(err)
		}
		return string(pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}))
	}
	pkcs8 := func(k any) string { der, err := x509.MarshalPKCS8PrivateKey(k); return pemOf("PRIVATE KEY", der, err) }
	jwk := func(k any, kid, alg string) string {
		text, err := json.Marshal(jose.JSONWebKey{Key: k, KeyID: kid, Algorithm: alg})
		if err != nil {
			t.Fatal(err)
		}
		return string(text)
	}
	sec1, err := x509.MarshalECPrivateKey(p256)
	parameters := pemOf("EC PARAMETERS", []byte{6, 8, 0x2a, 0x86, 0x48, 0xce, 0x3d, 3, 1, 7}, nil)
	for name, tc := range map[string]struct {
		text   string
		key    KeyConfig
		public crypto.PublicKey
		alg    string
		kid    string
	}{
		"RSA":           {pkcs8(rsaKey), KeyConfig{}, &rsaKey.PublicKey, "RS256", ""},
		"RSA PS256":     {pkcs8(rsaKey), KeyConfig{Algorithm: "PS256", ID: "one"}, &rsaKey.PublicKey, "PS256", "one"},
		"RSA PKCS1":     {pemOf("RSA PRIVATE KEY", x509.MarshalPKCS1PrivateKey(rsaKey), nil), KeyConfig{}, &rsaKey.PublicKey, "RS256", ""},
		"RSA JWK":       {jwk(rsaKey, "k1", "PS256"), KeyConfig{}, &rsaKey.PublicKey, "PS256", "k1"},
		"RSA JWK, else": {jwk(rsaKey, "k1", "PS256"), KeyConfig{Algorithm: "RS256", ID: "k2"}, &rsaKey.PublicKey, "RS256", "k2"},
		"P-256":         {pkcs8(p256) + "\n", KeyConfig{Audience: "https://idp.example"}, &p256.PublicKey, "ES256", ""},
		"P-256 SEC1":    {parameters + pemOf("EC PRIVATE KEY", sec1, err), KeyConfig{}, &p256.PublicKey, "ES256", ""},
		"P-256 JWK":     {jwk(p256, "", ""), KeyConfig{}, &p256.PublicKey, "ES256", ""},
		"P-384":         {pkcs8(p384), KeyConfig{}, &p384.PublicKey, "ES384", ""},
		"P-384 JWK":     {jwk(p384, "x", "ES384"), KeyConfig{}, &p384.PublicKey, "ES384", "x"},
		"Ed25519":       {pkcs8(ed), KeyConfig{}, ed.Public(), "EdDSA", ""},
		"Ed25519 JWK":   {jwk(ed, "x", "EdDSA"), KeyConfig{}, ed.Public(), "EdDSA", "x"},
	} {
		var form url.Values
		e := serve(t, Config{ClientID: "gw", Auth: AuthPrivateKeyJWT, Secret: Fixed(auth.NewSecret(tc.text)), Key: tc.key, Timeout: 5 * time.Second}, func(w http.ResponseWriter, r *http.Request) {
			_ = r.ParseForm()
			form = r.PostForm
			if r.Header.Get("Authorization") != "" {
				t.Error("two ways at once")
			}
			say(200, goodAnswer)(w, r)
		})
		if _, err := e.Ask(t.Context()); err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		if form.Get("client_assertion_type") != "urn:ietf:params:oauth:client-assertion-type:jwt-bearer" || form.Get("client_id") != "gw" || form.Has("client_secret") {
			t.Errorf("%s: %v", name, form)
		}
		parsed, err := jose.ParseSignedCompact(form.Get("client_assertion"), []jose.SignatureAlgorithm{jose.SignatureAlgorithm(tc.alg)})
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		payload, err := parsed.Verify(tc.public)
		var c struct {
			Iss, Sub, Aud, Jti string
			Iat, Exp           int64
		}
		if err != nil || json.Unmarshal(payload, &c) != nil || parsed.Signatures[0].Header.KeyID != tc.kid {
			t.Errorf("%s: %v %q", name, err, parsed.Signatures[0].Header.KeyID)
		}
		aud := tc.key.Audience
		if aud == "" {
			aud = e.cfg.TokenURL
		}
		if c.Iss != "gw" || c.Sub != "gw" || c.Aud != aud || len(c.Jti) < 20 || c.Exp-c.Iat != 60 || time.Since(time.Unix(c.Iat, 0)).Abs() > 10*time.Second {
			t.Errorf("%s: %+v", name, c)
		}
	}
}

// TestSigningKey_Refuses: what can't sign is refused, and not repeated.
func TestSigningKey_Refuses(t *testing.T) {
	small, _ := rsa.GenerateKey(rand.Reader, 1024)
	p224, _ := ecdsa.GenerateKey(elliptic.P224(), rand.Reader)
	p256, _ := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	der := func(k any) string {
		b, err := x509.MarshalPKCS8PrivateKey(k)
		if err != nil {
			t.Fatal(err)
		}
		return string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: b}))
	}
	public, _ := x509.MarshalPKIXPublicKey(&p256.PublicKey)
	for name, tc := range map[string]struct {
		text string
		key  KeyConfig
	}{
		"nothing": {"", KeyConfig{}}, "text": {"hunter2", KeyConfig{}}, "half": {der(p256)[:90], KeyConfig{}},
		"public":         {string(pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: public})), KeyConfig{}},
		"encrypted":      {string(pem.EncodeToMemory(&pem.Block{Type: "ENCRYPTED PRIVATE KEY", Bytes: []byte("hunter2")})), KeyConfig{}},
		"junk PKCS8":     {string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: []byte("hunter2")})), KeyConfig{}},
		"only EC params": {string(pem.EncodeToMemory(&pem.Block{Type: "EC PARAMETERS", Bytes: []byte("hunter2")})), KeyConfig{}},
		"small RSA":      {der(small), KeyConfig{}}, "P-224": {der(p224), KeyConfig{}}, "other alg": {der(p256), KeyConfig{Algorithm: "RS256"}},
		"HS256": {der(p256), KeyConfig{Algorithm: "HS256"}}, "none": {der(p256), KeyConfig{Algorithm: "none"}},
		"JWK oct": {`{"kty":"oct","k":"aHVudGVyMg"}`, KeyConfig{}}, "JWK public": {`{"kty":"EC","crv":"P-256","x":"aHVudGVyMg","y":"aHVudGVyMg"}`, KeyConfig{}},
		"JWK twice": {`{"kty":"EC","kty":"EC"}`, KeyConfig{}}, "JWK no JSON": {`{hunter2`, KeyConfig{}}, "JWK RSA without": {`{"kty":"RSA","n":"aHVudGVyMg","e":"AQAB"}`, KeyConfig{}},
		"JWK Ed short": {`{"kty":"OKP","crv":"Ed25519","d":"aHVudGVyMg"}`, KeyConfig{}}, "JWK EC zero": {`{"kty":"EC","crv":"P-256","d":"` + base64.RawURLEncoding.EncodeToString(make([]byte, 32)) + `"}`, KeyConfig{}},
	} {
		k, err := parseSigningKey(tc.text, tc.key)
		if err == nil {
			t.Errorf("%s: %v", name, k.algorithm)
		} else if strings.Contains(err.Error(), "hunter2") || strings.Contains(err.Error(), "aHVudGVy") {
			t.Errorf("%s: %v", name, err)
		}
		if _, err := NewEndpoint(Config{Auth: AuthPrivateKeyJWT, Secret: Fixed(auth.NewSecret(tc.text)), Key: tc.key}); err == nil {
			t.Errorf("%s: an endpoint", name)
		}
	}
}

func FuzzSigningKey(f *testing.F) {
	f.Add(`{"kty":"RSA","n":"AQAB","e":"AQAB","d":"AQAB","p":"Aw","q":"Bw"}`)
	f.Add("-----BEGIN PRIVATE KEY-----\nMAA=\n-----END PRIVATE KEY-----")
	f.Fuzz(func(t *testing.T, text string) {
		k, err := parseSigningKey(text, KeyConfig{})
		if err != nil {
			return
		}
		if _, err := k.sign([]byte("x")); err != nil {
			t.Error(err)
		}
	})
}
