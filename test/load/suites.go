package main

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"path/filepath"
	"time"
)

// allOn is a gateway that counts, and writes its audit log to a file.
func (b *bench) allOn() spec {
	return spec{name: "all-on", sites: "auth", global: fmt.Sprintf("metrics\nlog audit {\ninclude auth.audit\noutput file %s\nformat auth_redact\n}", filepath.Join(b.dir, "audit.log"))}
}

// keysSuite measures what is decided without I/O.
func (b *bench) keysSuite(ctx context.Context) ([]Section, error) {
	iss, err := startIssuer()
	if err != nil {
		return nil, err
	}
	defer iss.listener.Close()
	tokens, err := iss.tokens(tokenCount)
	if err != nil {
		return nil, err
	}
	ps, stop, err := b.startAll(ctx,
		spec{name: "plain"}, spec{name: "itself"}, spec{name: "key", sites: "auth"}, b.allOn(), spec{name: "headers", sites: sameHeaders},
		spec{name: "masked", format: "auth_redact"}, spec{name: "jwt", sites: "auth", auth: iss.block()}, spec{name: "metrics", global: "metrics"})
	if err != nil {
		return nil, err
	}
	defer stop()
	plain, itself, key, on, headers, masked, jwt, measured := ps[0], ps[1], ps[2], ps[3], ps[4], ps[5], ps[6], ps[7]
	if err := errors.Join(b.check(key, on), b.checkToken(tokens[0], subjectOf(0), jwt)); err != nil {
		return nil, err
	}
	for _, p := range []*process{key, on} {
		if err := once(ctx, p.addr, keyRequests(p.addr, b.keys), b.conns, 200); err != nil {
			return nil, err
		}
	}
	if err := once(ctx, jwt.addr, tokenRequests(jwt.addr, tokens), b.conns, 200); err != nil {
		return nil, err
	}
	base := target{name: "plain Caddy", process: plain, requests: keyRequests(plain.addr, b.keys), want: 200}
	with := func(name string, p *process, keys []string, want int) target {
		return target{name: name, base: base.name, process: p, requests: keyRequests(p.addr, keys), want: want}
	}
	token := with("JWT", jwt, nil, 200)
	token.requests = tokenRequests(jwt.addr, tokens)
	seen := map[string]pairing{}
	for _, group := range [][]target{ // what has a narrow bound alone, the rest together
		{base, with("A/A", itself, b.keys, 200)},
		{base, with("key", key, b.keys, 200)},
		{base, token},
		{base, with("all on", on, b.keys, 200), with("headers", headers, b.keys, 200), with("metrics", measured, b.keys, 200), with("masked", masked, b.keys, 200)},
		{base, with("forged", key, forged(b.keys), 401), with("unknown", on, b.unknown[:1000], 401)},
	} {
		got, err := b.rounds(ctx, b.slice, group...)
		if err != nil {
			return nil, err
		}
		maps.Copy(seen, got)
	}
	many := fmt.Sprintf("%d identities", len(b.keys))
	memory := row("key in memory, "+many, 1.05, seen["key"])
	memory.Resident = key.resident()
	return []Section{{
		Title: "Decided in memory",
		Text:  "The last three rows are no gateway: plain Caddy that sets the five identity headers itself, with `metrics`, and plain Caddy that logs with `auth_redact`.",
		Rows: []Row{
			row(selfRow, 0, seen["A/A"]), memory, row("the same, metrics and audit on", 1.10, seen["all on"]),
			row("JWT (ES256) in memory", 1.08, seen["JWT"]), row("forged key refused", 0.50, seen["forged"]),
			row("unknown well-formed key refused, asked again", 0.50, seen["unknown"]), row("Caddy that sets the same headers", 0, seen["headers"]), row("Caddy with metrics on", 0, seen["metrics"]),
			row("Caddy that masks its logs", 0, seen["masked"]),
		},
	}}, nil
}

