package e2e

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/caddyconfig"
)

// idp is a token endpoint, and an API that takes its tokens only.
type idp struct {
	*httptest.Server
	api *httptest.Server

	mu      sync.Mutex
	asked   int
	good    map[string]bool // tokens
	secret  string
	life    int
	hostile http.HandlerFunc // answers instead
	saw     []seen           // by the API, of what it took
	refused int              // by the API
}

// newIDP makes tokens of no particular shape, so that nothing but their being
// known keeps them out of logs.
func newIDP(t testing.TB) *idp {
	p := &idp{good: map[string]bool{}, secret: "outbound-secret-0", life: 3600}
	p.Server = httptest.NewServer(http.HandlerFunc(p.token))
	p.api = httptest.NewServer(http.HandlerFunc(p.call))
	t.Cleanup(func() { p.CloseClientConnections(); p.Close(); p.api.CloseClientConnections(); p.api.Close() })
	return p
}

func (p *idp) token(w http.ResponseWriter, r *http.Request) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.asked++
	if p.hostile != nil {
		p.hostile(w, r)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	if _, secret, _ := r.BasicAuth(); secret != p.secret || r.PostFormValue("grant_type") != "client_credentials" {
		w.WriteHeader(401)
		_, _ = io.WriteString(w, `{"error":"invalid_client"}`)
		return
	}
	name := fmt.Sprintf("upstream.token.%d", p.asked)
	p.good[name] = true
	_ = json.NewEncoder(w).Encode(map[string]any{"access_token": name, "token_type": "Bearer", "expires_in": p.life, "scope": r.PostFormValue("scope")})
}

// call is the API. It says the token again where it can, as some do.
func (p *idp) call(w http.ResponseWriter, r *http.Request) {
	body, _ := io.ReadAll(r.Body)
	name := strings.TrimPrefix(r.Header.Get("Authorization"), "Bearer ")
	p.mu.Lock()
	defer p.mu.Unlock()
	w.Header().Set("X-Echo", "got "+name)
	if !p.good[name] {
		p.refused++
		w.Header().Set("WWW-Authenticate", `Bearer error="invalid_token", error_description="`+name+`"`)
		w.WriteHeader(401)
		_, _ = io.WriteString(w, "the API says no")
		return
	}
	if r.Header.Get("Upgrade") != "" {
		p.socket(w)
		return
	}
	s := seen{r.Method, r.RequestURI, r.Header.Clone(), nil, string(body)}
	p.saw = append(p.saw, s)
	_ = json.NewEncoder(w).Encode(s)
}

