package main

import (
	"context"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/caddy-auth/caddy-auth/internal/manage"
	"github.com/caddy-auth/caddy-auth/internal/store"
	"github.com/caddy-auth/caddy-auth/internal/store/sqlite"
	"github.com/caddy-auth/caddy-auth/test/servers"
)

// tierOf is the tier in a counter's labels.
func tierOf(labels string) string {
	_, rest, _ := strings.Cut(labels, `tier="`)
	tier, _, _ := strings.Cut(rest, `"`)
	return tier
}

// growthSuite shows where cost bends.
func (b *bench) growthSuite(ctx context.Context) ([]Section, error) {
	var sections []Section
	for _, measure := range []func(context.Context) (Section, error){b.growCold, b.growStore, b.growMemory, b.growChanges, b.growFleet} {
		s, err := measure(ctx)
		if err != nil {
			return nil, err
		}
		sections = append(sections, s)
	}
	return sections, nil
}

func note(format string, args ...any) { fmt.Fprintf(os.Stderr, format+"\n", args...) }

// growStore: a gateway over stores of several sizes.
func (b *bench) growStore(ctx context.Context) (Section, error) {
	out := Section{Title: "Keys in the store (SQLite)", Text: "Cold keys are asked for over one connection; without `auth` a request takes what the latency table says."}
	for field := range strings.SplitSeq(b.stored, ",") {
		n, err := strconv.Atoi(field)
		if err != nil {
			return out, fmt.Errorf("-stored: %w", err)
		}
		keys, db, err := b.manyKeys(ctx, n)
		if err != nil {
			return out, err
		}
		info, err := os.Stat(db)
		if err != nil {
			return out, err
		}
		began := time.Now()
		ps, stop, err := b.startAll(ctx, spec{name: "store", sites: "auth", store: "sqlite " + db, shipped: true})
		if err != nil {
			return out, err
		}
		cold := keyRequests(ps[0].addr, keys[:min(len(keys), 1000)])
		var took []time.Duration
		c, err := dial(ps[0].addr, 200)
		for i := 0; err == nil && i < len(cold); i++ {
			sent := time.Now()
			if err = c.do(cold[i]); err == nil {
				took = append(took, time.Since(sent))
			}
			if i == 0 {
				out.Figures = append(out.Figures, Figure{Name: fmt.Sprintf("%d keys: from start to the first answer", n), Unit: "ms", Value: float64(time.Since(began).Milliseconds())})
			}
		}
		out.Figures = append(out.Figures, Figure{
			Name: fmt.Sprintf("%d keys: p50 of a cold key", n), Unit: "µs", Value: quantile(took, 0.5),
			Note: fmt.Sprintf("file %.0f MiB, gateway %.0f MiB", float64(info.Size())/(1<<20), ps[0].resident()),
		})
		note("%d keys in the store: %v", n, out.Figures[len(out.Figures)-2:])
		stop()
		if err != nil {
			return out, err
		}
		_ = os.Remove(db)
	}
	return out, nil
}

// growMemory: more and more identities in memory.
func (b *bench) growMemory(ctx context.Context) (Section, error) {
	out := Section{Title: "Identities in memory", Text: "What grows is the wait for memory: one among a million is a handful of cache lines away. What shrinks is the number of collections, since what memory keeps makes them rarer and is not marked: it bends downwards."}
	keys, db, err := b.manyKeys(ctx, b.identities)
	if err != nil {
		return out, err
	}
	for _, n := range []int{1000, 10_000, 100_000, len(keys)} {
		n = min(n, len(keys))
		ps, stop, err := b.startAll(ctx, spec{name: "plain"}, spec{name: "grown", sites: "auth", warm: true, store: "sqlite " + db, cache: n + n/10 + 1000})
		if err != nil {
			return out, err
		}
		requests := keyRequests(ps[1].addr, keys[:n])
		err = once(ctx, ps[1].extra, requests, b.conns, 200)
		var seen map[string]pairing
		if err == nil {
			seen, err = b.rounds(ctx, b.slice, target{name: "plain", process: ps[0], requests: keyRequests(ps[0].addr, b.keys), want: 200},
				target{name: "key", base: "plain", process: ps[1], requests: requests, want: 200})
		}
		if err == nil {
			r := row(fmt.Sprintf("%d identities", n), 0, seen["key"])
			r.Resident = ps[1].resident()
			out.Rows = append(out.Rows, r)
		}
		stop()
		if err != nil {
			return out, err
		}
	}
	return out, nil
}

// growChanges: keys are revoked at a rate while a gateway is idle.
func (b *bench) growChanges(ctx context.Context) (Section, error) {
	out := Section{Title: "Revocations a second", Text: "What following the journal costs one gateway, which serves nothing meanwhile; CPU of one core."}
	keys, db, err := b.manyKeys(ctx, 20_000)
	if err != nil {
		return out, err
	}
	redis := b.startRedis()
	ps, stop, err := b.startAll(ctx, spec{name: "follower", sites: "auth", store: "sqlite " + db, auth: "redis " + redis.URL(), shipped: true})
	if err != nil {
		return out, err
	}
	defer stop()
	w, err := store.Open(ctx, sqlite.New(db), store.Existing)
	if err != nil {
		return out, err
	}
	defer w.Close()
	next := 0
	for _, rate := range []int{0, 1, 10, 100, 1000} {
		before, began, done := cpu(ps[0].pid), time.Now(), 0
		for time.Since(began) < b.slice && next < len(keys) && ctx.Err() == nil {
			if rate == 0 {
				pause(b.slice)
				continue
			}
			pause(time.Duration(done)*time.Second/time.Duration(rate) - time.Since(began))
			if err := revoke(ctx, w, next); err != nil {
				return out, err
			}
			next, done = next+1, done+1
		}
		seconds := time.Since(began).Seconds()
		out.Figures = append(out.Figures, Figure{
			Name: fmt.Sprintf("%d revocations a second", rate), Unit: "% of a core", Value: 100 * (cpu(ps[0].pid) - before) / seconds,
			Note: fmt.Sprintf("%.0f a second were written", float64(done)/seconds),
		})
		note("%v", out.Figures[len(out.Figures)-1])
	}
	return out, nil
}

