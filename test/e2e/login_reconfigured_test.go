package e2e

import (
	"context"
	"errors"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/caddyconfig/caddyfile"
	"github.com/caddyserver/caddy/v2/caddyconfig/httpcaddyfile"

	"github.com/caddy-auth/caddy-auth/internal/auth"
)

// sentTo reports which of a provider's tokens another was sent.
func sentTo(other *op, of *op) (got []string) {
	of.mu.Lock()
	var tokens []string
	for t := range of.access {
		tokens = append(tokens, t)
	}
	for t := range of.refresh {
		tokens = append(tokens, t)
	}
	of.mu.Unlock()
	other.mu.Lock()
	defer other.mu.Unlock()
	for _, t := range tokens {
		if strings.Contains(strings.Join(other.saw, "\n"), url.QueryEscape(t)) {
			got = append(got, t)
		}
	}
	return got
}

// TestSession_AnotherProvider: a session hangs on the provider that its person
// signed in at, not on the name of the login: under another provider of that name
// it has ended, and no token, code or ID token of the first reaches the second.
func TestSession_AnotherProvider(t *testing.T) {
	a, b := newOP(t), newOP(t)
	b.secret = a.secret
	site := "auth_login corp\nreverse_proxy " + b.api.Listener.Addr().String() + " {\ntransport auth_outbound user\n}"
	conf := func(p *op, more string) options {
		return options{auth: loginConf(p, more), raw: "http://{addr} {\n" + site + "\n}"}
	}
	g := start(t, conf(a, ""))
	v := newVisitor(g)
	v.ask("GET", "/x", "", navigation...)
	v.open("/x") // the API is the other's: it refuses the token, but who asked is signed in
	if v.session() == "" {
		t.Fatal("not signed in")
	}
	half := newVisitor(g) // is at the provider while the configuration changes
	back := half.ask("GET", half.ask("GET", "/y", "", navigation...).Header.Get("Location"), "").Header.Get("Location")
	b.set(func() { b.apiSaw = nil })
	if err := g.load(conf(b, "")); err != nil {
		t.Fatal(err)
	}
	g.answers()
	if r := v.ask("GET", "/x", "", script...); r.Status != 401 || r.Code != string(auth.CodeInvalidCredential) {
		t.Errorf("A's person at B: %d %s", r.Status, r.Body)
	}
	if r := half.ask("GET", back, "", navigation...); r.Status != 400 || half.session() != "" {
		t.Errorf("A's code at B: %d, session %q", r.Status, half.session())
	}
	if n := b.count("authorization_code"); n != 0 {
		t.Errorf("B was asked about A's code %d times", n)
	}
	eventually(t, "the session has ended for everyone", func() bool {
		return g.sessions()[0].State(time.Now().UnixMilli()) == auth.SessionEnded && g.sessions()[0].RevokedReason == "the configuration of its login has changed"
	})
	r := v.ask("POST", "/auth/logout", "x=1", "Sec-Fetch-Site", "same-origin")
	if to := r.Header.Get("Location"); r.Status != 303 || strings.Contains(to, "id_token_hint") {
		t.Errorf("signing out: %d %s", r.Status, to)
	}
	if got := sentTo(b, a); len(got) > 0 {
		t.Errorf("B was sent tokens of A: %q", got)
	}
	b.mu.Lock()
	if len(b.apiSaw) > 0 {
		t.Errorf("the API was asked with %v", b.apiSaw)
	}
	b.mu.Unlock()
	told := false
	for _, l := range g.logLines("auth.login") {
		told = told || strings.Contains(l["msg"].(string), "sessions have ended") && l["sessions"] == 1.0
	}
	if !told {
		t.Error("the log does not say how many sessions ended")
	}
	// Who comes back later, to the first provider, signs in anew too.
	if err := g.load(conf(a, "")); err != nil {
		t.Fatal(err)
	}
	g.answers()
	if v.cookies["__Host-caddy-auth-session-corp"] != "" {
		t.Error("the cookie is still there")
	}
}

