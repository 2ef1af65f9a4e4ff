package e2e

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/caddy-auth/caddy-auth/test/servers"
)

// visitorAt is a visitor with an address of its own.
func visitorAt(g *gateway, ip string) *visitor {
	v := newVisitor(g)
	dialer := &net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(ip)}}
	transport := &http.Transport{MaxIdleConnsPerHost: 4, DialContext: func(ctx context.Context, network, addr string) (net.Conn, error) {
		conn, err := dialer.DialContext(ctx, network, addr)
		if err == nil {
			err = conn.(*net.TCPConn).SetLinger(0) // no port stays taken that another test may want to listen on
		}
		return conn, err
	}}
	g.t.Cleanup(transport.CloseIdleConnections)
	v.client.Transport = transport
	return v
}

// tries a code of nobody's, with a good state, and returns the status.
func (v *visitor) guess(p *op, headers ...string) int {
	clear(v.cookies)
	u, err := url.Parse(v.ask("GET", "/", "", append(headers, navigation...)...).Header.Get("Location"))
	if err != nil {
		v.t.Error(err)
		return 0
	}
	return v.ask("GET", "/auth/callback?"+url.Values{"code": {"guess"}, "state": {u.Query().Get("state")}, "iss": {p.URL}}.Encode(), "", append(headers, navigation...)...).Status
}

// TestLogin_Flood: one stranger's guesses stand in nobody's way: others sign in,
// and the tokens of people who are signed in are refreshed; the provider sees few
// of the guesses, whatever it answers to them, and the store is not written for
// the rest.
func TestLogin_Flood(t *testing.T) {
	t.Run("PostgreSQL", func(t *testing.T) { floodLogin(t, "invalid_grant", servers.StartPostgres(t).DSN()) })
	for what, code := range map[string]string{"invalid_grant": "invalid_grant", "another error": "invalid_request", "no error at all": ""} {
		t.Run(what, func(t *testing.T) { floodLogin(t, code, "") })
	}
}

func floodLogin(t *testing.T, code, dsn string) {
	p := newOP(t)
	p.slowCode = func() { <-time.After(50 * time.Millisecond) }
	p.answer = func(w http.ResponseWriter, r *http.Request) bool {
		if r.PostFormValue("code") != "guess" {
			return false
		}
		w.Header().Set("Content-Type", "application/json")
		w.WriteHeader(map[bool]int{true: 500, false: 400}[code == ""])
		fmt.Fprintf(w, `{"error":%q}`, code)
		p.guesses++
		return true
	}
	g := start(t, options{store: dsn, auth: loginConf(p, ""), raw: "http://{addr} {\nauth_login corp\nreverse_proxy /api/* " + p.api.Listener.Addr().String() + " {\ntransport auth_outbound user\n}\nreverse_proxy {upstream}\n}"})
	person := visitorAt(g, "127.0.0.3")
	person.signIn("/")
	p.set(func() { p.life = 2 }) // from now on each use refreshes
	refreshing := visitorAt(g, "127.0.0.4")
	refreshing.signIn("/")

	quiet := make([]time.Duration, 0, 30)
	for i := range 30 {
		v, at := visitorAt(g, fmt.Sprintf("127.0.1.%d", 10+i)), time.Now()
		v.open("/page")
		quiet = append(quiet, time.Since(at))
		v.client.CloseIdleConnections()
	}
	var flooded []time.Duration
	ctx, cancel := context.WithCancel(t.Context())
	var flood sync.WaitGroup
	var guesses, limited atomic.Int64
	began := time.Now()
	for range 64 {
		stranger := visitorAt(g, "127.0.0.2")
		flood.Go(func() {
			for range 200 {
				if ctx.Err() != nil {
					return
				}
				if guesses.Add(1); stranger.guess(p) == map[bool]int{true: 503, false: 429}[code == ""] { // a provider in trouble is nobody's fault
					limited.Add(1)
				}
			}
		})
	}
	eventually(t, "the flood is on", func() bool { return guesses.Load() > 100 })
	good, refreshed := 0, 0
	const most = 30
	for i := range most {
		v := visitorAt(g, fmt.Sprintf("127.0.0.%d", 10+i))
		at := time.Now()
		if a, places := v.open("/page"); a.Status == 200 && len(places) > 2 {
			good++
		}
		flooded = append(flooded, time.Since(at))
		if a := refreshing.ask("GET", "/api/x", "", script...); a.Status == 200 {
			refreshed++
		} else {
			t.Logf("refresh: %d %s", a.Status, a.Body)
		}
		v.client.CloseIdleConnections()
	}
	cancel()
	flood.Wait()
	p.mu.Lock()
	asked := p.guesses
	p.mu.Unlock()
	took := time.Since(began)
	slices.Sort(quiet)
	slices.Sort(flooded)
	t.Logf("signing in took %s, the slowest %s; beside the flood %s, the slowest %s", quiet[len(quiet)/2], quiet[len(quiet)-1], flooded[len(flooded)/2], flooded[len(flooded)-1])
	if good != most || refreshed != most {
		t.Errorf("%d of %d signed in, %d of %d got a token", good, most, refreshed, most)
	}
	if bound := 60 + int(took/time.Second) + 1; asked > bound || limited.Load() == 0 {
		t.Errorf("the provider saw %d of %d guesses in %s, at most %d; %d were limited", asked, guesses.Load(), took, bound, limited.Load())
	}
	// Who signed in here before is not held for a stranger at the same address.
	same := visitorAt(g, "127.0.0.2")
	same.cookies["__Host-caddy-auth-session-corp"] = person.session()
	p.set(func() { p.life = 600 })
	if a := same.ask("POST", "/auth/logout", "x=1", "Sec-Fetch-Site", "same-origin"); a.Status != 303 {
		t.Errorf("%d", a.Status)
	}
	same.cookies["__Host-caddy-auth-session-corp"] = person.session()
	if a, _ := same.open("/again"); a.Status != 200 {
		t.Errorf("a browser that is known: %d", a.Status)
	}
}

