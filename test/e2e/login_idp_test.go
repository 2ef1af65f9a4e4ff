package e2e

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"
)

// op is an OpenID provider that does as it is told: it asks nobody anything, and
// can lie.
type op struct {
	*httptest.Server
	t      testing.TB
	key    *ecdsa.PrivateKey
	api    *httptest.Server // an upstream that wants its access tokens
	client string
	secret string

	mu       sync.Mutex // guards what follows
	codes    map[string]opCode
	refresh  map[string]bool // refresh tokens; false: used up
	access   map[string]bool // access tokens that are good
	revoked  []string
	asked    map[string]int // by grant
	redirect []url.Values   // what authorization requests said
	sub      string
	scope    string
	life     int
	noRT     bool
	metadata map[string]any                                     // over what it says
	claims   func(claims map[string]any)                        // changes ID tokens
	answer   func(w http.ResponseWriter, r *http.Request) bool  // before the token endpoint
	back     func(q url.Values)                                 // changes what the browser is sent back with
	sign     func(header map[string]any, claims []byte) *string // another way to sign
	slow     func()                                             // is called before a refresh is answered, without the lock
	saw      []string                                           // every form it was sent
	guesses  int                                                // that answer counted
	slowCode func()                                             // the same before a code is looked at; set once
	refusals int                                                // at the revocation endpoint
	apiSaw   []http.Header
	n        int
}

type opCode struct{ challenge, nonce, redirect string }

func newOP(t testing.TB) *op {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	p := &op{
		t: t, key: key, client: "gw", secret: "login-secret-0123", codes: map[string]opCode{}, refresh: map[string]bool{}, access: map[string]bool{}, asked: map[string]int{},
		sub: "alice", scope: "openid profile orders:read", life: 600,
	}
	mux := http.NewServeMux()
	mux.HandleFunc("/.well-known/openid-configuration", p.discovery)
	mux.HandleFunc("/jwks", p.jwks)
	mux.HandleFunc("/auth", p.authorize)
	mux.HandleFunc("/token", p.token)
	mux.HandleFunc("/revoke", p.revoke)
	p.Server = httptest.NewServer(mux)
	p.api = httptest.NewServer(http.HandlerFunc(p.call))
	t.Cleanup(func() { p.CloseClientConnections(); p.Close(); p.api.CloseClientConnections(); p.api.Close() })
	return p
}

// set changes what the provider does.
func (p *op) set(f func()) {
	p.mu.Lock()
	defer p.mu.Unlock()
	f()
}

func (p *op) discovery(w http.ResponseWriter, _ *http.Request) {
	p.mu.Lock()
	defer p.mu.Unlock()
	m := map[string]any{
		"issuer": p.URL, "authorization_endpoint": p.URL + "/auth", "token_endpoint": p.URL + "/token", "jwks_uri": p.URL + "/jwks", "revocation_endpoint": p.URL + "/revoke",
		"end_session_endpoint": p.URL + "/end", "authorization_response_iss_parameter_supported": true, "code_challenge_methods_supported": []string{"S256"},
	}
	maps.Copy(m, p.metadata)
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(m)
}

func (p *op) jwks(w http.ResponseWriter, _ *http.Request) {
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(map[string]any{"keys": []any{jose.JSONWebKey{Key: &p.key.PublicKey, KeyID: "k", Algorithm: "ES256", Use: "sig"}}})
}

// authorize sends the browser back at once.
func (p *op) authorize(w http.ResponseWriter, r *http.Request) {
	p.mu.Lock()
	defer p.mu.Unlock()
	q := r.URL.Query()
	p.redirect = append(p.redirect, q)
	p.n++
	code := fmt.Sprintf("code-%d-%s", p.n, rand.Text())
	p.codes[code] = opCode{q.Get("code_challenge"), q.Get("nonce"), q.Get("redirect_uri")}
	out := url.Values{"code": {code}, "state": {q.Get("state")}, "iss": {p.URL}}
	if p.back != nil {
		p.back(out)
	}
	http.Redirect(w, r, q.Get("redirect_uri")+"?"+out.Encode(), http.StatusSeeOther)
}

