package oauth

import (
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/caddy-auth/caddy-auth/internal/auth"
	"github.com/caddy-auth/caddy-auth/internal/secret"
)

// clients knows one client with a public key and one without.
type clients struct {
	jwks    string
	lookups int
}

func (c *clients) FindClient(_ context.Context, id string, _ time.Time) auth.Verdict {
	c.lookups++
	v := auth.Verdict{Outcome: auth.Allow, Identity: auth.Identity{ClientID: id}}
	switch id {
	case "keyed":
		v.Identity.Meta = auth.EncodeMeta([]string{auth.MetaJWKS}, map[string]string{auth.MetaJWKS: c.jwks})
	case "disabled":
		v.Outcome, v.Reason = auth.Deny, auth.ReasonDisabled
	case "unkeyed":
	default:
		return auth.Denied(auth.ReasonUnknown)
	}
	return v
}

func (*clients) VerifyKey(context.Context, string, time.Time) auth.Verdict {
	return auth.Denied(auth.ReasonUnknown)
}

func (*clients) VerifySecret(context.Context, string, time.Time) auth.Verdict {
	return auth.Denied(auth.ReasonUnknown)
}
func (*clients) Minter() *secret.Minter { return nil }

// TestAssertion_TheSameWorkForAll: whoever a client assertion is said to be of,
// and whatever is wrong with its signature, one lookup and one check of a
// signature are made, and the answer is the same: nobody learns by its time who
// is a client.
func TestAssertion_TheSameWorkForAll(t *testing.T) {
	public, _, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	_, stranger, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	b64 := base64.RawURLEncoding.EncodeToString
	bodies := map[string]bool{}
	one := fmt.Sprintf(`{"kty":"OKP","crv":"Ed25519","x":%q,"kid":"k"}`, b64(public))
	several := strings.Repeat(strings.Replace(one, `"k"`, `"other"`, 1)+",", 4) + one
	for _, tc := range []struct{ client, kid, keys string }{
		{"keyed", "k", one},
		{"keyed", "unknown", one},
		{"keyed", "", one},
		{"keyed", "k", several},
		{"keyed", "other", several},
		{"keyed", "", several},
		{"keyed", "unknown", several},
		{"unkeyed", "k", one},
		{"disabled", "k", one},
		{"nobody", "k", one},
		{"nobody", "", one},
	} {
		known := &clients{jwks: `{"keys":[` + tc.keys + `]}`}
		checks := 0
		s := New(Config{Issuer: "https://api.example.com"}, known, nil, NewFailures(), nil)
		s.checked = func() { checks++ }
		encode := func(v map[string]any) string {
			text, err := json.Marshal(v)
			if err != nil {
				t.Fatal(err)
			}
			return b64(text)
		}
		header := map[string]any{"alg": "EdDSA"}
		if tc.kid != "" {
			header["kid"] = tc.kid
		}
		now := time.Now().Unix()
		signed := encode(header) + "." + encode(map[string]any{"iss": tc.client, "sub": tc.client, "aud": "https://api.example.com", "exp": now + 60, "jti": "j"})
		form := url.Values{"grant_type": {"client_credentials"}, "client_assertion_type": {assertionType}, "client_assertion": {signed + "." + b64(ed25519.Sign(stranger, []byte(signed)))}}
		r := httptest.NewRequest(http.MethodPost, "/", strings.NewReader(form.Encode()))
		r.Header.Set("Content-Type", "application/x-www-form-urlencoded")
		w := httptest.NewRecorder()
		_, failure := s.ServeToken(w, r, Caller{Address: netip.MustParseAddr("192.0.2.1")})
		if failure == nil || failure.Status != http.StatusUnauthorized {
			t.Fatalf("%+v: %+v", tc, failure)
		}
		_ = failure.Write(w, "api")
		bodies[w.Body.String()] = true
		if checks != 1 || known.lookups != 1 {
			t.Errorf("%+v: %d signatures checked, %d lookups", tc, checks, known.lookups)
		}
	}
	if len(bodies) != 1 {
		t.Errorf("%v", bodies)
	}
}
