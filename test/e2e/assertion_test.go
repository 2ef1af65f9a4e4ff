package e2e

import (
	"encoding/base64"
	"encoding/json"
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/caddy-auth/caddy-auth/internal/auth"
	"github.com/caddy-auth/caddy-auth/internal/manage"
	"github.com/caddy-auth/caddy-auth/internal/secret"
	"github.com/caddy-auth/caddy-auth/internal/store"
	"github.com/caddy-auth/caddy-auth/internal/store/sqlite"
	assertions "github.com/caddy-auth/caddy-auth/upstream"
)

const withAssertion = "identity_headers {\nassertion {\naudience orders\n%s\n}\n}"

// verifierOf checks what a gateway signs, with the keys that it publishes.
func verifierOf(t *testing.T, g *gateway, audience string) *assertions.Verifier {
	t.Helper()
	v, err := assertions.New(assertions.Config{KeysURL: "http://" + g.addr + "/.well-known/jwks.json", Audience: audience})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(v.Close)
	return v
}

// sentPath is the path that the upstream received.
func sentPath(s seen) string { path, _, _ := strings.Cut(s.Target, "?"); return path }

// TestAssertion: what the upstream receives says who calls what, is signed with
// a published key, and is worth nothing for anything else.
func TestAssertion(t *testing.T) {
	for _, algorithm := range []string{"EdDSA", "ES256"} {
		t.Run(algorithm, func(t *testing.T) {
			g := start(t, options{auth: fmt.Sprintf(withAssertion, "algorithm "+algorithm), site: "auth_wellknown\nhandle_path /v1/* {\nauth\nreverse_proxy {upstream}\n}\nauth"})
			v := verifierOf(t, g, "orders")
			made := g.key(manage.KeySpec{Owner: "acme", Scopes: []string{"orders:read"}, Meta: map[string]string{"tenant": "t1"}})
			key := made.Text.Reveal()
			for _, target := range []string{"/orders/7?a=b", "/", "/a%20b/%C3%A9?x", "/v1/orders", "/a+b"} {
				for _, method := range []string{"GET", "POST", "DELETE"} {
					saw := g.ok(g.do(method, target, "X-API-Key", key, "X-Auth-Assertion", "forged", "X_auth_assertion", "forged"))
					if n := len(saw.Header.Values("X-Auth-Assertion")); n != 1 {
						t.Fatalf("%s %s: %d assertions", method, target, n)
					}
					text := saw.Header.Get("X-Auth-Assertion")
					id, err := v.Verify(t.Context(), text, saw.Method, sentPath(saw))
					if err != nil {
						t.Fatalf("%s %s (%s at the upstream): %v", method, target, saw.Target, err)
					}
					if id.Subject != "acme" || id.Method != "api_key" || id.CredentialID != made.Key.ID || !id.HasScope("orders:read") || id.Environment != "live" || id.Meta["tenant"][0] != "t1" || id.ID == "" {
						t.Errorf("%+v", id)
					}
					if life := time.Until(id.Expires); life > time.Minute || life < 28*time.Second {
						t.Errorf("it lives %s more", life)
					}
					if _, err := v.Verify(t.Context(), text, "PATCH", sentPath(saw)); err == nil {
						t.Error("it is good for another method")
					}
					if _, err := v.Verify(t.Context(), text, saw.Method, sentPath(saw)+"x"); err == nil {
						t.Error("it is good for another path")
					}
					if g.want(g.do("GET", "/orders/7", "Authorization", "Bearer "+text), 401, auth.CodeInvalidCredential); t.Failed() {
						t.Fatal("it is a credential")
					}
				}
			}
			if logs := g.logs(); strings.Contains(logs, "eyJ") {
				t.Error("an assertion was logged")
			}
		})
	}
}

