package e2e

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/hmac"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"math/big"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	jose "github.com/go-jose/go-jose/v4"

	"github.com/caddy-auth/caddy-auth/internal/auth"
)

func b64(s string) string { return base64.RawURLEncoding.EncodeToString([]byte(s)) }

// forge changes a token's parts and leaves the rest as it was.
func forge(token string, header, payload, signature func(string) string) string {
	parts := strings.Split(token, ".")
	for n, change := range []func(string) string{header, payload, signature} {
		if change == nil {
			continue
		}
		if n < 2 {
			raw, _ := base64.RawURLEncoding.DecodeString(parts[n])
			parts[n] = b64(change(string(raw)))
		} else {
			parts[n] = change(parts[n])
		}
	}
	return strings.Join(parts, ".")
}

func with(text string) func(string) string { return func(string) string { return text } }

// TestHostileTokens: none of these gets in, none leads anywhere, and each gets
// the one answer there is.
func TestHostileTokens(t *testing.T) {
	i := newIssuer(t)
	var trapped atomic.Int64
	trap := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { trapped.Add(1) }))
	defer trap.Close()
	g := start(t, options{auth: i.block("required_claims tenant acme\n") + strings.Replace(newIssuer(t).block(""), "corp", "other", 1), site: "auth"})
	now := time.Now().Unix()
	claim := func(more ...any) claims { return i.good(append([]any{"tenant", "acme"}, more...)...) }
	es := func(more ...any) string { return i.sign(jose.ES256, claim(more...)) }
	head := func(more ...any) string { return i.sign(jose.ES256, claim(), more...) }
	text := func(payload string) string { return i.sign(jose.ES256, payload) }
	goodText, _ := json.Marshal(claim())
	inner := strings.TrimSuffix(strings.TrimPrefix(string(goodText), "{"), "}")
	g.ok(g.bearer(es()))
	good := es("jti", "good")

	keyOf := func(alg jose.SignatureAlgorithm) signingKey {
		for _, k := range i.keys {
			if k.alg == alg {
				return k
			}
		}
		t.Fatal(alg)
		return signingKey{}
	}
	attacker, _ := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	attackerRSA, _ := rsa.GenerateKey(rand.Reader, 2048)
	hs := func(secret []byte, kid string) string {
		signed := b64(`{"alg":"HS256","typ":"JWT","kid":"`+kid+`"}`) + "." + b64(string(goodText))
		mac := hmac.New(sha256.New, secret)
		mac.Write([]byte(signed))
		return signed + "." + b64(string(mac.Sum(nil)))
	}
	rsaPublic := keyOf(jose.RS256).key.Public().(*rsa.PublicKey)
	der, _ := x509.MarshalPKIXPublicKey(rsaPublic)
	pemText := pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der})
	asJWK, _ := json.Marshal(jose.JSONWebKey{Key: rsaPublic})
	none := func(alg string) string {
		return b64(`{"alg":"`+alg+`","typ":"JWT"}`) + "." + b64(string(goodText)) + "."
	}

	table := map[string]string{
		// Algorithms (RFC 8725, 3.1 and 3.2).
		"none":                         none("none"),
		"None":                         none("None"),
		"NONE":                         none("NONE"),
		"nOnE with a signature":        none("nOnE") + "AAAA",
		"none with the good signature": forge(good, with(`{"alg":"none"}`), nil, nil),
		"alg is empty":                 forge(good, with(`{"alg":"","kid":"k1-ES256"}`), nil, nil),
		"alg is missing":               forge(good, with(`{"kid":"k1-ES256"}`), nil, nil),
		"alg is a number":              forge(good, with(`{"alg":256,"kid":"k1-ES256"}`), nil, nil),
		"alg is a list":                forge(good, with(`{"alg":["ES256"],"kid":"k1-ES256"}`), nil, nil),
		"alg in lower case":            forge(good, with(`{"alg":"es256","kid":"k1-ES256"}`), nil, nil),
		"ALG":                          forge(good, with(`{"ALG":"ES256","kid":"k1-ES256"}`), nil, nil),
		"alg and ALG":                  forge(good, with(`{"ALG":"ES256","alg":"none","kid":"k1-ES256"}`), nil, nil),
		"alg twice":                    forge(good, with(`{"alg":"ES256","alg":"ES256","kid":"k1-ES256"}`), nil, nil),
		"HS256 with the PEM":           hs(pemText, "k1-RS256"),
		"HS256 with the PEM, trimmed":  hs([]byte(strings.TrimSpace(string(pemText))), "k1-RS256"),
		"HS256 with the DER":           hs(der, "k1-RS256"),
		"HS256 with the JWK":           hs(asJWK, "k1-RS256"),
		"HS256 with the modulus":       hs(rsaPublic.N.Bytes(), "k1-RS256"),
		"HS256 with nothing":           hs(nil, "k1-RS256"),
		"RS512 by the RS256 key":       signWith(t, signingKey{"k1-RS256", jose.RS512, keyOf(jose.RS256).key}, claim()),
		"PS256 by the RS256 key":       signWith(t, signingKey{"k1-RS256", jose.PS256, keyOf(jose.RS256).key}, claim()),
		"RS256 by the PS256 key":       signWith(t, signingKey{"k1-PS256", jose.RS256, keyOf(jose.PS256).key}, claim()),
		"ES256 under the ES384 kid":    signWith(t, signingKey{"k1-ES384", jose.ES256, keyOf(jose.ES256).key}, claim()),
		"RS256 under the ES256 kid":    signWith(t, signingKey{"k1-ES256", jose.RS256, keyOf(jose.RS256).key}, claim()),
		// Keys (RFC 8725, 3.10).
		"signed by another":               signWith(t, signingKey{"k1-ES256", jose.ES256, attacker}, claim()),
		"signed by another, RSA":          signWith(t, signingKey{"k1-RS256", jose.RS256, attackerRSA}, claim()),
		"an embedded key":                 signWith(t, signingKey{"k1-ES256", jose.ES256, attacker}, claim(), "jwk", jose.JSONWebKey{Key: attacker.Public()}),
		"an embedded key, good signature": head("jwk", map[string]string{"kty": "oct", "k": "AAAA"}),
		"jku":                             head("jku", trap.URL+"/keys"),
		"jku to the metadata service":     head("jku", "http://169.254.169.254/latest"),
		"x5u":                             head("x5u", trap.URL+"/cert"),
		"x5u to a file":                   head("x5u", "file:///etc/passwd"),
		"x5c":                             head("x5c", []string{"AAAA"}),
		"kid unknown":                     head("kid", "nobody"),
		"kid as a path":                   head("kid", "../../../../dev/null"),
		"kid as SQL":                      head("kid", "' UNION SELECT 'x"),
		"kid as a command":                head("kid", "|id"),
		"kid as a URL":                    head("kid", trap.URL),
		"kid with NUL":                    head("kid", "k1-ES256\x00"),
		"kid is endless":                  head("kid", strings.Repeat("k", 1000)),
		"kid is a number":                 head("kid", 1),
		"kid is an object":                head("kid", map[string]string{"a": "b"}),
		"kid of another case":             head("kid", "K1-es256"),
		// Extensions and other forms.
		"crit, unknown":         head("crit", []string{"x"}, "x", 1),
		"crit, b64":             head("crit", []string{"b64"}, "b64", true),
		"crit, empty":           forge(good, with(`{"alg":"ES256","kid":"k1-ES256","crit":[]}`), nil, nil),
		"crit, wrong type":      forge(good, with(`{"alg":"ES256","kid":"k1-ES256","crit":"exp"}`), nil, nil),
		"b64 false":             forge(good, with(`{"alg":"ES256","kid":"k1-ES256","b64":false}`), nil, nil),
		"zip":                   head("zip", "DEF"),
		"cty JWT":               head("cty", "JWT"),
		"encrypted":             b64(`{"alg":"dir","enc":"A256GCM"}`) + ".." + b64("iv") + "." + b64("text") + "." + b64("tag"),
		"PBES2":                 b64(`{"alg":"PBES2-HS256+A128KW","enc":"A128GCM","p2c":2147483647,"p2s":"AAAA"}`) + ".AA.AA.AA.AA",
		"typ of a logout token": head("typ", "logout+jwt"),
		"typ of a DPoP proof":   head("typ", "dpop+jwt"),
		"typ is a number":       forge(good, with(`{"alg":"ES256","kid":"k1-ES256","typ":1}`), nil, nil),
		// Encoding.
		"without a signature":      good[:strings.LastIndexByte(good, '.')+1],
		"two parts":                good[:strings.LastIndexByte(good, '.')],
		"one part":                 strings.Split(good, ".")[0],
		"four parts":               good + ".AAAA",
		"12,000 dots":              "e" + strings.Repeat(".", 4000),
		"cut off":                  good[:len(good)-4],
		"a character more":         good + "A",
		"padded":                   good + "==",
		"another alphabet":         strings.ReplaceAll(strings.ReplaceAll(good, "-", "+"), "_", "/") + "+",
		"spare bits":               forge(good, nil, nil, func(s string) string { return s[:len(s)-1] + string(s[len(s)-1]+1) }),
		"turned around":            good[strings.LastIndexByte(good, '.')+1:] + good[strings.IndexByte(good, '.'):],
		"in quotes":                `"` + good + `"`,
		"header is a list":         forge(good, with(`["ES256"]`), nil, nil),
		"header with a BOM":        forge(good, with("\ufeff"+`{"alg":"ES256","kid":"k1-ES256"}`), nil, nil),
		"header is not UTF-8":      forge(good, with("{\"alg\":\"ES256\",\"kid\":\"\xff\"}"), nil, nil),
		"another payload":          forge(good, nil, func(s string) string { return strings.Replace(s, "alice", "admin", 1) }, nil),
		"payload is a list":        text(`[]`),
		"payload is null":          text(`null`),
		"payload is empty":         text(``),
		"payload with more behind": text(string(goodText) + `{}`),
		"payload is deep":          text(`{` + inner + `,"x":` + strings.Repeat("[", 200) + strings.Repeat("]", 200) + `}`),
		"payload is not UTF-8":     text("{" + inner + ",\"x\":\"\xff\"}"),
		"half a surrogate pair":    text(`{` + inner + `,"x":"\ud800"}`),
		"sub twice":                text(`{` + inner + `,"sub":"admin"}`),
		"exp twice":                text(`{` + inner + fmt.Sprintf(`,"exp":%d}`, now+9999)),
		"SUB only":                 es("sub", nil, "SUB", "alice"),
		"sub with a long s":        es("sub", nil, "\u017fub", "alice"),
		"escaped twin of aud":      text(`{` + inner + `,"\u0061ud":"others"}`),
		// Claims (RFC 7519, 4.1; RFC 8725, 3.8 and 3.9).
		"expired":                        es("exp", now-61),
		"exp missing":                    es("exp", nil),
		"exp as text":                    es("exp", fmt.Sprint(now+600)),
		"exp negative":                   es("exp", -1),
		"exp huge":                       text(`{` + strings.Replace(inner, fmt.Sprintf(`"exp":%d`, now+600), `"exp":1e400`, 1) + `}`),
		"exp in the year 10000":          es("exp", 253402300800),
		"exp is true":                    es("exp", true),
		"Exp":                            es("exp", nil, "Exp", now+600),
		"lives too long":                 es("exp", now+86400*2),
		"iat missing":                    es("iat", nil),
		"iat in the future":              es("iat", now+120, "exp", now+600),
		"iat as text":                    es("iat", "now"),
		"not yet":                        es("nbf", now+120),
		"nbf as text":                    es("nbf", "now"),
		"iss of another":                 es("iss", "https://elsewhere.example"),
		"iss with a slash":               es("iss", i.URL+"/"),
		"iss in upper case":              es("iss", strings.ToUpper(i.URL)),
		"iss missing":                    es("iss", nil),
		"iss is a list":                  es("iss", []string{i.URL}),
		"iss empty":                      es("iss", ""),
		"aud of others":                  es("aud", "others"),
		"aud in upper case":              es("aud", "API"),
		"aud with more":                  es("aud", "api2"),
		"aud with a blank":               es("aud", "api "),
		"aud missing":                    es("aud", nil),
		"aud empty":                      es("aud", []string{}),
		"aud an object":                  es("aud", map[string]any{"api": 1}),
		"aud with a number":              es("aud", []any{"api", 1}),
		"sub missing":                    es("sub", nil),
		"sub empty":                      es("sub", ""),
		"sub a number":                   es("sub", 1),
		"sub a list":                     es("sub", []string{"alice"}),
		"sub with NUL":                   es("sub", "a\x00b"), // no store could revoke it
		"jti with NUL":                   es("jti", "a\x00b"),
		"sub endless":                    es("sub", strings.Repeat("a", 600)),
		"jti a number":                   es("jti", 1),
		"scope a number":                 es("scope", 1),
		"scope with CR LF":               es("scope", "a\r\nX-Auth-Subject:\u00a0admin"),
		"scope not ASCII":                es("scope", "órders"),
		"scope with a quote":             es("scope", `a"b`),
		"scopes endless":                 es("scope", strings.Repeat("abcdefgh ", 400)[:3500]+strings.Repeat(" x", 600)),
		"tenant of others":               es("tenant", "beta"),
		"tenant missing":                 es("tenant", nil),
		"tenant an object":               es("tenant", map[string]any{"acme": true}),
		"bound to a key":                 es("cnf", map[string]string{"jkt": "x"}),
		"an ID token":                    es("at_hash", "x"),
		"a logout event":                 es("events", map[string]any{"http://schemas.openid.net/event/backchannel-logout": map[string]any{}}),
		"a refresh token of Keycloak":    es("typ", "Refresh"),
		"an ID token of Cognito":         es("token_use", "id"),
		"a whole key set as the subject": es("sub", map[string]any{"keys": []any{}}),
	}
	before := i.count("/keys")
	for name, token := range table {
		want, code := 401, auth.CodeInvalidCredential
		if strings.ContainsAny(token, "\"") || strings.Contains(strings.TrimRight(token, "="), "=") {
			want, code = 400, auth.CodeInvalidRequest
		}
		began := time.Now()
		a := g.get("/x", "Authorization: Bearer "+token)
		if a.Status != want || a.Code != string(code) {
			t.Errorf("%s: %d %s (%s)", name, a.Status, a.Code, a.Detail)
		}
		if took := time.Since(began); took > time.Second {
			t.Errorf("%s: took %v", name, took)
		}
	}
	if got := g.upstream.take(); len(got) > 0 {
		t.Errorf("the upstream was reached %d times", len(got))
	}
	if n := trapped.Load(); n > 0 {
		t.Errorf("the trap was asked %d times", n)
	}
	if n := i.count("/keys") - before; n > 1 {
		t.Errorf("the keys were fetched %d times", n)
	}
	if len(table) < 120 {
		t.Errorf("%d tokens", len(table))
	}
	// Too long for a credential: refused before it is looked at.
	for _, n := range []int{9 << 10, 100 << 10} {
		if a := g.get("/x", "Authorization: Bearer "+good+strings.Repeat("A", n)); a.Status != 400 && a.Status != 431 {
			t.Errorf("%d bytes: %d", n, a.Status)
		}
	}
	g.ok(g.bearer(good))
}

