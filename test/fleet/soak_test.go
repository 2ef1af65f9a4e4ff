package fleet

import (
	"context"
	"flag"
	"fmt"
	"io"
	"math/rand/v2"
	"regexp"
	"slices"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/caddy-auth/caddy-auth/internal/manage"
	"github.com/caddy-auth/caddy-auth/test/ledger"
	"github.com/caddy-auth/caddy-auth/test/servers"
)

var soakFor = flag.Duration("soak-for", 20*time.Second, "how long TestSoak runs")

const (
	soakRate      = 300
	soakStaleness = 5 * time.Second
)

// soaking is what TestSoak runs: three gateways, and everything that can happen
// to them, all at once.
type soaking struct {
	*fleet
	t            *testing.T
	made         setup
	store, redis *servers.Proxy

	mu      sync.Mutex // guards what follows
	good    []soakKey
	revoked []*ledger.Credential

	created, ended, reloads, faults int
}

type soakKey struct {
	id   string
	cred *ledger.Credential
}

// TestSoak mixes traffic, changes, reloads and faults for as long as it is
// told: no wrong answer is given, and neither heap nor goroutines grow.
func TestSoak(t *testing.T) {
	pg, redis := servers.StartPostgres(t), servers.StartRedis(t)
	s := &soaking{t: t, store: servers.StartProxy(t, pg.Addr), redis: servers.StartProxy(t, redis.Addr)}
	s.made = setup{
		n: 3, redis: redis, dsn: pg.DSN(), redisLine: "redis redis://" + s.redis.Addr + "/0", storeLine: fmt.Sprintf("store postgres %q", pg.DSNAt(s.store.Addr)),
		global: fmt.Sprintf("poll_interval 200ms\nmax_staleness %s", soakStaleness),
	}
	s.fleet = startSetup(t, s.made)
	for range 50 {
		s.create()
	}
	load := &ledger.Load{Rate: soakRate, Client: s.client, URLs: s.urls, Pick: s.pick}
	stop := load.Start()
	ctx, cancel := context.WithTimeout(t.Context(), *soakFor)
	defer cancel()
	var all sync.WaitGroup
	every := func(d time.Duration, do func()) {
		all.Go(func() {
			tick := time.NewTicker(d)
			defer tick.Stop()
			for {
				select {
				case <-ctx.Done():
					return
				case <-tick.C:
					do()
				}
			}
		})
	}
	pace := max(*soakFor/120, time.Second) // an hour has 120 reloads and as many faults
	every(200*time.Millisecond, s.create)
	every(300*time.Millisecond, s.revoke)
	every(4*pace, s.reload)
	every(5*pace, s.fault)
	sum := &soakSum{}
	every(max(*soakFor/20, time.Second), func() { sum.add(t, s, load) })
	all.Wait()
	s.heal()
	servers.Eventually(t, "all good keys pass again", func() bool {
		good, bad := load.Recent(time.Now().Add(-time.Second))
		return good > 100 && bad == 0
	})
	stop()
	sum.add(t, s, load)
	t.Logf("%s: %d requests, %d of good keys, of which %d got 503, %d sent again; %d keys made, %d revoked, %d reloads, %d faults; p99 of a stretch at most %s",
		*soakFor, sum.requests, sum.good, sum.unavailable, load.Again.Load(), s.created, s.ended, s.reloads, s.faults, sum.p99)
	if s.reloads == 0 || s.faults == 0 || s.ended < 10 {
		t.Error("too little happened to show anything")
	}
	if load.Again.Load() > int64(10*s.reloads) {
		t.Error("too many requests got no answer at first")
	}
	if sum.unavailable > sum.good/5 {
		t.Error("too many good keys were turned away")
	}
	sum.flat(t)
}

func (s *soaking) urls() []string {
	var out []string
	for _, g := range s.gateways {
		out = append(out, "http://"+g.addr)
	}
	return out
}

func (s *soaking) pick(n int) *ledger.Credential {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case n%5 == 0 && len(s.revoked) > 0:
		return s.revoked[rand.IntN(len(s.revoked))]
	case n%31 == 1:
		return &ledger.Credential{Class: ledger.Public}
	case n%31 == 2:
		key := s.good[0].cred.Key
		return &ledger.Credential{Class: ledger.Forged, Key: key[:len(key)-4] + "0000"}
	}
	return s.good[rand.IntN(len(s.good))].cred
}

