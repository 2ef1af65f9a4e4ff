package e2e

import (
	"sync"
	"testing"
	"time"

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
