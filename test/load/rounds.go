package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"sync"
	"time"
)

// target is a process, what it is asked, and with whom it is compared.
type target struct {
	name     string
	base     string // name of another target; empty: of none
	process  *process
	requests [][]byte
	turns    *load                                  // of requests, made at the first slice
	want     int                                    // status
	also     []int                                  // pids whose CPU is part of the whole cost
	load     func(ctx context.Context) (int, error) // default: requests over b.conns connections
}

// pairing is what the same slices showed of a target and of its base.
type pairing struct{ with, base []sample }

// sample is what one slice showed of one target, per request but for gcs.
type sample struct {
	micros, whole  float64 // CPU, in microseconds: the process, with what it asks
	mallocs, bytes float64
	gcs            float64
	requests       int
}

// rounds loads all targets at the same time, slice after slice, so that a slow
// moment of the machine hits all; with -duets only two at a time. The first
// slice, of half the length, does not count.
func (b *bench) rounds(ctx context.Context, slice time.Duration, targets ...target) (map[string]pairing, error) {
	out := map[string]pairing{}
	if !b.duets {
		return out, b.group(ctx, slice, targets, out)
	}
	for _, t := range targets {
		if i := slices.IndexFunc(targets, func(o target) bool { return o.name == t.base }); i >= 0 {
			if err := b.group(ctx, slice, []target{targets[i], t}, out); err != nil {
				return nil, err
			}
		}
	}
	return out, nil
}

func (b *bench) group(ctx context.Context, slice time.Duration, targets []target, out map[string]pairing) error {
	fmt.Fprintf(os.Stderr, "%s: ", title(targets))
	defer fmt.Fprintln(os.Stderr)
	for i := range targets {
		targets[i].turns = shuffled(slices.Clone(targets[i].requests))
	}
	if _, err := b.load(ctx, slice/2, targets); err != nil {
		return err
	}
	all := map[string][]sample{}
	for n := range b.pairs {
		if n == 0 && b.profile != "" {
			for _, t := range targets {
				go func() { _ = t.process.profiled(b.profile, t.name, slice) }()
			}
		}
		samples, err := b.load(ctx, slice, targets)
		if err != nil {
			return err
		}
		for i, s := range samples {
			all[targets[i].name] = append(all[targets[i].name], s)
			fmt.Fprintf(os.Stderr, "%.0f ", s.micros)
		}
		fmt.Fprint(os.Stderr, "| ")
	}
	for _, t := range targets {
		out[t.name] = pairing{all[t.name], all[t.base]}
	}
	return nil
}

func (b *bench) load(ctx context.Context, length time.Duration, targets []target) ([]sample, error) {
	before, err := read(targets)
	if err != nil {
		return nil, err
	}
	slice, cancel := context.WithTimeout(ctx, length)
	defer cancel()
	out, errs := make([]sample, len(targets)), make([]error, len(targets))
	var wg sync.WaitGroup
	for i, t := range targets {
		wg.Go(func() {
			load := t.load
			if load == nil {
				load = func(ctx context.Context) (int, error) { return run(ctx, t.process.addr, t.turns, b.conns, t.want) }
			}
			if out[i].requests, errs[i] = load(slice); errs[i] != nil {
				errs[i] = fmt.Errorf("%s: %w", t.name, errs[i])
				cancel()
			}
		})
	}
	wg.Wait()
	if err := errors.Join(append(errs, ctx.Err())...); err != nil {
		return nil, err
	}
	after, err := read(targets)
	if err != nil {
		return nil, err
	}
	for i := range out {
		n := float64(out[i].requests)
		if n == 0 {
			return nil, fmt.Errorf("%s answered nothing", targets[i].name)
		}
		a, z := before[i], after[i]
		out[i].micros, out[i].whole = 1e6*(z.cpu-a.cpu)/n, 1e6*(z.cpu+z.also-a.cpu-a.also)/n
		out[i].mallocs, out[i].bytes, out[i].gcs = (z.mallocs-a.mallocs)/n, (z.bytes-a.bytes)/n, z.gcs-a.gcs
	}
	return out, nil
}

type reading struct {
	counters
	cpu, also float64
}

func read(targets []target) ([]reading, error) {
	out := make([]reading, len(targets))
	for i, t := range targets {
		c, err := t.process.counters()
		if err != nil {
			return nil, fmt.Errorf("%s: %w", t.name, err)
		}
		out[i].counters = c
	}
	for i, t := range targets {
		out[i].cpu = cpu(t.process.pid)
		for _, pid := range t.also {
			out[i].also += cpu(pid)
		}
	}
	return out, nil
}

func middle(values []float64) float64 {
	sorted := slices.Sorted(slices.Values(values))
	if len(sorted) == 0 {
		return 0
	}
	return sorted[len(sorted)/2]
}

// of takes one figure of each sample.
func of(samples []sample, f func(sample) float64) []float64 {
	out := make([]float64, len(samples))
	for i, s := range samples {
		out[i] = f(s)
	}
	return out
}

func ratios(over, under []sample, f func(sample) float64) []float64 {
	out := make([]float64, len(over))
	for i := range over {
		out[i] = f(over[i]) / f(under[i])
	}
	return out
}

func micros(s sample) float64 { return s.micros }
func whole(s sample) float64  { return s.whole }

// row compares a target with its base.
func row(name string, bound float64, p pairing) Row {
	r := ratios(p.with, p.base, micros)
	gap := func(f func(sample) float64) float64 { return middle(of(p.with, f)) - middle(of(p.base, f)) }
	return Row{
		Name: name, Ratio: middle(r), Min: slices.Min(r), Max: slices.Max(r), Bound: bound, Pairs: len(r),
		Micros: middle(of(p.with, micros)), Base: middle(of(p.base, micros)),
		Mallocs: gap(func(s sample) float64 { return s.mallocs }), Bytes: gap(func(s sample) float64 { return s.bytes }),
		GCs: middle(of(p.with, func(s sample) float64 { return s.gcs })), Counted: p.with[0].mallocs > 0,
	}
}

// wholeRow compares with all that a target asks.
func wholeRow(name string, bound float64, p pairing) Row {
	r := ratios(p.with, p.base, whole)
	return Row{
		Name: name, Ratio: middle(r), Min: slices.Min(r), Max: slices.Max(r), Bound: bound, Pairs: len(r),
		Micros: middle(of(p.with, whole)), Base: middle(of(p.base, whole)),
	}
}

func title(targets []target) string {
	names := make([]string, len(targets))
	for i, t := range targets {
		names[i] = t.name
	}
	return strings.Join(names, ", ")
}
