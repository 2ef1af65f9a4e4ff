package e2e

import (
	"fmt"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/caddyserver/caddy/v2"

	"github.com/caddy-auth/caddy-auth/internal/auth"
	"github.com/caddy-auth/caddy-auth/internal/store"
)

// userSite is a site whose upstream is asked in the name of who is signed in.
func userSite(p *op) string {
	return `http://{addr} {
		auth_login corp
		reverse_proxy ` + p.api.Listener.Addr().String() + ` {
			transport auth_outbound user
		}
	}`
}

// startUser is a gateway that asks the provider's API in the name of who is
// signed in.
func startUser(t testing.TB, p *op, more string, others ...string) *gateway {
	return start(t, options{auth: loginConf(p, more) + "\n" + strings.Join(others, "\n"), raw: userSite(p)})
}

// lastToken is what the API was asked with last.
func (p *op) lastToken() string {
	p.mu.Lock()
	defer p.mu.Unlock()
	if len(p.apiSaw) == 0 {
		return ""
	}
	return strings.TrimPrefix(p.apiSaw[len(p.apiSaw)-1].Get("Authorization"), "Bearer ")
}

// TestUser_Token: the API gets the person's own token, and who it is; it is
// refreshed a minute early, once, however many ask; one that the API refuses is
// replaced and the request sent again, once.
func TestUser_Token(t *testing.T) {
	p := newOP(t)
	g := startUser(t, p, "")
	p.set(func() { p.life = 4 }) // due after half of it
	v := newVisitor(g)
	saw := v.signIn("/")
	first := p.lastToken()
	if !strings.HasPrefix(first, "user.access.") || saw.Header.Get("X-Auth-Subject") != "corp:alice" || saw.Header.Get("Cookie") != "" {
		t.Errorf("%v", saw.Header)
	}
	p.set(func() { p.life = 3600 })
	cookie := v.session()
	many := func(n int, wait time.Duration) {
		var wg sync.WaitGroup
		deadline := time.Now().Add(wait)
		for range n {
			wg.Go(func() {
				for again := true; again; again = time.Now().Before(deadline) {
					req, _ := http.NewRequest("POST", "http://"+g.addr+"/api", strings.NewReader("body"))
					req.Header.Set("Cookie", "__Host-caddy-auth-session-corp="+cookie)
					res, err := http.DefaultTransport.RoundTrip(req)
					if err != nil {
						t.Error(err)
						return
					}
					if a := readAnswer(t, res); a.Status != 200 || !strings.Contains(a.Body, `"Body":"body"`) {
						t.Errorf("%d %s", a.Status, a.Body)
						return
					}
				}
			})
		}
		wg.Wait()
	}
	many(30, 2500*time.Millisecond)
	second := p.lastToken()
	if n := p.count("refresh_token"); n != 1 || second == first {
		t.Fatalf("%d refreshes", n)
	}
	// The API refuses it: a hundred requests, one refresh.
	p.set(func() { clear(p.access) })
	many(100, 0)
	if n := p.count("refresh_token"); n != 2 || p.lastToken() == second {
		t.Errorf("%d refreshes", n)
	}
	// A second 401 is the client's, with no request more.
	p.set(func() { clear(p.access); p.apiSaw = nil })
	if a := v.ask("GET", "/", "", script...); a.Status != 401 || a.Body != "the API says no" {
		t.Errorf("%d %s", a.Status, a.Body)
	}
	if n := p.count("refresh_token"); n != 2 || len(p.apiSaw) != 1 {
		t.Errorf("%d refreshes, %d requests", n, len(p.apiSaw))
	}
	// Only people who signed in have a token.
	if a := g.do("GET", "/", "X-API-Key", g.plainKey()); a.Status != 403 || a.Code != string(auth.CodeNotAllowed) {
		t.Errorf("a key: %d %s", a.Status, a.Code)
	}
	logs := g.logs()
	for _, secret := range []string{first, second, cookie, "user.refresh."} {
		if strings.Contains(logs, secret) {
			t.Errorf("in the logs: %s", secret)
		}
	}
	if err := startError(t, options{raw: "http://{addr} {\nauth\nreverse_proxy {upstream} {\ntransport auth_outbound user\n}\n}"}); !strings.Contains(err, "no login") {
		t.Error(err)
	}
}

// TestUser_ProviderAway: while the provider is away the token is used as long as
// it is good; then 503, and the cookie stays; all is well when it is back.
func TestUser_ProviderAway(t *testing.T) {
	p := newOP(t)
	g := startUser(t, p, "")
	p.set(func() { p.life = 4 })
	v := newVisitor(g)
	v.signIn("/")
	cookie := v.session()
	p.set(func() {
		p.answer = func(w http.ResponseWriter, _ *http.Request) bool { w.WriteHeader(503); return true }
	})
	good := time.Now()
	within(t, 10*time.Second, "the token expires", func() bool {
		a := v.ask("GET", "/", "", script...)
		if a.Status != 200 && time.Since(good) < 2900*time.Millisecond {
			t.Fatalf("%d %s after %s", a.Status, a.Code, time.Since(good))
		}
		return a.Status == 503
	})
	if a := v.ask("GET", "/", "", script...); a.Status != 503 || a.Code != string(auth.CodeUpstreamUnavailable) || v.session() != cookie {
		t.Errorf("%d %s", a.Status, a.Code)
	}
	if a := v.ask("GET", "/", "", navigation...); a.Status != 503 || !strings.Contains(a.Body, "Please try again") || v.session() != cookie {
		t.Errorf("%d %s", a.Status, a.Body)
	}
	if n := p.count("refresh_token"); n > 12 { // about one a second
		t.Errorf("the provider was asked %d times", n)
	}
	p.set(func() { p.answer, p.life = nil, 3600 })
	eventually(t, "it is back", func() bool { return v.mine() == 200 })
}

