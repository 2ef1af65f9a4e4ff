package e2e

import (
	"context"
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/caddy-auth/caddy-auth/internal/auth"
	"github.com/caddy-auth/caddy-auth/internal/store"
	"github.com/caddy-auth/caddy-auth/test/servers"
)

// mine asks as a script of the page, signed in or not, and returns the status.
func (v *visitor) mine() int {
	v.t.Helper()
	return v.ask("GET", "/mine", "", script...).Status
}

// sessions are those of the store.
func (g *gateway) sessions() (all []*auth.Session) {
	g.t.Helper()
	backend, _ := g.backend()
	db, err := store.Open(context.Background(), backend, store.Existing)
	if err != nil {
		g.t.Fatal(err)
	}
	defer db.Close()
	if err := db.Sessions(context.Background(), store.SessionFilter{}, func(s *auth.Session) error { all = append(all, s); return nil }); err != nil {
		g.t.Fatal(err)
	}
	return all
}

// TestSession_Ends: a session ends when it is not used, when it is old, and when
// it is revoked; a browser is led to the provider then, and its cookie goes.
func TestSession_Ends(t *testing.T) {
	p := newOP(t)
	r := servers.StartRedis(t)
	g := startLogin(t, p, "idle 2s\nlifetime 6s", "", "redis "+r.URL())
	v := newVisitor(g)
	v.signIn("/")
	began := time.Now()
	// In use it goes on beyond idle, until its lifetime ends.
	within(t, 12*time.Second, "the lifetime ends", func() bool {
		status := v.mine()
		if status != 200 && time.Since(began) < 4900*time.Millisecond {
			t.Fatalf("ended after %s: %d", time.Since(began), status)
		}
		return status == 401
	})
	if took := time.Since(began); took > 8*time.Second {
		t.Errorf("it went on for %s", took)
	}
	v.signIn("/") // led to the provider, and back
	idle := time.Now()
	cookie := v.session()
	within(t, 5*time.Second, "it ends without use", func() bool { // looking at the store is no use
		all := g.sessions()
		return all[len(all)-1].State(time.Now().UnixMilli()) == auth.SessionExpired
	})
	if took := time.Since(idle); took < 1800*time.Millisecond {
		t.Errorf("it ended after %s", took)
	}
	a := v.ask("GET", "/mine", "", script...)
	if a.Status != 401 || a.Code != string(auth.CodeInvalidCredential) || v.session() != cookie { // another tab may have signed in
		t.Errorf("%d %s, cookie %q", a.Status, a.Code, v.session())
	}
	g.upstream.take()
	if g.want(g.do("GET", "/", "Cookie", "__Host-caddy-auth-session-corp="+cookie), 401, auth.CodeInvalidCredential); t.Failed() {
		return
	}
	// A session that only one gateway's store knows to be used is not ended by
	// what Redis or memory remember.
	v.signIn("/")
	if _, err := g.manager().EndSessions(context.Background(), store.SessionFilter{Subject: "corp:alice"}, "test"); err != nil {
		t.Fatal(err)
	}
	eventually(t, "revoked", func() bool { return v.mine() == 401 })
	if err := startError(t, options{auth: loginConf(p, "idle 2h\nlifetime 1h"), site: "auth_login corp"}); !strings.Contains(err, "lifetime") {
		t.Errorf("an idle time that is longer: %s", err)
	}
}

