// Command load measures what the auth directive costs: it starts the built
// binary twice, with and without the directive, loads both at the same time,
// and prints the ratio of CPU per request. Loading both at once makes a slow
// moment of the machine hit both. First it measures the binary against
// itself: a machine on which that leaves 0.95-1.05 says nothing.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"slices"
	"text/tabwriter"
	"time"
)

type bench struct {
	dir    string
	binary string
	keys   []string
	pairs  int
	slice  time.Duration
	conns  int
	only   string // "logs" or "tokens": those figures alone
}

// figure is one line of the result.
type figure struct {
	name   string
	bound  float64 // 0: none
	told   bool    // being over the bound is told, and fails nothing
	ratios []float64
	micros []float64 // CPU per request of the second process
	note   string    // printed below
}

func main() {
	if err := realMain(); err != nil {
		fmt.Fprintln(os.Stderr, "load: error:", err)
		os.Exit(1)
	}
}

func realMain() error {
	b := &bench{}
	flag.IntVar(&b.pairs, "pairs", 9, "pairs of slices per figure")
	flag.DurationVar(&b.slice, "slice", 5*time.Second, "length of a slice")
	flag.IntVar(&b.conns, "conns", 32, "connections to each process")
	flag.StringVar(&b.only, "only", "", "measure some figures only: logs or tokens")
	keys := flag.Int("keys", 10_000, "cached identities")
	flag.StringVar(&b.binary, "binary", "", "the binary to measure (default: build it)")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	var err error
	if b.dir, err = os.MkdirTemp("", "caddy-auth-load"); err != nil {
		return err
	}
	defer os.RemoveAll(b.dir)
	if err := b.prepare(ctx, *keys); err != nil {
		return err
	}
	figures, err := b.measure(ctx)
	if err != nil {
		return err
	}
	return report(figures)
}

func (b *bench) measure(ctx context.Context) ([]figure, error) {
	up, err := startUpstream()
	if err != nil {
		return nil, err
	}
	defer up.Close()
	logs := figure{name: "access log to a file: auth_redact / stock JSON", bound: 1.10}
	if b.only == "logs" {
		err := b.measureLogs(ctx, &logs, up.Addr().String())
		return []figure{logs}, err
	}
	base1, err := b.start(ctx, "base1", up.Addr().String(), "")
	if err != nil {
		return nil, err
	}
	defer base1.stop()
	if b.only == "tokens" {
		gw, err := b.start(ctx, "auth", up.Addr().String(), "auth")
		if err != nil {
			return nil, err
		}
		defer gw.stop()
		return b.measureTokens(ctx, base1, gw, up.Addr().String())
	}
	base2, err := b.start(ctx, "base2", up.Addr().String(), "")
	if err != nil {
		return nil, err
	}
	aa := figure{name: "plain Caddy / itself (A/A)"}
	if err := b.duet(ctx, &aa, base1, base2, plainRequests(base1, b.keys), plainRequests(base2, b.keys), 200); err != nil {
		return nil, err
	}
	base2.stop()
	headers, err := b.start(ctx, "headers", up.Addr().String(), sameHeaders)
	if err != nil {
		return nil, err
	}
	defer headers.stop()
	floor := figure{name: "Caddy that sets the same headers itself / plain"}
	if err := b.duet(ctx, &floor, base1, headers, plainRequests(base1, b.keys), plainRequests(headers, b.keys), 200); err != nil {
		return nil, err
	}
	gw, err := b.start(ctx, "auth", up.Addr().String(), "auth")
	if err != nil {
		return nil, err
	}
	defer gw.stop()
	if err := b.check(gw); err != nil {
		return nil, fmt.Errorf("before measuring: %w", err)
	}
	hit := figure{name: fmt.Sprintf("key cached in memory, %d identities / plain", len(b.keys)), bound: 1.05, told: true}
	if err := b.duet(ctx, &hit, base1, gw, plainRequests(base1, b.keys), keyRequests(gw, b.keys, ""), 200); err != nil {
		return nil, err
	}
	check := figure{name: "key cached / Caddy that sets the same headers itself", bound: 1.05}
	if err := b.duet(ctx, &check, headers, gw, plainRequests(headers, b.keys), keyRequests(gw, b.keys, ""), 200); err != nil {
		return nil, err
	}
	forged := figure{name: "forged key refused / plain proxied", bound: 0.5}
	if err := b.duet(ctx, &forged, base1, gw, plainRequests(base1, b.keys), keyRequests(gw, b.keys, "0"), 401); err != nil {
		return nil, err
	}
	headers.stop()
	tokens, err := b.measureTokens(ctx, base1, gw, up.Addr().String())
	if err != nil {
		return nil, err
	}
	base1.stop()
	gw.stop()
	if err := b.measureLogs(ctx, &logs, up.Addr().String()); err != nil {
		return nil, err
	}
	return append([]figure{aa, floor, hit, check, forged}, append(tokens, logs)...), nil
}

