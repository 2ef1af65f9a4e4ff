package caddymodule

import (
	"fmt"
	"net"
	"net/url"
	"os"
	"slices"
	"strings"
	"sync/atomic"

	"github.com/caddyserver/caddy/v2/caddyconfig/caddyfile"

	"github.com/caddy-auth/caddy-auth/internal/routes"
)

// adaptedFrom is the Caddyfile that this process adapted last: a loaded
// configuration does not say where it came from.
var adaptedFrom atomic.Pointer[string]

// proxyLine is a directive of a Caddyfile that proxies.
type proxyLine struct {
	at    string   // file:line
	sites []string // the addresses of its site
	words []string // its arguments, and those of "to"
}

// proxyLines are those of one Caddyfile.
type proxyLines []proxyLine

// linesOfProxies reads where a Caddyfile proxies. It returns nil if there is no such
// file, or if it can't be read: lines are only told where they are known.
func linesOfProxies(file *string) (out proxyLines) {
	for _, block := range blocksOf(file) {
		var sites []string
		for _, k := range block.Keys {
			sites = append(sites, k.Text)
		}
		for _, segment := range block.Segments {
			out = append(out, linesOf(segment, sites)...)
		}
	}
	return out
}

// blocksOf reads the sites of a Caddyfile; none, if it is not there or can't be read.
func blocksOf(file *string) []caddyfile.ServerBlock {
	if file == nil || *file == "" {
		return nil
	}
	text, err := os.ReadFile(*file)
	if err != nil {
		return nil
	}
	blocks, err := caddyfile.Parse(*file, text)
	if err != nil {
		return nil
	}
	return blocks
}

// linesOf finds the directives in a site's tokens, blocks within blocks too.
func linesOf(tokens caddyfile.Segment, sites []string) (out proxyLines) {
	depth, within := 0, -1 // within: the depth of the proxy's block that is being read
	for i, t := range tokens {
		first := i == 0 || tokens[i-1].Line != t.Line || tokens[i-1].File != t.File || tokens[i-1].Text == "{"
		switch {
		case t.Text == "{":
			depth++
		case t.Text == "}":
			if depth--; depth <= within {
				within = -1
			}
		case first && (t.Text == "reverse_proxy" || t.Text == "php_fastcgi" || t.Text == "forward_auth") && within < 0:
			out = append(out, proxyLine{fmt.Sprintf("%s:%d", t.File, t.Line), sites, nil})
			within = depth
		case within >= 0 && (depth == within || depth == within+1):
			last := &out[len(out)-1]
			if first && depth == within { // another directive
				within = -1
				continue
			}
			last.words = append(last.words, t.Text)
		}
	}
	return out
}

// of is where a route's proxy stands, or "".
func (l proxyLines) of(r *routes.Answer) string {
	var exact, loose []string // whether the site's address has the port
	for _, p := range l {
		if !p.leadsTo(r.Upstreams) {
			continue
		}
		switch serves, port := p.serves(r); {
		case serves && port:
			exact = append(exact, p.at)
		case serves:
			loose = append(loose, p.at)
		}
	}
	if len(exact) > 0 {
		return strings.Join(exact, ", ")
	}
	return strings.Join(loose, ", ")
}

// serves reports whether the directive's site is the route's, and whether the site's
// address says so with a port.
func (p *proxyLine) serves(r *routes.Answer) (serves, exact bool) {
	for _, site := range p.sites {
		host, port := site, ""
		if u, err := url.Parse(site); err == nil && u.Host != "" {
			host = u.Host
		}
		host, _, _ = strings.Cut(host, "/")
		if h, p, err := net.SplitHostPort(host); err == nil {
			host, port = h, p
		}
		if len(r.Hosts) > 0 && !slices.Contains(r.Hosts, host) {
			continue
		}
		if port != "" && !slices.ContainsFunc(r.Listen, func(l string) bool { return strings.HasSuffix(l, ":"+port) }) {
			continue
		}
		return true, port != ""
	}
	return false, false
}

// leadsTo reports whether the directive names one of the upstreams, or none that
// could be compared.
func (p *proxyLine) leadsTo(upstreams []string) bool {
	if len(upstreams) == 0 {
		return true
	}
	for _, w := range p.words {
		if _, rest, ok := strings.Cut(w, "://"); ok {
			w = rest
		}
		for _, u := range upstreams {
			if w == u || w != "" && strings.TrimSuffix(strings.TrimSuffix(u, ":80"), ":443") == w || strings.HasPrefix(w, ":") && strings.HasSuffix(u, w) {
				return true
			}
		}
	}
	return false
}

// lineOf says where the Caddyfile that was adapted last has a directive with an
// argument, as " (Caddyfile:12)", or "".
func lineOf(directive, argument string) string {
	for _, block := range blocksOf(adaptedFrom.Load()) {
		for _, segment := range block.Segments {
			line, found := -1, false // of the directive that was seen last
			for _, t := range segment {
				if t.Text == directive {
					line, found = t.Line, true
				} else if found && t.Line == line && t.Text == argument {
					return fmt.Sprintf(" (%s:%d)", t.File, t.Line)
				}
			}
		}
	}
	return ""
}