func revoke(ctx context.Context, w *store.DB, i int) error {
	_, err := manage.New(w, "load", "ca", nil).Revoke(ctx, []string{keyID(i)}, "load")
	return err
}

// growFleet: several gateways share a store and a Redis.
func (b *bench) growFleet(ctx context.Context) (Section, error) {
	out := Section{Title: "Gateways in a fleet", Text: "All on this machine, on one SQLite file and one Redis. Idle, each looks at the journal once a poll interval and beats; a revocation is timed from the commit until the last gateway refuses."}
	for _, n := range []int{1, 3, 9} {
		figures, err := b.fleet(ctx, n)
		if err != nil {
			return out, err
		}
		out.Figures = append(out.Figures, figures...)
		note("%v", figures)
	}
	return out, nil
}

func (b *bench) fleet(ctx context.Context, n int) ([]Figure, error) {
	keys, db, err := b.manyKeys(ctx, 2000)
	if err != nil {
		return nil, err
	}
	shared := b.startRedis()
	var specs []spec
	for i := range n {
		specs = append(specs, spec{name: fmt.Sprintf("fleet%d", i), sites: "auth", store: "sqlite " + db, auth: "redis " + shared.URL(), every: true, shipped: true})
	}
	ps, stop, err := b.startAll(ctx, specs...)
	if err != nil {
		return nil, err
	}
	defer stop()
	for _, p := range ps {
		if err := once(ctx, p.addr, keyRequests(p.addr, keys), b.conns, 200); err != nil {
			return nil, err
		}
	}
	var reads float64
	for _, p := range ps {
		c, err := p.counters()
		if err != nil {
			return nil, err
		}
		reads += c.lookups[`{result="hit",tier="store"}`]
	}
	commands, used, began := calls(shared), 0.0, time.Now()
	for _, p := range ps {
		used -= cpu(p.pid)
	}
	pause(b.slice)
	for _, p := range ps {
		used += cpu(p.pid)
	}
	seconds := time.Since(began).Seconds()
	idle := 100 * used / seconds / float64(n)
	commands = calls(shared) - commands
	took, err := revokedEverywhere(ctx, db, ps, keys, shared)
	if err != nil {
		return nil, err
	}
	name := func(what string) string { return fmt.Sprintf("%d gateways: %s", n, what) }
	return []Figure{
		{Name: name("store reads to warm 2000 keys everywhere"), Unit: "", Value: reads, Note: "without Redis it would be 2000 for each"},
		{Name: name("each, idle"), Unit: "% of a core", Value: idle},
		{Name: name("Redis, idle"), Unit: "commands a second", Value: commands / seconds},
		{Name: name("p50 of a revocation"), Unit: "ms", Value: quantile(took, 0.5) / 1000},
		{Name: name("slowest of 20"), Unit: "ms", Value: quantile(took, 1) / 1000},
	}, nil
}

// calls is how many commands Redis has been asked.
func calls(r *servers.Redis) float64 {
	text, _ := r.Do("INFO", "stats").(string)
	for line := range strings.Lines(text) {
		if value, ok := strings.CutPrefix(line, "total_commands_processed:"); ok {
			n, _ := strconv.ParseFloat(strings.TrimSpace(value), 64)
			return n
		}
	}
	return 0
}

// revokedEverywhere revokes keys one by one, with the doorbell, and times until
// every gateway refuses.
func revokedEverywhere(ctx context.Context, db string, ps []*process, keys []string, shared *servers.Redis) ([]time.Duration, error) {
	w, err := store.Open(ctx, sqlite.New(db), store.Existing)
	if err != nil {
		return nil, err
	}
	defer w.Close()
	bell, err := doorbell(ctx, shared)
	if err != nil {
		return nil, err
	}
	var took []time.Duration
	for i := range 20 {
		if err := revoke(ctx, w, i); err != nil {
			return nil, err
		}
		began := time.Now()
		shared.Do("PUBLISH", bell, "ring")
		var wg sync.WaitGroup
		var failed atomic.Pointer[error]
		for _, p := range ps {
			wg.Go(func() {
				if err := refusedSoon(p, keys[i]); err != nil {
					failed.Store(&err)
				}
			})
		}
		wg.Wait()
		if err := failed.Load(); err != nil {
			return nil, *err
		}
		took = append(took, time.Since(began))
	}
	return took, nil
}

// doorbell is the channel that the gateways listen to.
func doorbell(ctx context.Context, shared *servers.Redis) (string, error) {
	channels, err := shared.Admin.PubSubChannels(ctx, "*").Result()
	if err != nil || len(channels) == 0 {
		return "", fmt.Errorf("nobody listens: %w", err)
	}
	slices.Sort(channels)
	return channels[0], nil
}

func refusedSoon(p *process, key string) error {
	for end := time.Now().Add(10 * time.Second); time.Now().Before(end); {
		c, err := dial(p.addr, 401)
		if err != nil {
			return err
		}
		err = c.do(request(p.addr, key))
		_ = c.Close()
		if err == nil {
			return nil
		}
		pause(time.Millisecond)
	}
	return fmt.Errorf("a revoked key was let in for ten seconds")
}
