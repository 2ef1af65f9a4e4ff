package e2e

import (
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/caddy-auth/caddy-auth/internal/auth"
)

// TestLogin_Journey: a deep link leads to the provider and back to itself; what
// is sent there is what the RFCs say; the upstream learns who it is, and nothing
// of the cookie; nothing of all that is in a log, the store's file, or the URL.
func TestLogin_Journey(t *testing.T) {
	p := newOP(t)
	g := start(t, options{
		auth: loginConf(p, "meta_claims email groups\nparam prompt select_account") + "\nidentity_headers {\nmap X-Email meta.email\nmap X-Groups meta.groups\n}",
		site: "log\nauth_login corp {\npublic /healthz\n}",
	})
	v := newVisitor(g)
	v.cookies["app"] = "theirs"
	saw := v.signIn("/deep/link?a=1&next=%2F%2Fevil")
	for name, want := range map[string]string{
		"X-Auth-Subject": "corp:alice", "X-Auth-Method": "session", "X-Auth-Issuer": "corp", "X-Auth-Environment": "live", "X-Auth-Scopes": "openid orders:read profile",
		"X-Email": "alice@example.com", "X-Groups": "staff,ops", "Cookie": "app=theirs",
	} {
		if got := saw.Header.Get(name); got != want {
			t.Errorf("%s: %q, want %q", name, got, want)
		}
	}
	if id := saw.Header.Get("X-Auth-Credential-Id"); !strings.HasPrefix(id, "ses_") || strings.Contains(v.session(), id) {
		t.Errorf("id %q", id)
	}
	q := p.redirect[0]
	for name, want := range map[string]string{
		"response_type": "code", "client_id": "gw", "scope": "openid profile offline_access", "code_challenge_method": "S256", "redirect_uri": "http://" + g.addr + "/auth/callback", "prompt": "select_account",
	} {
		if q.Get(name) != want {
			t.Errorf("%s: %q", name, q.Get(name))
		}
	}
	if len(q.Get("state")) < 43 || len(q.Get("nonce")) < 43 || len(q.Get("code_challenge")) != 43 || len(v.cookies) != 2 {
		t.Errorf("%v, cookies %v", q, v.cookies)
	}
	// Signed in it stays.
	if a := v.ask("GET", "/again", "", script...); a.Status != 200 || a.Header.Get("Cache-Control") != "private" {
		t.Errorf("%d %v", a.Status, a.Header)
	}
	g.upstream.take()
	// An API client is never led anywhere.
	other := newVisitor(g)
	for what, headers := range map[string][]string{
		"a script": script, "curl": {"Accept", "*/*"}, "an API": {"Accept", "application/json"}, "a frame": {"Sec-Fetch-Mode", "navigate", "Sec-Fetch-Dest", "iframe", "Accept", "text/html"},
		"an old script": {"X-Requested-With", "XMLHttpRequest", "Accept", "text/html"}, "a websocket": {"Sec-Fetch-Mode", "websocket", "Connection", "Upgrade", "Upgrade", "websocket"},
	} {
		a := other.ask("GET", "/", "", headers...)
		if a.Status != 401 || a.Code != string(auth.CodeMissingCredential) || a.Header.Get("Location") != "" || len(a.Header["Set-Cookie"]) > 0 {
			t.Errorf("%s: %d %s %v", what, a.Status, a.Code, a.Header)
		}
	}
	if a := other.ask("POST", "/form", "x=1", navigation...); a.Status != 401 || a.Header.Get("Location") != "" || !strings.Contains(a.Body, "Your session has ended") {
		t.Errorf("a form: %d %v", a.Status, a.Header)
	}
	if a := other.ask("GET", "/", "", "Accept", "text/html"); a.Status != 302 { // an old browser
		t.Errorf("an old browser: %d", a.Status)
	}
	if a := g.do("GET", "/healthz", "Cookie", "__Host-caddy-auth-session-corp="+v.session()+"; x=y"); a.Status != 200 {
		t.Errorf("public: %d", a.Status)
	} else if s, _ := parseSeen(a.Body); s.Header.Get("Cookie") != "x=y" || s.Header.Get("X-Auth-Subject") != "" {
		t.Errorf("public: %v", s.Header)
	}
	// A key of ours works beside people.
	g.upstream.take()
	key := g.plainKey()
	g.want(g.do("GET", "/", "X-API-Key", key), 200, "")
	g.want(g.do("GET", "/", "X-API-Key", key, "Cookie", "__Host-caddy-auth-session-corp="+v.session()), 400, auth.CodeInvalidRequest)
	g.want(g.do("GET", "/", "X-API-Key", "bad", "Cookie", "__Host-caddy-auth-session-corp="+v.session()), 400, auth.CodeInvalidRequest)

	secrets := []string{v.session(), p.secret}
	p.set(func() {
		for token := range p.access {
			secrets = append(secrets, token)
		}
		for token := range p.refresh {
			secrets = append(secrets, token)
		}
	})
	secrets = append(secrets, "code=code-")
	if !strings.Contains(g.logs(), "/auth/callback?code=REDACTED") {
		t.Error("the callback is not in the access log")
	}
	logs := g.logs()
	var files string
	for _, name := range []string{"auth.db", "auth.db-wal"} {
		b, _ := os.ReadFile(filepath.Join(g.dir, name))
		files += string(b)
	}
	for _, secret := range secrets {
		if strings.Contains(logs, secret) {
			t.Errorf("in the logs: %s", secret)
		}
		if secret != p.secret && strings.Contains(files, secret) {
			t.Errorf("in the store: %s", secret)
		}
	}
}

