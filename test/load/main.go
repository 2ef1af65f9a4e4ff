// Command load measures what the auth directive costs: it starts the built
// binary with and without the directive, loads both at the same time on one
// core, and compares CPU per request. Loading both at once makes a slow moment of
// the machine hit both. The binary is also measured against itself: a machine on
// which that leaves 0.95-1.05 says nothing.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"slices"
	"strings"
	"syscall"
	"time"
)

type bench struct {
	dir, db, upstream string
	binary, stock     string
	keys, unknown     []string
	identities        int // the most that are cached
	pairs             int
	slice, long       time.Duration
	conns             int
	duets             bool
	profile           string
	stored            string
	tb                *shim
}

// used is how many keys most figures are measured with.
const used = 10_000

// A suite is a part of the benchmark that can be run alone.
type suite struct {
	name, what string
	run        func(*bench, context.Context) ([]Section, error)
}

var suites = []suite{
	{"keys", "keys in memory, tokens, refusals", (*bench).keysSuite},
	{"misses", "every request asks Redis, a store, or checks a signature", (*bench).missesSuite},
	{"settings", "runtime settings, access logs, HTTP/2 over TLS", (*bench).settingsSuite},
	{"assertions", "signed assertions for upstreams, tokens for clients", (*bench).assertionsSuite},
	{"latency", "latency at one connection and at a fixed rate", (*bench).latencySuite},
	{"floods", "bad keys at full speed beside good traffic", (*bench).floodsSuite},
	{"million", "a million identities in memory", (*bench).millionSuite},
	{"peers", "forward_auth and nginx auth_request beside it", (*bench).peersSuite},
	{"profile", "a key in memory against plain Caddy, one long slice: for -profile", (*bench).profileSuite},
	{"growth", "cost against keys, identities, revocations, gateways", (*bench).growthSuite},
}

// standard is what runs without -only.
var standard = []string{"keys", "misses", "settings", "assertions", "latency", "floods", "million"}

func main() {
	if err := realMain(); err != nil {
		fmt.Fprintln(os.Stderr, "load: error:", err)
		os.Exit(1)
	}
}

func realMain() (err error) {
	b := &bench{}
	flag.IntVar(&b.pairs, "pairs", 9, "slices per figure")
	flag.DurationVar(&b.slice, "slice", 5*time.Second, "length of a slice")
	flag.DurationVar(&b.long, "long-slice", 8*time.Second, "length of a slice with a million identities")
	flag.IntVar(&b.conns, "conns", 16, "connections to each process")
	flag.IntVar(&b.identities, "identities", 1_000_000, "cached identities of the largest case")
	flag.BoolVar(&b.duets, "duets", false, "load two processes at a time, never more (three times as long)")
	only := flag.String("only", strings.Join(standard, ","), "suites to run; none: write what was measured again")
	write := flag.String("write", "", "folder to write benchmarks.md, .json and .svg to")
	flag.StringVar(&b.profile, "profile", "", "folder to write CPU and allocation profiles of every process to")
	flag.StringVar(&b.stored, "stored", "1000,100000,1000000", "keys in the store, for the suite growth")
	flag.StringVar(&b.binary, "binary", "", "the binary to measure (default: build it)")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if b.dir, err = os.MkdirTemp("", "caddy-auth-load"); err != nil {
		return err
	}
	defer os.RemoveAll(b.dir)
	if *only == "" { // what was measured, written again
		return save(*write, &Report{Date: time.Now().Format(time.DateOnly), Machine: machine()})
	}
	b.tb = &shim{dir: b.dir}
	defer b.tb.end(&err)
	began := time.Now()
	sections, err := b.runSuites(ctx, strings.Split(*only, ","))
	if err != nil {
		return err
	}
	report := &Report{Date: began.Format(time.DateOnly), Machine: machine(), Sections: sections}
	print(os.Stdout, report)
	fmt.Printf("\ntook %s\n", time.Since(began).Round(time.Second))
	if *write != "" {
		if err := save(*write, report); err != nil {
			return err
		}
	}
	return report.verdict()
}

func (b *bench) runSuites(ctx context.Context, names []string) (sections []Section, err error) {
	for _, name := range names {
		if !slices.ContainsFunc(suites, func(s suite) bool { return s.name == name }) {
			return nil, fmt.Errorf("no suite %q", name)
		}
	}
	if err := b.startUpstream(); err != nil {
		return nil, err
	}
	if err := b.prepare(ctx, used); err != nil {
		return nil, err
	}
	if err := leaveGatewayCore(); err != nil {
		return nil, err
	}
	for _, s := range suites {
		if !slices.Contains(names, s.name) {
			continue
		}
		more, err := s.run(b, ctx)
		if err = errors.Join(err, ctx.Err()); err != nil {
			return nil, fmt.Errorf("%s: %w", s.name, err)
		}
		for i := range more {
			more[i].Suite = s.name
		}
		sections = append(sections, more...)
	}
	return sections, nil
}
