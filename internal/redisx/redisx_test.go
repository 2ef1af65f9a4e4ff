package redisx_test

import (
	"context"
	"errors"
	"net"
	"reflect"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/caddy-auth/caddy-auth/internal/auth"
	"github.com/caddy-auth/caddy-auth/internal/redisx"
	"github.com/caddy-auth/caddy-auth/test/servers"
)

func TestParseURL(t *testing.T) {
	for text, want := range map[string]redisx.Options{
		"redis://127.0.0.1:6379/2":        {Network: "tcp", Addresses: []string{"127.0.0.1:6379"}, DB: 2},
		"redis://cache":                   {Network: "tcp", Addresses: []string{"cache:6379"}},
		"unix:///run/redis/redis.sock":    {Network: "unix", Addresses: []string{"/run/redis/redis.sock"}},
		"redis://user:pa%3Ass@cache:1/0":  {Network: "tcp", Addresses: []string{"cache:1"}, Username: "user", Password: auth.NewSecret("pa:ss")},
		"rediss://:only@cache.example:99": {Network: "tcp", Addresses: []string{"cache.example:99"}, Password: auth.NewSecret("only")},
	} {
		got, err := redisx.ParseURL(text)
		if err != nil {
			t.Errorf("%s: %v", text, err)
			continue
		}
		if (got.TLS != nil) != strings.HasPrefix(text, "rediss") {
			t.Errorf("%s: TLS %v", text, got.TLS)
		}
		got.TLS = nil
		if !reflect.DeepEqual(got, want) {
			t.Errorf("%s: %+v", text, got)
		}
	}
	for _, text := range []string{"", "127.0.0.1:6379", "http://x", "redis://u:s3cret@h:x", "redis://u:s3cret@h/notanumber", "redis://u:s3cret@h?db=1", "redis://u:s3cret@h#f", "redis://%zz:s3cret@h", "\x00redis://s3cret"} {
		if _, err := redisx.ParseURL(text); !errors.Is(err, auth.ErrInvalid) || strings.Contains(err.Error(), "s3cret") {
			t.Errorf("%q: %v", text, err)
		}
	}
}

func TestClient_NamesItsErrors(t *testing.T) {
	r := servers.StartRedis(t)
	ctx := t.Context()
	c := client(t, redisx.Options{Addresses: []string{r.Addr}})
	if _, err := c.Get(ctx, "nothing"); !errors.Is(err, auth.ErrNotFound) {
		t.Errorf("missing: %v", err)
	}
	if err := c.Set(ctx, "a", []byte("value"), time.Minute); err != nil {
		t.Fatal(err)
	}
	if v, err := c.Get(ctx, "a"); err != nil || string(v) != "value" {
		t.Errorf("%q %v", v, err)
	}
	r.Do("LPUSH", "list", "x")
	if _, err := c.Get(ctx, "list"); !errors.Is(err, auth.ErrCorrupt) {
		t.Errorf("another type: %v", err)
	}
	r.Do("SET", "huge", strings.Repeat("x", 1<<20))
	if v, err := c.Get(ctx, "huge"); err != nil || len(v) != redisx.MaxValue {
		t.Errorf("%d bytes of a huge value, %v", len(v), err)
	}
	for _, tc := range []struct {
		exists bool
		ttl    time.Duration
		want   bool
	}{{true, time.Minute, false}, {false, time.Minute, true}, {false, time.Minute, false}, {true, 50 * time.Millisecond, true}} {
		if did, err := c.SetIf(ctx, tc.exists, "lock", []byte("x"), tc.ttl); did != tc.want || err != nil {
			t.Errorf("%+v: %v %v", tc, did, err)
		}
	}
	servers.Eventually(t, "what was set for a while ends", func() bool {
		did, err := c.SetIf(ctx, false, "lock", []byte("x"), time.Minute)
		return did && err == nil
	})
	if !c.Up() {
		t.Error("none of these is an outage")
	}
	c.Close()
	if _, err := c.Get(ctx, "a"); !errors.Is(err, auth.ErrUnavailable) {
		t.Errorf("closed: %v", err)
	}
	if did, err := c.SetIf(ctx, false, "other", []byte("x"), time.Minute); did || !errors.Is(err, auth.ErrUnavailable) {
		t.Errorf("closed: %v %v", did, err)
	}
	c.Close()
}

// TestClient_OneDeadlineThenNone: a server that does not answer costs one
// deadline, then nothing until the retry time has passed.
func TestClient_OneDeadlineThenNone(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0") // accepts in the kernel, never answers
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	c := client(t, redisx.Options{Addresses: []string{l.Addr().String()}, Timeout: 80 * time.Millisecond, Retry: time.Minute})
	var down atomic.Int64
	c.SetEvents(redisx.Events{Down: func(error) { down.Add(1) }})
	began := time.Now()
	if _, err := c.Get(t.Context(), "a"); !errors.Is(err, auth.ErrUnavailable) || errors.Is(err, redisx.ErrSkipped) {
		t.Errorf("%v", err)
	}
	if took := time.Since(began); took < 60*time.Millisecond || took > time.Second {
		t.Errorf("the first call took %s", took)
	}
	began = time.Now()
	for range 1000 {
		if _, err := c.Get(t.Context(), "a"); !errors.Is(err, redisx.ErrSkipped) {
			t.Fatalf("%v", err)
		}
	}
	if took := time.Since(began); took > time.Second { // far less than a thousand deadlines
		t.Errorf("a thousand skipped calls took %s", took)
	}
	if down.Load() != 1 || c.Up() {
		t.Errorf("told %d times", down.Load())
	}
}

// TestClient_AClientThatLeavesIsNoOutage: a cancelled context says nothing
// about the server.
func TestClient_AClientThatLeavesIsNoOutage(t *testing.T) {
	r := servers.StartRedis(t)
	c := client(t, redisx.Options{Addresses: []string{r.Addr}, Timeout: time.Second})
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := c.Get(ctx, "a"); err == nil {
		t.Error("answered")
	}
	if !c.Up() {
		t.Error("the breaker opened")
	}
}

// TestClient_BurstIsNoOutage: as many calls at once as a gateway makes, to a
// server some milliseconds away.
func TestClient_BurstIsNoOutage(t *testing.T) {
	r := servers.StartRedis(t)
	p := servers.StartProxy(t, r.Addr)
	p.Delay = 5 * time.Millisecond
	p.Set(servers.Slow)
	c := client(t, redisx.Options{Addresses: []string{p.Addr}, Timeout: 500 * time.Millisecond})
	var wg sync.WaitGroup
	for range 80 { // 64 reads and 16 writes
		wg.Go(func() {
			if _, err := c.Get(t.Context(), "a"); !errors.Is(err, auth.ErrNotFound) {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if !c.Up() {
		t.Error("a burst opened the breaker")
	}
}

func TestClient_RecoversWithoutTraffic(t *testing.T) {
	r := servers.StartRedis(t)
	c := client(t, redisx.Options{Addresses: []string{r.Addr}, Retry: 50 * time.Millisecond})
	var ups atomic.Int64
	c.SetEvents(redisx.Events{Up: func() { ups.Add(1) }})
	c.Start()
	c.Start()
	r.Kill()
	servers.Eventually(t, "down", func() bool { return !c.Up() })
	r.Start()
	servers.Eventually(t, "up", func() bool { return c.Up() && ups.Load() > 0 })
}

func client(t *testing.T, o redisx.Options) *redisx.Client {
	t.Helper()
	c := redisx.New(o)
	t.Cleanup(c.Close)
	return c
}