// socket says back what it hears.
func (p *idp) socket(w http.ResponseWriter) {
	conn, rw, err := http.NewResponseController(w).Hijack()
	if err != nil {
		return
	}
	go func() {
		defer conn.Close()
		_, _ = io.WriteString(conn, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n")
		_, _ = io.Copy(conn, rw)
	}()
}

func (p *idp) set(f func()) {
	p.mu.Lock()
	defer p.mu.Unlock()
	f()
}

func (p *idp) revoke() { p.set(func() { p.good = map[string]bool{} }) }

func (p *idp) counts() (asked, refused int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.asked, p.refused
}

func (p *idp) host() string { return p.api.Listener.Addr().String() }

// block is the outbound toward it.
func (p *idp) block(secret string) string {
	return fmt.Sprintf("outbound partner {\ntoken_url %s/token\nclient_id gw\nclient_secret %s\nscopes orders:read\n}", p.URL, secret)
}

const throughPartner = "reverse_proxy %s {\ntransport auth_outbound partner\n}"

// passed returns what the API saw of a request that it took.
func passed(t *testing.T, a answer) seen {
	t.Helper()
	s, err := parseSeen(a.Body)
	if a.Status != 200 || err != nil {
		t.Fatalf("answer %d: %s", a.Status, a.Body)
	}
	return s
}

// startOutbound runs a gateway whose site needs a key and goes to the API.
func startOutbound(t *testing.T, p *idp, o options) (*gateway, string) {
	t.Helper()
	if o.auth == "" {
		o.auth = p.block(p.secret)
	}
	if o.raw == "" {
		o.raw = "http://{addr} {\nauth\n" + fmt.Sprintf(throughPartner, p.host()) + "\n}"
	}
	g := start(t, o)
	return g, g.plainKey()
}

// TestOutbound_Token: clients never see the token, the API never sees the
// clients' keys, and no log sees either.
func TestOutbound_Token(t *testing.T) {
	p := newIDP(t)
	g, key := startOutbound(t, p, options{})
	for range 20 {
		saw := passed(t, g.do("GET", "/orders?q=1", "X-API-Key", key))
		h := saw.Header
		if h.Get("Authorization") != "Bearer upstream.token.1" || h.Get("X-Auth-Subject") != "acme" || h.Get("X-Auth-Method") != "api_key" || h.Get("X-Api-Key") != "" || saw.Target != "/orders?q=1" {
			t.Fatalf("%v", h)
		}
	}
	if asked, _ := p.counts(); asked != 1 {
		t.Errorf("asked %d times", asked)
	}
	// A caller who tries to choose what the API sees.
	g.want(g.do("GET", "/x", "X-API-Key", key, "Authorization", "Bearer caller"), 400, "invalid_request")
	h := passed(t, g.do("GET", "/x", "X-API-Key", key, "Authorization_", "x", "X_AUTH_SUBJECT", "root", "X-Auth-Subject", "root")).Header
	if len(h["Authorization"]) != 1 || h.Get("Authorization") != "Bearer upstream.token.1" || h.Get("X-Auth-Subject") != "acme" {
		t.Errorf("%v", h)
	}
	p.revoke() // refusals are logged too
	passed(t, g.do("GET", "/x", "X-API-Key", key))
	logs := g.logs()
	for _, secret := range []string{"upstream.token", p.secret, key} {
		if strings.Contains(logs, secret) {
			t.Errorf("%s is in the logs", secret)
		}
	}
	if !strings.Contains(logs, `"logger":"auth.outbound"`) || !strings.Contains(logs, "upstream roundtrip") {
		t.Error("the logs that should have been looked at are not there")
	}
}

// TestOutbound_CallersCredential: where the site leaves the caller's credential
// in, or has no auth, it does not go along with ours.
func TestOutbound_CallersCredential(t *testing.T) {
	p := newIDP(t)
	site := fmt.Sprintf(throughPartner, p.host())
	g, key := startOutbound(t, p, options{
		auth: p.block(p.secret) + "\nkey_header X-API-Key X-Old-Key",
		raw:  "http://{addr} {\nhandle /auth/* {\nauth {\nforward_credential\nfrom header X-Special Authorization\n}\n" + site + "\n}\nhandle {\n" + site + "\n}\n}",
	})
	for _, tc := range []struct {
		path   string
		gone   []string
		passes []string
	}{
		{"/auth/x", []string{"X-Special", "x_special"}, []string{"X-Api-Key"}}, // that one is the app's own here
		{"/open", []string{"Authorization", "X-Api-Key", "X-Old-Key", "x_old_key"}, []string{"X-Special"}},
	} {
		headers := []string{"X-Other", "1"}
		for _, name := range tc.gone {
			headers = append(headers, name, key)
		}
		for _, name := range tc.passes {
			headers = append(headers, name, "of-the-app")
		}
		h := passed(t, g.do("GET", tc.path, headers...)).Header
		for _, name := range tc.gone {
			if name != "Authorization" && h[http.CanonicalHeaderKey(name)] != nil {
				t.Errorf("%s: %s went along", tc.path, name)
			}
		}
		for _, name := range tc.passes {
			if h.Get(name) == "" {
				t.Errorf("%s: %s did not pass", tc.path, name)
			}
		}
		if h.Get("Authorization") != "Bearer upstream.token.1" || h.Get("X-Other") != "1" {
			t.Errorf("%s: %v", tc.path, h)
		}
	}
}

// TestOutbound_RevokedUnderLoad: a thousand requests whose token was revoked
// make one refresh, and all pass with their bodies.
func TestOutbound_RevokedUnderLoad(t *testing.T) {
	p := newIDP(t)
	g, key := startOutbound(t, p, options{})
	passed(t, g.do("GET", "/x", "X-API-Key", key))
	p.revoke()
	client := &http.Client{Transport: &http.Transport{MaxConnsPerHost: 250, MaxIdleConnsPerHost: 250}}
	defer client.CloseIdleConnections()
	var bad atomic.Int32
	var all sync.WaitGroup
	for n := range 1000 {
		all.Go(func() {
			text := fmt.Sprintf("order %d", n)
			req, _ := http.NewRequest("POST", "http://"+g.addr+"/orders", strings.NewReader(text))
			req.Header.Set("X-API-Key", key)
			if n%2 == 0 {
				req.ContentLength = -1 // chunked
			}
			res, err := client.Do(req)
			if err != nil {
				t.Error(err)
				return
			}
			if a := readAnswer(t, res); a.Status != 200 || !strings.Contains(a.Body, `"Body":"`+text+`"`) {
				bad.Add(1)
				t.Log(a.Status, a.Body)
			}
		})
	}
	all.Wait()
	asked, refused := p.counts()
	t.Logf("%d requests were refused once", refused)
	if asked != 2 || bad.Load() > 0 || refused == 0 {
		t.Errorf("asked %d times, %d bad", asked, bad.Load())
	}
	p.set(func() {
		if len(p.saw) != 1001 {
			t.Errorf("the API took %d requests", len(p.saw))
		}
	})
}

// TestOutbound_Refusals: what a client sees when there is no token, and when the
// API refuses a good one.
func TestOutbound_Refusals(t *testing.T) {
	p := newIDP(t)
	p.hostile = func(w http.ResponseWriter, _ *http.Request) { w.Header().Set("Retry-After", "7"); w.WriteHeader(503) }
	g, key := startOutbound(t, p, options{})
	a := g.do("GET", "/x", "X-API-Key", key)
	g.want(a, 503, "upstream_credential_unavailable")
	if after := a.Header.Get("Retry-After"); after != "7" || !strings.HasPrefix(a.Detail, "Your credential is good") || a.Header.Get("WWW-Authenticate") != "" {
		t.Errorf("%s %v", a.Detail, a.Header)
	}
	if !strings.Contains(g.logs(), a.Inst) {
		t.Error("the instance is in no log")
	}
	for range 50 {
		g.want(g.do("GET", "/x", "X-API-Key", key), 503, "upstream_credential_unavailable")
	}
	if asked, _ := p.counts(); asked != 1 {
		t.Errorf("asked %d times", asked)
	}

	p = newIDP(t)
	if err := g.load(options{auth: p.block("wrong-secret"), raw: "http://{addr} {\nauth\n" + fmt.Sprintf(throughPartner, p.host()) + "\n}"}); err != nil {
		t.Fatal(err)
	}
	g.answers()
	g.want(g.do("GET", "/x", "X-API-Key", key), 502, "upstream_credential_refused")

	p = newIDP(t)
	if err := g.load(options{auth: p.block(p.secret), raw: "http://{addr} {\nauth\n" + fmt.Sprintf(throughPartner, p.host()) + "\n}"}); err != nil {
		t.Fatal(err)
	}
	g.answers()
	passed(t, g.do("GET", "/x", "X-API-Key", key))
	p.set(func() { // every token is refused from now on
		p.good = nil
		p.hostile = func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Type", "application/json")
			fmt.Fprintf(w, `{"access_token":"useless.token.%d"}`, p.asked)
		}
	})
	if a := g.do("GET", "/x", "X-API-Key", key); a.Status != 401 || a.Body != "the API says no" || !strings.Contains(a.Header.Get("X-Echo"), "useless") {
		t.Errorf("%d %s %v", a.Status, a.Body, a.Header)
	}
	for range 100 {
		if a := g.do("GET", "/x", "X-API-Key", key); a.Status != 401 {
			t.Errorf("%d", a.Status)
		}
	}
	if asked, refused := p.counts(); asked > 5 || refused < 100 {
		t.Errorf("%d refusals made it ask %d times", refused, asked)
	}
}