// TestSession_AnotherJudgement: whatever decides who somebody is ends the sessions
// that were judged otherwise, and their tokens are revoked where they are from;
// what decides nothing ends none.
func TestSession_AnotherJudgement(t *testing.T) {
	p := newOP(t)
	conf := func(more string) options {
		text := loginConf(p, more)
		if more == "SCOPES" { // fewer are asked for
			text = strings.Replace(loginConf(p, ""), "scopes openid profile offline_access", "scopes openid offline_access", 1)
		}
		return options{auth: text, site: "auth_login corp"}
	}
	g := start(t, conf(""))
	for _, more := range []string{"idle 2h", "logout_path /bye", "param prompt select_account", "subject_claim sub", "environment live"} {
		v := newVisitor(g)
		v.signIn("/")
		if err := g.load(conf(more)); err != nil {
			t.Fatal(err)
		}
		g.answers()
		if got := v.mine(); got != 200 {
			t.Errorf("%q: %d, it decides nothing", more, got)
		}
	}
	before := ""
	for _, more := range []string{
		"required_claims groups admins", "subject_claim email", "subject_format raw", "environment test", "scope_claim groups", "meta_claims email", "algorithms ES256", "SCOPES",
	} {
		if err := g.load(conf(before)); err != nil {
			t.Fatal(err)
		}
		g.answers()
		v := newVisitor(g)
		v.signIn("/")
		p.set(func() { p.revoked = nil })
		if err := g.load(conf(more)); err != nil {
			t.Fatalf("%s: %v", more, err)
		}
		g.answers()
		if a := v.ask("GET", "/", "", script...); a.Status != 401 || a.Code != string(auth.CodeInvalidCredential) {
			t.Errorf("%s: %d %s", more, a.Status, a.Code)
		}
		within(t, 30*time.Second, more+": its tokens are revoked where they are from", func() bool {
			p.mu.Lock()
			defer p.mu.Unlock()
			return len(p.revoked) >= 2 && len(p.access) == 0
		})
		g.upstream.take()
	}
	refused := false
	for _, l := range g.logLines("auth.decision") {
		refused = refused || l["reason"] == "reconfigured" || l["reason"] == "revoked"
	}
	if !refused || slices.Contains([]string{g.sessions()[0].JudgedBy, g.sessions()[0].Authority}, "") {
		t.Error("no decision says why, or a session says nothing of what judged it")
	}
}

func init() {
	caddy.RegisterModule(lateFailure{})
	httpcaddyfile.RegisterGlobalOption("test_late_failure", func(*caddyfile.Dispenser, any) (any, error) {
		return httpcaddyfile.App{Name: "test_late_failure", Value: []byte("{}")}, nil
	})
}

var errLate = errors.New("starting takes a while, and fails")

// lateFailure is an app that fails when the others have run for a while.
type lateFailure struct{}

func (lateFailure) CaddyModule() caddy.ModuleInfo {
	return caddy.ModuleInfo{ID: "test_late_failure", New: func() caddy.Module { return new(lateFailure) }}
}

func (lateFailure) Start() error {
	time.Sleep(300 * time.Millisecond)
	return errLate
}

func (lateFailure) Stop() error { return nil }

// TestSession_FailedLoad: a configuration that does not load ends nobody's session.
func TestSession_FailedLoad(t *testing.T) {
	p := newOP(t)
	good := options{auth: loginConf(p, ""), site: "auth_login corp"}
	g := start(t, good)
	v := newVisitor(g)
	v.signIn("/")
	bad := options{auth: loginConf(p, "required_claims groups admins"), site: "auth_login corp", global: "test_late_failure"}
	for range 16 { // Caddy starts its apps in any order
		if err := g.load(bad); err == nil || !strings.Contains(err.Error(), errLate.Error()) {
			t.Fatalf("it loads, or fails otherwise: %v", err)
		}
	}
	g.answers()
	if got := v.mine(); got != 200 {
		t.Errorf("after a load that failed: %d", got)
	}
	if s := g.sessions()[0]; s.RevokedAt != 0 {
		t.Errorf("the session has ended: %s", s.RevokedReason)
	}
}

// TestLogin_HangingUp: who does not wait for the answer to a guess is counted like
// everybody else.
func TestLogin_HangingUp(t *testing.T) {
	p := newOP(t)
	p.slowCode = func() { <-time.After(100 * time.Millisecond) }
	g := startLogin(t, p, "", "")
	began := time.Now()
	var all sync.WaitGroup
	for range 8 {
		all.Go(func() {
			for range 40 {
				v := newVisitor(g)
				u, err := url.Parse(v.ask("GET", "/", "", navigation...).Header.Get("Location"))
				if err != nil {
					t.Error(err)
					return
				}
				ctx, cancel := context.WithTimeout(t.Context(), 30*time.Millisecond)
				r, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+g.addr+"/auth/callback?"+url.Values{"code": {"guess"}, "state": {u.Query().Get("state")}, "iss": {p.URL}}.Encode(), nil)
				if err != nil {
					t.Error(err)
				}
				for name, value := range v.cookies {
					r.Header.Add("Cookie", name+"="+value)
				}
				if res, err := v.client.Do(r); err == nil {
					_ = res.Body.Close()
				}
				cancel()
			}
		})
	}
	all.Wait()
	if n, most := p.count("authorization_code"), 60+int(time.Since(began)/time.Second)+1; n > most {
		t.Errorf("the provider was asked %d times, at most %d", n, most)
	}
}