// measureLogs compares two gateways that write an access log.
func (b *bench) measureLogs(ctx context.Context, f *figure, upstream string) error {
	stock, err := b.startLogging(ctx, "json", upstream)
	if err != nil {
		return err
	}
	defer stock.stop()
	redacting, err := b.startLogging(ctx, "auth_redact", upstream)
	if err != nil {
		return err
	}
	defer redacting.stop()
	return b.duet(ctx, f, stock, redacting, keyRequests(stock, b.keys, ""), keyRequests(redacting, b.keys, ""), 200)
}

// duet loads both processes at once, pair after pair, and adds the ratios of
// CPU per request of the second to the first.
func (b *bench) duet(ctx context.Context, f *figure, one, two *process, reqOne, reqTwo [][]byte, wantTwo int) error {
	fmt.Fprintf(os.Stderr, "%s: ", f.name)
	defer fmt.Fprintln(os.Stderr)
	if err := b.warm(ctx, two, reqTwo, wantTwo); err != nil {
		return err
	}
	if _, _, err := b.pair(ctx, one, two, reqOne, reqTwo, wantTwo, b.slice/2); err != nil {
		return err
	}
	for range b.pairs {
		base, with, err := b.pair(ctx, one, two, reqOne, reqTwo, wantTwo, b.slice)
		if err != nil {
			return err
		}
		f.ratios, f.micros = append(f.ratios, with/base), append(f.micros, with)
		fmt.Fprintf(os.Stderr, "%.2f (%.0f/%.0f us) ", with/base, with, base)
	}
	return nil
}

// warm sends every request once, so that what is measured is not the filling
// of the cache.
func (b *bench) warm(ctx context.Context, p *process, requests [][]byte, want int) error {
	for sent := 0; sent < len(requests); {
		slice, cancel := context.WithTimeout(ctx, b.slice)
		n, err := run(slice, p.addr, requests, b.conns, want)
		cancel()
		if err != nil {
			return err
		}
		if n == 0 || ctx.Err() != nil {
			return errors.New("interrupted")
		}
		sent += n
	}
	return nil
}

func (b *bench) pair(ctx context.Context, one, two *process, reqOne, reqTwo [][]byte, wantTwo int, length time.Duration) (base, with float64, err error) {
	ctx, cancel := context.WithTimeout(ctx, length)
	defer cancel()
	cpu1, cpu2 := one.cpu(), two.cpu()
	type outcome struct {
		n   int
		err error
	}
	results := make(chan outcome, 1)
	go func() {
		n, err := run(ctx, two.addr, reqTwo, b.conns, wantTwo)
		results <- outcome{n, err}
	}()
	n1, err1 := run(ctx, one.addr, reqOne, b.conns, 200)
	second := <-results
	if err := errors.Join(err1, second.err); err != nil {
		return 0, 0, err
	}
	if n1 == 0 || second.n == 0 {
		return 0, 0, errors.New("no requests were answered")
	}
	const micro = 1e6
	return micro * (one.cpu() - cpu1) / float64(n1), micro * (two.cpu() - cpu2) / float64(second.n), nil
}

func report(figures []figure) error {
	tab := tabwriter.NewWriter(os.Stdout, 0, 4, 2, ' ', 0)
	fmt.Fprintln(tab, "figure (CPU per request)\tratio\tmin\tmax\tus\tbound\tverdict")
	noisy, failed := false, false
	for i, f := range figures {
		s := slices.Sorted(slices.Values(f.ratios))
		median := s[len(s)/2]
		verdict := "-"
		switch {
		case i == 0 && f.bound == 0 && (median < 0.95 || median > 1.05):
			noisy, verdict = true, "machine too noisy"
		case i == 0 && f.bound == 0:
			verdict = "quiet enough"
		case f.bound > 0 && median <= f.bound:
			verdict = "pass"
		case f.bound > 0 && noisy:
			verdict = "not judged"
		case f.told:
			verdict = "over: see docs/performance.md"
		case f.bound > 0:
			verdict, failed = "FAIL", true
		}
		bound := "-"
		if f.bound > 0 {
			bound = fmt.Sprintf("%.2f", f.bound)
		}
		micros := slices.Sorted(slices.Values(f.micros))
		fmt.Fprintf(tab, "%s\t%.3f\t%.3f\t%.3f\t%.1f\t%s\t%s\n", f.name, median, s[0], s[len(s)-1], micros[len(micros)/2], bound, verdict)
	}
	if err := tab.Flush(); err != nil {
		return err
	}
	for _, f := range figures {
		if f.note != "" {
			fmt.Println(f.note)
		}
	}
	if failed {
		return errors.New("a figure is over its bound")
	}
	return nil
}