// TestMalleableSignature: a second text of one token is the same token, for
// revocation too.
func TestMalleableSignature(t *testing.T) {
	i := newIssuer(t)
	g := start(t, options{auth: i.block(""), site: "auth"})
	token := i.token("jti", "once")
	twin := forge(token, nil, nil, func(s string) string {
		sig, _ := base64.RawURLEncoding.DecodeString(s)
		v := new(big.Int).Sub(elliptic.P256().Params().N, new(big.Int).SetBytes(sig[32:]))
		return base64.RawURLEncoding.EncodeToString(append(sig[:32:32], v.FillBytes(make([]byte, 32))...))
	})
	g.ok(g.bearer(token))
	g.ok(g.bearer(twin))
	m := g.manager()
	if _, err := m.CutOff(t.Context(), auth.CutOff{Issuer: "corp", JTI: "once"}, false); err != nil {
		t.Fatal(err)
	}
	if _, err := m.Wait(t.Context()); err != nil {
		t.Fatal(err)
	}
	g.want(g.bearer(token), 401, auth.CodeInvalidCredential)
	g.want(g.bearer(twin), 401, auth.CodeInvalidCredential)
}

// TestClaimsInHeaders: what a token says reaches the upstream as one header, of
// visible ASCII, whatever it is.
func TestClaimsInHeaders(t *testing.T) {
	i := newIssuer(t)
	g := start(t, options{auth: i.block("meta_claims tenant"), site: "auth {\nidentity_headers {\nmap X-Tenant meta.tenant\n}\n}"})
	for n, sub := range []string{
		"a\r\nX-Auth-Scopes: admin", "a\nb", "älice", "a b", "a,b", "100%", "{env.HOME}", "{http.request.uri}", "\u202eecila", `"quoted"`, "\t", "a:b", "../x", "😀",
	} {
		saw := g.ok(g.bearer(i.token("sub", sub, "jti", fmt.Sprint(n), "tenant", sub)))
		for _, name := range []string{"X-Auth-Subject", "X-Tenant"} {
			values := saw.Header[http.CanonicalHeaderKey(name)]
			if len(values) != 1 {
				t.Fatalf("%q: %s is %q", sub, name, values)
			}
			for _, b := range []byte(values[0]) {
				if b < 0x21 || b > 0x7e {
					t.Errorf("%q: %s is %q", sub, name, values)
				}
			}
		}
		want := "corp:" + strings.NewReplacer("%", "%25", "\r", "%0D", "\n", "%0A", " ", "%20", "\t", "%09").Replace(sub)
		if got := saw.Header.Get("X-Auth-Subject"); strings.IndexFunc(sub, func(r rune) bool { return r > 0x7e }) < 0 && got != want {
			t.Errorf("%q: subject %q, want %q", sub, got, want)
		}
		if saw.Header.Get("X-Auth-Scopes") != "orders:read" {
			t.Errorf("%q: scopes %q", sub, saw.Header.Get("X-Auth-Scopes"))
		}
	}
}