// missesSuite measures requests that memory can't answer.
func (b *bench) missesSuite(ctx context.Context) ([]Section, error) {
	iss, err := startIssuer()
	if err != nil {
		return nil, err
	}
	defer iss.listener.Close()
	tokens, err := iss.tokens(tokenCount)
	if err != nil {
		return nil, err
	}
	redis := b.startRedis()
	postgres, err := b.startPostgres(ctx)
	if err != nil {
		return nil, err
	}
	const small = 64 // identities: nothing is found again
	ps, stop, err := b.startAll(ctx,
		spec{name: "plain"}, spec{name: "redis", sites: "auth", cache: small, auth: "redis " + redis.URL()}, spec{name: "sqlite", sites: "auth", cache: small},
		spec{name: "postgres", sites: "auth", cache: small, store: postgres}, spec{name: "fresh", sites: "auth", cache: small, auth: iss.block()},
		spec{name: "cached", sites: "auth", auth: iss.block()}, spec{name: "raw", stock: true, sites: "request_header -Authorization\nraw_check"},
		spec{name: "unchecked", stock: true, sites: "request_header -Authorization"}, spec{name: "itself"})
	if err != nil {
		return nil, err
	}
	defer stop()
	plain, shared, sqlite, pg, fresh, cached, raw, unchecked, itself := ps[0], ps[1], ps[2], ps[3], ps[4], ps[5], ps[6], ps[7], ps[8]
	if err := errors.Join(b.check(shared, sqlite, pg), b.checkToken(tokens[0], subjectOf(0), fresh, cached)); err != nil {
		return nil, err
	}
	if err := once(ctx, shared.addr, keyRequests(shared.addr, b.keys), b.conns, 200); err != nil {
		return nil, err
	}
	if err := once(ctx, cached.addr, tokenRequests(cached.addr, tokens), b.conns, 200); err != nil {
		return nil, err
	}
	misses := []struct {
		p      *process
		labels string
		before counters
	}{
		{p: shared, labels: `{result="hit",tier="redis"}`},
		{p: sqlite, labels: `{result="hit",tier="store"}`},
		{p: pg, labels: `{result="hit",tier="store"}`},
		{p: fresh, labels: `{result="hit",tier="signature"}`},
	}
	for i := range misses {
		if misses[i].before, err = misses[i].p.counters(); err != nil {
			return nil, err
		}
	}
	base := target{name: "plain Caddy", process: plain, requests: keyRequests(plain.addr, b.keys), want: 200}
	with := func(name string, p *process, requests [][]byte, also ...int) target {
		return target{name: name, base: base.name, process: p, requests: requests, want: 200, also: also}
	}
	asked, err := b.rounds(ctx, b.slice, base, with("Redis", shared, keyRequests(shared.addr, b.keys), redis.Pid())) // alone: its calls have a deadline
	if err != nil {
		return nil, err
	}
	seen, err := b.rounds(ctx, b.slice, base, with("A/A", itself, keyRequests(itself.addr, b.keys)), with("SQLite", sqlite, keyRequests(sqlite.addr, b.keys)), with("PostgreSQL", pg, keyRequests(pg.addr, b.keys)))
	if err != nil {
		return nil, err
	}
	// Plain Caddy here drops the token, as the gateway does.
	unsigned := target{name: "unchecked", process: unchecked, requests: tokenRequests(unchecked.addr, tokens), want: 200}
	ofToken := func(name string, p *process) target {
		return target{name: name, base: unsigned.name, process: p, requests: tokenRequests(p.addr, tokens), want: 200}
	}
	checks, err := b.rounds(ctx, b.slice, unsigned, ofToken("new JWT", fresh), ofToken("JWT", cached), ofToken("raw check", raw))
	if err != nil {
		return nil, err
	}
	for _, m := range misses {
		after, err := m.p.counters()
		if err == nil {
			err = mostly(m.before, after, m.labels)
		}
		if err != nil {
			return nil, err
		}
	}
	// Each slice has its own speed, so what is compared is of one slice.
	var over, above, check []float64
	for i, s := range checks["new JWT"].with {
		more, one := s.micros-checks["JWT"].with[i].micros, checks["raw check"].with[i].micros-checks["raw check"].base[i].micros
		over, check, above = append(over, more), append(check, one), append(above, more-one)
	}
	return []Section{{
		Title: "Every request misses memory",
		Text:  fmt.Sprintf("A new JWT (ES256, %d bytes) costs %.0f µs more than one in memory; one raw signature check %.0f µs, by a handler that does nothing else. Redis has slices of its own: its calls have a deadline.", len(tokens[0]), middle(over), middle(check)),
		Rows: []Row{
			row(selfRow, 0, seen["A/A"]),
			row("every request asks Redis", 1.25, asked["Redis"]), wholeRow("the same, with Redis's own CPU", 1.40, asked["Redis"]),
			row("every request reads SQLite", 0, seen["SQLite"]), row("every request asks PostgreSQL", 0, seen["PostgreSQL"]), row("every JWT (ES256) is new", 0, checks["new JWT"]),
		},
		Figures: []Figure{{Name: "new JWT above the raw signature check", Unit: "µs", Value: middle(above), Bound: 25}},
	}}, nil
}

