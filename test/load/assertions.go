package main

import (
	"bytes"
	"context"
	"strings"
)

// postRequests are requests that change something.
func postRequests(addr string, keys []string) [][]byte {
	out := keyRequests(addr, keys)
	for i, r := range out {
		r = bytes.Replace(r, []byte("GET "), []byte("POST "), 1)
		out[i] = bytes.Replace(r, []byte("Accept: "), []byte("Content-Length: 0\r\nAccept: "), 1)
	}
	return out
}

// assertionsSuite measures what it costs to sign who is calling: beside the
// same gateway without, so that a difference is the signing.
func (b *bench) assertionsSuite(ctx context.Context) ([]Section, error) {
	signing := func(name, algorithm string) spec {
		return spec{name: name, sites: "auth", auth: "identity_headers {\nassertion {\naudience orders\nalgorithm " + algorithm + "\n}\n}"}
	}
	ps, stop, err := b.startAll(ctx, spec{name: "unsigned", sites: "auth"}, signing("eddsa", "EdDSA"), signing("es256", "ES256"), spec{name: "itself", sites: "auth"})
	if err != nil {
		return nil, err
	}
	defer stop()
	if err := b.check(ps...); err != nil {
		return nil, err
	}
	for _, p := range ps {
		if err := once(ctx, p.addr, keyRequests(p.addr, b.keys), b.conns, 200); err != nil {
			return nil, err
		}
	}
	of := func(name, base string, p *process, requests func(string, []string) [][]byte) target {
		return target{name: name, base: base, process: p, requests: requests(p.addr, b.keys), want: 200}
	}
	gets, err := b.rounds(ctx, b.slice, of("unsigned", "", ps[0], keyRequests), of("A/A", "unsigned", ps[3], keyRequests), of("EdDSA", "unsigned", ps[1], keyRequests))
	if err != nil {
		return nil, err
	}
	posts, err := b.rounds(ctx, b.slice, of("unsigned", "", ps[0], postRequests), of("EdDSA", "unsigned", ps[1], postRequests), of("ES256", "unsigned", ps[2], postRequests))
	if err != nil {
		return nil, err
	}
	above := func(p pairing) float64 {
		var more []float64
		for i, s := range p.with {
			more = append(more, s.micros-p.base[i].micros)
		}
		return middle(more)
	}
	return []Section{{
		Title: "Assertions for upstreams",
		Text: strings.TrimSpace("Beside the same gateway without `assertion`. Alike GET requests share one for half a minute; POST requests are signed each. " +
			"What signing costs includes the longer request to the upstream."),
		Rows: []Row{
			row(selfRow, 0, gets["A/A"]), row("GET, shared assertion / none", 0, gets["EdDSA"]), row("POST, signed each with EdDSA / none", 0, posts["EdDSA"]), row("POST, signed each with ES256 / none", 0, posts["ES256"]),
		},
		Figures: []Figure{{Name: "an assertion with EdDSA", Unit: "µs", Value: above(posts["EdDSA"])}, {Name: "an assertion with ES256", Unit: "µs", Value: above(posts["ES256"])}},
	}}, nil
}
