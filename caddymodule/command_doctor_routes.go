package caddymodule

import (
	"encoding/json"
	"fmt"
	"strings"
	"text/tabwriter"

	"github.com/caddy-auth/caddy-auth/internal/auth"
	"github.com/caddy-auth/caddy-auth/internal/routes"
)

// readRoutes reads what answers requests in the configuration, and where its proxies
// stand.
func (t *target) readRoutes() ([]routes.Answer, proxyLines, error) {
	var config struct {
		Apps map[string]json.RawMessage `json:"apps"`
	}
	if err := json.Unmarshal(t.config, &config); err != nil {
		return nil, nil, fmt.Errorf("reading the configuration: %w", err)
	}
	if config.Apps["http"] == nil {
		return nil, nil, nil
	}
	all, err := routes.Read(config.Apps["http"])
	if t.adapter != "caddyfile" {
		return all, nil, err
	}
	return all, linesOfProxies(&t.path), err
}

// routes looks for services that can be reached past every auth.
func (e *examination) routes() {
	if e.t.config == nil {
		return
	}
	all, lines, err := e.t.readRoutes()
	if err != nil {
		e.found("routes", err, "")
		return
	}
	open, proxies := 0, 0
	for i := range all {
		r := &all[i]
		if !r.Proxies() {
			continue
		}
		proxies++
		gap := r.Gap()
		if gap == "" {
			continue
		}
		open++
		where := lines.of(r)
		if where == "" {
			where = r.At
		}
		level := levelWarning // a site without any auth may be meant so
		if r.Mixed {
			level = levelFinding
		}
		e.say(level, "routes", fmt.Sprintf("%s: no auth guards %s: %s", where, describeRoute(r), gap),
			"put auth before it, in the same handle or route; what is open on purpose is named with public, path by path")
	}
	if open == 0 && proxies > 0 {
		e.ok("routes", "every service is behind something that decides who may pass; see them with --routes")
	}
}

// listRoutes prints each route that answers and what guards it.
func (e *examination) listRoutes() error {
	if e.t.config == nil {
		return auth.WithHint(usagef("there is no configuration"), "name one with --config Caddyfile")
	}
	all, lines, err := e.t.readRoutes()
	if err != nil {
		return err
	}
	if e.s.json {
		for i := range all {
			if err := printJSON(e.s.out, routeView(&all[i], lines)); err != nil {
				return err
			}
		}
		return nil
	}
	tab := tabwriter.NewWriter(e.s.out, 0, 4, 2, ' ', 0)
	fmt.Fprintln(tab, "SITE\tREQUESTS\tANSWERED BY\tGUARDED BY\tAT")
	for i := range all {
		r := &all[i]
		v := routeView(r, lines)
		guarded := strings.Join(v.Guards, ", ")
		if v.Gap != "" && r.Proxies() {
			guarded = "NOTHING: " + v.Gap
		}
		fmt.Fprintf(tab, "%s\t%s\t%s\t%s\t%s\n", strings.Join(v.Site, " "), dash(r.Match), strings.Join(append([]string{r.Handler}, r.Upstreams...), " "), dash(guarded), v.At)
	}
	return tab.Flush()
}

// routeShown is a route as it is printed.
type routeShown struct {
	Site      []string `json:"site"` // its hosts; without any, what its server listens on
	Match     string   `json:"match,omitempty"`
	Handler   string   `json:"handler"`
	Upstreams []string `json:"upstreams,omitempty"`
	Guards    []string `json:"guards"`
	Gap       string   `json:"gap,omitempty"`
	At        string   `json:"at"`
}

func routeView(r *routes.Answer, lines proxyLines) routeShown {
	v := routeShown{Site: r.Hosts, Match: r.Match, Handler: r.Handler, Upstreams: r.Upstreams, Guards: []string{}, Gap: r.Gap(), At: r.At}
	if len(v.Site) == 0 {
		v.Site = r.Listen
	}
	if r.Proxies() {
		if at := lines.of(r); at != "" {
			v.At = at
		}
	}
	for _, g := range r.Guards {
		text := g.Handler
		for _, more := range []struct {
			holds bool
			text  string
		}{{g.Optional, " (optional)"}, {g.Open, " (public /*)"}, {g.Only != "", " (only " + g.Only + ")"}} {
			if more.holds {
				text += more.text
			}
		}
		v.Guards = append(v.Guards, text)
	}
	return v
}

// dash is what a table shows of nothing.
func dash(s string) string {
	if s == "" {
		return "-"
	}
	return s
}