// TestOutbound_Outage: with the token endpoint away requests go on until the
// token ends, and the API is not taken for broken.
func TestOutbound_Outage(t *testing.T) {
	p := newIDP(t)
	p.life = 4
	g, key := startOutbound(t, p, options{raw: "http://{addr} {\nauth\nreverse_proxy " + p.host() + " {\nfail_duration 10m\ntransport auth_outbound partner\n}\n}"})
	passed(t, g.do("GET", "/x", "X-API-Key", key))
	began := time.Now()
	p.set(func() { p.hostile = func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(500) } })
	within(t, 10*time.Second, "the token ends", func() bool {
		a := g.do("GET", "/x", "X-API-Key", key)
		if a.Status == 503 {
			g.want(a, 503, "upstream_credential_unavailable")
			return true
		}
		passed(t, a)
		return false
	})
	if took := time.Since(began); took < 3*time.Second {
		t.Errorf("it ended after %s", took)
	}
	asked, _ := p.counts()
	if asked > 8 {
		t.Errorf("asked %d times", asked)
	}
	p.set(func() { p.hostile = nil })
	within(t, 30*time.Second, "it is asked again, and the API is in use", func() bool { return g.do("GET", "/x", "X-API-Key", key).Status == 200 })
}

// TestOutbound_RotatedFile: a secret that is moved over the old one is used
// within seconds, without a reload; what is broken is not.
func TestOutbound_RotatedFile(t *testing.T) {
	var want, last atomic.Pointer[string]
	old := "vendor-key-0"
	want.Store(&old)
	api := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		v := r.Header.Get("X-Vendor-Key")
		last.Store(&v)
		if v != *want.Load() {
			w.WriteHeader(401)
		}
	}))
	defer api.Close()
	p := newIDP(t)
	dir := dirWith(t, map[string]string{"vendor": old + "\n", "secret": p.secret})
	g := start(t, options{
		auth: "outbound vendor {\nheader X-Vendor-Key file " + dir + "/vendor\n}\n" + p.block("{file."+dir+"/secret}"),
		raw:  "http://{addr} {\nauth\nhandle /v {\nreverse_proxy " + api.Listener.Addr().String() + " {\ntransport auth_outbound vendor\n}\n}\n" + fmt.Sprintf(throughPartner, p.host()) + "\n}",
		dir:  dir,
	})
	key := g.plainKey()
	get := func(path string) int { return g.do("GET", path, "X-API-Key", key).Status }
	if get("/v") != 200 || get("/x") != 200 {
		t.Fatal(g.logs())
	}
	move := func(name, text string) time.Time {
		if err := os.WriteFile(g.dir+"/new", []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Rename(g.dir+"/new", g.dir+"/"+name); err != nil {
			t.Fatal(err)
		}
		return time.Now()
	}
	began := move("vendor", "vendor-key-1\n") // while the old one is still good
	within(t, 5*time.Second, "the new key is used", func() bool { return get("/v") == 401 || *last.Load() == "vendor-key-1" })
	t.Logf("mv to the first request with the new key: %s", time.Since(began).Round(time.Millisecond))
	next := "vendor-key-2"
	want.Store(&next) // and when the old one is refused at once
	began = move("vendor", next)
	within(t, 5*time.Second, "a refused key makes it look", func() bool { return get("/v") == 200 })
	t.Logf("where the old key was refused: %s", time.Since(began).Round(time.Millisecond))

	p.set(func() { p.secret = "outbound-secret-1" })
	before, _ := p.counts()
	began = move("secret", "outbound-secret-1")
	within(t, 5*time.Second, "the new secret is used", func() bool { now, _ := p.counts(); return now > before })
	t.Logf("mv to the first token with the new secret: %s", time.Since(began).Round(time.Millisecond))
	if get("/x") != 200 {
		t.Error("not with the new secret")
	}

	move("vendor", "")
	move("secret", "outbound-secret-wrong")
	within(t, 5*time.Second, "both are told", func() bool {
		logs := g.logs()
		return strings.Contains(logs, "the secret's file can't be used") && strings.Contains(logs, "no new token; the present one is used")
	})
	if get("/v") != 200 || get("/x") != 200 {
		t.Error("a broken file broke requests")
	}
	if logs := g.logs(); strings.Contains(logs, "vendor-key-") || strings.Contains(logs, "outbound-secret-") {
		t.Error("a secret is in the logs")
	}
	if err := g.load(options{auth: p.block("file " + dir + "/none"), raw: "http://{addr} {\n" + fmt.Sprintf(throughPartner, p.host()) + "\n}"}); err == nil || !strings.Contains(err.Error(), "client_secret") || !strings.Contains(err.Error(), "hint:") {
		t.Errorf("a file that is not there: %v", err)
	}
}