func (p *op) token(w http.ResponseWriter, r *http.Request) {
	p.mu.Lock()
	slow := p.slow
	p.mu.Unlock()
	if slow != nil && r.PostFormValue("grant_type") == "refresh_token" {
		slow()
	}
	if code := p.slowCode; code != nil && r.PostFormValue("grant_type") == "authorization_code" {
		code()
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	grant := r.PostFormValue("grant_type")
	p.saw = append(p.saw, r.PostForm.Encode())
	p.asked[grant]++
	if p.answer != nil && p.answer(w, r) {
		return
	}
	w.Header().Set("Content-Type", "application/json")
	fail := func(status int, code string) {
		w.WriteHeader(status)
		_, _ = io.WriteString(w, `{"error":"`+code+`"}`)
	}
	id, secret, _ := r.BasicAuth()
	if id != p.client || secret != p.secret {
		fail(401, "invalid_client")
		return
	}
	nonce := ""
	switch grant {
	case "authorization_code":
		c, ok := p.codes[r.PostFormValue("code")]
		delete(p.codes, r.PostFormValue("code"))
		sum := sha256.Sum256([]byte(r.PostFormValue("code_verifier")))
		if !ok || c.redirect != r.PostFormValue("redirect_uri") || c.challenge == "" || c.challenge != base64.RawURLEncoding.EncodeToString(sum[:]) {
			fail(400, "invalid_grant")
			return
		}
		nonce = c.nonce
	case "refresh_token":
		old := r.PostFormValue("refresh_token")
		if !p.refresh[old] {
			for t := range p.refresh { // RFC 9700, 4.14: somebody stole one
				p.refresh[t] = false
			}
			fail(400, "invalid_grant")
			return
		}
		p.refresh[old] = false
	default:
		fail(400, "unsupported_grant_type")
		return
	}
	_ = json.NewEncoder(w).Encode(p.issue(nonce))
}

// issue makes tokens. p.mu is held.
func (p *op) issue(nonce string) map[string]any {
	p.n++
	access, refresh := fmt.Sprintf("user.access.%d.%s", p.n, rand.Text()), fmt.Sprintf("user.refresh.%d.%s", p.n, rand.Text())
	p.access[access] = true
	out := map[string]any{"access_token": access, "token_type": "Bearer", "expires_in": p.life, "scope": p.scope}
	if !p.noRT {
		p.refresh[refresh] = true
		out["refresh_token"] = refresh
	}
	if nonce != "" {
		half := sha256.Sum256([]byte(access))
		claims := map[string]any{
			"iss": p.URL, "aud": p.client, "sub": p.sub, "nonce": nonce, "iat": time.Now().Unix(), "exp": time.Now().Add(time.Minute).Unix(), "sid": "sid-" + p.sub,
			"at_hash": base64.RawURLEncoding.EncodeToString(half[:16]), "email": p.sub + "@example.com", "email_verified": true, "groups": []string{"staff", "ops"},
		}
		if p.claims != nil {
			p.claims(claims)
		}
		out["id_token"] = p.jwt("JWT", claims)
	}
	return out
}

// jwt signs claims.
func (p *op) jwt(typ string, claims map[string]any) string {
	text, err := json.Marshal(claims)
	if err != nil {
		p.t.Fatal(err)
	}
	header := map[string]any{"alg": "ES256", "kid": "k", "typ": typ}
	if p.sign != nil {
		if done := p.sign(header, text); done != nil {
			return *done
		}
	}
	return signES256(p.t, p.key, header, text)
}

func signES256(t testing.TB, key *ecdsa.PrivateKey, header map[string]any, claims []byte) string {
	head, err := json.Marshal(header)
	if err != nil {
		t.Fatal(err)
	}
	text := base64.RawURLEncoding.EncodeToString(head) + "." + base64.RawURLEncoding.EncodeToString(claims)
	sum := sha256.Sum256([]byte(text))
	r, s, err := ecdsa.Sign(rand.Reader, key, sum[:])
	if err != nil {
		t.Fatal(err)
	}
	var sig [64]byte
	r.FillBytes(sig[:32])
	s.FillBytes(sig[32:])
	return text + "." + base64.RawURLEncoding.EncodeToString(sig[:])
}

func (p *op) revoke(w http.ResponseWriter, r *http.Request) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.answer != nil && p.answer(w, r) {
		return
	}
	if id, secret, _ := r.BasicAuth(); id != p.client || secret != p.secret {
		p.refusals++
		w.WriteHeader(401)
		return
	}
	token := r.PostFormValue("token")
	p.saw = append(p.saw, r.PostForm.Encode())
	p.revoked = append(p.revoked, token)
	delete(p.access, token)
	if _, ok := p.refresh[token]; ok {
		p.refresh[token] = false
	}
}