// TestLogin_GuessesBehindAProxy: where the address of a client can't be believed,
// one client's guesses are nobody else's.
func TestLogin_GuessesBehindAProxy(t *testing.T) {
	p := newOP(t)
	for global, limited := range map[string]bool{
		"servers {\ntrusted_proxies static 127.0.0.0/8\n}":                           false,
		"servers {\ntrusted_proxies static 127.0.0.0/8\ntrusted_proxies_strict\n}":   true,
		"servers {\ntrusted_proxies static 192.0.2.0/24\n}":                          true,
		"servers {\ntrusted_proxies static 127.0.0.0/8\nclient_ip_headers X-Real\n}": true,
	} {
		g := start(t, options{global: global, auth: loginConf(p, ""), site: "auth_login corp"})
		stranger := newVisitor(g)
		seen429 := false
		for range 75 {
			seen429 = stranger.guess(p, "X-Forwarded-For", "198.51.100.7") == 429 || seen429
		}
		if seen429 != limited {
			t.Errorf("%s: limited %v", global, seen429)
		}
		if !limited {
			v := newVisitor(g)
			v.signIn("/")
			g.upstream.take()
		}
	}
}

// TestIntrospection_FloodFromOneAddress: made-up tokens of one stranger don't take
// the server's answers from others: neither from tokens that were active lately
// nor, for most, from new ones.
func TestIntrospection_FloodFromOneAddress(t *testing.T) {
	i := newIssuer(t)
	g := start(t, options{auth: i.opaqueBlock("rate 200\nttl 1ms"), site: "auth"})
	for n := range 40 {
		i.set(func(i *issuer) { i.tokens[fmt.Sprintf("good-%d", n)] = fmt.Sprintf(`{"active":true,"sub":"bob%d"}`, n) })
	}
	person := visitorAt(g, "127.0.0.3")
	ask := func(v *visitor, token string) int {
		return v.ask("GET", "/", "", "Authorization", "Bearer "+token).Status
	}
	if status := ask(person, "good-0"); status != 200 {
		t.Fatal(status)
	}
	ctx, cancel := context.WithCancel(t.Context())
	var flood sync.WaitGroup
	var sent, slowed atomic.Int64
	for n := range 32 {
		stranger := visitorAt(g, "127.0.0.2")
		flood.Go(func() {
			for k := 0; k < 2000 && ctx.Err() == nil; k++ {
				sent.Add(1)
				if ask(stranger, fmt.Sprintf("made-up-%d-%d", n, k)) == 503 {
					slowed.Add(1)
				}
			}
		})
	}
	eventually(t, "the flood is on", func() bool { return sent.Load() > 200 })
	ask(person, "good-1") // it is seen that others ask too
	known, fresh := 0, 0
	for n := range 20 {
		if ask(person, "good-0") == 200 {
			known++
		}
		if ask(person, fmt.Sprintf("good-%d", 2+n)) == 200 {
			fresh++
		}
	}
	cancel()
	flood.Wait()
	if known != 20 || fresh < 18 || slowed.Load() == 0 {
		t.Errorf("%d of 20 known and %d of 20 new tokens; %d of %d made-up ones were refused", known, fresh, slowed.Load(), sent.Load())
	}
}