// TestAssertion_IsSharedWhereNothingChanges: alike requests that change nothing
// share one; a change of the identity ends that.
func TestAssertion_IsSharedWhereNothingChanges(t *testing.T) {
	g := start(t, options{auth: fmt.Sprintf(withAssertion, ""), site: "auth_wellknown\nauth"})
	v := verifierOf(t, g, "orders")
	made := g.key(manage.KeySpec{Owner: "acme", Scopes: []string{"a", "b"}})
	key := made.Text.Reveal()
	ask := func(method, path, key string) string {
		t.Helper()
		return g.ok(g.do(method, path, "X-API-Key", key)).Header.Get("X-Auth-Assertion")
	}
	first := ask("GET", "/x", key)
	if ask("GET", "/x?other=query", key) != first {
		t.Error("alike requests have two assertions")
	}
	other := g.plainKey()
	seen := map[string]string{first: "GET /x"}
	for what, ask := range map[string]func() string{
		"HEAD":        func() string { return ask("HEAD", "/x", key) },
		"POST":        func() string { return ask("POST", "/x", key) },
		"POST again":  func() string { return ask("POST", "/x", key) },
		"GET /y":      func() string { return ask("GET", "/y", key) },
		"another key": func() string { return ask("GET", "/x", other) },
	} {
		text := ask()
		if was, ok := seen[text]; ok {
			t.Errorf("%s has the assertion of %s", what, was)
		}
		seen[text] = what
	}
	if _, err := g.manager().Edit(t.Context(), []string{made.Key.ID}, func(s *manage.KeySpec) { s.Scopes = []string{"a"} }); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the assertion says what the header says", func() bool {
		saw := g.ok(g.do("GET", "/x", "X-API-Key", key))
		id, err := v.Verify(t.Context(), saw.Header.Get("X-Auth-Assertion"), "GET", "/x")
		if err != nil {
			t.Fatal(err)
		}
		if strings.Join(id.Scopes, " ") != saw.Header.Get("X-Auth-Scopes") {
			t.Fatalf("it says %v, the header %s", id.Scopes, saw.Header.Get("X-Auth-Scopes"))
		}
		return !id.HasScope("b")
	})
}

// TestAssertion_Rotation: the next key is published before it signs, the old one
// as long as what it signed may be good; without overlap both happen at once.
func TestAssertion_Rotation(t *testing.T) {
	g := start(t, options{auth: fmt.Sprintf(withAssertion, ""), site: "auth_wellknown\nauth"})
	key := g.plainKey()
	backend := sqlite.New(g.dir + "/auth.db")
	db, err := store.Open(t.Context(), backend, store.Existing)
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	master, err := backend.MasterKey()
	if err != nil {
		t.Fatal(err)
	}
	raw, err := secret.ParseMasterKey(master)
	if err != nil {
		t.Fatal(err)
	}
	ring, err := secret.NewRing("store secrets", raw)
	if err != nil {
		t.Fatal(err)
	}
	m := manage.New(db, "test", "ca", nil)
	published := func() (kids []string) {
		a := g.do("GET", "/.well-known/jwks.json")
		var set struct {
			Keys []map[string]string `json:"keys"`
		}
		if a.Status != 200 || a.Header.Get("Content-Type") != "application/jwk-set+json" || json.Unmarshal([]byte(a.Body), &set) != nil {
			t.Fatalf("%d %s", a.Status, a.Body)
		}
		for _, k := range set.Keys {
			if k["d"] != "" {
				t.Fatal("a private key is published")
			}
			kids = append(kids, k["kid"])
		}
		return kids
	}
	signs := func() string {
		text := g.ok(g.do("POST", "/", "X-API-Key", key)).Header.Get("X-Auth-Assertion")
		v := verifierOf(t, g, "orders")
		if _, err := v.Verify(t.Context(), text, "POST", "/"); err != nil {
			t.Fatal(err)
		}
		return kidOf(t, text)
	}
	old := published()
	if len(old) != 1 || signs() != old[0] {
		t.Fatalf("%v, signed by %s", old, signs())
	}
	made, err := m.RotateAssertionKeys(t.Context(), ring, time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	eventually(t, "both are published", func() bool { return len(published()) == 2 })
	if signs() != old[0] {
		t.Error("a key signs that upstreams can't know yet")
	}
	if lead := time.UnixMilli(made[0].SignsFrom).Sub(time.UnixMilli(made[0].CreatedAt)); lead != manage.AssertionLead {
		t.Errorf("it signs after %s", lead)
	}
	last, err := m.RotateAssertionKeys(t.Context(), ring, 0)
	if err != nil {
		t.Fatal(err)
	}
	eventually(t, "only the newest is published", func() bool { kids := published(); return len(kids) == 1 && kids[0] == last[0].ID })
	if signs() != last[0].ID {
		t.Error("an old key signs")
	}
	if text := g.file("auth.db"); strings.Contains(text, "PRIVATE") || len(made[0].Private) == 0 || strings.Contains(text+g.file("auth.db-wal"), string(made[0].Private[16:])) {
		t.Error("a private key lies open in the database")
	}
	if err := m.EndAssertionKey(t.Context(), last[0].ID); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the gateway makes another", func() bool {
		kids := published()
		return len(kids) == 1 && kids[0] != last[0].ID
	})
	signs()
}

