package fleet

import (
	"context"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/caddy-auth/caddy-auth/internal/auth"
	"github.com/caddy-auth/caddy-auth/internal/jwt"
	"github.com/caddy-auth/caddy-auth/internal/login"
	"github.com/caddy-auth/caddy-auth/internal/store"
	"github.com/caddy-auth/caddy-auth/test/servers"
)

// refresher is a provider that rotates refresh tokens, ends everything when one
// comes twice, and is also the API that takes its newest access token.
type refresher struct {
	*httptest.Server
	mu      sync.Mutex
	n       int
	reused  int
	revoked int
	slow    time.Duration
}

func newRefresher(t *testing.T) *refresher {
	p := &refresher{}
	p.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		p.mu.Lock()
		slow := p.slow
		p.mu.Unlock()
		switch r.URL.Path {
		case "/.well-known/openid-configuration":
			w.Header().Set("Content-Type", "application/json")
			fmt.Fprintf(w, `{"issuer":%[1]q,"authorization_endpoint":"%[1]s/a","token_endpoint":"%[1]s/token","revocation_endpoint":"%[1]s/revoke","jwks_uri":"%[1]s/jwks"}`, p.URL)
			return
		case "/token":
			<-time.After(slow)
		}
		p.mu.Lock()
		defer p.mu.Unlock()
		switch r.URL.Path {
		case "/token":
			w.Header().Set("Content-Type", "application/json")
			if r.PostFormValue("refresh_token") != fmt.Sprintf("refresh.token.%d", p.n) {
				p.reused++
				w.WriteHeader(http.StatusBadRequest)
				_, _ = w.Write([]byte(`{"error":"invalid_grant"}`))
				return
			}
			p.n++
			fmt.Fprintf(w, `{"access_token":"access.token.%[1]d","refresh_token":"refresh.token.%[1]d","token_type":"Bearer","expires_in":3600}`, p.n)
		case "/revoke":
			p.revoked++
		default:
			if r.Header.Get("Authorization") != fmt.Sprintf("Bearer access.token.%d", p.n) {
				w.WriteHeader(http.StatusUnauthorized)
			}
		}
	}))
	t.Cleanup(func() { p.CloseClientConnections(); p.Close() })
	return p
}

// signsInAt says which provider the sessions are of that session writes.
func (f *fleet) signsInAt(issuer string) {
	f.t.Helper()
	var err error
	f.judgedBy, f.authority, err = login.Judgement{
		Issuer: issuer, ClientID: "gw", Algorithms: jwt.DefaultAlgorithms(), Scopes: []string{"openid"}, Subject: "sub", Env: "live",
	}.Digests()
	if err != nil {
		f.t.Fatal(err)
	}
}

// session writes a session whose access token has expired, and returns its
// cookie.
func (f *fleet) session(sub string) string { return f.sessionWith(sub, -time.Minute) }

// sessionWith is session with an access token that ends left from now.
func (f *fleet) sessionWith(sub string, left time.Duration) string {
	f.t.Helper()
	ctx, ring := context.Background(), f.ring()
	m, err := f.db.Minter(ctx, ring)
	if err != nil {
		f.t.Fatal(err)
	}
	text := m.Tagged(strings.Repeat(sub, 3))
	tokens := login.Tokens{Version: 1, Authority: f.authority, Access: "access.token.0", Refresh: "refresh.token.0", Sub: sub, Issued: time.Now().Add(-time.Hour).UnixMilli(), Expires: time.Now().Add(left).UnixMilli()}
	plain, err := tokens.Encode()
	if err != nil {
		f.t.Fatal(err)
	}
	err = f.db.InsertSession(ctx, ring, &auth.Session{
		ID: "ses_" + sub, Fingerprint: auth.SessionFingerprint("corp", text), Login: "corp", Subject: "corp:" + sub, Sub: sub, Environment: "live", JudgedBy: f.judgedBy, Authority: f.authority,
	}, time.Now(), plain, time.Hour, time.Hour)
	if err != nil {
		f.t.Fatal(err)
	}
	return text
}

// mine asks as somebody who is signed in.
func (g *gateway) mine(cookie string) int {
	req, err := http.NewRequest(http.MethodGet, "http://"+g.addr+"/x", nil)
	if err != nil {
		g.f.t.Error(err)
		return 0
	}
	req.Header.Set("Cookie", "__Host-caddy-auth-session-corp="+cookie)
	res, err := g.f.client.Do(req)
	if err != nil {
		return 0
	}
	_ = res.Body.Close()
	return res.StatusCode
}