// TestSession_Forged: a cookie that this store did not make costs no lookup, and
// a session id before the sign-in is not the one after it.
func TestSession_Forged(t *testing.T) {
	p := newOP(t)
	g := startLogin(t, p, "", "")
	v := newVisitor(g)
	v.signIn("/")
	g.upstream.take()
	first := v.session()
	before := g.metricsNow("store", "hit") + g.metricsNow("store", "miss") + g.metricsNow("store", "denied")
	for _, forged := range []string{"x", strings.Repeat("A", 52) + "-AAAAAAAA", mistyped(first), first[:10], strings.Repeat("y", 3000), "a=b", `"` + first + `"`} {
		g.want(g.do("GET", "/", "Cookie", "__Host-caddy-auth-session-corp="+forged, "Sec-Fetch-Mode", "cors"), 401, auth.CodeInvalidCredential)
	}
	if after := g.metricsNow("store", "hit") + g.metricsNow("store", "miss") + g.metricsNow("store", "denied"); after != before {
		t.Errorf("%v lookups", after-before)
	}
	g.want(g.do("GET", "/", "Cookie", "__Host-caddy-auth-session-corp="+first+"; __Host-caddy-auth-session-corp="+first), 400, auth.CodeInvalidRequest)
	// A key and a token are no session, and a session is neither.
	key := g.plainKey()
	g.want(g.do("GET", "/", "Cookie", "__Host-caddy-auth-session-corp="+key, "Sec-Fetch-Mode", "cors"), 401, auth.CodeInvalidCredential)
	g.want(g.do("GET", "/", "X-API-Key", first), 401, auth.CodeInvalidCredential)
	g.want(g.do("GET", "/", "Authorization", "Bearer "+first), 401, auth.CodeInvalidCredential)
	// Fixation: somebody plants a good cookie, of theirs, before the sign-in.
	victim := newVisitor(g)
	victim.cookies["__Host-caddy-auth-session-corp"] = first
	if _, places := victim.open("/auth/login?return=/x"); places[len(places)-1] != "/x" || victim.session() == first || victim.session() == "" {
		t.Errorf("%q", places)
	}
	if v.mine() != 401 {
		t.Error("the session before the sign-in goes on")
	}
}

// TestSession_CrossSite: what could change something must come from pages of the
// same origin, websockets too; and no upstream sets our cookies.
func TestSession_CrossSite(t *testing.T) {
	p := newOP(t)
	g := startLogin(t, p, "trusted_origins https://app.example.com", "")
	v := newVisitor(g)
	v.signIn("/")
	g.upstream.take()
	own := "http://" + g.addr
	for what, tc := range map[string]struct {
		method  string
		headers []string
		status  int
	}{
		"a form of another site":            {"POST", []string{"Sec-Fetch-Site", "cross-site", "Origin", "https://evil.example"}, 403},
		"a form of a sibling":               {"POST", []string{"Sec-Fetch-Site", "same-site", "Origin", "https://x.127.0.0.1"}, 403},
		"a browser without Fetch Metadata":  {"POST", []string{"Origin", "https://evil.example"}, 403},
		"a page without an origin":          {"DELETE", []string{"Origin", "null"}, 403},
		"an odd method":                     {"FROB", []string{"Sec-Fetch-Site", "cross-site"}, 403},
		"a websocket of another site":       {"GET", []string{"Connection", "Upgrade", "Upgrade", "websocket", "Origin", "https://evil.example"}, 403},
		"our own form":                      {"POST", []string{"Sec-Fetch-Site", "same-origin", "Origin", own}, 200},
		"our own, without Fetch Metadata":   {"POST", []string{"Origin", own}, 200},
		"typed in":                          {"POST", []string{"Sec-Fetch-Site", "none"}, 200},
		"a page that is trusted":            {"POST", []string{"Sec-Fetch-Site", "same-site", "Origin", "https://app.example.com"}, 200},
		"a link from elsewhere":             {"GET", []string{"Sec-Fetch-Site", "cross-site"}, 200},
		"no browser":                        {"POST", nil, 200},
		"a method that says it is another":  {"GET", []string{"Sec-Fetch-Site", "cross-site", "X-HTTP-Method-Override", "DELETE"}, 200},
		"another site, with another's name": {"POST", []string{"Sec-Fetch-Site", "cross-site", "Origin", own, "X-Forwarded-Host", "evil.example"}, 403},
	} {
		a := g.do(tc.method, "/", append([]string{"Cookie", "__Host-caddy-auth-session-corp=" + v.session()}, tc.headers...)...)
		if a.Status != tc.status || tc.status == 403 && a.Code != string(auth.CodeNotAllowed) {
			t.Errorf("%s: %d %s", what, a.Status, a.Code)
		}
	}
	g.upstream.take()
	// A key is no cookie: nobody's page sends it.
	g.want(g.do("POST", "/", "X-API-Key", g.plainKey(), "Origin", "https://evil.example"), 200, "")
}