// TestUser_Over: a refresh token that the provider refuses ends the session: a
// program gets 401, a person a page, and the next page leads to the provider.
func TestUser_Over(t *testing.T) {
	p := newOP(t)
	g := startUser(t, p, "")
	p.set(func() { p.life = 2 })
	v := newVisitor(g)
	v.signIn("/")
	w := newVisitor(g)
	w.signIn("/")
	p.set(func() { clear(p.refresh); clear(p.access); p.life = 3600 })
	eventually(t, "it is over", func() bool {
		a := v.ask("GET", "/", "", script...)
		return a.Status == 401 && a.Code == string(auth.CodeInvalidCredential)
	})
	if a := w.ask("GET", "/page", "", navigation...); a.Status != 401 || !strings.Contains(a.Body, `href="/auth/login?return=%2Fpage"`) {
		t.Errorf("%d %s", a.Status, a.Body)
	}
	for _, s := range g.sessions() {
		if s.RevokedReason != "its tokens have ended" {
			t.Errorf("%+v", s)
		}
	}
	v.signIn("/after")
	// Without a refresh token a session ends when its access token does.
	p.set(func() { p.noRT, p.life = true, 2 })
	u := newVisitor(g)
	u.signIn("/")
	eventually(t, "it is over", func() bool { return u.mine() == 401 })
}

// TestUser_Reload: several configurations on one store, as gateways are,
// refresh a session's token once and use what came of it; and what is ended on
// one is ended on the other, and by an operator everywhere.
func TestUser_Reload(t *testing.T) {
	p := newOP(t)
	g := startUser(t, p, "")
	p.set(func() { p.life = 4 })
	v := newVisitor(g)
	v.signIn("/")
	p.set(func() { p.life = 3600 })
	for i := range 3 { // each with memories of its own
		if err := g.load(options{auth: loginConf(p, fmt.Sprintf("timeout %ds", i+1)), raw: userSite(p)}); err != nil {
			t.Fatal(err)
		}
		g.answers()
		if v.mine() != 200 {
			t.Fatal("signed out by a reload")
		}
	}
	eventually(t, "refreshed", func() bool { return v.mine() == 200 && p.count("refresh_token") == 1 })
	if n, err := g.manager().EndSessions(t.Context(), store.SessionFilter{Subject: "corp:alice"}, "account deleted"); err != nil || n != 1 {
		t.Fatal(n, err)
	}
	eventually(t, "ended", func() bool { return v.mine() == 401 })
	within(t, 30*time.Second, "revoked at the provider", func() bool {
		p.mu.Lock()
		defer p.mu.Unlock()
		for _, good := range p.refresh {
			if good {
				return false
			}
		}
		return len(p.revoked) == 2
	})
}

// TestUser_Restart: a gateway that is stopped while it refreshes keeps what it
// gets: the next one has the new refresh token.
func TestUser_Restart(t *testing.T) {
	p := newOP(t)
	g := startUser(t, p, "")
	p.set(func() { p.life = 4 })
	v := newVisitor(g)
	v.signIn("/")
	first := p.lastToken()
	asked := make(chan struct{})
	p.set(func() {
		p.life = 3600
		p.slow = func() { close(asked); <-time.After(700 * time.Millisecond) }
	})
	eventually(t, "it is refreshed", func() bool {
		v.mine()
		select {
		case <-asked:
			return true
		default:
			return false
		}
	})
	if err := caddy.Stop(); err != nil {
		t.Fatal(err)
	}
	if err := g.load(options{auth: loginConf(p, ""), raw: userSite(p)}); err != nil {
		t.Fatal(err)
	}
	p.set(func() { p.slow = nil })
	g.answers()
	eventually(t, "signed in, with the new token", func() bool { return v.mine() == 200 && p.lastToken() != first })
	if n := p.count("refresh_token"); n != 1 {
		t.Errorf("%d refreshes", n)
	}
	for _, s := range g.sessions() {
		if s.RevokedAt != 0 {
			t.Errorf("%+v", s)
		}
	}
}

// TestUser_HealthChecks: they ask in nobody's name.
func TestUser_HealthChecks(t *testing.T) {
	p := newOP(t)
	g := start(t, options{auth: loginConf(p, ""), raw: `http://{addr} {
		auth_login corp
		reverse_proxy ` + p.api.Listener.Addr().String() + ` {
			health_uri /health
			health_interval 50ms
			transport auth_outbound user
		}
	}`})
	eventually(t, "it is checked", func() bool { p.mu.Lock(); defer p.mu.Unlock(); return len(p.apiSaw) > 3 })
	newVisitor(g).signIn("/")
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.apiSaw[0].Get("Authorization") != "" {
		t.Errorf("%v", p.apiSaw[0])
	}
}