// TestLogin_Refusals: what comes back to the callback and belongs to no sign-in
// of this browser, or is not the provider's, signs nobody in.
func TestLogin_Refusals(t *testing.T) {
	p := newOP(t)
	g := startLogin(t, p, "", "")
	// begun returns a browser that is at the provider, and what it came back with.
	begun := func() (*visitor, *url.URL) {
		t.Helper()
		v := newVisitor(g)
		a := v.ask("GET", "/page", "", navigation...)
		back := v.ask("GET", a.Header.Get("Location"), "")
		u, err := url.Parse(back.Header.Get("Location"))
		if err != nil || a.Status != 302 {
			t.Fatal(err, a.Status)
		}
		return v, u
	}
	refused := func(what string, v *visitor, target string, status int) {
		t.Helper()
		a := v.ask("GET", target, "", navigation...)
		if a.Status != status || v.session() != "" || !strings.Contains(a.Body, `<a class="act" href="/auth/login?return=`) || a.Header.Get("Location") != "" {
			t.Errorf("%s: %d, session %q, %.200q", what, a.Status, v.session(), a.Body)
		}
		if csp := a.Header.Get("Content-Security-Policy"); !strings.Contains(csp, "default-src 'none'") || !strings.Contains(csp, "frame-ancestors 'none'") {
			t.Errorf("%s: %v", what, a.Header)
		}
	}
	edit := func(u *url.URL, f func(url.Values)) string {
		q := u.Query()
		f(q)
		return u.Path + "?" + q.Encode()
	}
	tokens := p.count("authorization_code")
	for what, f := range map[string]func(url.Values){
		"no state": func(q url.Values) { q.Del("state") }, "another state": func(q url.Values) { q.Set("state", strings.Repeat("A", 43)) }, "two states": func(q url.Values) { q.Add("state", q.Get("state")) },
		"two codes": func(q url.Values) { q.Add("code", "x") }, "an empty query": func(q url.Values) { clear(q) },
	} {
		v, u := begun()
		refused(what, v, edit(u, f), 400)
	}
	for what, f := range map[string]func(url.Values){
		"no code": func(q url.Values) { q.Del("code") }, "no iss": func(q url.Values) { q.Del("iss") }, "another iss": func(q url.Values) { q.Set("iss", "https://evil.example") },
		"an error that is odd": func(q url.Values) {
			q.Set("error", "<script>")
			q.Set("error_description", "<script>alert(1)</script>")
		},
	} {
		v, u := begun()
		refused(what, v, edit(u, f), 502)
	}
	// Code injection, and login CSRF: the code, or the whole answer, of somebody
	// else in this browser.
	_, theirs := begun()
	v, _ := begun()
	refused("the answer of another browser", v, theirs.RequestURI(), 400)
	if n := p.count("authorization_code"); n != tokens {
		t.Errorf("the provider was asked %d times", n-tokens)
	}
	v, u := begun()
	refused("the code of another browser", v, edit(u, func(q url.Values) { q.Set("code", theirs.Query().Get("code")) }), 400)
	v, u = begun()
	if a := v.ask("GET", u.RequestURI(), "", append([]string{"Early-Data", "1"}, navigation...)...); a.Status != 425 || v.session() != "" {
		t.Errorf("early data: %d", a.Status)
	}

	v, u = begun()
	refused("denied", v, edit(u, func(q url.Values) { q.Del("code"); q.Set("error", "access_denied") }), 403)
	v, u = begun()
	v.cookies = map[string]string{}
	refused("cookies are blocked", v, u.RequestURI(), 400)
	v, u = begun()
	for name, value := range v.cookies {
		v.cookies[name] = value[:len(value)-2] + "AA"
	}
	refused("a forged state cookie", v, u.RequestURI(), 400)

	// An answer is good once, also together with its cookie.
	v, u = begun()
	kept := map[string]string{}
	for name, value := range v.cookies {
		kept[name] = value
	}
	if a := v.ask("GET", u.RequestURI(), "", navigation...); a.Status != 303 || a.Header.Get("Location") != "/page" || v.session() == "" {
		t.Fatalf("%d %v", a.Status, a.Header)
	}
	replay := newVisitor(g)
	replay.cookies = kept
	asked := p.count("authorization_code")
	refused("a replay", replay, u.RequestURI(), 400)
	if p.count("authorization_code") != asked {
		t.Error("the provider saw a code again")
	}
	// Neither a POST nor another path is the callback.
	v, u = begun()
	if a := v.ask("POST", u.RequestURI(), "x", navigation...); a.Status != 405 || v.session() != "" {
		t.Errorf("POST: %d", a.Status)
	}
	if a := g.get("/auth/callback?code=x&access_token=y"); a.Status != 400 || a.Code != string(auth.CodeCredentialInQuery) {
		t.Errorf("a token in the callback's URL: %d %s", a.Status, a.Code)
	}
}

