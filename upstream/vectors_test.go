package upstream_test

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"flag"
	"maps"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/caddy-auth/caddy-auth/upstream"
)

var update = flag.Bool("update", false, "write the vectors anew, with new keys")

const vectorFile = "../examples/vectors.json"

// vectors are what every verifier must come to the same about, whatever it is
// written in.
type vectors struct {
	Comment  string         `json:"comment"`
	KeySet   map[string]any `json:"key_set"`
	Audience string         `json:"audience"`
	Issuer   string         `json:"issuer"`
	Now      int64          `json:"now"`
	Cases    []vector       `json:"cases"`
}

type vector struct {
	Name    string `json:"name"`
	Token   string `json:"token"`
	Method  string `json:"method"`
	Path    string `json:"path"`
	Valid   bool   `json:"valid"`
	Subject string `json:"subject,omitempty"`
}

func TestVectors(t *testing.T) {
	if *update {
		writeVectors(t)
	}
	text, err := os.ReadFile(vectorFile)
	if err != nil {
		t.Fatal(err)
	}
	var vs vectors
	if err := json.Unmarshal(text, &vs); err != nil {
		t.Fatal(err)
	}
	set, err := json.Marshal(vs.KeySet)
	if err != nil {
		t.Fatal(err)
	}
	v, err := upstream.New(upstream.Config{KeySet: set, Audience: vs.Audience, Issuer: vs.Issuer, Now: func() time.Time { return time.Unix(vs.Now, 0) }})
	if err != nil {
		t.Fatal(err)
	}
	valid := 0
	for _, c := range vs.Cases {
		id, err := v.Verify(t.Context(), c.Token, c.Method, c.Path)
		if (err == nil) != c.Valid {
			t.Errorf("%s: %v", c.Name, err)
			continue
		}
		if c.Valid {
			valid++
			if id.Subject != c.Subject {
				t.Errorf("%s: subject %q", c.Name, id.Subject)
			}
		}
	}
	if valid < 5 || len(vs.Cases)-valid < 30 {
		t.Errorf("%d vectors are valid, %d are not: some are missing", valid, len(vs.Cases)-valid)
	}
}

var b64 = base64.RawURLEncoding.EncodeToString

type signing struct {
	kid, alg string
	key      crypto.Signer
}

func (s signing) jwk() map[string]any {
	switch p := s.key.Public().(type) {
	case ed25519.PublicKey:
		return map[string]any{"kty": "OKP", "crv": "Ed25519", "x": b64(p), "kid": s.kid, "alg": s.alg, "use": "sig"}
	case *ecdsa.PublicKey:
		point, _ := p.Bytes()
		return map[string]any{"kty": "EC", "crv": "P-256", "x": b64(point[1:33]), "y": b64(point[33:]), "kid": s.kid, "alg": s.alg, "use": "sig"}
	}
	panic("no such key")
}

func encode(v any) string {
	text, err := json.Marshal(v)
	if err != nil {
		panic(err)
	}
	return b64(text)
}

func (s signing) sign(header, claims map[string]any) string {
	text := encode(header) + "." + encode(claims)
	return text + "." + b64(s.signature(text))
}

func (s signing) signature(text string) []byte {
	if p, ok := s.key.(ed25519.PrivateKey); ok {
		return ed25519.Sign(p, []byte(text))
	}
	digest := sha256.Sum256([]byte(text))
	r, sig, err := ecdsa.Sign(rand.Reader, s.key.(*ecdsa.PrivateKey), digest[:])
	if err != nil {
		panic(err)
	}
	out := make([]byte, 64)
	r.FillBytes(out[:32])
	sig.FillBytes(out[32:])
	return out
}

