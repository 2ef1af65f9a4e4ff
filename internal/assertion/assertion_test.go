package assertion_test

import (
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/caddy-auth/caddy-auth/internal/assertion"
	"github.com/caddy-auth/caddy-auth/internal/auth"
)

func newKey(t testing.TB, id, algorithm string, from, until time.Time) auth.AssertionKey {
	t.Helper()
	var private any
	var err error
	if algorithm == "EdDSA" {
		_, private, err = ed25519.GenerateKey(rand.Reader)
	} else {
		private, err = ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	}
	if err != nil {
		t.Fatal(err)
	}
	k := auth.AssertionKey{ID: id, Algorithm: algorithm, SignsFrom: from.UnixMilli()}
	if !until.IsZero() {
		k.PublishedUntil = until.UnixMilli()
	}
	if k.Private, err = x509.MarshalPKCS8PrivateKey(private); err != nil {
		t.Fatal(err)
	}
	return k
}

func newAsserter(t testing.TB, r assertion.Rules) *assertion.Asserter {
	t.Helper()
	a, err := assertion.NewAsserter(r)
	if err != nil {
		t.Fatal(err)
	}
	return a
}

func newSigner(t testing.TB, keys ...auth.AssertionKey) *assertion.Signer {
	t.Helper()
	s, err := assertion.NewSigner(keys)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// part reads the header (0) or the claims (1) of a token.
func part(t testing.TB, token string, n int) (out map[string]any) {
	t.Helper()
	raw, err := base64.RawURLEncoding.DecodeString(strings.Split(token, ".")[n])
	if err != nil || json.Unmarshal(raw, &out) != nil {
		t.Fatalf("%s: %v", token, err)
	}
	return out
}

var id = auth.Identity{
	Subject: `corp:a"\é`, Method: auth.MethodJWT, CredentialID: "j", Scopes: "a b", Environment: "live", Issuer: "corp", ClientID: "c",
	Meta: auth.EncodeMeta([]string{":roots", "tenant"}, map[string]string{":roots": "owner:x", "tenant": auth.JoinMeta([]string{"1", "2"})}),
}

// TestSigner_KeysInTime: which keys are published, and which one signs, before,
// during and after an overlap.
func TestSigner_KeysInTime(t *testing.T) {
	start := time.Unix(1_800_000_000, 0)
	at := func(minutes int) time.Time { return start.Add(time.Duration(minutes) * time.Minute) }
	s := newSigner(t, newKey(t, "old", "EdDSA", at(-60), at(60)), newKey(t, "new", "EdDSA", at(10), time.Time{}), newKey(t, "ec", "ES256", at(-60), time.Time{}))
	a := newAsserter(t, assertion.Rules{Audience: "orders"})
	for minutes, want := range map[int]struct {
		signs     string
		published []string
	}{
		0:   {"old", []string{"ec", "new", "old"}},
		9:   {"old", []string{"ec", "new", "old"}},
		10:  {"new", []string{"ec", "new", "old"}},
		59:  {"new", []string{"ec", "new", "old"}},
		60:  {"new", []string{"ec", "new"}},
		600: {"new", []string{"ec", "new"}},
	} {
		token, err := a.Assert(s, auth.Fingerprint{}, &id, "POST", "/", at(minutes))
		if err != nil {
			t.Fatal(err)
		}
		var published []string
		for _, k := range s.KeySet(at(minutes))["keys"].([]any) {
			published = append(published, k.(map[string]any)["kid"].(string))
		}
		slices.Sort(published)
		if kid := part(t, token, 0)["kid"]; kid != want.signs || !slices.Equal(published, want.published) {
			t.Errorf("after %d minutes: %s signs, %v are published", minutes, kid, published)
		}
	}
	// A clock that is behind: better a key that is only published than none.
	only := newSigner(t, newKey(t, "new", "EdDSA", at(10), time.Time{}))
	if _, err := a.Assert(only, auth.Fingerprint{}, &id, "POST", "/", at(0)); err != nil {
		t.Error(err)
	}
	for what, s := range map[string]*assertion.Signer{"no signer": nil, "no keys": newSigner(t), "another algorithm": newSigner(t, newKey(t, "ec", "ES256", at(0), time.Time{})), "an ended key": newSigner(t, newKey(t, "k", "EdDSA", at(-9), at(-1)))} {
		if _, err := a.Assert(s, auth.Fingerprint{}, &id, "POST", "/", at(0)); !errors.Is(err, auth.ErrUnavailable) {
			t.Errorf("%s: %v", what, err)
		}
	}
}

// TestAsserter_Claims: what an assertion says, to the last name.
func TestAsserter_Claims(t *testing.T) {
	now := time.Unix(1_800_000_000, 500)
	s := newSigner(t, newKey(t, "k", "ES256", now, time.Time{}))
	token, err := newAsserter(t, assertion.Rules{Issuer: "gate", Audience: "orders", TTL: 30 * time.Second, Algorithm: "ES256"}).Assert(s, auth.Fingerprint{}, &id, "GET", "/a%20b", now)
	if err != nil {
		t.Fatal(err)
	}
	claims := part(t, token, 1)
	jti, _ := claims["jti"].(string)
	delete(claims, "jti")
	want := map[string]any{
		"iss": "gate", "sub": id.Subject, "aud": "orders", "exp": 1_800_000_030.0, "nbf": 1_799_999_995.0, "iat": 1_800_000_000.0, "htm": "GET", "path": "/a%20b",
		"auth_method": "jwt", "credential_id": "j", "scope": "a b", "environment": "live", "client_id": "c", "auth_issuer": "corp", "meta": map[string]any{"tenant": []any{"1", "2"}},
	}
	if fmt.Sprint(claims) != fmt.Sprint(want) || len(jti) < 20 || !slices.Equal(slices.Sorted(maps.Keys(claims)), slices.Sorted(maps.Keys(want))) {
		t.Errorf("%v\nwant %v", claims, want)
	}
	if h := part(t, token, 0); fmt.Sprint(h) != fmt.Sprint(map[string]any{"alg": "ES256", "typ": assertion.Type, "kid": "k"}) {
		t.Errorf("%v", h)
	}
}

// TestAsserter_Sharing: an assertion is shared for half of its life at most, by
// what is alike only, under one key, and not without bound.
func TestAsserter_Sharing(t *testing.T) {
	now := time.Unix(1_800_000_000, 0)
	a := newAsserter(t, assertion.Rules{Audience: "orders"})
	s := newSigner(t, newKey(t, "k", "EdDSA", now, time.Time{}))
	assert := func(s *assertion.Signer, fp byte, id auth.Identity, method, path string, at time.Time) string {
		t.Helper()
		token, err := a.Assert(s, auth.Fingerprint{fp}, &id, method, path, at)
		if err != nil {
			t.Fatal(err)
		}
		return token
	}
	first := assert(s, 1, id, "GET", "/", now)
	if assert(s, 1, id, "GET", "/", now.Add(29*time.Second)) != first {
		t.Error("within half of its life it is made anew")
	}
	other := id
	other.Scopes = "a"
	long := "/" + strings.Repeat("x", 600)
	for what, pair := range map[string][2]string{
		"later":              {first, assert(s, 1, id, "GET", "/", now.Add(31*time.Second))},
		"a clock set back":   {first, assert(s, 1, id, "GET", "/", now.Add(-2*time.Minute))},
		"another identity":   {assert(s, 2, id, "GET", "/", now), assert(s, 2, other, "GET", "/", now)},
		"another credential": {assert(s, 3, id, "GET", "/", now), assert(s, 4, id, "GET", "/", now)},
		"another method":     {assert(s, 5, id, "GET", "/", now), assert(s, 5, id, "HEAD", "/", now)},
		"another path":       {assert(s, 6, id, "GET", "/", now), assert(s, 6, id, "GET", "/x", now)},
		"an unsafe method":   {assert(s, 7, id, "POST", "/", now), assert(s, 7, id, "POST", "/", now)},
		"a long path":        {assert(s, 8, id, "GET", long, now), assert(s, 8, id, "GET", long, now)},
		"other keys":         {assert(s, 9, id, "GET", "/", now), assert(newSigner(t, newKey(t, "k", "EdDSA", now, time.Time{})), 9, id, "GET", "/", now)},
	} {
		if pair[0] == pair[1] {
			t.Errorf("%s: shared", what)
		}
	}
	for i := range 2000 { // all in one shard, which holds less
		assert(s, 10, id, "GET", fmt.Sprint("/", i), now)
	}
	again := 0
	for i := range 2000 {
		before := assert(s, 10, id, "GET", fmt.Sprint("/", i), now)
		if before == assert(s, 10, id, "GET", fmt.Sprint("/", i), now) {
			again++
		}
	}
	if again != 2000 {
		t.Errorf("%d of 2000 were shared by the next request", again)
	}
	if n := a.Kept(); n > 600 {
		t.Errorf("%d are kept", n)
	}
}

func TestNewAsserter_Refuses(t *testing.T) {
	for what, r := range map[string]assertion.Rules{
		"no audience": {}, "too long": {Audience: "a", TTL: time.Hour}, "too short": {Audience: "a", TTL: time.Second}, "negative": {Audience: "a", TTL: -time.Minute}, "an algorithm": {Audience: "a", Algorithm: "RS256"},
	} {
		if _, err := assertion.NewAsserter(r); err == nil {
			t.Errorf("%s: accepted", what)
		}
	}
	if _, err := assertion.NewSigner([]auth.AssertionKey{{ID: "k", Algorithm: "EdDSA", Private: []byte("x")}}); err == nil {
		t.Error("a key that is none")
	}
}

func BenchmarkAssert(b *testing.B) {
	now := time.Now()
	for _, algorithm := range assertion.Algorithms() {
		s := newSigner(b, newKey(b, "k", algorithm, now, time.Time{}))
		a := newAsserter(b, assertion.Rules{Audience: "orders", Algorithm: algorithm})
		for _, method := range []string{"GET", "POST"} {
			b.Run(algorithm+"/"+method, func(b *testing.B) {
				b.ReportAllocs()
				for b.Loop() {
					if _, err := a.Assert(s, auth.Fingerprint{}, &id, method, "/v1/orders", now); err != nil {
						b.Fatal(err)
					}
				}
			})
		}
	}
}
