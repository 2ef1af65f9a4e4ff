package main

import (
	"context"
	"fmt"
	"time"

	"github.com/caddy-auth/caddy-auth/internal/auth"
	"github.com/caddy-auth/caddy-auth/internal/store"
	"github.com/caddy-auth/caddy-auth/internal/store/sqlite"
)

const (
	coldKeys  = 100_000
	coldConns = 64
	replayed  = 100_000
)

// growCold: gateways that start with nothing in memory.
func (b *bench) growCold(ctx context.Context) (Section, error) {
	out := Section{Title: "Cold starts", Text: fmt.Sprintf("%d different keys are asked for once each over %d connections, which authenticates and nothing else.", coldKeys, coldConns)}
	keys, db, err := b.manyKeys(ctx, coldKeys)
	if err != nil {
		return out, err
	}
	redis := b.startRedis()
	for _, c := range []struct{ name, auth string }{
		{"no Redis", ""}, {"Redis, empty", "redis " + redis.URL()}, {"Redis, filled by another gateway", "redis " + redis.URL()},
	} {
		ps, stop, err := b.startAll(ctx, spec{name: "cold", sites: "auth", warm: true, store: "sqlite " + db, auth: c.auth, cache: 2 * coldKeys, shipped: true})
		if err != nil {
			return out, err
		}
		began, used := time.Now(), cpu(ps[0].pid)
		err = once(ctx, ps[0].extra, keyRequests(ps[0].extra, keys), coldConns, 200)
		took := time.Since(began)
		used = cpu(ps[0].pid) - used
		counted, countErr := ps[0].counters()
		stop()
		if err != nil || countErr != nil {
			return out, fmt.Errorf("%s: %v %v", c.name, err, countErr)
		}
		out.Figures = append(out.Figures, Figure{
			Name: "cold keys, " + c.name, Unit: "a second", Value: coldKeys / took.Seconds(),
			Note: fmt.Sprintf("%.0f µs of CPU each; found in Redis %.0f, in the store %.0f", used*1e6/coldKeys, counted.lookups[`{result="hit",tier="redis"}`], counted.lookups[`{result="hit",tier="store"}`]),
		})
		note("%v", out.Figures[len(out.Figures)-1])
	}
	ms, err := b.replay(ctx, db, keys)
	if err != nil {
		return out, err
	}
	out.Figures = append(out.Figures, Figure{Name: fmt.Sprintf("from start to the first answer, %d changes in the journal", replayed), Unit: "ms", Value: ms})
	return out, nil
}

// replay starts a gateway on a store with many recent changes.
func (b *bench) replay(ctx context.Context, db string, keys []string) (float64, error) {
	w, err := store.Open(ctx, sqlite.New(db), store.Existing)
	if err != nil {
		return 0, err
	}
	err = w.Change(ctx, "load", func(tx *store.Tx) error {
		for i := range replayed {
			if err := tx.Journal(ctx, store.ChangeKeyEnable, []auth.Fingerprint{auth.FingerprintOf(keys[i%len(keys)])}, auth.Parent{}); err != nil {
				return err
			}
		}
		return tx.Audit(ctx, "load", "store", nil)
	})
	_ = w.Close()
	if err != nil {
		return 0, err
	}
	began := time.Now()
	ps, stop, err := b.startAll(ctx, spec{name: "replay", sites: "auth", store: "sqlite " + db, shipped: true})
	if err != nil {
		return 0, err
	}
	defer stop()
	if err := once(ctx, ps[0].addr, keyRequests(ps[0].addr, keys[:1]), 1, 200); err != nil {
		return 0, err
	}
	return float64(time.Since(began).Milliseconds()), nil
}