// mostly makes sure that a case measured what it is about: of the lookups
// behind memory since before, nearly all are the labelled.
func mostly(before, after counters, labels string) error {
	all := 0.0
	for l, n := range after.lookups {
		if tierOf(l) != "memory" {
			all += n - before.lookups[l]
		}
	}
	if found := after.lookups[labels] - before.lookups[labels]; found < all*0.99 {
		return fmt.Errorf("the case is not what it should be: %.0f of %.0f lookups are %s", found, all, labels)
	}
	return nil
}

// settingsSuite compares pairs of other kinds.
func (b *bench) settingsSuite(ctx context.Context) ([]Section, error) {
	logging := func(format string) spec {
		return spec{
			name: "log-" + format, format: format, auth: "unsafe_logs",
			sites: fmt.Sprintf("log {\noutput file %s {\nroll_disabled\n}\nformat %s\n}\nauth", filepath.Join(b.dir, format+".log"), format),
		}
	}
	ps, stop, err := b.startAll(ctx,
		spec{name: "stock", stock: true, shipped: true}, spec{name: "shipped", shipped: true, sites: "auth"}, logging("json"), logging("auth_redact"),
		spec{name: "tls", tls: true, sites: "tls internal"}, spec{name: "tls-key", tls: true, sites: "tls internal\nauth"}, spec{name: "stock2", stock: true, shipped: true})
	if err != nil {
		return nil, err
	}
	defer stop()
	var private, all []float64
	for range 5 {
		pause(time.Second)
		private, all = append(private, ps[1].memory("RssAnon")-ps[0].memory("RssAnon")), append(all, ps[1].resident()-ps[0].resident())
	}
	idle := Figure{
		Name: "private memory of an idle gateway above stock Caddy's", Unit: "MiB", Value: middle(private), Bound: 10,
		Note: fmt.Sprintf("resident %.0f MiB more: pages of the larger binary, shared and given up under pressure", middle(all)),
	}
	if err := b.check(ps[1], ps[2], ps[3], ps[5]); err != nil {
		return nil, err
	}
	var targets []target
	names, bases := []string{"stock Caddy", "shipped", "JSON log", "masked log", "h2", "h2 key", "A/A"}, []string{"", "stock Caddy", "", "JSON log", "", "h2", "stock Caddy"}
	for i, p := range ps {
		t := target{name: names[i], base: bases[i], process: p, requests: keyRequests(p.addr, b.keys), want: 200}
		if p.tls {
			load, done := b.h2(p.addr)
			defer done()
			t.load = load
		}
		if i > 0 && i != 4 {
			if err := b.warm(ctx, t); err != nil {
				return nil, err
			}
		}
		targets = append(targets, t)
	}
	seen, err := b.rounds(ctx, b.slice, targets...)
	if err != nil {
		return nil, err
	}
	shipped := row("as shipped / stock Caddy as released", 0.95, seen["shipped"])
	shipped.Resident = ps[1].resident()
	return []Section{{
		Title: "Other comparisons",
		Rows: []Row{
			row(selfRow, 0, seen["A/A"]), shipped, row("access log to a file: `auth_redact` / stock JSON", 1.10, seen["masked log"]),
			row("HTTP/2 over TLS, key in memory / without `auth`", 1.05, seen["h2 key"]),
		},
		Figures: []Figure{idle},
	}}, nil
}

