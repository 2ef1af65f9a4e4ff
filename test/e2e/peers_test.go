package e2e

import (
	"bufio"
	"encoding/json"
	"fmt"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// node runs a program of test/peers until the test ends, and returns what it
// prints first.
func node(t *testing.T, name string, args ...string) (first string, stop func()) {
	t.Helper()
	dir := filepath.Join("..", "peers")
	if _, err := os.Stat(filepath.Join(dir, "node_modules")); err != nil {
		t.Fatal("test/peers is not installed: make deps")
	}
	cmd := exec.Command("node", append([]string{name}, args...)...)
	cmd.Dir, cmd.Stderr = dir, os.Stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	stopped := false
	stop = func() {
		if !stopped {
			stopped = true
			_ = cmd.Process.Kill()
			_ = cmd.Wait() // it was killed
		}
	}
	t.Cleanup(stop)
	lines := bufio.NewScanner(out)
	for lines.Scan() {
		if strings.HasPrefix(lines.Text(), "http://") {
			go func() { // so that it can go on writing
				for lines.Scan() {
				}
			}()
			return lines.Text(), stop
		}
	}
	t.Fatalf("%s ended: %v", name, lines.Err())
	return "", nil
}

// post posts a form as a client, and returns the answer's JSON.
func post(t *testing.T, target, client, secret string, form url.Values) map[string]any {
	t.Helper()
	req, err := http.NewRequest(http.MethodPost, target, strings.NewReader(form.Encode()))
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	req.SetBasicAuth(url.QueryEscape(client), url.QueryEscape(secret))
	res, err := http.DefaultTransport.RoundTrip(req)
	if err != nil {
		t.Fatal(err)
	}
	a := readAnswer(t, res)
	out := map[string]any{}
	if a.Status != 200 || a.Body != "" && json.Unmarshal([]byte(a.Body), &out) != nil {
		t.Fatalf("%s: %d %s", target, a.Status, a.Body)
	}
	return out
}

// TestPeer_OpenIDProvider: discovery, keys that are exchanged, tokens of both
// kinds, and revocation at the provider, with oidc-provider.
func TestPeer_OpenIDProvider(t *testing.T) {
	addr := freeAddr(t)
	issuer, stop := node(t, "provider.mjs", port(addr))
	g := start(t, options{auth: fmt.Sprintf(`
		issuer corp {
			url %[1]s
			audience https://api.example.com
			token_type at+jwt
		}
		introspection opaque {
			url %[1]s/token/introspection
			client_id gateway
			client_secret "gateway secret: %%&+"
			audience https://api.example.com
			ttl 1s
		}`, issuer), site: "auth\nauth_require /w/* scope orders:write"})
	token := func(resource, scope string) string {
		return post(t, issuer+"/token", "app", "app-secret", url.Values{"grant_type": {"client_credentials"}, "resource": {resource}, "scope": {scope}})["access_token"].(string)
	}
	var first string
	for _, alg := range []string{"RS256", "PS256", "ES256", "EdDSA"} {
		text := token("urn:jwt:"+alg, "orders:read")
		saw := g.ok(g.bearer(text))
		if saw.Header.Get("X-Auth-Subject") != "corp:app" || saw.Header.Get("X-Auth-Client-Id") != "app" || saw.Header.Get("X-Auth-Scopes") != "orders:read" || saw.Header.Get("X-Auth-Method") != "jwt" {
			t.Errorf("%s: %v", alg, saw.Header)
		}
		first = text
	}
	g.want(g.do("GET", "/w/x", "Authorization", "Bearer "+first), 403, "insufficient_scope")
	g.ok(g.do("GET", "/w/x", "Authorization", "Bearer "+token("urn:jwt", "orders:write")))

	opaque := token("urn:opaque", "orders:read orders:write")
	saw := g.ok(g.do("GET", "/w/x", "Authorization", "Bearer "+opaque))
	if saw.Header.Get("X-Auth-Subject") != "opaque:client:app" || saw.Header.Get("X-Auth-Method") != "introspection" || saw.Header.Get("X-Auth-Scopes") != "orders:read orders:write" {
		t.Errorf("opaque: %v", saw.Header)
	}
	g.want(g.bearer("no-such-token"), 401, "invalid_credential")
	post(t, issuer+"/token/revocation", "app", "app-secret", url.Values{"token": {opaque}})
	eventually(t, "the provider's revocation is noticed", func() bool { return g.bearer(opaque).Status == 401 })
	g.upstream.take()

	stop() // away: what is known goes on, what is not is undecided
	g.ok(g.bearer(first))
	g.want(g.bearer("another-opaque-one"), 503, "verification_unavailable")
	if again, _ := node(t, "provider.mjs", port(addr)); again != issuer { // with other keys
		t.Fatal(again)
	}
	rotated := token("urn:jwt:ES256", "orders:read")
	eventually(t, "the new keys are taken", func() bool { return g.bearer(rotated).Status == 200 })
}

// TestPeer_Jose: tokens that our own libraries did not make.
func TestPeer_Jose(t *testing.T) {
	base, _ := node(t, "signer.mjs")
	g := start(t, options{auth: fmt.Sprintf("issuer corp {\njwks %s/keys\naudience api\ntoken_type at+jwt\n}", base), site: "auth"})
	now := time.Now().Unix()
	for _, alg := range []string{"RS256", "PS256", "ES256", "ES384", "EdDSA", "Ed25519"} {
		claims, err := json.Marshal(map[string]any{"iss": base, "aud": []string{"x", "api"}, "sub": "alice", "iat": now, "exp": now + 60, "jti": alg, "scope": "b a"})
		if err != nil {
			t.Fatal(err)
		}
		res, err := http.Post(base+"/sign/"+alg, "application/json", strings.NewReader(string(claims)))
		if err != nil {
			t.Fatal(err)
		}
		text := readAnswer(t, res).Body
		saw := g.ok(g.bearer(text))
		if saw.Header.Get("X-Auth-Subject") != "corp:alice" || saw.Header.Get("X-Auth-Credential-Id") != alg || saw.Header.Get("X-Auth-Scopes") != "a b" {
			t.Errorf("%s: %v", alg, saw.Header)
		}
		out, err := exec.Command("curl", "-sS", "-o", "/dev/null", "-w", "%{http_code}", "-H", "Authorization: Bearer "+text[:len(text)-2], "http://"+g.addr+"/x").Output()
		if err != nil || string(out) != "401" {
			t.Errorf("%s, cut off, by curl: %s %v", alg, out, err)
		}
	}
}