func newSigning(t *testing.T, kid, alg string) signing {
	if alg == "EdDSA" {
		_, key, err := ed25519.GenerateKey(rand.Reader)
		if err != nil {
			t.Fatal(err)
		}
		return signing{kid, alg, key}
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return signing{kid, alg, key}
}

// writeVectors makes the shared file. Its private keys are thrown away.
func writeVectors(t *testing.T) {
	ed, ec := newSigning(t, "ed-1", "EdDSA"), newSigning(t, "ec-1", "ES256")
	stranger := newSigning(t, "ed-1", "EdDSA")
	const now = 1_800_000_000
	vs := vectors{
		Comment: "Assertions that every verifier must judge alike. Written by: go test ./upstream -run TestVectors -update",
		KeySet:  map[string]any{"keys": []any{ed.jwk(), ec.jwk()}}, Audience: "orders", Issuer: "https://api.example.com", Now: now,
	}
	header := func(s signing) map[string]any {
		return map[string]any{"alg": s.alg, "typ": "caddy-auth-assertion+jwt", "kid": s.kid}
	}
	claims := map[string]any{
		"iss": vs.Issuer, "sub": "acme-billing", "aud": vs.Audience, "exp": now + 60, "nbf": now - 5, "iat": now, "jti": "j-1", "htm": "GET", "path": "/orders/7",
		"auth_method": "api_key", "credential_id": "key_1", "scope": "orders:read orders:write", "environment": "live",
	}
	with := func(changes map[string]any) map[string]any {
		out := maps.Clone(claims)
		maps.Copy(out, changes)
		for name, v := range out {
			if v == nil {
				delete(out, name)
			}
		}
		return out
	}
	headed := func(s signing, changes map[string]any) map[string]any {
		out := header(s)
		maps.Copy(out, changes)
		for name, v := range out {
			if v == nil {
				delete(out, name)
			}
		}
		return out
	}
	add := func(name, token, method, path, subject string) {
		vs.Cases = append(vs.Cases, vector{name, token, method, path, subject != "", subject})
	}
	good := ed.sign(header(ed), claims)
	get := func(name, token string) { add(name, token, "GET", "/orders/7", "") }

	add("EdDSA", good, "GET", "/orders/7", "acme-billing")
	add("ES256", ec.sign(header(ec), claims), "GET", "/orders/7", "acme-billing")
	add("another method", ed.sign(header(ed), with(map[string]any{"htm": "POST"})), "POST", "/orders/7", "acme-billing")
	add("an escaped path, as it was sent", ed.sign(header(ed), with(map[string]any{"path": "/a%20b/%C3%A9"})), "GET", "/a%20b/%C3%A9", "acme-billing")
	add("a client's subject", ed.sign(header(ed), with(map[string]any{"sub": "client:client_1", "client_id": "client_1"})), "GET", "/orders/7", "client:client_1")
	add("a subject that is not ASCII", ed.sign(header(ed), with(map[string]any{"sub": "corp:Zoë ☃"})), "GET", "/orders/7", "corp:Zoë ☃")
	add("metadata", ed.sign(header(ed), with(map[string]any{"meta": map[string]any{"tenant": []any{"t1", "t2"}}})), "GET", "/orders/7", "acme-billing")
	add("expired a moment ago: clocks differ", ed.sign(header(ed), with(map[string]any{"exp": now - 3})), "GET", "/orders/7", "acme-billing")

	add("replayed with another method", good, "DELETE", "/orders/7", "")
	add("replayed with the method in lower case", good, "get", "/orders/7", "")
	add("replayed to another path", good, "GET", "/orders/8", "")
	add("replayed to a longer path", good, "GET", "/orders/7/", "")
	add("replayed to a shorter path", good, "GET", "/orders", "")
	add("replayed to a path that decodes to the same", good, "GET", "/orders/%37", "")
	add("replayed to a path in another case", good, "GET", "/Orders/7", "")
	get("replayed to another audience", ed.sign(header(ed), with(map[string]any{"aud": "billing"})))
	get("an audience that begins like ours", ed.sign(header(ed), with(map[string]any{"aud": "orders2"})))
	get("an audience in another case", ed.sign(header(ed), with(map[string]any{"aud": "Orders"})))
	get("another issuer", ed.sign(header(ed), with(map[string]any{"iss": "https://evil.example"})))
	get("an issuer with a slash more", ed.sign(header(ed), with(map[string]any{"iss": vs.Issuer + "/"})))
	get("expired", ed.sign(header(ed), with(map[string]any{"exp": now - 60})))
	get("not valid yet", ed.sign(header(ed), with(map[string]any{"nbf": now + 60})))
	for _, name := range []string{"exp", "aud", "iss", "sub", "htm", "path"} {
		get("without "+name, ed.sign(header(ed), with(map[string]any{name: nil})))
	}
	get("exp is text", ed.sign(header(ed), with(map[string]any{"exp": "1800000060"})))
	get("sub is a number", ed.sign(header(ed), with(map[string]any{"sub": 7})))
	get("signed with a stranger's key, under our kid", stranger.sign(header(ed), claims))
	get("a kid that nobody has", ed.sign(headed(ed, map[string]any{"kid": "ed-2"}), claims))
	get("without a kid", ed.sign(headed(ed, map[string]any{"kid": nil}), claims))
	for what, kid := range map[string]any{"a list": []any{"ed-1"}, "an object": map[string]any{}, "a number": 1, "true": true} {
		get("a kid that is "+what, ed.sign(headed(ed, map[string]any{"kid": kid}), claims))
	}
	get("a header that is deep", b64([]byte(strings.Repeat(`{"a":`, 3000)+"1"+strings.Repeat("}", 3000)))+"."+encode(claims)+".AAAA")
	get("a header that is a deep list", b64([]byte(strings.Repeat("[", 8000)))+"."+encode(claims)+".AAAA")
	get("a lone surrogate", b64([]byte(`{"alg":"EdDSA","kid":"ed-1","typ":"\ud800"}`))+"."+encode(claims)+".AAAA")
	get("very long", good+strings.Repeat("A", 20000))
	get("ES256 by the kid of the EdDSA key", ec.sign(headed(ec, map[string]any{"kid": "ed-1"}), claims))
	get("an algorithm that is not the key's", ed.sign(headed(ed, map[string]any{"alg": "ES256"}), claims))
	get("typ JWT", ed.sign(headed(ed, map[string]any{"typ": "JWT"}), claims))
	get("typ at+jwt", ed.sign(headed(ed, map[string]any{"typ": "at+jwt"}), claims))
	get("without typ", ed.sign(headed(ed, map[string]any{"typ": nil}), claims))
	get("crit", ed.sign(headed(ed, map[string]any{"crit": []any{"x"}, "x": 1}), claims))
	none := encode(map[string]any{"alg": "none", "typ": "caddy-auth-assertion+jwt", "kid": "ed-1"}) + "." + encode(claims) + "."
	get("alg none", none)
	get("alg none with a signature", none+b64([]byte("x")))
	get("HS256 with the public key", hs256(ed, claims))
	get("not signed", good[:len(good)-86])
	get("a part of a signature", good[:len(good)-10])
	get("another signature", good[:len(good)-4]+"AAAA")
	get("other claims under the signature", encode(header(ed))+"."+encode(with(map[string]any{"sub": "admin"}))+good[len(good)-87:])
	get("an ES256 signature in DER", derSigned(ec, header(ec), claims))
	get("an ES256 signature of zeros", encode(header(ec))+"."+encode(claims)+"."+b64(make([]byte, 64)))
	get("two parts", encode(header(ed))+"."+encode(claims))
	get("four parts", good+".e30")
	get("claims that are no object", encode(header(ed))+".W10."+b64(ed.signature(encode(header(ed))+".W10")))
	get("not a token", "Bearer x")
	text, err := json.MarshalIndent(vs, "", "  ")
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(vectorFile, append(text, '\n'), 0o644); err != nil {
		t.Fatal(err)
	}
}

func hs256(s signing, claims map[string]any) string {
	text := encode(map[string]any{"alg": "HS256", "typ": "caddy-auth-assertion+jwt", "kid": s.kid}) + "." + encode(claims)
	mac := hmac.New(sha256.New, s.key.Public().(ed25519.PublicKey))
	mac.Write([]byte(text))
	return text + "." + b64(mac.Sum(nil))
}

func derSigned(s signing, header, claims map[string]any) string {
	text := encode(header) + "." + encode(claims)
	digest := sha256.Sum256([]byte(text))
	der, err := s.key.Sign(rand.Reader, digest[:], crypto.SHA256)
	if err != nil {
		panic(err)
	}
	return text + "." + b64(der)
}