// TestLogin_HostileIDTokens: an ID token that is anything but ours, now, and for
// this sign-in, signs nobody in.
func TestLogin_HostileIDTokens(t *testing.T) {
	p := newOP(t)
	g := startLogin(t, p, "", "")
	claim := func(name string, value any) func(map[string]any) { return func(c map[string]any) { c[name] = value } }
	without := func(name string) func(map[string]any) { return func(c map[string]any) { delete(c, name) } }
	for what, f := range map[string]func(map[string]any){
		"another nonce": claim("nonce", "x"), "no nonce": without("nonce"), "another issuer": claim("iss", "https://evil.example"), "an issuer with a slash": claim("iss", p.URL+"/"),
		"another audience": claim("aud", "other"), "two audiences, no azp": claim("aud", []string{"gw", "other"}), "another azp": claim("azp", "other"), "no audience": without("aud"),
		"expired": claim("exp", 1), "no exp": without("exp"), "of the future": claim("iat", 1<<33), "no iat": without("iat"), "no sub": without("sub"), "a number as sub": claim("sub", 7),
		"a sub that is too long": claim("sub", strings.Repeat("x", 300)), "an empty sub": claim("sub", ""), "another access token": claim("at_hash", "AAAAAAAAAAAAAAAAAAAAAA"),
		"a logout token": claim("events", map[string]any{"http://schemas.openid.net/event/backchannel-logout": map[string]any{}}), "a sub with NUL": claim("sub", "a\x00b"),
	} {
		p.set(func() { p.claims = f })
		v := newVisitor(g)
		if a, places := v.open("/"); a.Status != 502 || v.session() != "" || !strings.Contains(places[len(places)-1], "/auth/callback") {
			t.Errorf("%s: %d at %q", what, a.Status, places)
		}
	}
	p.set(func() { p.claims = nil })
	stranger := newOP(t)
	none := func(h map[string]any, claims []byte) *string {
		h["alg"] = "none"
		text := signES256(t, p.key, h, claims)
		text = text[:strings.LastIndexByte(text, '.')+1]
		return &text
	}
	for what, sign := range map[string]func(map[string]any, []byte) *string{
		"alg none":           none,
		"another's key":      func(h map[string]any, c []byte) *string { s := signES256(t, stranger.key, h, c); return &s },
		"an unknown key":     func(h map[string]any, c []byte) *string { h["kid"] = "other"; return nil },
		"another alg":        func(h map[string]any, c []byte) *string { h["alg"] = "HS256"; return nil },
		"an access token":    func(h map[string]any, c []byte) *string { h["typ"] = "at+jwt"; return nil },
		"a logout token":     func(h map[string]any, c []byte) *string { h["typ"] = "logout+jwt"; return nil },
		"a key that it says": func(h map[string]any, c []byte) *string { h["jwk"] = map[string]any{"kty": "EC"}; return nil },
		"nothing":            func(map[string]any, []byte) *string { s := ""; return &s },
		"claims twice": func(h map[string]any, c []byte) *string {
			s := signES256(t, p.key, h, []byte(strings.Replace(string(c), `{`, `{"sub":"admin",`, 1)))
			return &s
		},
	} {
		p.set(func() { p.sign = sign })
		v := newVisitor(g)
		if a, _ := v.open("/"); a.Status != 502 || v.session() != "" {
			t.Errorf("%s: %d", what, a.Status)
		}
	}
	p.set(func() { p.sign = nil })
	newVisitor(g).signIn("/")
	for what, answer := range map[string]string{
		"no JSON": "<html>", "another type": `{"access_token":"a","token_type":"DPoP","id_token":"x"}`, "no ID token": `{"access_token":"aaaaaaaaaaaa","token_type":"Bearer"}`, "huge": `{"x":"` + strings.Repeat("x", 70_000) + `"}`,
	} {
		p.set(func() {
			p.answer = func(w http.ResponseWriter, _ *http.Request) bool {
				w.Header().Set("Content-Type", "application/json")
				_, _ = w.Write([]byte(answer))
				return true
			}
		})
		v := newVisitor(g)
		if a, _ := v.open("/"); a.Status != 502 || v.session() != "" {
			t.Errorf("%s: %d", what, a.Status)
		}
	}
}