// TestSession_Fleet: one gateway of three refreshes a session's token, however
// many ask at once; a session that is ended by an operator ends on all of them
// within the bound of keys, and its tokens are revoked once; Redis may die. On
// PostgreSQL too.
func TestSession_Fleet(t *testing.T) {
	for what, dsn := range map[string]func(*testing.T) string{
		"a file": func(*testing.T) string { return "" }, "PostgreSQL": func(t *testing.T) string { return servers.StartPostgres(t).DSN() },
	} {
		t.Run(what, func(t *testing.T) {
			p := newRefresher(t)
			p.slow = 300 * time.Millisecond
			redis := servers.StartRedis(t)
			f := startSetup(t, setup{
				n: 3, redis: redis, dsn: dsn(t), upstream: p.Listener.Addr().String(), proxy: "transport auth_outbound user",
				global: "login corp {\nissuer " + p.URL + "\nclient_id gw\nclient_secret fleet-login-secret\n}", site: "auth_login corp",
			})
			f.signsInAt(p.URL)
			cookie := f.session("alice")
			burst := func(what string, refreshed int) {
				t.Helper()
				var all sync.WaitGroup
				for range 40 {
					for _, g := range f.gateways {
						all.Go(func() {
							if status := g.mine(cookie); status != 200 {
								t.Errorf("%s: %s answers %d", what, g.name, status)
							}
						})
					}
				}
				all.Wait()
				p.mu.Lock()
				defer p.mu.Unlock()
				if p.n != refreshed || p.reused != 0 {
					t.Errorf("%s: refreshed %d times, want %d; %d reused", what, p.n, refreshed, p.reused)
				}
			}
			burst("expired", 1)
			redis.Kill()
			burst("without Redis", 1)
			redis.Start()
			for name, value := range redis.Dump() {
				if strings.Contains(name+value, "token") || strings.Contains(name+value, "alice") {
					t.Errorf("Redis holds %q", name+value)
				}
			}
			if n, err := f.ops.EndSessions(t.Context(), store.SessionFilter{Subject: "corp:alice"}, "test"); err != nil || n != 1 {
				t.Fatal(n, err)
			}
			ended := time.Now()
			for _, g := range f.gateways {
				servers.Eventually(t, g.name+" refuses", func() bool { return g.mine(cookie) == http.StatusUnauthorized })
			}
			if took := time.Since(ended); took > 3*time.Second {
				t.Errorf("it took %s", took)
			}
			servers.Eventually(t, "revoked", func() bool { p.mu.Lock(); defer p.mu.Unlock(); return p.revoked >= 2 })
			servers.Eventually(t, "wiped", func() bool { s, err := f.db.Session(t.Context(), "ses_alice"); return err == nil && !s.HasTokens })
			if p.mu.Lock(); p.revoked != 2 {
				t.Errorf("revoked %d times", p.revoked)
			}
			p.mu.Unlock()
		})
	}
}

// TestSession_Stop: a gateway that is told to stop while it refreshes a token
// waits for it, and the next one knows it.
func TestSession_Stop(t *testing.T) {
	p := newRefresher(t)
	p.slow = time.Second
	f := startSetup(t, setup{
		n: 1, upstream: p.Listener.Addr().String(), proxy: "transport auth_outbound user",
		global: "login corp {\nissuer " + p.URL + "\nclient_id gw\nclient_secret fleet-login-secret\n}", site: "auth_login corp",
	})
	f.signsInAt(p.URL)
	cookie, g := f.sessionWith("alice", 20*time.Second), f.gateways[0]
	if status := g.mine(cookie); status != 200 { // and refreshes meanwhile
		t.Fatal(status)
	}
	g.stop()
	g.start()
	g.ready()
	if status := g.mine(cookie); status != 200 {
		t.Error(status)
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.n != 1 || p.reused != 0 {
		t.Errorf("refreshed %d times, %d reused", p.n, p.reused)
	}
}

// TestSession_TwoConfigurations: two gateways, of which one has another provider
// for the same login. Each takes the sessions of its own; neither sends a token of
// the other's provider anywhere, and they don't end each other's sessions for ever.
func TestSession_TwoConfigurations(t *testing.T) {
	a, b := newRefresher(t), newRefresher(t)
	conf := func(p *refresher) setup {
		return setup{
			n: 2, global: "login corp {\nissuer " + p.URL + "\nclient_id gw\nclient_secret fleet-login-secret\n}", site: "auth_login corp",
		}
	}
	revocations := func(p *refresher) int {
		p.mu.Lock()
		defer p.mu.Unlock()
		return p.revoked
	}
	f := startSetup(t, conf(a))
	f.signsInAt(a.URL)
	before := f.session("alice")
	one, other := f.gateways[0], f.gateways[1]
	for _, g := range f.gateways {
		servers.Eventually(t, "A's person at A", func() bool { return g.mine(before) == 200 })
	}
	other.configure(conf(b))
	other.reload()
	servers.Eventually(t, "A's person is nobody at B", func() bool { return other.mine(before) == 401 })
	servers.Eventually(t, "and the session has ended everywhere", func() bool { return one.mine(before) == 401 })
	// From now on each has people of its own, and they stay.
	ofA := f.session("bert")
	f.signsInAt(b.URL)
	ofB := f.session("carla")
	for range 50 {
		if x, y := one.mine(ofA), other.mine(ofB); x != 200 || y != 200 {
			t.Fatalf("A's person at A: %d, B's at B: %d", x, y)
		}
		if x, y := one.mine(ofB), other.mine(ofA); x != 401 || y != 401 {
			t.Fatalf("B's person at A: %d, A's at B: %d", x, y)
		}
	}
	servers.Eventually(t, "the tokens of the first session are revoked at A, once", func() bool { return revocations(a) > 0 })
	if n := revocations(b); n != 0 {
		t.Errorf("B was sent %d tokens of A", n)
	}
}
