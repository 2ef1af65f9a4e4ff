package redisx_test

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/caddy-auth/caddy-auth/internal/auth"
	"github.com/caddy-auth/caddy-auth/internal/redisx"
	"github.com/caddy-auth/caddy-auth/test/servers"
)

// readEvents is how often the server has read from its connections.
func readEvents(t testing.TB, r *servers.Redis) int {
	t.Helper()
	for line := range strings.Lines(r.Do("INFO", "stats").(string)) {
		if value, ok := strings.CutPrefix(line, "total_reads_processed:"); ok {
			n, err := strconv.Atoi(strings.TrimSpace(value))
			if err != nil {
				t.Fatal(err)
			}
			return n
		}
	}
	t.Fatal("the server does not count its reads")
	return 0
}

// TestClient_BatchesGiveEachItsOwn: reads that come together go together, and
// each gets its own answer, whatever the others get.
func TestClient_BatchesGiveEachItsOwn(t *testing.T) {
	r := servers.StartRedis(t)
	c := client(t, redisx.Options{Addresses: []string{r.Addr}, Timeout: 10 * time.Second})
	const names = 5000
	pipe := r.Admin.Pipeline()
	for i := range names {
		switch i % 10 {
		case 7: // missing
		case 8:
			pipe.LPush(t.Context(), fmt.Sprint("n", i), "x")
		case 9:
			pipe.Set(t.Context(), fmt.Sprint("n", i), strings.Repeat("x", redisx.MaxValue+1), 0)
		default:
			pipe.Set(t.Context(), fmt.Sprint("n", i), fmt.Sprint("value of ", i), 0)
		}
	}
	if _, err := pipe.Exec(t.Context()); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Get(t.Context(), "n0"); err != nil { // connected
		t.Fatal(err)
	}
	before := readEvents(t, r)
	var wg sync.WaitGroup
	for i := range names {
		wg.Go(func() {
			v, err := c.Get(t.Context(), fmt.Sprint("n", i))
			switch {
			case i%10 == 7 && errors.Is(err, auth.ErrNotFound):
			case i%10 == 8 && errors.Is(err, auth.ErrCorrupt):
			case i%10 == 9 && err == nil && len(v) == redisx.MaxValue:
			case i%10 < 7 && err == nil && string(v) == fmt.Sprint("value of ", i):
			default:
				t.Errorf("n%d: %.20q, %v", i, v, err)
			}
		})
	}
	wg.Wait()
	if n := readEvents(t, r) - before; n > names/4 {
		t.Errorf("the server read %d times for %d reads at once", n, names)
	}
	if !c.Up() {
		t.Error("none of these is an outage")
	}
}

// TestClient_BatchesKeepTheDeadline: who waits for a batch behind one that
// hangs waits no longer than its own deadline.
func TestClient_BatchesKeepTheDeadline(t *testing.T) {
	r := servers.StartRedis(t)
	c := client(t, redisx.Options{Addresses: []string{r.Addr}, Timeout: 200 * time.Millisecond, Retry: 20 * time.Millisecond})
	if err := c.Set(t.Context(), "a", []byte("value"), time.Minute); err != nil {
		t.Fatal(err)
	}
	r.Hang()
	var slowest atomic.Int64
	var wg sync.WaitGroup
	for range 500 {
		wg.Go(func() {
			began := time.Now()
			if _, err := c.Get(t.Context(), "a"); !errors.Is(err, auth.ErrUnavailable) {
				t.Errorf("a server that hangs: %v", err)
			}
			for took := time.Since(began).Nanoseconds(); ; {
				if old := slowest.Load(); old >= took || slowest.CompareAndSwap(old, took) {
					return
				}
			}
		})
	}
	wg.Wait()
	if took := time.Duration(slowest.Load()); took > 2*time.Second {
		t.Errorf("the slowest took %s", took)
	}
	r.Resume()
	servers.Eventually(t, "it answers again", func() bool {
		v, err := c.Get(t.Context(), "a")
		return err == nil && string(v) == "value"
	})
}