// call is an API that takes the provider's tokens.
func (p *op) call(w http.ResponseWriter, r *http.Request) {
	body, _ := io.ReadAll(r.Body)
	p.mu.Lock()
	defer p.mu.Unlock()
	p.apiSaw = append(p.apiSaw, r.Header.Clone())
	if r.URL.Path != "/health" && !p.access[strings.TrimPrefix(r.Header.Get("Authorization"), "Bearer ")] {
		w.WriteHeader(401)
		_, _ = io.WriteString(w, "the API says no")
		return
	}
	_ = json.NewEncoder(w).Encode(seen{r.Method, r.RequestURI, r.Header.Clone(), nil, string(body)})
}

// count returns how often a grant was asked for.
func (p *op) count(grant string) int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.asked[grant]
}

// visitor is a browser that shows nothing: it keeps cookies, and says what
// browsers say.
type visitor struct {
	t       testing.TB
	g       *gateway
	cookies map[string]string
	client  *http.Client
}

func newVisitor(g *gateway) *visitor {
	return &visitor{g.t, g, map[string]string{}, &http.Client{
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}}
}

// navigation is what a browser says that opens a page; script what one says in
// which a script asks.
var (
	navigation = []string{"Sec-Fetch-Mode", "navigate", "Sec-Fetch-Dest", "document", "Sec-Fetch-Site", "none", "Accept", "text/html,application/xhtml+xml,*/*;q=0.8"}
	script     = []string{"Sec-Fetch-Mode", "cors", "Sec-Fetch-Dest", "empty", "Sec-Fetch-Site", "same-origin", "Accept", "*/*"}
)

// ask sends a request and keeps the cookies of the answer.
func (v *visitor) ask(method, target, body string, headers ...string) answer {
	v.t.Helper()
	if strings.HasPrefix(target, "/") {
		target = "http://" + v.g.addr + target
	}
	req, err := http.NewRequest(method, target, strings.NewReader(body))
	if err != nil {
		v.t.Fatal(err)
	}
	for i := 0; i < len(headers); i += 2 {
		req.Header.Set(headers[i], headers[i+1])
	}
	if body != "" {
		req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	}
	ours := strings.HasPrefix(target, "http://"+v.g.addr)
	if ours {
		for name, value := range v.cookies {
			req.Header.Add("Cookie", name+"="+value)
		}
	}
	res, err := v.client.Do(req)
	if err != nil {
		v.t.Fatal(err)
	}
	if ours {
		for _, c := range res.Cookies() {
			if strings.HasPrefix(c.Name, "__Host-") && (!c.Secure || !c.HttpOnly || c.Path != "/" || c.Domain != "" || c.SameSite != http.SameSiteLaxMode) {
				v.t.Errorf("a cookie that browsers refuse, or scripts read: %+v", c)
			}
			if c.MaxAge < 0 {
				delete(v.cookies, c.Name)
			} else {
				v.cookies[c.Name] = c.Value
			}
		}
	}
	return readAnswer(v.t, res)
}

// open opens a page and follows where it leads, and returns the last answer and
// every place on the way.
func (v *visitor) open(target string) (a answer, places []string) {
	v.t.Helper()
	for range 10 {
		places = append(places, target)
		a = v.ask("GET", target, "", navigation...)
		to := a.Header.Get("Location")
		if to == "" || strings.Contains(to, "/end?") {
			return a, places
		}
		target = to
	}
	v.t.Fatalf("it leads in circles: %q", places)
	return a, places
}

// signIn opens a page and must end there, signed in.
func (v *visitor) signIn(target string) seen {
	v.t.Helper()
	a, places := v.open(target)
	last := strings.TrimPrefix(places[len(places)-1], "http://"+v.g.addr)
	if a.Status != 200 || last != target {
		v.t.Fatalf("%d %s at %q: %.300s", a.Status, a.Code, places, a.Body)
	}
	s, err := parseSeen(a.Body)
	if err != nil {
		v.t.Fatalf("%v: %.200s", err, a.Body)
	}
	return s
}

// session is the cookie.
func (v *visitor) session() string { return v.cookies["__Host-caddy-auth-session-corp"] }

// loginConf is a login at p.
func loginConf(p *op, more string) string {
	return fmt.Sprintf("login corp {\nissuer %s\nclient_id %s\nclient_secret %s\nscopes openid profile offline_access\n%s\n}", p.URL, p.client, p.secret, more)
}

// startLogin is a gateway with a site that people sign in to.
func startLogin(t testing.TB, p *op, more, site string, others ...string) *gateway {
	return start(t, options{auth: loginConf(p, more) + "\n" + strings.Join(others, "\n"), site: "auth_login corp {\n" + site + "\n}"})
}
