package fleet

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/caddy-auth/caddy-auth/test/servers"
)

// partner is a token endpoint, and the API that takes its newest token only.
type partner struct {
	*httptest.Server
	mu    sync.Mutex
	asked int
	slow  time.Duration
	hang  chan struct{} // the next question is not answered before it is closed
	came  chan struct{}
	good  string
}

func newPartner(t *testing.T) *partner {
	p := &partner{came: make(chan struct{}, 100)}
	mux := http.NewServeMux()
	mux.HandleFunc("/token", func(w http.ResponseWriter, r *http.Request) {
		_ = r.ParseForm()
		p.mu.Lock()
		p.asked++
		name, slow, hang := fmt.Sprintf("fleet.token.%d", p.asked), p.slow, p.hang
		p.hang = nil
		p.mu.Unlock()
		p.came <- struct{}{}
		if hang != nil {
			<-hang
			return
		}
		select {
		case <-time.After(slow):
		case <-r.Context().Done():
			return
		}
		p.mu.Lock()
		p.good = "Bearer " + name
		p.mu.Unlock()
		w.Header().Set("Content-Type", "application/json")
		fmt.Fprintf(w, `{"access_token":%q,"token_type":"Bearer","expires_in":3600}`, name)
	})
	mux.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) {
		p.mu.Lock()
		defer p.mu.Unlock()
		if r.Header.Get("Authorization") != p.good {
			w.WriteHeader(http.StatusUnauthorized)
		}
	})
	p.Server = httptest.NewServer(mux)
	t.Cleanup(func() { p.CloseClientConnections(); p.Close() })
	return p
}

func (p *partner) set(f func()) {
	p.mu.Lock()
	defer p.mu.Unlock()
	f()
}

func (p *partner) count() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.asked
}

// TestOutbound_OnePerFleet: gateways that start at once get one token between
// them, and another one when it is revoked; what is in Redis tells nothing. One
// that dies with the question under way holds nobody up for long, and without
// Redis each asks by itself.
func TestOutbound_OnePerFleet(t *testing.T) {
	p := newPartner(t)
	p.slow = 1500 * time.Millisecond // longer than the lock lives without a beat
	redis := servers.StartRedis(t)
	f := startSetup(t, setup{
		n: 3, redis: redis, upstream: p.Listener.Addr().String(), proxy: "transport auth_outbound partner",
		global: "outbound partner {\ntoken_url " + p.URL + "/token\nclient_id gw\nclient_secret fleet-client-secret\n}",
	})
	key := f.key("acme").Text.Reveal()
	burst := func(what string, asked int) {
		t.Helper()
		var all sync.WaitGroup
		for range 60 {
			for _, g := range f.gateways {
				all.Go(func() {
					if status := g.get("/x", key); status != 200 {
						t.Errorf("%s: %s answers %d", what, g.name, status)
					}
				})
			}
		}
		all.Wait()
		if n := p.count(); n != asked {
			t.Errorf("%s: asked %d times, want %d", what, n, asked)
		}
	}
	burst("at the start", 1)
	p.set(func() { p.good = "revoked" })
	burst("revoked", 2)
	dump := redis.Dump()
	if len(dump) < 2 {
		t.Errorf("Redis holds %d records", len(dump))
	}
	for name, value := range dump {
		if value := name + value; strings.Contains(value, "token") || strings.Contains(value, "partner") || strings.Contains(value, "fleet") {
			t.Errorf("Redis holds %q", value)
		}
	}

	hang := make(chan struct{})
	defer close(hang)
	for len(p.came) > 0 {
		<-p.came
	}
	p.set(func() { p.good, p.hang, p.slow = "revoked again", hang, 0 })
	go f.gateways[0].get("/x", key)
	<-p.came // it has the lock, and waits
	f.gateways[0].kill()
	began := time.Now()
	if status := f.gateways[1].get("/x", key); status != 200 {
		t.Errorf("after the death of another: %d", status)
	}
	took := time.Since(began)
	t.Logf("a token %s after another gateway was killed with the question under way", took.Round(time.Millisecond))
	if took > 3*time.Second {
		t.Errorf("it took %s", took)
	}
	if status := f.gateways[2].get("/x", key); status != 200 || p.count() != 4 {
		t.Errorf("%d, asked %d times", status, p.count())
	}

	redis.Kill()
	p.set(func() { p.good = "revoked without Redis" })
	for _, g := range f.gateways[1:] {
		servers.Eventually(t, g.name+" asks by itself", func() bool { return g.get("/x", key) == 200 })
	}
	for _, g := range f.gateways {
		text, err := os.ReadFile(filepath.Join(f.dir, g.name+".log"))
		if err != nil {
			t.Fatal(err)
		}
		if strings.Contains(string(text), "fleet.token") || strings.Contains(string(text), "fleet-client-secret") {
			t.Errorf("%s logs a secret", g.name)
		}
	}
}
