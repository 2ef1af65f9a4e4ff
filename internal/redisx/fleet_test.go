package redisx_test

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"
	"testing"
	"time"

	"github.com/caddy-auth/caddy-auth/internal/auth"
	"github.com/caddy-auth/caddy-auth/internal/redisx"
	"github.com/caddy-auth/caddy-auth/test/servers"
)

func works(t *testing.T, c *redisx.Client, name string) {
	t.Helper()
	ctx := context.Background()
	servers.Eventually(t, name+" is written and read", func() bool {
		if c.Set(ctx, name, []byte(name), time.Minute) != nil {
			return false
		}
		got, err := c.Get(ctx, name)
		return err == nil && string(got) == name
	})
}

func TestSentinels_Failover(t *testing.T) {
	s := servers.StartSentinels(t)
	c := client(t, redisx.Options{Addresses: s.Addrs, SentinelMaster: servers.SentinelMaster, Retry: 50 * time.Millisecond})
	c.Start()
	works(t, c, "before")
	var heard atomic.Int64
	stop := c.Subscribe("bell", func() { heard.Add(1) }, func(error) {})
	defer stop()
	rings := func(when string) {
		t.Helper()
		had := heard.Load()
		servers.Eventually(t, "the bell is heard "+when, func() bool {
			_ = c.Publish(context.Background(), "bell")
			return heard.Load() > had
		})
	}
	rings("before")
	old := s.Now()
	s.Master.Kill()
	began := time.Now()
	if _, err := c.Get(context.Background(), "before"); !errors.Is(err, auth.ErrUnavailable) && err != nil {
		t.Errorf("%v", err)
	}
	works(t, c, "after")
	t.Logf("the client was at the new master %s after the old one was killed (sentinels wait half a second)", time.Since(began).Round(time.Millisecond))
	rings("after")
	servers.Eventually(t, "the first sentinel has heard of the new master", func() bool { return s.Now() != old })
	if s.Replica.Dump()["after"] != "after" {
		t.Error("the record is not at the new master")
	}
}

func TestCluster_SlotMigration(t *testing.T) {
	cl := servers.StartCluster(t)
	c := client(t, redisx.Options{Addresses: cl.Addrs()[:1], Cluster: true, Retry: 20 * time.Millisecond, Timeout: 500 * time.Millisecond})
	var heard atomic.Int64
	stop := c.Subscribe("bell", func() { heard.Add(1) }, func(error) {})
	defer stop()
	ctx := context.Background()
	name := func(i int) string { return fmt.Sprintf("record-%d", i) }
	const records = 300
	for i := range records {
		works(t, c, name(i))
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		cl.Reshard(0, 1, 2000)
		cl.Reshard(1, 2, 3000)
	}()
	var reads, misses int
	for running := true; running; {
		select {
		case <-done:
			running = false
		default:
		}
		for i := range records {
			got, err := c.Get(ctx, name(i))
			reads++
			if err != nil || string(got) != name(i) {
				misses++
			}
		}
	}
	if misses > 0 {
		t.Errorf("%d of %d reads failed while slots moved", misses, reads)
	}
	spread := 0
	for _, r := range cl.Nodes {
		if len(r.Dump()) > 0 {
			spread++
		}
	}
	if spread != 3 {
		t.Errorf("the records are at %d of 3 nodes", spread)
	}
	servers.Eventually(t, "the bell is heard, whichever node", func() bool {
		_ = c.Publish(ctx, "bell")
		return heard.Load() > 1
	})
}

// TestCluster_NodeLost: what other nodes hold is still there.
func TestCluster_NodeLost(t *testing.T) {
	cl := servers.StartCluster(t)
	c := client(t, redisx.Options{Addresses: cl.Addrs(), Cluster: true, Retry: 10 * time.Millisecond})
	for i := range 30 {
		works(t, c, fmt.Sprintf("record-%d", i))
	}
	cl.Nodes[2].Kill()
	found := 0
	for i := range 30 {
		var got []byte
		var err error
		servers.Eventually(t, "a record is asked for", func() bool { // the breaker leaves the others alone too
			got, err = c.Get(context.Background(), fmt.Sprintf("record-%d", i))
			return !errors.Is(err, redisx.ErrSkipped)
		})
		if err == nil && len(got) > 0 {
			found++
		}
	}
	if found < 12 || found == 30 {
		t.Errorf("%d of 30 records were read with one of three nodes lost", found)
	}
}

// TestCluster_Rights: the user needs what the documentation names, and no more.
func TestCluster_Rights(t *testing.T) {
	cl := servers.StartCluster(t)
	for _, n := range cl.Nodes {
		n.Do("ACL", "SETUSER", "poor", "on", ">pw", "resetkeys", "~caddy-auth:*", "resetchannels", "&caddy-auth:*", "-@all",
			"+getrange", "+set", "+ping", "+publish", "+subscribe", "+hello", "+auth", "+cluster|slots", "+asking")
	}
	c := client(t, redisx.Options{Addresses: cl.Addrs(), Cluster: true, Username: "poor", Password: auth.NewSecret("pw"), Retry: 20 * time.Millisecond, Timeout: time.Second})
	var heard atomic.Int64
	var failed atomic.Pointer[error]
	stop := c.Subscribe("caddy-auth:bell", func() { heard.Add(1) }, func(err error) { failed.Store(&err) })
	defer stop()
	for i := range 20 {
		works(t, c, fmt.Sprintf("caddy-auth:record-%d", i))
	}
	cl.Reshard(0, 1, 500)
	for i := range 20 {
		works(t, c, fmt.Sprintf("caddy-auth:record-%d", i))
	}
	servers.Eventually(t, "the bell is heard", func() bool {
		return c.Publish(context.Background(), "caddy-auth:bell") == nil && heard.Load() > 1
	})
	if err := failed.Load(); err != nil {
		t.Error(*err)
	}
}

func TestOptions_Validate(t *testing.T) {
	for name, o := range map[string]redisx.Options{
		"nothing":          {},
		"two servers":      {Addresses: []string{"a:1", "b:1"}},
		"both":             {Addresses: []string{"a:1"}, Cluster: true, SentinelMaster: "m"},
		"database":         {Addresses: []string{"a:1"}, Cluster: true, DB: 1},
		"socket":           {Network: "unix", Addresses: []string{"/x"}, SentinelMaster: "m"},
		"stray":            {Addresses: []string{"a:1"}, SentinelUsername: "x"},
		"an empty address": {Addresses: []string{"a:1", ""}, Cluster: true},
	} {
		if err := o.Validate(); !errors.Is(err, auth.ErrInvalid) {
			t.Errorf("%s: %v", name, err)
		}
	}
}
