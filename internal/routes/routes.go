// Package routes reads Caddy's HTTP configuration and says what answers requests,
// and which handlers decide before it who may pass. No I/O.
package routes

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"
)

// Answer is a handler that answers requests itself: it proxies, serves files, or
// says something.
type Answer struct {
	Server    string   // its name in the configuration
	Listen    []string // the addresses that the server listens on
	Hosts     []string // that its route is for; none: any
	Match     string   // what else a request must be like, in words; empty: anything
	Handler   string   // reverse_proxy, file_server, …
	Upstreams []string // that a proxy sends requests to, as Caddy dials them
	At        string   // where it stands in the configuration's JSON, below apps/http/servers
	Guards    []Guard  // that run before it, in order
	Mixed     bool     // auth stands somewhere on the same site
}

// Guard is a handler that decides whether a request may pass.
type Guard struct {
	Handler  string // auth, auth_login, forward_auth, or the provider of Caddy's authentication
	Only     string // what a request must be like for the guard to see it, in words; empty: all that get to the answer
	Open     bool   // it lets everybody pass: public /*
	Optional bool   // it lets those pass who show no credential

	conds    []cond
	group    string
	rewrites int // how many rewrites were walked before it
}

// Proxies reports whether an answer is that of a service behind the gateway.
func (a *Answer) Proxies() bool { return a.Handler == "reverse_proxy" }

// Gap says how requests get to an answer past its guards, or "" if they don't.
func (a *Answer) Gap() string {
	gap := "there is no auth before it"
	for _, g := range a.Guards {
		switch {
		case g.Open:
			gap = "public /* lets everybody pass"
		case g.Only != "":
			gap = g.Handler + " sees only requests with " + g.Only
		default:
			return ""
		}
	}
	return gap
}

// route is Caddy's.
type route struct {
	Group    string            `json:"group"`
	Match    []map[string]any  `json:"match"`
	Handle   []json.RawMessage `json:"handle"`
	Terminal bool              `json:"terminal"`
}

// server is Caddy's, as far as it matters here.
type server struct {
	Listen []string         `json:"listen"`
	Routes []route          `json:"routes"`
	Named  map[string]route `json:"named_routes"`
}

// handler is what is read of every handler.
type handler struct {
	Handler string  `json:"handler"`
	Routes  []route `json:"routes"`
	Name    string  `json:"name"` // of the route that it invokes

	Public []struct {
		Methods []string `json:"methods"`
		Paths   []string `json:"paths"`
	} `json:"public"`
	Optional  bool                       `json:"optional"`
	Providers map[string]json.RawMessage `json:"providers"`

	Upstreams []struct {
		Dial string `json:"dial"`
	} `json:"upstreams"`
	Rewrite        map[string]any `json:"rewrite"`
	HandleResponse []struct {
		Match struct {
			StatusCode []int `json:"status_code"`
		} `json:"match"`
		Routes []route `json:"routes"`
	} `json:"handle_response"`
}

// Read returns what answers requests in the configuration of Caddy's app http, in
// the order of servers' names and then of routes. Error routes are left out: no
// identity reaches them.
func Read(httpApp []byte) ([]Answer, error) {
	var app struct {
		Servers map[string]server `json:"servers"`
	}
	if err := json.Unmarshal(httpApp, &app); err != nil {
		return nil, fmt.Errorf("reading the sites: %w", err)
	}
	var names []string
	for name := range app.Servers {
		names = append(names, name)
	}
	slices.Sort(names)
	w := &walk{sites: map[string]bool{}}
	for _, name := range names {
		w.server, w.name, w.rewrites = app.Servers[name], name, 0
		w.routes(w.server.Routes, place{at: name + "/routes"})
	}
	for i := range w.answers {
		w.answers[i].Mixed = w.sites[siteOf(w.answers[i].Server, w.answers[i].Hosts)]
	}
	return w.answers, w.err
}

// siteOf is what answers and guards of one site have in common.
func siteOf(server string, hosts []string) string { return server + " " + strings.Join(hosts, " ") }

// walk goes through a server's routes as a request would.
type walk struct {
	server   server
	name     string
	depth    int
	rewrites int // in this server so far
	answers  []Answer
	sites    map[string]bool // where auth stands
	err      error
}

// place is where a walk stands: what is known of a request that got there.
type place struct {
	at     string
	hosts  []string
	conds  []cond
	guards []Guard
}

// maxDepth bounds how deep routes may be nested: named ones could invoke each other.
const maxDepth = 32

// routes walks a list and returns the guards in it.
func (w *walk) routes(list []route, p place) (found []Guard) {
	if w.depth++; w.depth > maxDepth {
		w.err = fmt.Errorf("%s: routes are nested too deep", p.at)
		return nil
	}
	defer func() { w.depth-- }()
	outer := len(p.guards)
	guards := slices.Clone(p.guards)
	before := map[string][]string{} // what the earlier routes of a group are for
	for i, r := range list {
		here := place{at: fmt.Sprintf("%s/%d", p.at, i), hosts: p.hosts, conds: p.conds}
		if c := cond(r.Match); len(c) > 0 && !c.always() {
			here.conds = append(slices.Clone(p.conds), c)
			here.hosts = hostsOf(c, p.hosts)
		}
		for _, g := range guards { // of a group, one route alone runs
			if r.Group == "" || g.group != r.Group {
				here.guards = append(here.guards, g)
			}
		}
		inside, ends := w.handlers(r.Handle, here)
		if (len(r.Match) == 0 || cond(r.Match).always()) && ends {
			break // nothing behind it is reached
		}
		if r.Terminal && len(r.Match) > 0 {
			continue // who gets past this route has not been here
		}
		for _, g := range inside {
			g.group = r.Group
			if earlier := before[r.Group]; r.Group != "" && len(earlier) > 0 { // one of them may have run instead
				g.conds = append(slices.Clone(g.conds), cond{{"none of": asAny(earlier)}})
			}
			guards = append(guards, g)
		}
		if r.Group != "" && len(r.Match) > 0 {
			before[r.Group] = append(before[r.Group], words([]cond{r.Match}, true))
		}
	}
	found = slices.Clone(guards[outer:])
	for i := range found {
		found[i].group = ""
	}
	return found
}

