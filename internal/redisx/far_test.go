package redisx_test

import (
	"errors"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/caddy-auth/caddy-auth/internal/redisx"
	"github.com/caddy-auth/caddy-auth/test/servers"
)

// TestClient_FarAway: a server that answers within the timeout is used although a
// new connection to it, whose making takes several answers, takes longer.
func TestClient_FarAway(t *testing.T) {
	r := servers.StartRedis(t)
	r.Do("SET", "a", "value")
	line := servers.StartProxy(t, r.Addr)
	line.Delay = 600 * time.Millisecond
	line.Set(servers.Slow)
	c := client(t, redisx.Options{Addresses: []string{line.Addr}, Timeout: time.Second})
	c.Start()
	eventually(t, "a value", func() bool {
		v, err := c.Get(t.Context(), "a")
		return err == nil && string(v) == "value"
	})
	eventually(t, "many at once", func() bool { // the first ones may come while connections are made
		var wg sync.WaitGroup
		var failed atomic.Int64
		for range 8 {
			wg.Go(func() {
				if v, err := c.Get(t.Context(), "a"); err != nil || string(v) != "value" {
					failed.Add(1)
				}
				if err := c.Set(t.Context(), "b", []byte("x"), time.Minute); err != nil {
					failed.Add(1)
				}
			})
		}
		wg.Wait()
		return failed.Load() == 0 && c.Up()
	})
}

// TestClient_TooFarAway: what answers later than a call may take is down, and the
// error says how long an answer takes.
func TestClient_TooFarAway(t *testing.T) {
	r := servers.StartRedis(t)
	line := servers.StartProxy(t, r.Addr)
	line.Delay = 300 * time.Millisecond
	line.Set(servers.Slow)
	c := client(t, redisx.Options{Addresses: []string{line.Addr}, Timeout: 50 * time.Millisecond})
	down := make(chan error, 100)
	c.SetEvents(redisx.Events{Down: func(err error) { down <- err }})
	c.Start()
	var slow *redisx.SlowError
	if err := <-down; !errors.As(err, &slow) || slow.RoundTrip < line.Delay || !strings.Contains(err.Error(), "timeout of 50ms") {
		t.Errorf("%v", err)
	}
	if _, err := c.Get(t.Context(), "a"); !errors.Is(err, redisx.ErrSkipped) {
		t.Errorf("a request waits for it: %v", err)
	}
	took, err := c.RoundTrip(t.Context())
	if !errors.As(err, &slow) || took < line.Delay {
		t.Errorf("%s, %v", took, err)
	}
}

// TestClient_RequestsDontProbe: while a server is away, no request finds out whether
// it is back.
func TestClient_RequestsDontProbe(t *testing.T) {
	r := servers.StartRedis(t)
	r.Do("SET", "a", "value")
	line := servers.StartProxy(t, r.Addr)
	c := client(t, redisx.Options{Addresses: []string{line.Addr}, Timeout: 200 * time.Millisecond, Retry: 100 * time.Millisecond})
	c.Start()
	eventually(t, "a value", func() bool { _, err := c.Get(t.Context(), "a"); return err == nil })
	line.Set(servers.Blackhole)
	eventually(t, "down", func() bool { _, _ = c.Get(t.Context(), "a"); return !c.Up() })
	asked := 0
	eventually(t, "many requests", func() bool { // for longer than the retry time
		if _, err := c.Get(t.Context(), "a"); !errors.Is(err, redisx.ErrSkipped) {
			t.Fatalf("a request asks: %v", err)
		}
		asked++
		return asked == 100
	})
	line.Set(servers.Pass)
	eventually(t, "up again", func() bool { _, err := c.Get(t.Context(), "a"); return err == nil && c.Up() })
}

func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(60 * time.Second); !ok(); <-time.NewTimer(5 * time.Millisecond).C {
		if time.Now().After(deadline) {
			t.Fatalf("not within 60 s: %s", what)
		}
	}
}