// dirWith is a gateway's directory with files in it.
func dirWith(t *testing.T, files map[string]string) string {
	t.Helper()
	dir := storeDir(t)
	for name, text := range files {
		if err := os.WriteFile(dir+"/"+name, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

// TestOutbound_HealthChecks carry the credential, from the first one on, over
// TLS too, with the options of the transport http.
func TestOutbound_HealthChecks(t *testing.T) {
	p := newIDP(t)
	var checks, other atomic.Int32
	api := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Authorization") == "Bearer upstream.token.1" && r.URL.Path == "/health" {
			checks.Add(1)
			return
		}
		other.Add(1)
		if r.URL.Path == "/health" {
			w.WriteHeader(401)
			return
		}
		fmt.Fprintf(w, "%s %s", r.Proto, r.Header.Get("Authorization"))
	}))
	api.EnableHTTP2 = true
	defer api.Close()
	g := start(t, options{auth: p.block(p.secret), raw: `http://{addr} {
		auth
		reverse_proxy https://` + api.Listener.Addr().String() + ` {
			health_uri /health
			health_interval 100ms
			transport auth_outbound partner {
				tls_insecure_skip_verify
				replay_body 1KiB
				dial_timeout 2s
				versions 1.1
			}
		}
	}`})
	within(t, 10*time.Second, "health checks pass", func() bool { return checks.Load() > 3 })
	if a := g.do("GET", "/x", "X-API-Key", g.plainKey()); a.Status != 200 || a.Body != "HTTP/1.1 Bearer upstream.token.1" || other.Load() != 1 {
		t.Errorf("%d %s, %d others", a.Status, a.Body, other.Load())
	}
}

