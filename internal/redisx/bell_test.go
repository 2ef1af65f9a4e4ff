package redisx_test

import (
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/caddy-auth/caddy-auth/internal/auth"
	"github.com/caddy-auth/caddy-auth/internal/redisx"
	"github.com/caddy-auth/caddy-auth/test/servers"
)

func TestSubscribe_HearsAndComesBack(t *testing.T) {
	r := servers.StartRedis(t)
	c := client(t, redisx.Options{Addresses: []string{r.Addr}, Retry: 20 * time.Millisecond})
	var heard, failed atomic.Int64
	stop := c.Subscribe("bell", func() { heard.Add(1) }, func(error) { failed.Add(1) })
	servers.Eventually(t, "subscribed", func() bool { return heard.Load() == 1 })
	if err := c.Publish(t.Context(), "bell"); err != nil {
		t.Fatal(err)
	}
	servers.Eventually(t, "heard", func() bool { return heard.Load() == 2 })
	if err := c.Publish(t.Context(), "another"); err != nil {
		t.Fatal(err)
	}
	r.Kill()
	servers.Eventually(t, "lost", func() bool { return failed.Load() > 0 })
	if err := c.Publish(t.Context(), "bell"); err == nil {
		t.Error("published to nobody")
	}
	before := heard.Load()
	r.Start()
	servers.Eventually(t, "subscribed again, which counts as heard", func() bool { return heard.Load() > before })
	stop()
	after := heard.Load()
	r.Do("PUBLISH", "bell", "")
	if n := r.Do("PUBSUB", "NUMSUB", "bell"); heard.Load() != after {
		t.Errorf("heard after it was stopped: %v", n)
	}
}

// TestSubscribe_Hostile: whoever can publish can't keep a gateway busy, or make
// it read what is long.
func TestSubscribe_Hostile(t *testing.T) {
	r := servers.StartRedis(t)
	c := client(t, redisx.Options{Addresses: []string{r.Addr}, Retry: 10 * time.Millisecond})
	var heard, failed atomic.Int64
	defer c.Subscribe("bell", func() { heard.Add(1) }, func(error) { failed.Add(1) })()
	servers.Eventually(t, "subscribed", func() bool { return heard.Load() == 1 })
	began := time.Now()
	for range 600 {
		r.Do("PUBLISH", "bell", "x")
	}
	if took := time.Since(began); heard.Load() > 10+took.Milliseconds()/4 {
		t.Errorf("%d messages read in %s", heard.Load(), took)
	}
	if failed.Load() > 0 {
		t.Error("small messages ended the subscription")
	}
	r.Do("PUBLISH", "bell", strings.Repeat("x", 1<<20))
	servers.Eventually(t, "a long message ends the connection", func() bool { return failed.Load() > 0 })
	before := heard.Load()
	servers.Eventually(t, "it comes back", func() bool { return heard.Load() > before })
}

func TestSubscribe_NotAllowed(t *testing.T) {
	r := servers.StartRedis(t)
	r.Do("ACL", "SETUSER", "poor", "on", ">pw", "~*", "+@all", "resetchannels")
	c := client(t, redisx.Options{Addresses: []string{r.Addr}, Username: "poor", Password: auth.NewSecret("pw"), Retry: 10 * time.Millisecond})
	var failed atomic.Pointer[error]
	defer c.Subscribe("bell", func() {}, func(err error) { failed.Store(&err) })()
	servers.Eventually(t, "told", func() bool { return failed.Load() != nil })
	if err := *failed.Load(); !strings.Contains(err.Error(), "NOPERM") {
		t.Errorf("%v", err)
	}
	if !c.Up() {
		t.Error("it is taken for an outage")
	}
}