// TestLogin_Returns: the place to return to is on this host, however it is
// written.
func TestLogin_Returns(t *testing.T) {
	p := newOP(t)
	g := startLogin(t, p, "", "")
	for _, bad := range []string{"//evil.example", "https://evil.example", `/\evil.example`, "/%09/evil.example", "/%2f%2fevil.example", "/%5cevil.example", "javascript:alert(1)", "/\t/evil.example", "", "evil"} {
		v := newVisitor(g)
		_, places := v.open("/auth/login?return=" + url.QueryEscape(bad))
		if last := places[len(places)-1]; last != "/" {
			t.Errorf("%q leads to %q", bad, places)
		}
	}
	v := newVisitor(g)
	if _, places := v.open("/auth/login?return=" + url.QueryEscape("/x?y=%2F%2Fz")); places[len(places)-1] != "/x?y=%2F%2Fz" {
		t.Errorf("%q", places)
	}
	ands := "/x?" + strings.Repeat("a=b&", 400)
	if _, places := newVisitor(g).open(ands); places[len(places)-1] != ands {
		t.Errorf("%.80q", places[len(places)-1])
	}
	long := "/" + strings.Repeat("a", 3000)
	if _, places := newVisitor(g).open(long); places[len(places)-1] != "/" {
		t.Errorf("a long one leads to %.50q", places[len(places)-1])
	}
}

// TestLogin_Tabs: sign-ins of several tabs don't meet; there are never too many
// cookies.
func TestLogin_Tabs(t *testing.T) {
	p := newOP(t)
	g := startLogin(t, p, "", "")
	v := newVisitor(g)
	var backs []string
	for i := range 8 {
		a := v.ask("GET", "/tab"+string(rune('0'+i)), "", navigation...)
		back := v.ask("GET", a.Header.Get("Location"), "")
		backs = append(backs, back.Header.Get("Location"))
	}
	if len(v.cookies) != 5 {
		t.Errorf("%d cookies", len(v.cookies))
	}
	good := 0
	for i, back := range slices.Backward(backs) {
		a := v.ask("GET", back, "", navigation...)
		if a.Status == 303 && a.Header.Get("Location") == "/tab"+string(rune('0'+i)) {
			good++
		}
	}
	if good != 5 || len(v.cookies) != 1 {
		t.Errorf("%d tabs signed in, cookies %v", good, v.cookies)
	}
}