// handlers walks a route's handlers and returns the guards among them, and whether
// one answers every request.
func (w *walk) handlers(list []json.RawMessage, p place) (found []Guard, ends bool) {
	for i, raw := range list {
		h := readHandler(raw)
		here := place{fmt.Sprintf("%s/handle/%d", p.at, i), p.hosts, p.conds, append(slices.Clone(p.guards), found...)}
		switch {
		case h.Handler == "subroute":
			here.at += "/routes"
			found = append(found, w.routes(h.Routes, here)...)
		case h.Handler == "invoke":
			here.at = w.name + "/named_routes/" + h.Name
			found = append(found, w.routes([]route{w.server.Named[h.Name]}, here)...)
		case guards(&h) != nil:
			for _, g := range guards(&h) {
				g.conds, g.rewrites = p.conds, w.rewrites
				if strings.HasPrefix(g.Handler, "auth") {
					w.sites[siteOf(w.name, p.hosts)] = true
				}
				found = append(found, g)
			}
		case h.Handler == "rewrite":
			w.rewrites++ // conditions looked at another request before
		case h.Handler == "intercept":
			w.responses(&h, here)
		case answers[h.Handler]:
			w.answer(&h, here)
			w.responses(&h, here)
			if ends = h.Handler == "static_response" || h.Handler == "error"; ends {
				return found, true
			}
		}
	}
	return found, false
}

// responses walks the routes that answer instead of a response.
func (w *walk) responses(h *handler, p place) {
	for i, hr := range h.HandleResponse {
		here := p
		here.at = fmt.Sprintf("%s/handle_response/%d/routes", p.at, i)
		w.routes(hr.Routes, here)
	}
}

// understood are the handlers whose fields mean what handler says.
var understood = []string{"subroute", "invoke", "auth", "auth_login", "authentication", "reverse_proxy", "intercept"}

// readHandler reads what is known of a handler: of most only the name.
func readHandler(raw json.RawMessage) (h handler) {
	var name struct {
		Handler string `json:"handler"`
	}
	if json.Unmarshal(raw, &name) != nil {
		return h
	}
	if slices.Contains(understood, name.Handler) && json.Unmarshal(raw, &h) != nil {
		h = handler{} // Caddy refuses it
	}
	h.Handler = name.Handler
	return h
}

// answers are the handlers that answer requests themselves.
var answers = map[string]bool{"reverse_proxy": true, "file_server": true, "static_response": true, "error": true, "metrics": true, "acme_server": true}

// guards returns what a handler is as a guard, or nil.
func guards(h *handler) (out []Guard) {
	switch {
	case h.Handler == "auth" || h.Handler == "auth_login":
		g := Guard{Handler: h.Handler, Optional: h.Optional}
		for _, rule := range h.Public {
			g.Open = g.Open || len(rule.Methods) == 0 && slices.Contains(rule.Paths, "/*")
		}
		return []Guard{g}
	case h.Handler == "authentication":
		for name := range h.Providers {
			out = append(out, Guard{Handler: name})
		}
		slices.SortFunc(out, func(a, b Guard) int { return strings.Compare(a.Handler, b.Handler) })
	case h.Handler == "reverse_proxy" && asksFirst(h):
		return []Guard{{Handler: "forward_auth"}}
	}
	return out
}

// asksFirst reports whether a proxy is what Caddy makes of forward_auth: it sends a
// GET elsewhere, and lets the request go on if that is answered with 2xx.
func asksFirst(h *handler) bool {
	return h.Rewrite["uri"] != nil && h.Rewrite["method"] == "GET" && len(h.HandleResponse) == 1 && slices.Equal(h.HandleResponse[0].Match.StatusCode, []int{2})
}

// answer notes an answer, and which of the guards a request to it has seen.
func (w *walk) answer(h *handler, p place) {
	a := Answer{Server: w.name, Listen: w.server.Listen, Hosts: p.hosts, Handler: h.Handler, Match: words(p.conds, false), At: p.at}
	for _, u := range h.Upstreams {
		a.Upstreams = append(a.Upstreams, u.Dial)
	}
	for _, g := range p.guards {
		var missing []cond
		for _, c := range g.conds {
			rewritten := g.rewrites != w.rewrites && c.canBeRewritten()
			if !slices.ContainsFunc(p.conds, func(have cond) bool { return have.same(c) || !rewritten && have.implies(c) }) {
				missing = append(missing, c)
			}
		}
		g.Only = words(missing, true)
		a.Guards = append(a.Guards, g)
	}
	w.answers = append(w.answers, a)
}