// TestClient_CloseWithReadsWaiting: they all return.
func TestClient_CloseWithReadsWaiting(t *testing.T) {
	r := servers.StartRedis(t)
	c := client(t, redisx.Options{Addresses: []string{r.Addr}, Timeout: 5 * time.Second})
	if err := c.Set(t.Context(), "a", []byte("value"), time.Minute); err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	for i := range 1000 {
		wg.Go(func() {
			if i == 500 {
				c.Close()
			}
			if v, err := c.Get(t.Context(), "a"); err != nil && !errors.Is(err, auth.ErrUnavailable) || err == nil && string(v) != "value" {
				t.Errorf("%q, %v", v, err)
			}
		})
	}
	wg.Wait()
}

// TestClient_AReaderThatLeavesHurtsNobody: the first of a batch is cancelled
// while others wait behind it.
func TestClient_AReaderThatLeavesHurtsNobody(t *testing.T) {
	r := servers.StartRedis(t)
	c := client(t, redisx.Options{Addresses: []string{r.Addr}, Timeout: 5 * time.Second})
	if err := c.Set(t.Context(), "a", []byte("value"), time.Minute); err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	for i := range 2000 {
		wg.Go(func() {
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			if i%3 == 0 {
				cancel()
			}
			if v, err := c.Get(ctx, "a"); i%3 != 0 && (err != nil || string(v) != "value") {
				t.Errorf("%q, %v", v, err)
			}
		})
	}
	wg.Wait()
	if !c.Up() {
		t.Error("somebody who leaves is no outage")
	}
}

// BenchmarkReads compares ways to read many values at once.
func BenchmarkReads(b *testing.B) {
	r := servers.StartRedis(b)
	r.Do("SET", "a", strings.Repeat("x", 300))
	plain := redis.NewClient(&redis.Options{Addr: r.Addr, PoolSize: 96})
	defer plain.Close()
	auto, err := plain.AutoPipeline()
	if err != nil {
		b.Fatal(err)
	}
	defer auto.Close()
	ours := redisx.New(redisx.Options{Addresses: []string{r.Addr}, Timeout: 5 * time.Second})
	defer ours.Close()
	for _, way := range []struct {
		name string
		read func(ctx context.Context) error
	}{
		{"plain", func(ctx context.Context) error { return plain.GetRange(ctx, "a", 0, redisx.MaxValue-1).Err() }},
		{"autopipeline", func(ctx context.Context) error { return auto.GetRange(ctx, "a", 0, redisx.MaxValue-1).Err() }},
		{"batches", func(ctx context.Context) error { _, err := ours.Get(ctx, "a"); return err }},
	} {
		b.Run(way.name, func(b *testing.B) {
			b.SetParallelism(32) // goroutines for each processor
			b.ReportAllocs()
			b.RunParallel(func(pb *testing.PB) {
				for pb.Next() {
					if err := way.read(b.Context()); err != nil {
						b.Error(err)
						return
					}
				}
			})
		})
	}
}

// TestClient_BatchesOverASlowLine: a server that answers within the deadline is
// none that is away, however many ask it at once.
func TestClient_BatchesOverASlowLine(t *testing.T) {
	r := servers.StartRedis(t)
	r.Do("SET", "a", "value")
	line := servers.StartProxy(t, r.Addr)
	line.Delay = 20 * time.Millisecond
	line.Set(servers.Slow)
	c := client(t, redisx.Options{Addresses: []string{line.Addr}, Timeout: time.Second})
	var wg sync.WaitGroup
	for range 16 { // as many connections as it will want
		wg.Go(func() {
			for range 20 {
				_, _ = c.Get(t.Context(), "a")
			}
		})
	}
	wg.Wait()
	line.Set(servers.Pass)
	line.Delay = 600 * time.Millisecond
	line.Set(servers.Slow)
	var failed atomic.Int64
	for range 16 {
		wg.Go(func() {
			for range 3 {
				if v, err := c.Get(t.Context(), "a"); err != nil || string(v) != "value" {
					failed.Add(1)
				}
			}
		})
	}
	wg.Wait()
	if n := failed.Load(); n > 0 || !c.Up() {
		t.Errorf("%d of 48 reads failed over a line of 600 ms with a deadline of 1 s", n)
	}
}