// TestOutbound_HealthChecksInAnOutage: that there is no token says nothing about
// the API: clients get the gateway's answer, and go on when there is one.
func TestOutbound_HealthChecksInAnOutage(t *testing.T) {
	p := newIDP(t)
	p.life = 2
	g, key := startOutbound(t, p, options{raw: `http://{addr} {
		auth
		reverse_proxy ` + p.host() + ` {
			health_uri /health
			health_interval 50ms
			health_body \/health
			transport auth_outbound partner
		}
	}`})
	eventually(t, "it works", func() bool { return g.do("GET", "/x", "X-API-Key", key).Status == 200 })
	p.set(func() { p.hostile = func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(500) } })
	within(t, 10*time.Second, "the token ends", func() bool { return g.do("GET", "/x", "X-API-Key", key).Status == 503 })
	for end := time.Now().Add(500 * time.Millisecond); time.Now().Before(end); { // ten health checks
		g.want(g.do("GET", "/x", "X-API-Key", key), 503, "upstream_credential_unavailable")
	}
	p.set(func() { p.hostile, p.life = nil, 3600 })
	within(t, 40*time.Second, "it works again", func() bool {
		a := g.do("GET", "/x", "X-API-Key", key)
		if a.Status == 503 {
			g.want(a, 503, "upstream_credential_unavailable")
		}
		return a.Status == 200
	})
	p.api.CloseClientConnections()
	p.api.Close()
	eventually(t, "an API that is down is down", func() bool { a := g.do("GET", "/x", "X-API-Key", key); return a.Status == 503 && a.Code == "" })
}

// TestOutbound_ValidateAsksNobody: what only checks a configuration gets no
// token, though health checks begin while it is checked.
func TestOutbound_ValidateAsksNobody(t *testing.T) {
	p := newIDP(t)
	var calls atomic.Int32
	p.api.Config.Handler = http.HandlerFunc(func(http.ResponseWriter, *http.Request) { calls.Add(1) })
	dir := storeDir(t)
	text, _, err := caddyconfig.GetAdapter("caddyfile").Adapt([]byte(fmt.Sprintf("{\nadmin off\npersist_config off\nauto_https off\nlog {\noutput discard\nformat auth_redact\n}\nauth {\nstore sqlite %s/auth.db\n%s\n}\n}\nhttp://127.0.0.1:1 {\nauth\nreverse_proxy %s {\nhealth_uri /h\nhealth_interval 10ms\ntransport auth_outbound partner\n}\n}",
		dir, p.block(p.secret), p.host())), map[string]any{"filename": "Caddyfile"})
	if err != nil {
		t.Fatal(err)
	}
	var cfg caddy.Config
	if err := json.Unmarshal(text, &cfg); err != nil {
		t.Fatal(err)
	}
	if err := caddy.Validate(&cfg); err != nil {
		t.Fatal(err)
	}
	if asked, _ := p.counts(); asked != 0 || calls.Load() != 0 {
		t.Errorf("asked %d times, %d calls", asked, calls.Load())
	}
}