// TestSession_UpstreamCookies: an upstream neither sees nor sets our cookies.
func TestSession_UpstreamCookies(t *testing.T) {
	p := newOP(t)
	g := start(t, options{auth: loginConf(p, ""), raw: `http://{addr} {
		auth_login corp {
			optional
		}
		route {
			header Set-Cookie "__Host-caddy-auth-session-corp=evil; Path=/; Secure"
			header +Set-Cookie "theirs=1"
			header +Set-Cookie "__host-CADDY-auth-state-x=1; Path=/; Secure"
			header +Set-Cookie "=__Host-caddy-auth-session-corp=evil"
			respond ok
		}
	}`})
	a := g.do("GET", "/")
	if got := a.Header["Set-Cookie"]; len(got) != 1 || got[0] != "theirs=1" {
		t.Errorf("%q", got)
	}
	// Optional: nobody, or somebody; one whose session has ended is asked again.
	v := newVisitor(g)
	v.cookies["__Host-caddy-auth-session-corp"] = "gone"
	if a, places := v.open("/page"); a.Status != 200 || len(places) != 2 || v.session() != "" {
		t.Errorf("%d %q %v", a.Status, places, v.cookies)
	}
}

// TestLogout: everything ends: the session here, its tokens at the provider, the
// provider's own session by a redirect. Nobody else's page can do it.
func TestLogout(t *testing.T) {
	p := newOP(t)
	g := startLogin(t, p, "", "")
	v := newVisitor(g)
	v.signIn("/")
	g.upstream.take()
	cookie := v.session()
	if a := v.ask("GET", "/auth/logout", "", navigation...); a.Status != 200 || !strings.Contains(a.Body, `<form method="post" action="/auth/logout">`) || v.mine() != 200 {
		t.Errorf("%d %s", a.Status, a.Body)
	}
	for what, headers := range map[string][]string{"another site": {"Sec-Fetch-Site", "cross-site"}, "a sibling": {"Origin", "https://evil.example"}} {
		if a := v.ask("POST", "/auth/logout", "x=1", headers...); a.Status != 403 || v.mine() != 200 {
			t.Errorf("%s: %d", what, a.Status)
		}
	}
	a := v.ask("POST", "/auth/logout", "x=1", "Sec-Fetch-Site", "same-origin", "Origin", "http://"+g.addr)
	to := a.Header.Get("Location")
	if a.Status != 303 || !strings.HasPrefix(to, p.URL+"/end?") || !strings.Contains(to, "id_token_hint=ey") || !strings.Contains(to, "post_logout_redirect_uri=http%3A%2F%2F"+strings.ReplaceAll(g.addr, ":", "%3A")+"%2Fauth%2Flogout") || v.session() != "" {
		t.Errorf("%d %q, cookie %q", a.Status, to, v.session())
	}
	g.upstream.take()
	g.want(g.do("GET", "/", "Cookie", "__Host-caddy-auth-session-corp="+cookie), 401, auth.CodeInvalidCredential) // at once
	eventually(t, "the tokens are revoked", func() bool {
		p.mu.Lock()
		defer p.mu.Unlock()
		return len(p.revoked) == 2 && len(p.access) == 0
	})
	eventually(t, "and wiped", func() bool { return !g.sessions()[0].HasTokens })
	if a := v.ask("GET", "/auth/logout", "", navigation...); a.Status != 200 || !strings.Contains(a.Body, "You are signed out") {
		t.Errorf("%d %s", a.Status, a.Body)
	}
	if a := v.ask("POST", "/auth/logout", "x=1"); a.Status != 303 { // again
		t.Errorf("%d", a.Status)
	}
	if logs := g.logs(); strings.Contains(logs, "id_token_hint=ey") || strings.Contains(logs, cookie) {
		t.Error("a token is in the logs")
	}
	// A provider that is away hears of it later.
	p.set(func() {
		p.answer = func(w http.ResponseWriter, r *http.Request) bool {
			if r.URL.Path == "/revoke" {
				w.WriteHeader(503)
			}
			return r.URL.Path == "/revoke"
		}
	})
	failed := gathered(t, "caddy_auth_session_token_revocations_total", map[string]string{"login": "corp", "result": "failed"})
	v.signIn("/")
	v.ask("POST", "/auth/logout", "x=1", "Sec-Fetch-Site", "same-origin")
	eventually(t, "it was tried", func() bool {
		return gathered(t, "caddy_auth_session_token_revocations_total", map[string]string{"login": "corp", "result": "failed"}) > failed
	})
	if v.mine() != 401 {
		t.Error("signed in")
	}
	p.set(func() { p.answer = nil })
	within(t, 30*time.Second, "it is told", func() bool {
		p.mu.Lock()
		defer p.mu.Unlock()
		for _, good := range p.refresh {
			if good {
				return false
			}
		}
		return len(p.access) == 0
	})
}