// TestLogin_Two: who signs in by one login is nobody at another, in whichever
// cookie; their subjects can't be told to be each other's; and the sign-ins of
// one leave those of the other alone.
func TestLogin_Two(t *testing.T) {
	corp, staff := newOP(t), newOP(t)
	conf := func(name string, p *op, more string) string {
		return "login " + name + " {\nissuer " + p.URL + "\nclient_id gw\nclient_secret " + p.secret + "\nredirect /" + name + "/cb\nsign_in_path /" + name + "/in\nlogout_path /" + name + "/out\nbackchannel_path /" + name + "/back\n" + more + "\n}\n"
	}
	g := start(t, options{auth: conf("corp", corp, "subject_format raw") + conf("corp-staff", staff, ""), raw: `http://{addr} {
		handle /corp/* {
			auth_login corp
			reverse_proxy {upstream}
		}
		handle /corp-staff/* {
			auth_login corp-staff
			reverse_proxy ` + staff.api.Listener.Addr().String() + ` {
				transport auth_outbound user
			}
		}
		handle /both/* {
			auth_login corp
			auth_login corp-staff
			reverse_proxy {upstream}
		}
		handle {
			auth {
				issuers corp
			}
			reverse_proxy {upstream}
		}
	}`})
	v := newVisitor(g)
	v.signIn("/corp/x")
	g.upstream.take()
	const mine, theirs = "__Host-caddy-auth-session-corp", "__Host-caddy-auth-session-corp-staff"
	v.cookies[theirs] = v.cookies[mine]
	for _, target := range []string{"/corp-staff/x", "/x"} {
		if a := v.ask("GET", target, "", script...); a.Status != 401 {
			t.Errorf("%s: %d %s", target, a.Status, a.Body)
		}
	}
	if a := v.ask("GET", "/both/x", "", script...); a.Status != 403 || a.Code != string(auth.CodeNotAllowed) {
		t.Errorf("both: %d %s", a.Status, a.Body)
	}
	if a := v.ask("POST", "/corp-staff/out", "x=1"); a.Status != 303 || v.ask("GET", "/corp/x", "", script...).Status != 200 {
		t.Errorf("another login's logout: %d", a.Status)
	}
	if len(staff.apiSaw) > 0 || len(g.upstream.take()) != 1 {
		t.Errorf("somebody was let in: %v", staff.apiSaw)
	}
	// A raw subject that looks like another login's is none.
	corp.set(func() { corp.sub = "corp-staff:root" })
	w := newVisitor(g)
	if a, _ := w.open("/corp/y"); a.Status != 502 || len(w.cookies) != 0 {
		t.Errorf("%d %v", a.Status, w.cookies)
	}
	// Their sign-ins don't meet.
	u := newVisitor(g)
	back := u.ask("GET", u.ask("GET", "/corp-staff/z", "", navigation...).Header.Get("Location"), "").Header.Get("Location")
	for range 7 {
		u.ask("GET", "/corp/z", "", navigation...)
	}
	if a := u.ask("GET", back, "", navigation...); a.Status != 303 {
		t.Errorf("%d", a.Status)
	}
	for conf, want := range map[string]string{
		"login client {\nissuer https://idp.example.com\nclient_id x\nauth none\n}":                                                                "reserved",
		"login corp {\nissuer https://idp.example.com\nclient_id x\nauth none\n}\nissuer corp {\nurl https://other.example.com\naudience x\n}":     "issuer with another url",
		"login corp {\nissuer https://idp.example.com\nclient_id x\nauth none\n}\nintrospection corp {\nurl https://x.example.com\nclient_id x\n}": "introspection has that name",
		"login corp {\nissuer https://idp.example.com\nclient_id x\nclient_secret s\nredirect /cb\nlogout_path /cb\n}":                             "are the same path",
		"login corp {\nissuer https://idp.example.com\nclient_id x\nclient_secret s\ntemplates /no/such\n}":                                        "templates",
		"login corp {\nissuer https://idp.example.com\nclient_id x\nclient_secret s\ntrusted_origins nonsense\n}":                                  "trusted_origins",
		"login corp {\nissuer https://idp.example.com\nclient_id x\nclient_secret file /no/such\n}":                                                "client_secret",
		"login other {\nissuer https://idp.example.com\nclient_id x\nclient_secret s\n}":                                                           `no login "corp"`,
	} {
		if err := startError(t, options{auth: conf, site: "auth_login corp"}); !strings.Contains(err, want) {
			t.Errorf("%s: %s, want %q", conf, err, want)
		}
	}
}

