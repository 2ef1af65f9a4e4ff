package jwt

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"math/big"
	"strings"
	"testing"

	jose "github.com/go-jose/go-jose/v4"

	"github.com/caddy-auth/caddy-auth/internal/auth"
	"github.com/caddy-auth/caddy-auth/internal/strictjson"
)

// signer makes tokens with a library of others.
type signer struct {
	alg jose.SignatureAlgorithm
	key crypto.Signer
}

func signers(t testing.TB) []signer {
	t.Helper()
	rsaKey, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	_, edKey, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	out := []signer{{jose.EdDSA, edKey}}
	for _, alg := range []jose.SignatureAlgorithm{jose.RS256, jose.RS384, jose.RS512, jose.PS256, jose.PS384, jose.PS512} {
		out = append(out, signer{alg, rsaKey})
	}
	for alg, curve := range map[jose.SignatureAlgorithm]elliptic.Curve{jose.ES256: elliptic.P256(), jose.ES384: elliptic.P384(), jose.ES512: elliptic.P521()} {
		key, err := ecdsa.GenerateKey(curve, rand.Reader)
		if err != nil {
			t.Fatal(err)
		}
		out = append(out, signer{alg, key})
	}
	return out
}

func (s signer) sign(t testing.TB, payload string) string {
	t.Helper()
	made, err := jose.NewSigner(jose.SigningKey{Algorithm: s.alg, Key: s.key}, (&jose.SignerOptions{}).WithType("JWT").WithHeader("kid", "k1"))
	if err != nil {
		t.Fatal(err)
	}
	signed, err := made.Sign([]byte(payload))
	if err != nil {
		t.Fatal(err)
	}
	text, err := signed.CompactSerialize()
	if err != nil {
		t.Fatal(err)
	}
	return text
}

// jwk is the public key as go-jose publishes it.
func (s signer) jwk(t testing.TB, alg string) strictjson.Object {
	t.Helper()
	text, err := json.Marshal(jose.JSONWebKey{Key: s.key.Public(), KeyID: "k1", Algorithm: alg, Use: "sig"})
	if err != nil {
		t.Fatal(err)
	}
	o, err := strictjson.Decode(text)
	if err != nil {
		t.Fatal(err)
	}
	return o
}

func (s signer) public(t testing.TB) *Key {
	t.Helper()
	k, err := ParseKey(s.jwk(t, ""))
	if err != nil {
		t.Fatal(err)
	}
	return k
}

// TestVerify_EveryAlgorithm: each algorithm's tokens are taken with its key, by
// its own name only.
func TestVerify_EveryAlgorithm(t *testing.T) {
	all := signers(t)
	for _, s := range all {
		token, r := Parse(s.sign(t, `{"sub":"alice"}`))
		if r != auth.ReasonNone {
			t.Fatalf("%s: %v", s.alg, r)
		}
		for _, other := range all {
			k := other.public(t)
			want := auth.ReasonNone
			if !k.Fits(string(s.alg)) {
				want = auth.ReasonAlgorithm
			}
			if r := token.Verify(k, Algorithms()); r != want {
				t.Errorf("%s with the key of %s: %v, want %v", s.alg, other.alg, r, want)
			}
		}
		if r := token.Verify(s.public(t), []string{"none"}); r != auth.ReasonAlgorithm {
			t.Errorf("%s, not allowed: %v", s.alg, r)
		}
		for _, alg := range Algorithms() { // a key that names one algorithm is for no other
			k, err := ParseKey(s.jwk(t, alg))
			if err != nil {
				continue
			}
			if r := token.Verify(k, Algorithms()); (r == auth.ReasonNone) != (alg == string(s.alg)) {
				t.Errorf("%s with a key for %s: %v", s.alg, alg, r)
			}
		}
	}
}