func (s *soaking) create() {
	made, err := s.ops.Create(context.Background(), manage.KeySpec{Owner: fmt.Sprintf("owner-%d", rand.IntN(20))})
	if err != nil {
		s.t.Error(err)
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.created++
	s.good = append(s.good, soakKey{made.Key.ID, &ledger.Credential{Class: ledger.Victim, Key: made.Text.Reveal()}})
}

// revoke ends one of the keys, and asks for it for some time more.
func (s *soaking) revoke() {
	s.mu.Lock()
	if len(s.good) < 40 {
		s.mu.Unlock()
		return
	}
	i := rand.IntN(len(s.good))
	k := s.good[i]
	s.good = slices.Delete(s.good, i, i+1)
	k.cred.Ending()
	s.revoked = append(s.revoked, k.cred)
	if len(s.revoked) > 50 {
		s.revoked = s.revoked[1:]
	}
	s.ended++
	s.mu.Unlock()
	if _, err := s.ops.Revoke(context.Background(), []string{k.id}, "soak"); err != nil {
		s.t.Error(err)
	}
	k.cred.StopsAt(time.Now().Add(soakStaleness + 500*time.Millisecond))
}

// reload gives a gateway another configuration, as operators do.
func (s *soaking) reload() {
	g := s.gateways[s.reloads%len(s.gateways)]
	s.reloads++
	changed := s.made
	changed.global += fmt.Sprintf("\ncache {\nsize %d\n}", 50_000+s.reloads%10)
	g.configure(changed)
	g.reload()
}

// fault breaks Redis, PostgreSQL or both for a while that is shorter than
// max_staleness.
func (s *soaking) fault() {
	kinds := []servers.Fault{servers.Refuse, servers.Blackhole, servers.Slow, servers.Drip, servers.Cut, servers.Corrupt}
	which := rand.IntN(3)
	kind := kinds[rand.IntN(len(kinds))]
	if which != 0 {
		s.store.Set(kind)
	}
	if which != 1 {
		s.redis.Set(kind)
	}
	s.faults++
	wait(soakStaleness / 4)
	s.heal()
}

func (s *soaking) heal() {
	s.store.Set(servers.Pass)
	s.redis.Set(servers.Pass)
}

// soakSum is what the stretches of a soak came to.
type soakSum struct {
	requests, good, unavailable int
	p99                         time.Duration
	heap, goroutines            [][]float64 // by stretch, then gateway
}

func (m *soakSum) add(t *testing.T, s *soaking, load *ledger.Load) {
	entries := load.Take()
	for i, w := range ledger.Wrong(entries) {
		if i < 10 {
			t.Error(w)
		}
	}
	all, victims := ledger.SumOf(entries), ledger.SumOf(entries, ledger.Victim)
	m.requests, m.good, m.unavailable, m.p99 = m.requests+all.Requests, m.good+victims.Requests, m.unavailable+victims.Unavailable, max(m.p99, all.P99)
	var heap, goroutines []float64
	for _, g := range s.gateways {
		h, n := g.memory(t)
		heap, goroutines = append(heap, h), append(goroutines, n)
	}
	m.heap, m.goroutines = append(m.heap, heap), append(m.goroutines, goroutines)
}

// flat compares the middle stretches with the last ones.
func (m *soakSum) flat(t *testing.T) {
	n := len(m.heap)
	if n < 6 {
		t.Fatalf("%d samples", n)
	}
	median := func(rows [][]float64, gateway int) float64 {
		var out []float64
		for _, r := range rows {
			out = append(out, r[gateway])
		}
		slices.Sort(out)
		return out[len(out)/2]
	}
	for g := range m.heap[0] {
		early, late := median(m.heap[n/4:n/2], g), median(m.heap[3*n/4:], g)
		was, is := median(m.goroutines[n/4:n/2], g), median(m.goroutines[3*n/4:], g)
		t.Logf("gateway %d: heap %.1f MB, then %.1f MB; goroutines %.0f, then %.0f", g, early/1e6, late/1e6, was, is)
		if late > 1.3*early+20e6 {
			t.Errorf("the heap grew from %.1f to %.1f MB", early/1e6, late/1e6)
		}
		if is > 1.3*was+100 {
			t.Errorf("goroutines grew from %.0f to %.0f", was, is)
		}
	}
}

var (
	heapLine       = regexp.MustCompile(`(?m)^go_memstats_heap_alloc_bytes (\S+)`)
	goroutinesLine = regexp.MustCompile(`(?m)^go_goroutines (\S+)`)
)

// memory is what a gateway has in use after a collection.
func (g *gateway) memory(t *testing.T) (heap, goroutines float64) {
	t.Helper()
	get := func(path string) string {
		res, err := g.f.client.Get("http://" + g.admin + path)
		if err != nil {
			t.Error(err)
			return ""
		}
		defer res.Body.Close()
		b, err := io.ReadAll(res.Body)
		if err != nil {
			t.Error(err)
		}
		return string(b)
	}
	get("/debug/pprof/heap?gc=1")
	text := get("/metrics")
	number := func(re *regexp.Regexp) float64 {
		m := re.FindStringSubmatch(text)
		if m == nil {
			t.Errorf("%s: no %s in its metrics", g.name, re)
			return 0
		}
		v, _ := strconv.ParseFloat(m[1], 64)
		return v
	}
	return number(heapLine), number(goroutinesLine)
}