// TestLogin_Matcher: outside of a matcher nothing is protected, but nothing of
// ours leaks there either, and the login's paths work.
func TestLogin_Matcher(t *testing.T) {
	p := newOP(t)
	g := start(t, options{auth: loginConf(p, ""), site: "auth_login /private/* corp"})
	v := newVisitor(g)
	if s := v.signIn("/private/x"); s.Header.Get("X-Auth-Subject") != "corp:alice" {
		t.Errorf("%v", s.Header)
	}
	a := v.ask("GET", "/open", "", "X-Auth-Subject", "corp:admin", "Cookie", "x=y")
	s, err := parseSeen(a.Body)
	if err != nil || s.Header.Get("X-Auth-Subject") != "" || strings.Contains(strings.Join(s.Header["Cookie"], ";"), "__Host-") {
		t.Errorf("%v %v", s.Header, err)
	}
}

// TestLogin_Routes: people sign in also where handlers stand in a route, one in
// another, or two logins have matchers on one host.
func TestLogin_Routes(t *testing.T) {
	p, other := newOP(t), newOP(t)
	second := "login other {\nissuer " + other.URL + "\nclient_id gw\nclient_secret " + other.secret + "\nredirect /o/cb\nsign_in_path /o/in\nlogout_path /o/out\nbackchannel_path /o/back\n}"
	for what, tc := range map[string]struct {
		site    string
		targets []string
	}{
		"a matcher in a route": {"route {\nauth_login /app/* corp\nreverse_proxy {upstream}\n}", []string{"/app/x"}},
		"two matchers":         {"auth_login /a/* corp\nauth_login /b/* other\nreverse_proxy {upstream}", []string{"/a/x", "/b/x", "/a/y"}},
		"strict in optional":   {"auth_login corp {\noptional\n}\nhandle /admin/* {\nauth_login corp\nreverse_proxy {upstream}\n}\nhandle {\nreverse_proxy {upstream}\n}", []string{"/admin/x", "/y"}},
		"auth before":          {"route {\nauth {\noptional\n}\nauth_login corp\nreverse_proxy {upstream}\n}", nil},
	} {
		g := start(t, options{auth: loginConf(p, "") + "\n" + second, raw: "http://{addr} {\n" + tc.site + "\n}"})
		v := newVisitor(g)
		for _, target := range tc.targets {
			if s := v.signIn(target); s.Header.Get("X-Auth-Method") != "session" || strings.Contains(strings.Join(s.Header["Cookie"], ";"), "__Host-") {
				t.Errorf("%s, %s: %v", what, target, s.Header)
			}
		}
		if tc.targets == nil { // the first one knows nobody: that must not be a circle
			if a := v.ask("GET", "/", "", script...); a.Status != 401 {
				t.Errorf("%s: %d", what, a.Status)
			}
		}
	}
}

// TestLogin_Guessing: who tries codes is not answered by the provider for long.
func TestLogin_Guessing(t *testing.T) {
	p := newOP(t)
	g := startLogin(t, p, "", "")
	// What the provider is not asked for counts for nothing.
	for range 70 {
		v := newVisitor(g)
		u, _ := url.Parse(v.ask("GET", "/", "", navigation...).Header.Get("Location"))
		v.ask("GET", "/auth/callback?error=zz&state="+u.Query().Get("state")+"&iss="+url.QueryEscape(p.URL), "", navigation...)
	}
	newVisitor(g).signIn("/")
	last := 0
	for range 80 {
		v := newVisitor(g)
		u, err := url.Parse(v.ask("GET", "/", "", navigation...).Header.Get("Location"))
		if err != nil {
			t.Fatal(err)
		}
		last = v.ask("GET", "/auth/callback?"+url.Values{"code": {"guess"}, "state": {u.Query().Get("state")}, "iss": {p.URL}}.Encode(), "", navigation...).Status
	}
	if n := p.count("authorization_code"); n > 75 || last != 429 {
		t.Errorf("the provider was asked %d times; the last answer is %d", n, last)
	}
}

// TestLogin_Email: an address that the provider does not vouch for is dropped.
func TestLogin_Email(t *testing.T) {
	p := newOP(t)
	g := startLogin(t, p, "meta_claims email", "identity_headers {\nmap X-Email meta.email\n}")
	for _, verified := range []any{false, "true", nil} {
		p.set(func() { p.claims = func(c map[string]any) { c["email_verified"] = verified } })
		if s := newVisitor(g).signIn("/"); s.Header.Get("X-Email") != "" {
			t.Errorf("%v: %q", verified, s.Header.Get("X-Email"))
		}
	}
}