// TestVerify_EveryByteCounts flips each byte of a token.
func TestVerify_EveryByteCounts(t *testing.T) {
	for _, s := range signers(t) {
		text, k := s.sign(t, `{"sub":"alice"}`), s.public(t)
		for i := range text {
			changed := []byte(text)
			if changed[i]++; changed[i] == '.' || text[i] == '.' {
				continue
			}
			if token, r := Parse(string(changed)); r == auth.ReasonNone && token.Verify(k, Algorithms()) == auth.ReasonNone {
				t.Errorf("%s: accepted with another byte at %d", s.alg, i)
			}
		}
		for _, text := range []string{text + "A", text[:len(text)-1], text + "=", text + ".", "e" + text, text + "\n", strings.ToUpper(text)} {
			if token, r := Parse(text); r == auth.ReasonNone && token.Verify(k, Algorithms()) == auth.ReasonNone {
				t.Errorf("%s: accepted %q", s.alg, text)
			}
		}
	}
}

// TestVerify_Malleable: another signature of the same text (n-s) is a second
// token with the same claims, which revocation by jti reaches; nothing else is.
func TestVerify_Malleable(t *testing.T) {
	for _, s := range signers(t) {
		key, ok := s.key.(*ecdsa.PrivateKey)
		if !ok {
			continue
		}
		text := s.sign(t, `{"jti":"1"}`)
		dot := strings.LastIndexByte(text, '.')
		sig, _ := base64.RawURLEncoding.DecodeString(text[dot+1:])
		size := len(sig) / 2
		r, v := sig[:size], new(big.Int).SetBytes(sig[size:])
		n := key.Params().N
		other := append(append([]byte{}, r...), new(big.Int).Sub(n, v).FillBytes(make([]byte, size))...)
		bigger := append(append([]byte{0}, r...), append([]byte{0}, sig[size:]...)...)
		zero := make([]byte, 2*size)
		over := append(append([]byte{}, r...), new(big.Int).Mod(new(big.Int).Add(v, n), new(big.Int).Lsh(big.NewInt(1), uint(8*size))).FillBytes(make([]byte, size))...)
		for name, tc := range map[string]struct {
			sig  []byte
			good bool
		}{"n-s": {other, true}, "leading zeros": {bigger, false}, "zero": {zero, false}, "s+n": {over, false}} {
			token, reason := Parse(text[:dot+1] + base64.RawURLEncoding.EncodeToString(tc.sig))
			if reason != auth.ReasonNone {
				t.Fatal(reason)
			}
			if got := token.Verify(s.public(t), Algorithms()) == auth.ReasonNone; got != tc.good {
				t.Errorf("%s, %s: %v", s.alg, name, got)
			}
		}
	}
}

func TestParse_Headers(t *testing.T) {
	part := func(s string) string { return base64.RawURLEncoding.EncodeToString([]byte(s)) }
	for header, want := range map[string]auth.Reason{
		`{"alg":"RS256"}`: auth.ReasonNone,
		`{"alg":"none"}`:  auth.ReasonNone, // refused by Verify: no key fits
		`{"alg":"RS256","x5t":"abc","unknown":[1]}`:      auth.ReasonNone,
		`{"alg":"RS256","typ":"JWT","kid":"a","cty":""}`: auth.ReasonNone,
		`{}`:                      auth.ReasonHeader,
		`{"ALG":"RS256"}`:         auth.ReasonHeader,
		`{"alg":1}`:               auth.ReasonHeader,
		`{"alg":["RS256"]}`:       auth.ReasonHeader,
		`{"alg":null}`:            auth.ReasonHeader,
		`{"alg":"RS256","kid":1}`: auth.ReasonHeader,
		`{"alg":"RS256","kid":"` + strings.Repeat("k", 257) + `"}`: auth.ReasonHeader,
		`{"alg":"RS256","typ":{}}`:                                 auth.ReasonHeader,
		`{"alg":"RS256","cty":"JWT"}`:                              auth.ReasonHeader,
		`{"alg":"RS256","crit":["exp"]}`:                           auth.ReasonHeader,
		`{"alg":"RS256","crit":[]}`:                                auth.ReasonHeader,
		`{"alg":"RS256","crit":null}`:                              auth.ReasonHeader,
		`{"alg":"RS256","b64":false}`:                              auth.ReasonHeader,
		`{"alg":"RS256","jku":"https://evil.example/"}`:            auth.ReasonHeader,
		`{"alg":"RS256","x5u":"https://evil.example/"}`:            auth.ReasonHeader,
		`{"alg":"RS256","jwk":{}}`:                                 auth.ReasonHeader,
		`{"alg":"RS256","x5c":[]}`:                                 auth.ReasonHeader,
		`{"alg":"RS256","zip":"DEF"}`:                              auth.ReasonHeader,
		`{"alg":"RSA-OAEP","enc":"A256GCM"}`:                       auth.ReasonHeader,
		`{"alg":"RS256","alg":"none"}`:                             auth.ReasonMalformed,
		`["RS256"]`:                                                auth.ReasonMalformed,
		`{"alg":"RS256"} x`:                                        auth.ReasonMalformed,
		`{"alg":"RS256","x":"` + strings.Repeat("x", 2048) + `"}`:  auth.ReasonMalformed,
	} {
		if _, r := Parse(part(header) + "." + part(`{}`) + "." + part("sig")); r != want {
			t.Errorf("%.60s: %v, want %v", header, r, want)
		}
	}
	for _, payload := range []string{``, `[]`, `"x"`, `{"a":1,"a":2}`, `{}{}`, "{\"a\":\"\xff\"}", strings.Repeat(`{"a":`, 20) + `1` + strings.Repeat(`}`, 20)} {
		if _, r := Parse(part(`{"alg":"RS256"}`) + "." + part(payload) + "." + part("sig")); r != auth.ReasonMalformed {
			t.Errorf("payload %q: %v", payload, r)
		}
	}
	for _, text := range []string{"", "e", "eyJ", "e..", "e.e", "e.e.e.e", "eyJhbGciOiJSUzI1NiJ9.e30.", "eyJhbGciOiJSUzI1NiJ9.e30.c2l=", "eyJhbGciOiJSUzI1NiJ9.e30.c2l\n", "eyJhbGciOiJSUzI1NiJ9.e31.c2ln", strings.Repeat("e.", 12000)} {
		if _, r := Parse(text); r != auth.ReasonMalformed {
			t.Errorf("%.40q: %v", text, r)
		}
	}
}

