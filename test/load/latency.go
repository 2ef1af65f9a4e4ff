package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"sync"
	"time"
)

const (
	fixedRate   = 1000 // requests a second to each gateway
	floodRate   = 500
	floodConns  = 64
	latencyRuns = 7
)

// latencySuite compares how long requests take.
func (b *bench) latencySuite(ctx context.Context) ([]Section, error) {
	ps, stop, err := b.startAll(ctx, spec{name: "plain"}, spec{name: "key", sites: "auth"})
	if err != nil {
		return nil, err
	}
	defer stop()
	requests := [2][][]byte{keyRequests(ps[0].addr, b.keys), keyRequests(ps[1].addr, b.keys)}
	if err := once(ctx, ps[1].addr, requests[1], b.conns, 200); err != nil {
		return nil, err
	}
	fmt.Fprint(os.Stderr, "latency: ")
	defer fmt.Fprintln(os.Stderr)
	var one, fixed [2][]map[string]float64
	for range latencyRuns {
		for i, p := range ps { // in turns: at one connection, they would wait for each other
			took, err := b.alone(ctx, p, requests[i])
			if err != nil {
				return nil, err
			}
			one[i] = append(one[i], quantiles(took))
		}
		var wg sync.WaitGroup
		var errs [2]error
		var seen [2]map[string]float64
		for i, p := range ps {
			wg.Go(func() {
				took, err := open(ctx, p.addr, requests[i], fixedRate, b.conns, b.slice/2, 200)
				seen[i], errs[i] = quantiles(took), err
			})
		}
		wg.Wait()
		if err := errors.Join(errs[:]...); err != nil {
			return nil, err
		}
		for i := range seen {
			fixed[i] = append(fixed[i], seen[i])
		}
		fmt.Fprintf(os.Stderr, "%.0f/%.0f ", seen[1]["p99"], seen[0]["p99"])
	}
	return []Section{{
		Title: "Latency",
		Text:  fmt.Sprintf("From the moment a request was due, with %d requests a second to each gateway at the same time; medians of %d runs. The client's own waits are in it.", fixedRate, latencyRuns),
		Figures: []Figure{
			{Name: "p50 at one connection", Unit: "ratio", Value: ratioOf(one, "p50"), Bound: 1.05, Note: spell(one, "p50")},
			{Name: "p50 at a fixed rate", Unit: "ratio", Value: ratioOf(fixed, "p50"), Note: spell(fixed, "p50")},
			{Name: "p99 at a fixed rate", Unit: "ratio", Value: ratioOf(fixed, "p99"), Bound: 1.15, Note: spell(fixed, "p99")},
			{Name: "p99.9 at a fixed rate", Unit: "ratio", Value: ratioOf(fixed, "p99.9"), Note: spell(fixed, "p99.9")},
		},
	}}, nil
}

// alone sends requests over one connection for a while.
func (b *bench) alone(ctx context.Context, p *process, requests [][]byte) (took []time.Duration, err error) {
	c, err := dial(p.addr, 200)
	if err != nil {
		return nil, err
	}
	defer c.Close()
	for end, i := time.Now().Add(b.slice/5), 0; time.Now().Before(end) && ctx.Err() == nil; i++ {
		began := time.Now()
		if err := c.do(requests[i%len(requests)]); err != nil {
			return nil, err
		}
		took = append(took, time.Since(began))
	}
	return took, nil
}

func quantiles(took []time.Duration) map[string]float64 {
	return map[string]float64{"p50": quantile(took, 0.5), "p99": quantile(took, 0.99), "p99.9": quantile(took, 0.999)}
}

// ratioOf is the median of the runs' ratios of the second to the first.
func ratioOf(runs [2][]map[string]float64, q string) float64 {
	var out []float64
	for i := range runs[0] {
		out = append(out, runs[1][i][q]/runs[0][i][q])
	}
	return middle(out)
}

