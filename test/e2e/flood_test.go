package e2e

import (
	"bytes"
	"sync"
	"testing"
	"time"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/caddyconfig"

	"github.com/caddy-auth/caddy-auth/internal/auth"
)

// TestFlood_RefusalsAreSlowedDown: more refusals than refusal_rate wait; good
// requests and what is within the rate do not, and forged keys reach no tier.
func TestFlood_RefusalsAreSlowedDown(t *testing.T) {
	g := start(t, options{auth: "refusal_rate 100", site: "auth"})
	key := g.plainKey()
	forged := key[:len(key)-8] + "00000000"
	g.ok(g.get("/", "X-API-Key: "+key))
	before := g.metricsNow("store", "hit") + g.metricsNow("store", "negative")
	slowed := gathered(t, "caddy_auth_refusals_slowed_total", nil)
	began := time.Now()
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			for range 10 {
				g.want(g.get("/", "X-API-Key: "+forged), 401, auth.CodeInvalidCredential)
			}
		})
	}
	wg.Wait()
	if took := time.Since(began); took < 600*time.Millisecond { // 80, 10 of them at once
		t.Errorf("80 refusals took %s at 100 a second", took)
	}
	if n := gathered(t, "caddy_auth_refusals_slowed_total", nil) - slowed; n < 60 {
		t.Errorf("%v refusals were counted as slowed", n)
	}
	if after := g.metricsNow("store", "hit") + g.metricsNow("store", "negative"); after != before {
		t.Errorf("the store was asked %v times about forged keys", after-before)
	}
	began = time.Now()
	for range 100 {
		g.ok(g.get("/", "X-API-Key: "+key))
	}
	if took := time.Since(began); took > time.Second {
		t.Errorf("100 good requests took %s", took)
	}
}

// TestFlood_OtherProvidersAreNotSlowed: a request without a credential of ours
// may be another provider's, so Caddy's authentication handler gets its answer at
// once.
func TestFlood_OtherProvidersAreNotSlowed(t *testing.T) {
	g := start(t, options{auth: "refusal_rate 2", site: "auth"})
	text, _, err := caddyconfig.GetAdapter("caddyfile").Adapt([]byte(g.config), map[string]any{"filename": "Caddyfile"})
	if err != nil {
		t.Fatal(err)
	}
	theirs := bytes.Replace(text, []byte(`{"handler":"auth"}`), []byte(`{"handler":"authentication","providers":{"auth":{}}}`), 1)
	if bytes.Equal(theirs, text) {
		t.Fatalf("no auth handler in %s", text)
	}
	if err := caddy.Load(theirs, true); err != nil {
		t.Fatal(err)
	}
	g.answers()
	slowed := gathered(t, "caddy_auth_refusals_slowed_total", nil)
	for range 20 {
		if a := g.get("/"); a.Status != 401 {
			t.Fatalf("status %d", a.Status)
		}
	}
	if n := gathered(t, "caddy_auth_refusals_slowed_total", nil) - slowed; n != 0 {
		t.Errorf("%v of 20 were slowed", n)
	}
}