func kidOf(t *testing.T, token string) string {
	t.Helper()
	head, _, _ := strings.Cut(token, ".")
	raw, err := b64decode(head)
	var h struct {
		Kid string `json:"kid"`
	}
	if err != nil || json.Unmarshal(raw, &h) != nil {
		t.Fatalf("header %q", head)
	}
	return h.Kid
}

// TestAssertion_Sites: a site's audience is its own, public paths and anonymous
// requests have no assertion, and two auth handlers on a request sign for the
// last.
func TestAssertion_Sites(t *testing.T) {
	g := start(t, options{auth: fmt.Sprintf(withAssertion, ""), site: `
		auth_wellknown
		route /two/* {
			auth
			auth {
				identity_headers {
					assertion {
						audience billing
						ttl 10s
						issuer gate
					}
				}
			}
			reverse_proxy {upstream}
		}
		auth {
			public /open
		}`})
	key := g.plainKey()
	if h := g.ok(g.do("GET", "/open", "X-API-Key", key, "X-Auth-Assertion", "forged")).Header; h.Get("X-Auth-Assertion") != "" {
		t.Errorf("on a public path: %v", h)
	}
	saw := g.ok(g.do("GET", "/two/x", "X-API-Key", key))
	text := saw.Header.Get("X-Auth-Assertion")
	v, err := assertions.New(assertions.Config{KeysURL: "http://" + g.addr + "/.well-known/jwks.json", Audience: "billing", Issuer: "gate"})
	if err != nil {
		t.Fatal(err)
	}
	defer v.Close()
	id, err := v.Verify(t.Context(), text, "GET", "/two/x")
	if err != nil {
		t.Fatal(err)
	}
	if time.Until(id.Expires) > 10*time.Second {
		t.Errorf("it lives until %s", id.Expires)
	}
	if _, err := verifierOf(t, g, "orders").Verify(t.Context(), text, "GET", "/two/x"); err == nil {
		t.Error("an assertion for billing is good for orders")
	}
}

// TestAssertion_WarnsOfHiddenKeys: a load says that nobody can check what is
// signed.
func TestAssertion_WarnsOfHiddenKeys(t *testing.T) {
	const warning = "no site has auth_wellknown"
	g := start(t, options{auth: fmt.Sprintf(withAssertion, ""), site: "auth"})
	if !strings.Contains(g.logs(), warning) {
		t.Error("no warning")
	}
	g = start(t, options{auth: fmt.Sprintf(withAssertion, ""), site: "auth_wellknown\nauth"})
	if strings.Contains(g.logs(), warning) {
		t.Error("a warning for nothing")
	}
}

// TestAssertion_Refused: what can't be right is refused at load.
func TestAssertion_Refused(t *testing.T) {
	g := start(t, options{site: "auth"})
	for what, o := range map[string]options{
		"no audience":     {auth: "identity_headers {\nassertion {\nttl 60s\n}\n}"},
		"too long":        {auth: fmt.Sprintf(withAssertion, "ttl 1h")},
		"too short":       {auth: fmt.Sprintf(withAssertion, "ttl 1s")},
		"an algorithm":    {auth: fmt.Sprintf(withAssertion, "algorithm HS256")},
		"http issuer":     {auth: "token_endpoint http://api.example.com"},
		"issuer and /":    {auth: "token_endpoint https://api.example.com/"},
		"issuer with ?":   {auth: "token_endpoint https://api.example.com?x"},
		"no issuer":       {auth: "token_endpoint api.example.com"},
		"a long lifetime": {auth: "token_endpoint {\nlifetime 48h\n}"},
		"a subdirective":  {auth: "token_endpoint {\nmagic\n}"},
	} {
		o.site = "auth"
		if err := g.load(o); err == nil {
			t.Errorf("%s: loaded", what)
		}
	}
}