// millionSuite fills memory.
func (b *bench) millionSuite(ctx context.Context) ([]Section, error) {
	keys, db, err := b.manyKeys(ctx, b.identities)
	if err != nil {
		return nil, err
	}
	ps, stop, err := b.startAll(ctx, spec{name: "plain"}, spec{name: "million", sites: "auth", warm: true, store: "sqlite " + db, cache: len(keys) + len(keys)/10}, spec{name: "itself"})
	if err != nil {
		return nil, err
	}
	defer stop()
	if err := b.checkCredential(ps[1], "X-API-Key", keys[0], "customer"); err != nil {
		return nil, err
	}
	before := ps[1].resident()
	requests := keyRequests(ps[1].addr, keys)
	if err := once(ctx, ps[1].extra, requests, b.conns, 200); err != nil {
		return nil, err
	}
	full := ps[1].resident()
	seen, err := b.rounds(ctx, b.long,
		target{name: "plain Caddy", process: ps[0], requests: keyRequests(ps[0].addr, b.keys), want: 200},
		target{name: "A/A", base: "plain Caddy", process: ps[2], requests: keyRequests(ps[2].addr, b.keys), want: 200},
		target{name: "key", base: "plain Caddy", process: ps[1], requests: requests, want: 200})
	if err != nil {
		return nil, err
	}
	c, err := ps[1].counters()
	if err != nil {
		return nil, err
	}
	if reads := c.lookups[`{result="hit",tier="store"}`]; reads > 1.01*float64(len(keys)) {
		return nil, fmt.Errorf("the case is not what it should be: %.0f reads of the store for %d keys", reads, len(keys))
	}
	r := row(fmt.Sprintf("key in memory, %d identities", len(keys)), 1.05, seen["key"])
	r.Resident = ps[1].resident()
	return []Section{{
		Title: "Memory is full",
		Text:  fmt.Sprintf("Filling it took the gateway from %.0f to %.0f MiB of resident memory, garbage and the map of the journal included.", before, full),
		Rows:  []Row{row(selfRow, 0, seen["A/A"]), r},
	}}, nil
}

// profileSuite is one long duet.
func (b *bench) profileSuite(ctx context.Context) ([]Section, error) {
	ps, stop, err := b.startAll(ctx, spec{name: "plain"}, spec{name: "key", sites: "auth"})
	if err != nil {
		return nil, err
	}
	defer stop()
	plain, key := ps[0], ps[1]
	if err := once(ctx, key.addr, keyRequests(key.addr, b.keys), b.conns, 200); err != nil {
		return nil, err
	}
	b.pairs = 1
	seen, err := b.rounds(ctx, 8*b.slice, target{name: "plain", process: plain, requests: keyRequests(plain.addr, b.keys), want: 200},
		target{name: "key", base: "plain", process: key, requests: keyRequests(key.addr, b.keys), want: 200})
	if err != nil {
		return nil, err
	}
	return []Section{{Title: "Profiled", Rows: []Row{row("key in memory", 0, seen["key"])}}}, nil
}
