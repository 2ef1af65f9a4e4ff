package e2e

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"encoding/base64"
	"fmt"
	"net/url"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/google/uuid"

	"github.com/caddy-auth/caddy-auth/internal/manage"
)

// clientKey is a key that a client signs assertions with.
type clientKey struct {
	*ecdsa.PrivateKey
	t testing.TB
}

func newClientKey(t testing.TB) clientKey {
	t.Helper()
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return clientKey{k, t}
}

func (k clientKey) jwks() string {
	point, err := k.PublicKey.Bytes()
	if err != nil {
		k.t.Fatal(err)
	}
	b := base64.RawURLEncoding.EncodeToString
	return fmt.Sprintf(`{"keys":[{"kty":"EC","crv":"P-256","x":%q,"y":%q,"kid":"c1"}]}`, b(point[1:33]), b(point[33:]))
}

// assertion signs what a client says of itself, changed by more.
func (g *gateway) assertion(k clientKey, id string, more ...any) string {
	c := claims{"iss": id, "sub": id, "aud": "http://" + g.addr, "exp": time.Now().Add(time.Minute).Unix(), "iat": time.Now().Unix(), "jti": uuid.NewString()}
	header := []any{"kid", "c1"}
	for i := 0; i < len(more); i += 2 {
		name := more[i].(string)
		if name == "typ" || name == "kid" {
			header = append(header, name, more[i+1])
			continue
		}
		if more[i+1] == nil {
			delete(c, name)
			continue
		}
		c[name] = more[i+1]
	}
	return signWith(g.t, signingKey{alg: jose.ES256, key: k.PrivateKey}, c, header...)
}

func (g *gateway) withAssertion(path, text string, more url.Values) answer {
	body := url.Values{"client_assertion": {text}, "client_assertion_type": {"urn:ietf:params:oauth:client-assertion-type:jwt-bearer"}}
	for name, v := range more {
		body[name] = v
	}
	return g.form(path, body.Encode())
}

func (g *gateway) asserted(k clientKey, id string, more ...any) answer {
	return g.withAssertion("/oauth/token", g.assertion(k, id, more...), url.Values{"grant_type": {"client_credentials"}})
}

// TestPrivateKeyJWT is RFC 7523, 3: each check of an assertion, and that each is
// good once.
func TestPrivateKeyJWT(t *testing.T) {
	g := startOAuth(t, options{auth: "refusal_rate off"})
	key := newClientKey(t)
	id := g.client(manage.ClientSpec{JWKS: key.jwks()}).Client.ID
	byAnotherName := g.client(manage.ClientSpec{JWKS: newClientKey(t).jwks()}).Client.ID
	bySecret := g.client(manage.ClientSpec{}).Client.ID
	now := time.Now().Unix()
	for what, more := range map[string][]any{
		"as it should be":    nil,
		"the endpoint":       {"aud", "http://" + g.addr + "/oauth/token"},
		"a list of one":      {"aud", []string{"http://" + g.addr}},
		"both of ours":       {"aud", []string{"http://" + g.addr, "http://" + g.addr + "/oauth/token"}},
		"typ":                {"typ", "client-authentication+jwt"},
		"its end long ahead": {"exp", now + 300},
	} {
		if a := g.asserted(key, id, more...); a.Status != 200 {
			t.Errorf("%s: %d %s", what, a.Status, a.Body)
		}
	}
	for _, path := range []string{"/oauth/revoke", "/oauth/introspect"} {
		for _, aud := range []string{"http://" + g.addr + "/oauth/token", "http://" + g.addr + path} {
			if a := g.withAssertion(path, g.assertion(key, id, "aud", aud), url.Values{"token": {"x"}}); a.Status != 200 {
				t.Errorf("for %s at %s: %d %s", aud, path, a.Status, a.Body)
			}
		}
	}
	text := g.assertion(key, id)
	grant := url.Values{"grant_type": {"client_credentials"}}
	if a := g.withAssertion("/oauth/token", text, grant); a.Status != 200 {
		t.Fatalf("%d %s", a.Status, a.Body)
	}
	for path, more := range map[string]url.Values{"/oauth/token": grant, "/oauth/revoke": {"token": {"x"}}, "/oauth/introspect": {"token": {"x"}}} {
		if a := g.withAssertion(path, text, more); a.Status != 401 {
			t.Errorf("replayed to %s: %d %s", path, a.Status, a.Body)
		}
	}
	once := g.assertion(key, id)
	if a := g.withAssertion("/oauth/introspect", once, url.Values{"token": {"x"}}); a.Status != 200 {
		t.Errorf("%d %s", a.Status, a.Body)
	}
	if a := g.withAssertion("/oauth/token", once, grant); a.Status != 401 {
		t.Errorf("used elsewhere before: %d %s", a.Status, a.Body)
	}
	refused := 0
	for what, a := range map[string]func() answer{
		"a stranger's key":       func() answer { return g.asserted(newClientKey(t), id) },
		"another client's key":   func() answer { return g.asserted(key, byAnotherName) },
		"a client with a secret": func() answer { return g.asserted(key, bySecret) },
		"nobody":                 func() answer { return g.asserted(key, "client_0000") },
		"another iss":            func() answer { return g.asserted(key, id, "iss", "x") },
		"no sub":                 func() answer { return g.asserted(key, id, "sub", nil) },
		"another aud":            func() answer { return g.asserted(key, id, "aud", "https://other.example/token") },
		"ours among others": func() answer {
			return g.asserted(key, id, "aud", []string{"http://" + g.addr, "https://other.example"})
		},
		"aud in another case":  func() answer { return g.asserted(key, id, "aud", "HTTP://"+g.addr) },
		"no aud":               func() answer { return g.asserted(key, id, "aud", nil) },
		"no exp":               func() answer { return g.asserted(key, id, "exp", nil) },
		"expired":              func() answer { return g.asserted(key, id, "exp", now-60) },
		"an end too far ahead": func() answer { return g.asserted(key, id, "exp", now+3600) },
		"not yet":              func() answer { return g.asserted(key, id, "nbf", now+120) },
		"from the future":      func() answer { return g.asserted(key, id, "iat", now+120) },
		"no jti":               func() answer { return g.asserted(key, id, "jti", nil) },
		"NUL in sub":           func() answer { return g.asserted(key, "x\x00") },
		"a number for a jti":   func() answer { return g.asserted(key, id, "jti", 7) },
		"an access token":      func() answer { return g.asserted(key, id, "typ", "at+jwt") },
		"an assertion of ours": func() answer { return g.asserted(key, id, "typ", "caddy-auth-assertion+jwt") },
		"another kid":          func() answer { return g.asserted(key, id, "kid", "c2") },
		"another client_id": func() answer {
			return g.withAssertion("/oauth/token", g.assertion(key, id), url.Values{"grant_type": {"client_credentials"}, "client_id": {byAnotherName}})
		},
	} {
		got := a()
		if got.Status == 429 { // enough was refused: it says nothing about this one
			eventually(t, "room again", func() bool { got = a(); return got.Status != 429 })
		}
		if code, _ := oauthError(t, got); got.Status != 401 || code != "invalid_client" {
			t.Errorf("%s: %d %s", what, got.Status, got.Body)
		}
		refused++
	}
	if refused < 20 {
		t.Error("some were left out")
	}
	m := g.manager()
	if _, err := m.EditClients(t.Context(), []string{id}, func(s *manage.ClientSpec) { s.JWKS = newClientKey(t).jwks() }); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the old key is no client's", func() bool { return g.asserted(key, id).Status == 401 })
}