// TestBackChannelLogout: the provider ends one of its sessions, or all of
// somebody, and nobody else's; what is no logout token of it ends nothing.
func TestBackChannelLogout(t *testing.T) {
	p := newOP(t)
	g := startLogin(t, p, "", "")
	people := map[string]*visitor{}
	for _, sub := range []string{"alice", "bob", "carol"} {
		p.set(func() { p.sub = sub })
		people[sub] = newVisitor(g)
		people[sub].signIn("/")
	}
	token := func(change func(map[string]any)) string {
		c := map[string]any{"iss": p.URL, "aud": "gw", "iat": time.Now().Unix(), "exp": time.Now().Add(time.Minute).Unix(), "jti": fmt.Sprint(time.Now().UnixNano()), "events": map[string]any{"http://schemas.openid.net/event/backchannel-logout": map[string]any{}}}
		change(c)
		return p.jwt("logout+jwt", c)
	}
	send := func(text string) int {
		a := newVisitor(g).ask("POST", "/auth/backchannel-logout", "logout_token="+text)
		if a.Header.Get("Cache-Control") != "no-store" {
			t.Errorf("%v", a.Header)
		}
		return a.Status
	}
	for what, f := range map[string]func(map[string]any){
		"nobody": func(map[string]any) {}, "a nonce": func(c map[string]any) { c["sub"] = "alice"; c["nonce"] = "x" }, "no event": func(c map[string]any) { c["sub"] = "alice"; delete(c, "events") },
		"another issuer": func(c map[string]any) { c["sub"] = "alice"; c["iss"] = "https://evil.example" }, "another audience": func(c map[string]any) { c["sub"] = "alice"; c["aud"] = "x" },
		"old": func(c map[string]any) { c["sub"] = "alice"; c["iat"] = time.Now().Unix() - 3600; delete(c, "exp") }, "no jti": func(c map[string]any) { c["sub"] = "alice"; delete(c, "jti") },
		"expired": func(c map[string]any) { c["sub"] = "alice"; c["exp"] = 1 }, "another event": func(c map[string]any) { c["sub"] = "alice"; c["events"] = map[string]any{"x": map[string]any{}} },
	} {
		if status := send(token(f)); status != 400 {
			t.Errorf("%s: %d", what, status)
		}
	}
	for what, body := range map[string]string{"nothing": "x=y", "no token": "logout_token=abc", "two": "logout_token=a&logout_token=b", "huge": "logout_token=" + strings.Repeat("x", 100_000)} {
		if a := newVisitor(g).ask("POST", "/auth/backchannel-logout", body); a.Status != 400 {
			t.Errorf("%s: %d", what, a.Status)
		}
	}
	if a := newVisitor(g).ask("GET", "/auth/backchannel-logout", ""); a.Status != 405 {
		t.Errorf("GET: %d", a.Status)
	}
	for name, v := range people {
		if v.mine() != 200 {
			t.Fatalf("%s was logged out", name)
		}
	}
	again := token(func(c map[string]any) { c["sub"] = "alice" })
	if status := send(again); status != 200 || people["alice"].mine() != 401 || people["bob"].mine() != 200 {
		t.Errorf("by sub: %d", status)
	}
	if status := send(token(func(c map[string]any) { c["sid"] = "sid-bob" })); status != 200 || people["bob"].mine() != 401 || people["carol"].mine() != 200 {
		t.Errorf("by sid: %d", status)
	}
	if a := g.do("POST", "/auth/backchannel-logout"); a.Status != 400 {
		t.Errorf("no form: %d", a.Status)
	}
	// A sign-in that is under way when its person is logged out comes to nothing.
	late := newVisitor(g)
	p.set(func() {
		p.sub = "dave"
		p.claims = func(map[string]any) {
			p.claims = nil
			text := token(func(c map[string]any) { c["sub"], c["sid"] = "dave", "sid-dave" })
			if status := send(text); status != 200 {
				t.Errorf("while a code is redeemed: %d", status)
			}
		}
	})
	if a, _ := late.open("/"); a.Status != 400 || late.session() != "" {
		t.Errorf("signed in after the logout: %d", a.Status)
	}
	// A logout token that is sent again refuses nobody who began after it.
	old := token(func(c map[string]any) { c["sub"], c["iat"] = "fay", time.Now().Unix()-30 })
	for range 2 {
		if status := send(old); status != 200 {
			t.Error(status)
		}
		p.set(func() { p.sub, p.claims = "fay", func(map[string]any) {} })
		newVisitor(g).signIn("/")
	}
	// A provider whose ID tokens have no sid, and whose logout tokens have.
	p.set(func() { p.claims = func(c map[string]any) { delete(c, "sid") }; p.sub = "erin" })
	erin := newVisitor(g)
	erin.signIn("/")
	if status := send(token(func(c map[string]any) { c["sub"], c["sid"] = "erin", "elsewhere" })); status != 200 || erin.mine() != 401 {
		t.Errorf("without a sid: %d", status)
	}
}