func TestToken_Type(t *testing.T) {
	for typ, want := range map[string]bool{"at+jwt": true, "AT+JWT": true, "application/at+jwt": true, "Application/At+Jwt": true, "JWT": false, "": false, "at+jwt ": false, "application/": false, "x/at+jwt": false} {
		if got := (&Token{Type: typ}).IsType("at+jwt"); got != want {
			t.Errorf("%q: %v", typ, got)
		}
	}
}

func TestParseKey_Refuses(t *testing.T) {
	var rsaJWK, ecJWK, okpJWK strictjson.Object
	for _, s := range signers(t) {
		switch s.alg {
		case jose.RS256:
			rsaJWK = s.jwk(t, "")
		case jose.ES256:
			ecJWK = s.jwk(t, "")
		case jose.EdDSA:
			okpJWK = s.jwk(t, "")
		}
	}
	with := func(o strictjson.Object, pairs ...any) strictjson.Object {
		out := strictjson.Object{}
		for k, v := range o {
			out[k] = v
		}
		for i := 0; i < len(pairs); i += 2 {
			out[pairs[i].(string)] = pairs[i+1]
		}
		return out
	}
	bytes := func(n int, last byte) string {
		b := make([]byte, n)
		b[0], b[n-1] = 0x80, last
		return base64.RawURLEncoding.EncodeToString(b)
	}
	for name, tc := range map[string]struct {
		jwk       strictjson.Object
		notTokens bool
	}{
		"a shared secret":       {strictjson.Object{"kty": "oct", "k": "AAAA"}, true},
		"a private key":         {with(rsaJWK, "d", "AQAB"), true},
		"for encryption":        {with(rsaJWK, "use", "enc"), true},
		"for wrapping":          {with(rsaJWK, "key_ops", []any{"wrapKey"}), true},
		"unknown type":          {with(rsaJWK, "kty", "XYZ"), true},
		"unknown algorithm":     {with(rsaJWK, "alg", "RSA-OAEP"), true},
		"HS256":                 {with(rsaJWK, "alg", "HS256"), true},
		"unknown curve":         {with(ecJWK, "crv", "secp256k1"), true},
		"Ed448":                 {with(okpJWK, "crv", "Ed448"), true},
		"X25519":                {with(okpJWK, "crv", "X25519"), true},
		"RSA-512":               {with(rsaJWK, "n", bytes(64, 1)), false},
		"RSA-2047":              {with(rsaJWK, "n", base64.RawURLEncoding.EncodeToString(new(big.Int).Sub(new(big.Int).Lsh(big.NewInt(1), 2047), big.NewInt(1)).Bytes())), false},
		"RSA of 64k bits":       {with(rsaJWK, "n", bytes(8192, 1)), false},
		"an even modulus":       {with(rsaJWK, "n", bytes(256, 2)), false},
		"exponent 1":            {with(rsaJWK, "e", "AQ"), false},
		"exponent 2":            {with(rsaJWK, "e", "Ag"), false},
		"exponent of 5 bytes":   {with(rsaJWK, "e", "AQAAAAE"), false},
		"no modulus":            {with(rsaJWK, "n", ""), false},
		"modulus as a number":   {with(rsaJWK, "n", json.Number("5")), false},
		"not base64url":         {with(rsaJWK, "n", "+/=="), false},
		"off the curve":         {with(ecJWK, "y", ecJWK["x"]), false},
		"a short coordinate":    {with(ecJWK, "x", "AAAA"), false},
		"algorithm of another":  {with(ecJWK, "alg", "RS256"), false},
		"curve of another":      {with(ecJWK, "crv", "P-384"), false},
		"a short Ed25519 key":   {with(okpJWK, "x", "AAAA"), false},
		"kid as a number":       {with(rsaJWK, "kid", json.Number("1")), false},
		"key_ops as a number":   {with(rsaJWK, "key_ops", json.Number("1")), true},
		"use as an array":       {with(rsaJWK, "use", []any{"sig"}), false},
		"an endless kid":        {with(rsaJWK, "kid", strings.Repeat("k", 300)), false},
		"nothing":               {strictjson.Object{}, true},
		"names in another case": {strictjson.Object{"KTY": "RSA", "N": rsaJWK["n"], "E": rsaJWK["e"]}, true},
	} {
		k, err := ParseKey(tc.jwk)
		if err == nil {
			t.Errorf("%s: taken as %+v", name, k)
		} else if errors.Is(err, ErrNotForTokens) != tc.notTokens {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := ParseKey(with(okpJWK, "alg", "Ed25519")); err != nil {
		t.Errorf("the name of RFC 9864: %v", err)
	}
}

func TestCheckAlgorithm(t *testing.T) {
	for _, name := range []string{"none", "None", "HS256", "HS384", "HS512", "RSA1_5", "", "rs256", "ES256K", "ML-DSA-44"} {
		if CheckAlgorithm(name) == nil {
			t.Errorf("%q can be configured", name)
		}
	}
	for _, name := range Algorithms() {
		if err := CheckAlgorithm(name); err != nil {
			t.Error(err)
		}
	}
}

// FuzzVerify holds the verifier against go-jose: what it accepts, that accepts.
func FuzzVerify(f *testing.F) {
	all := signers(f)
	for i, s := range all {
		f.Add(i, s.sign(f, `{"sub":"alice"}`))
	}
	f.Add(0, "eyJhbGciOiJub25lIn0.e30.")
	f.Fuzz(func(t *testing.T, i int, text string) {
		s := all[max(i%len(all), 0)]
		token, r := Parse(text)
		if r != auth.ReasonNone || token.Verify(s.public(t), Algorithms()) != auth.ReasonNone {
			return
		}
		parsed, err := jose.ParseSignedCompact(text, []jose.SignatureAlgorithm{s.alg})
		if err != nil {
			t.Fatalf("accepted, though go-jose says %v", err)
		}
		if _, err := parsed.Verify(s.key.Public()); err != nil {
			t.Fatalf("accepted, though go-jose says %v", err)
		}
	})
}

func BenchmarkNewToken(b *testing.B) {
	claims := fmt.Sprintf(`{"iss":"https://idp.example","aud":"api","sub":"alice","iat":1,"exp":2,"jti":"1","scope":%q}`, strings.Repeat("orders:read ", 10))
	for _, s := range signers(b) {
		text, k := s.sign(b, claims), s.public(b)
		token, _ := Parse(text)
		b.Run(string(s.alg)+"/parse", func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				Parse(text)
			}
		})
		b.Run(string(s.alg)+"/signature", func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				if token.Verify(k, Algorithms()) != auth.ReasonNone {
					b.Fatal("refused")
				}
			}
		})
	}
}