// TestOutbound_Reload: a reload fetches no token; one that changes the secret
// does, and requests under way end with what they have.
func TestOutbound_Reload(t *testing.T) {
	p := newIDP(t)
	g, key := startOutbound(t, p, options{})
	raw := "http://{addr} {\nauth\n" + fmt.Sprintf(throughPartner, p.host()) + "\nrespond /other 204\n}"
	passed(t, g.do("GET", "/x", "X-API-Key", key))
	if err := g.load(options{auth: p.block(p.secret), raw: raw}); err != nil {
		t.Fatal(err)
	}
	g.answers()
	passed(t, g.do("GET", "/x", "X-API-Key", key))
	if asked, _ := p.counts(); asked != 1 {
		t.Errorf("asked %d times", asked)
	}
	p.set(func() { p.secret = "outbound-secret-2" })
	t.Setenv("OUTBOUND_SECRET", "outbound-secret-2")
	if err := g.load(options{auth: p.block("{env.OUTBOUND_SECRET}"), raw: raw}); err != nil {
		t.Fatal(err)
	}
	g.answers()
	if h := passed(t, g.do("GET", "/x", "X-API-Key", key)).Header; h.Get("Authorization") != "Bearer upstream.token.2" {
		t.Errorf("%v", h)
	}
	for name, bad := range map[string]string{
		"no such outbound":  "reverse_proxy 127.0.0.1:1 {\ntransport auth_outbound nobody\n}",
		"an unset variable": "",
		"identity":          "",
	} {
		o := options{auth: p.block("{env.OUTBOUND_NOT_SET}"), raw: raw}
		if name == "identity" {
			o.auth = "outbound x {\nheader x_auth_subject root\n}"
		}
		if bad != "" {
			o = options{auth: p.block(p.secret), raw: "http://{addr} {\n" + bad + "\n}"}
		}
		if err := g.load(o); err == nil {
			t.Errorf("%s: it loads", name)
		} else {
			t.Logf("%s: %v", name, err)
		}
	}
	g.answers()
	passed(t, g.do("GET", "/x", "X-API-Key", key))
}

// TestOutbound_Upgrade: a websocket opens with the token, and after a refusal
// too.
func TestOutbound_Upgrade(t *testing.T) {
	p := newIDP(t)
	g, key := startOutbound(t, p, options{})
	for range 2 {
		conn, r := g.dial(t, "GET /socket HTTP/1.1\r\nHost: "+g.addr+"\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nX-API-Key: "+key+"\r\n\r\n")
		res, err := http.ReadResponse(r, nil)
		if err != nil || res.StatusCode != http.StatusSwitchingProtocols {
			t.Fatalf("%v %v", res, err)
		}
		_, _ = io.WriteString(conn, "hello\n")
		if line, err := r.ReadString('\n'); line != "hello\n" {
			t.Errorf("%q %v", line, err)
		}
		_ = conn.Close()
		p.revoke()
	}
	if asked, refused := p.counts(); asked != 2 || refused != 1 {
		t.Errorf("asked %d times, refused %d times", asked, refused)
	}
}

// TestOutbound_Metrics tells age, time to expiry, refreshes and failures; what
// is not there any more is told no more.
func TestOutbound_Metrics(t *testing.T) {
	p := newIDP(t)
	before := map[string]float64{}
	counters := map[string]map[string]string{
		"caddy_auth_outbound_refreshes_total": {"outbound": "partner", "from": "endpoint"},
		"caddy_auth_outbound_refused_total":   {"outbound": "partner", "result": "renewed"},
		"caddy_auth_outbound_failures_total":  {"outbound": "partner", "cause": "refused"},
	}
	g, key := startOutbound(t, p, options{})
	for name, labels := range counters {
		before[name] = gathered(t, name, labels)
	}
	passed(t, g.do("GET", "/x", "X-API-Key", key))
	p.revoke()
	passed(t, g.do("GET", "/x", "X-API-Key", key))
	p.revoke()
	p.set(func() { p.secret = "another" })
	if a := g.do("GET", "/x", "X-API-Key", key); a.Status != 502 {
		t.Errorf("%d", a.Status)
	}
	for name, want := range map[string]float64{"caddy_auth_outbound_refreshes_total": 2, "caddy_auth_outbound_refused_total": 2, "caddy_auth_outbound_failures_total": 1} {
		if got := gathered(t, name, counters[name]) - before[name]; got != want {
			t.Errorf("%s: %v, want %v", name, got, want)
		}
	}
	partner := map[string]string{"outbound": "partner"}
	age, left := gathered(t, "caddy_auth_outbound_token_age_seconds", partner), gathered(t, "caddy_auth_outbound_token_expires_in_seconds", partner)
	if age <= 0 || age > 60 || left < 3500 || left > 3600 {
		t.Errorf("age %v, left %v", age, left)
	}
	if err := g.load(options{raw: "http://{addr} {\nrespond ok\n}"}); err != nil {
		t.Fatal(err)
	}
	if left := gathered(t, "caddy_auth_outbound_token_expires_in_seconds", partner); left != 0 {
		t.Errorf("still there: %v", left)
	}
}