// TestLogin_Outages: a provider that is away signs nobody in, and says so; it and
// Redis log nobody out. While the store is away who is in memory stays in.
func TestLogin_Outages(t *testing.T) {
	p := newOP(t)
	r := servers.StartRedis(t)
	g := startLogin(t, p, "", "", "redis "+r.URL())
	v := newVisitor(g)
	v.signIn("/")
	cookie := v.session()
	r.Kill()
	if v.mine() != 200 || v.session() != cookie {
		t.Error("without Redis")
	}
	late := newVisitor(g)
	a := late.ask("GET", "/late", "", navigation...)
	back := late.ask("GET", a.Header.Get("Location"), "").Header.Get("Location")
	p.CloseClientConnections()
	p.Close()
	if v.mine() != 200 {
		t.Error("without the provider")
	}
	if a := late.ask("GET", back, "", navigation...); a.Status != 503 || a.Header.Get("Retry-After") == "" || !strings.Contains(a.Body, "Please try again") || !strings.Contains(a.Body, `href="/late"`) {
		t.Errorf("at the callback: %d %s", a.Status, a.Body)
	}
	if a := v.ask("POST", "/auth/logout", "x=1", "Sec-Fetch-Site", "same-origin"); a.Status != 303 || v.session() != "" { // it ends here all the same
		t.Errorf("logout: %d %v", a.Status, a.Header)
	}
	if v.mine() != 401 {
		t.Error("still signed in")
	}
}

// TestLogout_OneThatFails: tokens that the provider can't revoke don't keep it from
// hearing of others, and a gateway that it refuses for a while tries again.
func TestLogout_OneThatFails(t *testing.T) {
	p := newOP(t)
	g := startLogin(t, p, "", "")
	poison := ""
	p.set(func() {
		p.answer = func(w http.ResponseWriter, r *http.Request) bool {
			if r.URL.Path == "/revoke" && poison == "" {
				poison = r.PostFormValue("token")
			}
			if bad := r.URL.Path == "/revoke" && r.PostFormValue("token") == poison; !bad {
				return false
			}
			w.WriteHeader(500)
			return true
		}
	})
	gone := func(n int) {
		t.Helper()
		within(t, 40*time.Second, "its tokens are revoked", func() bool {
			left := 0
			for _, s := range g.sessions() {
				if s.HasTokens {
					left++
				}
			}
			return left == n
		})
	}
	for range 2 {
		v := newVisitor(g)
		v.signIn("/")
		if a := v.ask("POST", "/auth/logout", "x=1", "Sec-Fetch-Site", "same-origin"); a.Status != 303 {
			t.Fatal(a.Status)
		}
	}
	gone(1)
	v := newVisitor(g)
	v.signIn("/")
	p.set(func() { p.answer = nil; p.secret = "changed" })
	v.ask("POST", "/auth/logout", "x=1", "Sec-Fetch-Site", "same-origin")
	eventually(t, "it is refused", func() bool { p.mu.Lock(); defer p.mu.Unlock(); return p.refusals > 0 })
	p.set(func() { p.secret = "login-secret-0123" })
	gone(0)
	p.mu.Lock()
	defer p.mu.Unlock()
	for token, good := range p.refresh {
		if good {
			t.Errorf("%s is good", token)
		}
	}
}
