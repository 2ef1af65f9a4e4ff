package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
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
	ps, stop, err := b.startAll(ctx, spec{name: "plain"}, spec{name: "itself"}, spec{name: "key", sites: "auth"})
	if err != nil {
		return nil, err
	}
	defer stop()
	if err := b.check(ps[2]); err != nil {
		return nil, err
	}
	var requests [3]*load
	for i, p := range ps {
		requests[i] = shuffled(keyRequests(p.addr, b.keys))
	}
	if err := once(ctx, ps[2].addr, requests[2].requests, b.conns, 200); err != nil {
		return nil, err
	}
	fmt.Fprint(os.Stderr, "latency: ")
	defer fmt.Fprintln(os.Stderr)
	var one, fixed [3][]map[string]float64
	for range latencyRuns {
		for i, p := range ps { // in turns: at one connection, they would wait for each other
			took, err := b.alone(ctx, p, requests[i])
			if err != nil {
				return nil, err
			}
			one[i] = append(one[i], quantiles(took))
		}
		var wg sync.WaitGroup
		var errs [3]error
		var seen [3]map[string]float64
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
		fmt.Fprintf(os.Stderr, "%.0f/%.0f ", seen[2]["p99"], seen[0]["p99"])
	}
	section := Section{
		Title: "Latency",
		Text:  fmt.Sprintf("From the moment a request was due, with %d requests a second to each of three at the same time; medians of %d runs. The client's own waits are in it.", fixedRate, latencyRuns),
	}
	for _, f := range []struct {
		name  string
		runs  [3][]map[string]float64
		q     string
		bound float64
	}{{"p50 at one connection", one, "p50", 1.05}, {"p50 at a fixed rate", fixed, "p50", 0}, {"p99 at a fixed rate", fixed, "p99", 1.15}, {"p99.9 at a fixed rate", fixed, "p99.9", 0}} {
		section.Figures = append(section.Figures, Figure{
			Name: f.name, Unit: "ratio", Value: ratioOf(f.runs, 2, f.q), Bound: f.bound, Self: ratioOf(f.runs, 1, f.q),
			Note: fmt.Sprintf("%.0f µs, plain Caddy %.0f µs", medianOf(f.runs[2], f.q), medianOf(f.runs[0], f.q)),
		})
	}
	return []Section{section}, nil
}

// alone sends requests over one connection for a while.
func (b *bench) alone(ctx context.Context, p *process, requests *load) (took []time.Duration, err error) {
	c, err := dial(p.addr, 200)
	if err != nil {
		return nil, err
	}
	defer c.Close()
	for end := time.Now().Add(b.slice / 5); time.Now().Before(end) && ctx.Err() == nil; {
		began := time.Now()
		if err := c.do(requests.take()); err != nil {
			return nil, err
		}
		took = append(took, time.Since(began))
	}
	return took, nil
}

func quantiles(took []time.Duration) map[string]float64 {
	return map[string]float64{"p50": quantile(took, 0.5), "p99": quantile(took, 0.99), "p99.9": quantile(took, 0.999)}
}

// ratioOf is the median of the runs' ratios of one to the first.
func ratioOf(runs [3][]map[string]float64, which int, q string) float64 {
	var out []float64
	for i := range runs[0] {
		out = append(out, runs[which][i][q]/runs[0][i][q])
	}
	return middle(out)
}

func medianOf(runs []map[string]float64, q string) float64 {
	var all []float64
	for _, r := range runs {
		all = append(all, r[q])
	}
	return middle(all)
}

// floodsSuite sends bad keys at full speed beside good traffic.
func (b *bench) floodsSuite(ctx context.Context) ([]Section, error) {
	redis := b.startRedis()
	ps, stop, err := b.startAll(ctx, spec{name: "flooded", sites: "log\nauth", shipped: true, paced: true, auth: "redis " + redis.URL()})
	if err != nil {
		return nil, err
	}
	defer stop()
	gw := ps[0]
	if err := b.check(gw); err != nil {
		return nil, err
	}
	good := shuffled(keyRequests(gw.addr, b.keys))
	if err := once(ctx, gw.addr, good.requests, b.conns, 200); err != nil {
		return nil, err
	}
	section := Section{
		Title: "Floods",
		Text: fmt.Sprintf("%d connections send bad keys as fast as they are refused, while good requests come at %d a second; medians of %d runs. The gateway has one core; it slows such connections down.",
			floodConns, floodRate, latencyRuns),
	}
	for _, kind := range []struct {
		name   string
		keys   []string
		header string // of every request
	}{
		{"forged keys", forged(b.keys), ""},
		{"unknown well-formed keys", b.unknown, ""},
		{"forged keys with 14 KB of harmless text", forged(b.keys), strings.Repeat("lorem ipsum dolor ", 14<<10/18)},
		{"forged keys with 14 KB that look like credentials", forged(b.keys), strings.Repeat(`{"a":`, 14<<10/5)},
	} {
		bad := keyRequests(gw.addr, kind.keys)
		if kind.header != "" {
			bad = withHeader(bad[:min(len(bad), 1000)], "X-Filler", kind.header)
		}
		f, err := b.flood(ctx, gw, good, shuffled(bad))
		if err != nil {
			return nil, err
		}
		ratio := f.flooded / f.quiet
		section.Figures = append(section.Figures,
			Figure{Name: "good traffic's p99 under " + kind.name, Unit: "x quiet", Value: ratio, Bound: 2, Note: fmt.Sprintf("%.0f µs, quiet %.0f µs; %.0f refused a second", f.flooded, f.quiet, f.refused)},
			Figure{Name: "reads of Redis for " + kind.name, Unit: "a second", Value: f.redis, Exact: strings.HasPrefix(kind.name, "forged keys")},
			Figure{Name: "reads of the store for " + kind.name, Unit: "a second", Value: f.store, Exact: strings.HasPrefix(kind.name, "forged keys")})
	}
	return []Section{section}, nil
}

// withHeader adds a header to requests.
func withHeader(requests [][]byte, name, value string) [][]byte {
	out := make([][]byte, len(requests))
	for i, r := range requests {
		out[i] = append(bytes.TrimSuffix(bytes.Clone(r), []byte("\r\n")), (name + ": " + value + "\r\n\r\n")...)
	}
	return out
}

type flooded struct{ quiet, flooded, refused, redis, store float64 }

func (b *bench) flood(ctx context.Context, gw *process, good, bad *load) (flooded, error) {
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