func spell(runs [2][]map[string]float64, q string) string {
	var all [2][]float64
	for i := range runs {
		for _, r := range runs[i] {
			all[i] = append(all[i], r[q])
		}
	}
	return fmt.Sprintf("%.0f µs, plain Caddy %.0f µs", middle(all[1]), middle(all[0]))
}

// floodsSuite sends bad keys at full speed beside good traffic.
func (b *bench) floodsSuite(ctx context.Context) ([]Section, error) {
	redis := b.startRedis()
	ps, stop, err := b.startAll(ctx, spec{name: "flooded", sites: "auth", shipped: true, paced: true, auth: "redis " + redis.URL()})
	if err != nil {
		return nil, err
	}
	defer stop()
	gw := ps[0]
	good := keyRequests(gw.addr, b.keys)
	if err := once(ctx, gw.addr, good, b.conns, 200); err != nil {
		return nil, err
	}
	section := Section{
		Title: "Floods",
		Text: fmt.Sprintf("%d connections send bad keys as fast as they are refused, while good requests come at %d a second; medians of %d runs. The gateway has one core.",
			floodConns, floodRate, latencyRuns),
	}
	for _, kind := range []struct {
		name string
		keys []string
	}{{"forged keys", forged(b.keys)}, {"unknown well-formed keys", b.unknown}} {
		f, err := b.flood(ctx, gw, good, keyRequests(gw.addr, kind.keys))
		if err != nil {
			return nil, err
		}
		ratio := f.flooded / f.quiet
		section.Figures = append(section.Figures,
			Figure{Name: "good traffic's p99 under " + kind.name, Unit: "x quiet", Value: ratio, Bound: 2, Note: fmt.Sprintf("%.0f µs, quiet %.0f µs; %.0f refused a second", f.flooded, f.quiet, f.refused)},
			Figure{Name: "reads of Redis for " + kind.name, Unit: "a second", Value: f.redis, Exact: kind.name == "forged keys"},
			Figure{Name: "reads of the store for " + kind.name, Unit: "a second", Value: f.store, Exact: kind.name == "forged keys"})
	}
	return []Section{section}, nil
}

type flooded struct{ quiet, flooded, refused, redis, store float64 }

func (b *bench) flood(ctx context.Context, gw *process, good, bad [][]byte) (flooded, error) {
	var quiet, under, rates []float64
	fmt.Fprint(os.Stderr, "flood: ")
	defer fmt.Fprintln(os.Stderr)
	before, err := gw.counters()
	if err != nil {
		return flooded{}, err
	}
	length := b.slice / 2
	for range latencyRuns {
		took, err := open(ctx, gw.addr, good, floodRate, b.conns, length, 200)
		if err != nil {
			return flooded{}, err
		}
		quiet = append(quiet, quantile(took, 0.99))
		flooding, cancel := context.WithCancel(ctx)
		type outcome struct {
			n   int
			err error
		}
		done := make(chan outcome, 1)
		go func() {
			n, err := run(flooding, gw.addr, bad, floodConns, 401)
			done <- outcome{n, err}
		}()
		pause(length / 4) // connecting is not what is measured
		took, err = open(ctx, gw.addr, good, floodRate, b.conns, length, 200)
		cancel()
		o := <-done
		if err := errors.Join(err, o.err); err != nil {
			return flooded{}, err
		}
		under, rates = append(under, quantile(took, 0.99)), append(rates, float64(o.n)/(length*5/4).Seconds())
		fmt.Fprintf(os.Stderr, "%.0f/%.0f ", under[len(under)-1], quiet[len(quiet)-1])
	}
	after, err := gw.counters()
	if err != nil {
		return flooded{}, err
	}
	out := flooded{quiet: middle(quiet), flooded: middle(under), refused: middle(rates)}
	seconds := float64(latencyRuns) * length.Seconds()
	for labels, n := range after.lookups {
		switch grown := (n - before.lookups[labels]) / seconds; tierOf(labels) {
		case "redis":
			out.redis += grown
		case "store":
			out.store += grown
		}
	}
	return out, nil
}
