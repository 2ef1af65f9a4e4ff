package e2e

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"encoding/json"
	"fmt"
	"maps"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/caddyconfig"
	jose "github.com/go-jose/go-jose/v4"

	"github.com/caddy-auth/caddy-auth/internal/auth"
	"github.com/caddy-auth/caddy-auth/internal/manage"
)

// issuer is somebody else's authorization server: discovery, keys and
// introspection.
type issuer struct {
	*httptest.Server
	t testing.TB

	mu     sync.Mutex
	keys   []signingKey
	asked  map[string]int // by path
	down   bool
	tokens map[string]string // opaque tokens and what is said of them
}

type signingKey struct {
	kid string
	alg jose.SignatureAlgorithm
	key crypto.Signer
}

func newIssuer(t testing.TB) *issuer {
	i := &issuer{t: t, asked: map[string]int{}, tokens: map[string]string{}}
	i.Server = httptest.NewServer(http.HandlerFunc(i.serve))
	t.Cleanup(i.Close)
	i.rotate("k1")
	return i
}

func (i *issuer) serve(w http.ResponseWriter, r *http.Request) {
	i.mu.Lock()
	defer i.mu.Unlock()
	i.asked[r.URL.Path]++
	if i.down {
		w.WriteHeader(http.StatusInternalServerError)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	switch r.URL.Path {
	case "/.well-known/openid-configuration":
		fmt.Fprintf(w, `{"issuer":%q,"jwks_uri":"%s/keys"}`, i.URL, i.URL)
	case "/keys":
		var set jose.JSONWebKeySet
		for _, k := range i.keys {
			set.Keys = append(set.Keys, jose.JSONWebKey{Key: k.key.Public(), KeyID: k.kid, Algorithm: string(k.alg), Use: "sig"})
		}
		_ = json.NewEncoder(w).Encode(set)
	case "/introspect":
		id, secret, _ := r.BasicAuth()
		if id != "gateway" || secret != "s3cret" || r.Method != http.MethodPost {
			w.WriteHeader(http.StatusUnauthorized)
			return
		}
		answer, ok := i.tokens[r.PostFormValue("token")]
		if !ok {
			answer = `{"active":false}`
		}
		fmt.Fprint(w, answer)
	default:
		w.WriteHeader(http.StatusNotFound)
	}
}

func (i *issuer) set(change func(*issuer)) {
	i.mu.Lock()
	defer i.mu.Unlock()
	change(i)
}

func (i *issuer) count(path string) int {
	i.mu.Lock()
	defer i.mu.Unlock()
	return i.asked[path]
}

// rotate replaces the keys by one of each kind, called kid and the algorithm.
func (i *issuer) rotate(kid string) {
	made := func(alg jose.SignatureAlgorithm, key crypto.Signer, err error) signingKey {
		if err != nil {
			i.t.Fatal(err)
		}
		return signingKey{kid + "-" + string(alg), alg, key}
	}
	rsaKey, err1 := rsa.GenerateKey(rand.Reader, 2048)
	pssKey, err2 := rsa.GenerateKey(rand.Reader, 2048)
	p256, err3 := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	p384, err4 := ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	_, ed, err5 := ed25519.GenerateKey(rand.Reader)
	keys := []signingKey{made(jose.ES256, p256, err3), made(jose.RS256, rsaKey, err1), made(jose.PS256, pssKey, err2), made(jose.ES384, p384, err4), made(jose.EdDSA, ed, err5)}
	i.set(func(i *issuer) { i.keys = keys })
}

type claims map[string]any

// good are claims that the gateway of jwtGateway takes.
func (i *issuer) good(more ...any) claims {
	now := time.Now().Unix()
	c := claims{"iss": i.URL, "aud": "api", "sub": "alice", "jti": "t1", "iat": now - 10, "exp": now + 600, "scope": "orders:read"}
	for n := 0; n < len(more); n += 2 {
		if c[more[n].(string)] = more[n+1]; more[n+1] == nil {
			delete(c, more[n].(string))
		}
	}
	return c
}

// sign makes a token with the key of an algorithm.
func (i *issuer) sign(alg jose.SignatureAlgorithm, c any, header ...any) string {
	i.t.Helper()
	i.mu.Lock()
	var key signingKey
	for _, k := range i.keys {
		if k.alg == alg {
			key = k
		}
	}
	i.mu.Unlock()
	return signWith(i.t, key, c, header...)
}

func signWith(t testing.TB, key signingKey, c any, header ...any) string {
	t.Helper()
	o := &jose.SignerOptions{ExtraHeaders: map[jose.HeaderKey]any{"typ": "JWT", "kid": key.kid}}
	for n := 0; n < len(header); n += 2 {
		if name := jose.HeaderKey(header[n].(string)); header[n+1] == nil {
			delete(o.ExtraHeaders, name)
		} else {
			o.ExtraHeaders[name] = header[n+1]
		}
	}
	s, err := jose.NewSigner(jose.SigningKey{Algorithm: key.alg, Key: key.key}, o)
	if err != nil {
		t.Fatal(err)
	}
	payload, isText := c.(string)
	if !isText {
		text, err := json.Marshal(c)
		if err != nil {
			t.Fatal(err)
		}
		payload = string(text)
	}
	signed, err := s.Sign([]byte(payload))
	if err != nil {
		t.Fatal(err)
	}
	text, err := signed.CompactSerialize()
	if err != nil {
		t.Fatal(err)
	}
	return text
}

func (i *issuer) token(more ...any) string { return i.sign(jose.ES256, i.good(more...)) }

func (i *issuer) block(more string) string {
	return fmt.Sprintf("issuer corp {\nurl %s\naudience api\n%s\n}\n", i.URL, more)
}

func (i *issuer) opaqueBlock(more string) string {
	return fmt.Sprintf("introspection legacy {\nurl %s/introspect\nclient_id gateway\nclient_secret s3cret\n%s\n}\n", i.URL, more)
}

// doHeader sends a request as it is.
func (g *gateway) doHeader(method, target string, h http.Header) answer {
	g.t.Helper()
	var lines strings.Builder
	for name, values := range h {
		for _, v := range values {
			fmt.Fprintf(&lines, "%s: %s\r\n", name, v)
		}
	}
	return g.raw(method + " " + target + " HTTP/1.1\r\nHost: " + g.addr + "\r\n" + lines.String() + "Connection: close\r\n\r\n")
}

func (g *gateway) bearer(token string, headers ...string) answer {
	g.t.Helper()
	return g.do("GET", "/x", append(headers, "Authorization", "Bearer "+token)...)
}

func TestJWT_EveryAlgorithm(t *testing.T) {
	i := newIssuer(t)
	g := start(t, options{auth: i.block(""), site: "auth"})
	for _, alg := range []jose.SignatureAlgorithm{jose.RS256, jose.PS256, jose.ES256, jose.ES384, jose.EdDSA} {
		token := i.sign(alg, i.good("jti", "of-"+string(alg), "client_id", "app"))
		for range 2 {
			saw := g.ok(g.bearer(token))
			want := map[string]string{
				"X-Auth-Subject": "corp:alice", "X-Auth-Method": "jwt", "X-Auth-Credential-Id": "of-" + string(alg), "X-Auth-Scopes": "orders:read",
				"X-Auth-Environment": "live", "X-Auth-Issuer": "corp", "X-Auth-Client-Id": "app", "Authorization": "",
			}
			for name, value := range want {
				if got := saw.Header.Get(name); got != value {
					t.Errorf("%s: %s is %q, want %q", alg, name, got, value)
				}
			}
		}
	}
	if n := i.count("/keys"); n != 1 {
		t.Errorf("the keys were fetched %d times", n)
	}
	if strings.Contains(g.logs(), "eyJ") {
		t.Error("a token is in the log")
	}
}

// TestJWT_BesideKeys: keys are keys, whoever else issues tokens.
func TestJWT_BesideKeys(t *testing.T) {
	i := newIssuer(t)
	g := start(t, options{auth: i.block("") + i.opaqueBlock(""), site: "auth"})
	key := g.plainKey()
	if got := g.ok(g.bearer(key)).Header.Get("X-Auth-Method"); got != "api_key" {
		t.Errorf("method %q", got)
	}
	g.want(g.bearer(key[:len(key)-8]+"00000000"), 401, auth.CodeInvalidCredential)
	g.want(g.do("GET", "/x", "X-Api-Key", i.token()), 401, auth.CodeInvalidCredential)
	g.want(g.do("GET", "/x?t="+i.token()), 400, auth.CodeCredentialInQuery)
	if n := i.count("/introspect"); n != 0 {
		t.Errorf("asked %d times about keys", n)
	}
}

// TestJWT_ValidateAsksNobody: looking at a configuration opens no connection.
func TestJWT_ValidateAsksNobody(t *testing.T) {
	i := newIssuer(t)
	g := start(t, options{})
	text, _, err := caddyconfig.GetAdapter("caddyfile").Adapt([]byte(g.text(options{auth: i.block("") + i.opaqueBlock("")}, "http://"+g.addr+" {\nauth\n}")), map[string]any{"filename": "Caddyfile"})
	if err != nil {
		t.Fatal(err)
	}
	var c caddy.Config
	if err := json.Unmarshal(text, &c); err != nil {
		t.Fatal(err)
	}
	if err := caddy.Validate(&c); err != nil {
		t.Fatal(err)
	}
	i.mu.Lock()
	defer i.mu.Unlock()
	if len(i.asked) > 0 {
		t.Errorf("it was asked: %v", i.asked)
	}
}

func TestJWT_Rotation(t *testing.T) {
	i := newIssuer(t)
	g := start(t, options{auth: i.block(""), site: "auth"})
	g.ok(g.bearer(i.token()))
	i.rotate("k2")
	g.ok(g.bearer(i.token("jti", "t2")))
	for n := range 50 {
		g.want(g.bearer(i.sign(jose.ES256, i.good(), "kid", fmt.Sprintf("no-such-%d", n))), 401, auth.CodeInvalidCredential)
	}
	if n := i.count("/keys"); n != 2 {
		t.Errorf("the keys were fetched %d times, want one more than at first", n)
	}
}

func TestJWT_IssuerAway(t *testing.T) {
	i := newIssuer(t)
	i.set(func(i *issuer) { i.down = true })
	g := start(t, options{auth: i.block(""), site: "auth {\npublic /open\n}"})
	g.want(g.bearer(i.token()), 503, auth.CodeUnavailable)
	g.want(g.bearer(i.token("exp", time.Now().Unix()-3600)), 401, auth.CodeInvalidCredential)
	g.want(g.do("GET", "/open"), 200, "")
	g.ok(g.bearer(g.plainKey()))
	i.set(func(i *issuer) { i.down = false })
	eventually(t, "the keys are fetched", func() bool { return g.bearer(i.token()).Status == 200 })
	g.upstream.take()
	i.set(func(i *issuer) { i.down = true })
	g.ok(g.bearer(i.token("jti", "another")))
	g.want(g.bearer(i.sign(jose.ES256, i.good(), "kid", "unknown")), 503, auth.CodeUnavailable)
}

// TestJWT_Revoke: by jti, by subject, before and after, cached or not, and over
// a restart.
func TestJWT_Revoke(t *testing.T) {
	i := newIssuer(t)
	o := options{auth: i.block(""), site: "auth"}
	g := start(t, o)
	m := g.manager()
	cached, fresh, other := i.token("jti", "a"), i.token("jti", "a", "x", 1), i.token("jti", "b")
	g.ok(g.bearer(cached))
	g.ok(g.bearer(other))
	if changed, err := m.CutOff(t.Context(), auth.CutOff{Issuer: "corp", JTI: "a"}, false); err != nil || !changed {
		t.Fatal(changed, err)
	}
	if changed, err := m.CutOff(t.Context(), auth.CutOff{Issuer: "corp", JTI: "a"}, false); err != nil || changed {
		t.Errorf("again: %v, %v", changed, err)
	}
	if _, err := m.Wait(t.Context()); err != nil {
		t.Fatal(err)
	}
	g.want(g.bearer(cached), 401, auth.CodeInvalidCredential)
	g.want(g.bearer(fresh), 401, auth.CodeInvalidCredential)
	g.ok(g.bearer(other))
	if _, err := m.CutOff(t.Context(), auth.CutOff{Issuer: "corp", Subject: "corp:alice"}, false); err != nil {
		t.Fatal(err)
	}
	if _, err := m.Wait(t.Context()); err != nil {
		t.Fatal(err)
	}
	g.want(g.bearer(other), 401, auth.CodeInvalidCredential)
	g.ok(g.bearer(i.token("sub", "bob")))
	g.ok(g.bearer(i.token("iat", time.Now().Unix()+2, "jti", "later")))
	if err := g.load(o); err != nil { // the caches stay
		t.Fatal(err)
	}
	g.answers()
	g.want(g.bearer(other), 401, auth.CodeInvalidCredential)
	if err := caddy.Stop(); err != nil { // and all it knew is gone
		t.Fatal(err)
	}
	if err := g.load(o); err != nil {
		t.Fatal(err)
	}
	g.answers()
	g.want(g.bearer(other), 401, auth.CodeInvalidCredential)
	g.want(g.bearer(cached), 401, auth.CodeInvalidCredential)
}

// TestJWT_Reload: what an issuer's configuration says counts at once, and
// other issuers' verdicts stay.
func TestJWT_Reload(t *testing.T) {
	i := newIssuer(t)
	token := i.token()
	g := start(t, options{auth: i.block(""), site: "auth"})
	g.ok(g.bearer(token))
	for name, change := range map[string]struct {
		auth   string
		status int
	}{
		"the audience":  {strings.Replace(i.block(""), "audience api", "audience another", 1), 401},
		"an algorithm":  {i.block("algorithms RS256"), 401},
		"a token type":  {i.block("token_type at+jwt"), 401},
		"a claim":       {i.block("required_claims tenant acme"), 401},
		"the issuer":    {"", 401},
		"nothing":       {i.block(""), 200},
		"the lifetime":  {i.block("max_token_lifetime 1m"), 401},
		"the scopes":    {i.block("scope_claim roles"), 200},
		"the subject":   {i.block("subject_claim jti"), 200},
		"its format":    {i.block("subject_format raw"), 200},
		"the place":     {i.block("environment test"), 403},
		"only its keys": {fmt.Sprintf("issuer corp {\njwks %s/keys\naudience api\n}", i.URL), 200},
	} {
		if err := g.load(options{auth: change.auth, site: "auth"}); err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		g.answers()
		a := g.bearer(token)
		if a.Status != change.status {
			t.Errorf("%s: %d %s, want %d", name, a.Status, a.Code, change.status)
		}
		if a.Status == 200 {
			saw := g.ok(a)
			want := map[string]string{"the subject": "corp:t1", "its format": "alice"}[name]
			if want == "" {
				want = "corp:alice"
			}
			if got := saw.Header.Get("X-Auth-Subject"); got != want {
				t.Errorf("%s: subject %q, want %q", name, got, want)
			}
			if got := saw.Header.Get("X-Auth-Scopes"); (got == "") != (name == "the scopes") {
				t.Errorf("%s: scopes %q", name, got)
			}
		}
		g.upstream.take()
	}
}

func TestIntrospection(t *testing.T) {
	i := newIssuer(t)
	g := start(t, options{auth: i.block("") + i.opaqueBlock("audience api"), site: "auth"})
	now := time.Now().Unix()
	is := func(token string, more ...any) {
		c := claims{"active": true, "sub": "bob", "aud": "api", "scope": "a b", "client_id": "app", "exp": now + 600, "iat": now, "token_type": "Bearer", "jti": "o1"}
		for n := 0; n < len(more); n += 2 {
			if c[more[n].(string)] = more[n+1]; more[n+1] == nil {
				delete(c, more[n].(string))
			}
		}
		text, err := json.Marshal(c)
		if err != nil {
			t.Fatal(err)
		}
		i.set(func(i *issuer) { i.tokens[token] = string(text) })
	}
	is("good")
	for range 3 {
		saw := g.ok(g.bearer("good"))
		if saw.Header.Get("X-Auth-Subject") != "legacy:bob" || saw.Header.Get("X-Auth-Method") != "introspection" || saw.Header.Get("X-Auth-Scopes") != "a b" {
			t.Errorf("%v", saw.Header)
		}
	}
	g.want(g.bearer("unknown"), 401, auth.CodeInvalidCredential)
	g.want(g.bearer("unknown"), 401, auth.CodeInvalidCredential)
	if n := i.count("/introspect"); n != 2 {
		t.Errorf("asked %d times about two tokens", n)
	}
	for name, more := range map[string][]any{
		"active as text":    {"active", "true"},
		"active as number":  {"active", 1},
		"active is null":    {"active", "null"},
		"expired":           {"exp", now - 1},
		"exp as text":       {"exp", "tomorrow"},
		"later":             {"nbf", now + 3600},
		"issued later":      {"iat", now + 3600},
		"for others":        {"aud", "another"},
		"for nobody":        {"aud", nil},
		"aud of numbers":    {"aud", []int{1}},
		"a refresh token":   {"token_type", "refresh_token"},
		"used for refresh":  {"token_use", "refresh_token"},
		"bound":             {"cnf", map[string]string{"jkt": "x"}},
		"subject a number":  {"sub", 5},
		"no subject at all": {"sub", nil, "client_id", nil},
		"taken for another": {"sub", "client:app"},
		"scopes a number":   {"scope", 5},
		"scopes with quote": {"scope", `a" b`},
		"scope with CRLF":   {"scope", "a\r\nX-Auth-Subject:root"},
		"type as a number":  {"token_type", 1},
	} {
		is(name, more...)
		token := strings.ReplaceAll(name, " ", "-")
		i.set(func(i *issuer) { i.tokens[token] = i.tokens[name] })
		g.want(g.bearer(token), 401, auth.CodeInvalidCredential)
	}
	is("machine", "sub", nil)
	if got := g.ok(g.bearer("machine")).Header.Get("X-Auth-Subject"); got != "legacy:client:app" {
		t.Errorf("a client's own token: %q", got)
	}
	// A JWT of an issuer that is not configured may be asked about; one of an
	// issuer that is, and bad, may not.
	foreign := i.token("iss", "https://elsewhere.example")
	is(foreign)
	g.ok(g.bearer(foreign))
	bad := i.token("aud", "another")
	is(bad)
	g.want(g.bearer(bad), 401, auth.CodeInvalidCredential)
	crit := i.sign(jose.ES256, i.good(), "jku", "https://evil.example")
	is(crit)
	g.want(g.bearer(crit), 401, auth.CodeInvalidCredential)
	i.set(func(i *issuer) { i.tokens["html"] = "<html>"; i.tokens["none"] = `{}` })
	g.want(g.bearer("html"), 503, auth.CodeUnavailable)
	g.want(g.bearer("none"), 503, auth.CodeUnavailable)
	i.set(func(i *issuer) { i.down = true })
	g.want(g.bearer("another-one"), 503, auth.CodeUnavailable)
	g.ok(g.bearer("good"))
	if logs := g.logs(); strings.Contains(logs, "s3cret") || strings.Contains(logs, "another-one") {
		t.Error("a secret is in the log")
	}
}

// TestIntrospection_Flood: whatever clients send, the server is asked fifty
// times a second at most, and who is known is not concerned.
func TestIntrospection_Flood(t *testing.T) {
	i := newIssuer(t)
	i.set(func(i *issuer) { i.tokens["good"] = `{"active":true,"sub":"bob"}` })
	g := start(t, options{auth: i.opaqueBlock("rate 20"), site: "auth"})
	g.ok(g.bearer("good"))
	before, began := i.count("/introspect"), time.Now()
	codes := map[int]int{}
	for n := 0; time.Since(began) < 2*time.Second; n++ {
		codes[g.bearer(fmt.Sprintf("flood-%d", n)).Status]++
		if n%50 == 0 {
			g.ok(g.bearer("good"))
		}
	}
	asked := i.count("/introspect") - before
	if most := int(time.Since(began).Seconds()+1) * 20; asked > most || asked < 20 {
		t.Errorf("asked %d times in 2 s, at most %d", asked, most)
	}
	if codes[503] == 0 || codes[401] == 0 || codes[401]+codes[503] != sum(codes) {
		t.Errorf("answers %v", codes)
	}
}

func sum(m map[int]int) (n int) {
	for v := range maps.Values(m) {
		n += v
	}
	return n
}

// TestIntrospection_Several: a site says which of several servers it means.
func TestIntrospection_Several(t *testing.T) {
	a, b := newIssuer(t), newIssuer(t)
	a.set(func(i *issuer) { i.tokens["same"] = `{"active":true,"sub":"of-a"}` })
	b.set(func(i *issuer) { i.tokens["same"] = `{"active":true,"sub":"of-b"}` })
	second := strings.Replace(b.opaqueBlock(""), "legacy", "second", 1)
	o := options{auth: a.opaqueBlock("") + second, site: "auth\nauth_require /x method introspection"}
	g := start(t, options{})
	if err := g.load(o); err == nil || !strings.Contains(err.Error(), "name one of them with issuers") {
		t.Errorf("a site that does not say: %v", err)
	}
	o.site = `
		handle /a/* {
			auth {
				issuers legacy
			}
			auth_require method introspection
			reverse_proxy {upstream}
		}
		handle {
			auth {
				issuers second
			}
			reverse_proxy {upstream}
		}`
	if err := g.load(o); err != nil {
		t.Fatal(err)
	}
	g.answers()
	for range 3 {
		for path, want := range map[string]string{"/a/x": "legacy:of-a", "/b/x": "second:of-b"} {
			if got := g.ok(g.do("GET", path, "Authorization", "Bearer same")).Header.Get("X-Auth-Subject"); got != want {
				t.Errorf("%s: %q, want %q", path, got, want)
			}
		}
	}
	if n := a.count("/introspect") + b.count("/introspect"); n != 2 {
		t.Errorf("asked %d times", n)
	}
}

func TestJWT_Sites(t *testing.T) {
	a, b := newIssuer(t), newIssuer(t)
	second := strings.Replace(b.block(""), "corp", "partner", 1)
	g := start(t, options{auth: a.block("") + second, site: `
		auth {
			issuers corp
			accept jwt api_key
		}
		auth_require /admin/* issuer corp
		auth_require /orders/* scope orders:write
		auth_require /tenant/* meta tenant acme
		`})
	g.ok(g.bearer(a.token()))
	if got := g.bearer(b.token()); got.Status != 403 || got.Code != string(auth.CodeNotAllowed) {
		t.Errorf("another issuer: %d %s", got.Status, got.Code)
	}
	// Signed by one issuer in the other's name, with the other's key id.
	g.want(g.bearer(signWith(t, signingKey{"k1-ES256", jose.ES256, b.keys[0].key}, a.good())), 401, auth.CodeInvalidCredential)
	g.ok(g.bearer(g.plainKey()))
	if got := g.do("GET", "/admin/x", "X-Api-Key", g.plainKey()); got.Status != 403 {
		t.Errorf("a key where an issuer is wanted: %d", got.Status)
	}
	got := g.do("GET", "/orders/1", "Authorization", "Bearer "+a.token())
	if got.Status != 403 || got.Code != string(auth.CodeInsufficientScope) || !strings.Contains(got.Header.Get("Www-Authenticate"), `error="insufficient_scope"`) ||
		!strings.Contains(got.Header.Get("Www-Authenticate"), `scope="orders:write"`) {
		t.Errorf("%d %s %q", got.Status, got.Code, got.Header.Get("Www-Authenticate"))
	}
	g.upstream.take()
	g.ok(g.do("GET", "/orders/1", "Authorization", "Bearer "+a.token("scope", "orders:*", "jti", "w")))
	g.ok(g.do("GET", "/orders/1", "X-Api-Key", g.key(manage.KeySpec{Scopes: []string{"orders:*"}}).Text.Reveal()))
	if got := g.do("GET", "/orders/1", "Authorization", "Bearer "+a.token("scope", "order:* orders:* x", "jti", "w2")); got.Status != 200 {
		t.Errorf("%d", got.Status)
	}
	if got := g.do("GET", "/orders/1", "Authorization", "Bearer "+a.token("scope", "* o* orders* orders:w*", "jti", "w3")); got.Status != 403 {
		t.Errorf("%d", got.Status)
	}
}