// TestMetadata is RFC 8414 and RFC 9728: URLs come from the configuration,
// whatever a request says.
func TestMetadata(t *testing.T) {
	g := start(t, options{
		auth: "token_endpoint https://api.example.com/tenant {\nexchange\n}\nissuer corp {\nurl https://login.example.com\njwks https://login.example.com/keys\naudience x\n}",
		raw:  "http://:{port} {\nauth_token /oauth2/token\nauth_revoke\nauth_introspect {\nurl https://other.example.com/introspect\n}\nauth_wellknown {\nresource https://api.example.com/tenant https://b.example.com\n}\nauth\n}",
	})
	get := func(path string) map[string]any {
		t.Helper()
		a := g.do("GET", path, "Host", "evil.example", "X-Forwarded-Host", "evil.example", "X-Forwarded-Proto", "http")
		var doc map[string]any
		if a.Status != 200 || a.Header.Get("Content-Type") != "application/json" || json.Unmarshal([]byte(a.Body), &doc) != nil || strings.Contains(a.Body, "evil") {
			t.Fatalf("%s: %d %v %s", path, a.Status, a.Header, a.Body)
		}
		for name, v := range doc {
			if list, ok := v.([]any); ok && len(list) == 0 {
				t.Errorf("%s is empty (RFC 8414, 3.2)", name)
			}
		}
		return doc
	}
	doc := get("/.well-known/oauth-authorization-server/tenant")
	for name, want := range map[string]any{
		"issuer": "https://api.example.com/tenant", "token_endpoint": "https://api.example.com/oauth2/token", "revocation_endpoint": "https://api.example.com/oauth/revoke",
		"introspection_endpoint": "https://other.example.com/introspect",
	} {
		if doc[name] != want {
			t.Errorf("%s: %v, want %v", name, doc[name], want)
		}
	}
	if s := fmt.Sprint(doc["grant_types_supported"], doc["token_endpoint_auth_methods_supported"]); s != "[client_credentials urn:ietf:params:oauth:grant-type:token-exchange] [client_secret_basic client_secret_post private_key_jwt]" {
		t.Error(s)
	}
	for path, resource := range map[string]string{"/tenant": "https://api.example.com/tenant", "": "https://b.example.com"} {
		doc := get("/.well-known/oauth-protected-resource" + path)
		if doc["resource"] != resource || fmt.Sprint(doc["authorization_servers"]) != "[https://api.example.com/tenant https://login.example.com]" {
			t.Errorf("%v", doc)
		}
	}
	for _, path := range []string{"/.well-known/oauth-authorization-server", "/.well-known/jwks.json", "/.well-known/other", "/.well-known/oauth-authorization-server/tenant/"} {
		if a := g.do("GET", path); a.Status != 401 { // not ours: the site's own rules
			t.Errorf("%s: %d %s", path, a.Status, a.Body)
		}
	}
	if a := g.do("POST", "/.well-known/oauth-authorization-server/tenant"); a.Status != http.StatusMethodNotAllowed {
		t.Errorf("POST: %d", a.Status)
	}
	want := `Bearer realm="api", resource_metadata="https://api.example.com/.well-known/oauth-protected-resource/tenant"`
	if got := g.do("GET", "/x").Header.Get("WWW-Authenticate"); got != want {
		t.Errorf("challenge %s", got)
	}
	if got := g.do("GET", "/x", "X-API-Key", "nobody").Header.Get("WWW-Authenticate"); !strings.Contains(got, `error="invalid_token"`) || !strings.Contains(got, "resource_metadata") {
		t.Errorf("challenge %s", got)
	}
}

func b64decode(s string) ([]byte, error) { return base64.RawURLEncoding.DecodeString(s) }
