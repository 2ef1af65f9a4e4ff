package e2e

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/caddyconfig"

	"github.com/caddy-auth/caddy-auth/internal/manage"
)

// testKey is a key that no site here takes.
var testKey = manage.KeySpec{Environment: "test"}

// errorRoute is a site whose error routes proxy: whatever a handler of ours
// refuses or gives up on may reach a service.
func errorRoute(handlers string) string {
	return "http://{addr} {\n" + handlers + "\nreverse_proxy {upstream}\nhandle_errors {\nreverse_proxy {upstream}\n}\n}"
}

// way is a request that a handler refuses. Lines are added to the forged ones.
type way struct {
	request string // method and target
	lines   []string
	answers bool // the handler writes the answer itself: nothing reaches the error routes
	passed  bool // an auth before it let it through: its identity is genuine
}

// ways lists, for each handler of ours, a site and the requests that it refuses.
// {session} is a person's cookie, {bad} a mistyped key, {key} a live key of
// another environment, {scopeless} one without scopes.
func ways() map[string]map[string][]way {
	const handled = "errors handle_errors\n"
	refusals := []way{
		{request: "GET /?api_key=1"},
		{request: "GET /a/../b"},
		{request: "get /"},
		{request: "GET /?x={key}"},
		{request: "POST /", lines: []string{"Early-Data: 1"}},
		{request: "GET /"},
		{request: "GET /", lines: []string{"X-API-Key: {bad}"}},
		{request: "GET /", lines: []string{"X-API-Key: {scopeless}", "Authorization: Bearer {key}"}},
		{request: "GET /", lines: []string{"X-API-Key: {key}"}},
		{request: "GET /", lines: []string{"X-API-Key: {scopeless}"}},
	}
	person := append(slices.Clone(refusals),
		way{request: "GET /auth/callback?api_key=1"},
		way{request: "GET /auth/callback?code=x&state=y", lines: []string{"Early-Data: 1"}},
		way{request: "GET /auth/login?access_token=1"},
		way{request: "POST /auth/logout", lines: []string{"Sec-Fetch-Site: cross-site"}},
		way{request: "POST /auth/logout", lines: []string{"Origin: https://evil.example"}},
		way{request: "POST /auth/logout", lines: []string{"Sec-Fetch-Site: same-origin", "Cookie: __Host-caddy-auth-session-corp=a", "Cookie: __Host-caddy-auth-session-corp=b"}},
		way{request: "POST /auth/backchannel-logout?jwt=1"},
		way{request: "PUT /auth/callback", answers: true},
		way{request: "POST /", lines: []string{"Cookie: {session}", "Sec-Fetch-Site: cross-site"}},
		way{request: "GET /", lines: []string{"Cookie: {session}", "X-API-Key: {bad}"}},
	)
	ends := []way{
		{request: "POST /oauth/token?api_key=1", answers: true},
		{request: "POST /oauth/token", lines: []string{"Early-Data: 1"}, answers: true},
		{request: "GET /oauth/token", answers: true},
		{request: "POST /oauth/revoke?token=1", answers: true},
		{request: "POST /oauth/introspect?token=1", answers: true},
		{request: "POST /oauth/introspect", answers: true},
	}
	return map[string]map[string][]way{
		"auth":            {"auth {\n" + handled + "require_scope orders:read\n}": refusals},
		"auth_login":      {"auth_login corp {\n" + handled + "require_scope orders:admin\n}": person},
		"auth_require":    {"auth {\n" + handled + "}\nauth_require scope orders:read": {refusals[8], {request: "GET /", lines: []string{"X-API-Key: {scopeless}"}, passed: true}}, "auth_require scope orders:read": {{request: "GET /", answers: true}}},
		"auth_token":      {"auth_token\nauth_revoke\nauth_introspect": ends},
		"auth_revoke":     {"auth_revoke": {ends[3]}},
		"auth_introspect": {"auth_introspect": ends[4:]},
		"auth_wellknown":  {"auth_wellknown": {}}, // needs a store that is away
		"auth_health":     {"auth_health /ready": {}},
		"auth_problem":    {"auth {\n" + handled + "}\nauth_problem": {{request: "GET /"}}},
	}
}

// forged are the lines of a request that wants to be somebody, in a spelling.
func forged(spelling string) []string {
	return []string{spelling + ": admin", "Connection: " + spelling + ", close"}
}

// TestForged_ThroughEveryRefusal: whatever a handler of ours refuses, nothing
// that its client chose as an identity, and no credential, reaches a service
// behind the error routes.
func TestForged_ThroughEveryRefusal(t *testing.T) {
	all := ways()
	for _, m := range caddy.GetModules("http.handlers") {
		if strings.HasPrefix(m.ID.Name(), "auth") && !strings.HasPrefix(m.ID.Name(), "authentication") && all[m.ID.Name()] == nil {
			t.Errorf("the handler %s has no case here", m.ID.Name())
		}
	}
	p := newOP(t)
	for _, name := range slices.Sorted(maps.Keys(all)) {
		for _, site := range slices.Sorted(maps.Keys(all[name])) {
			if len(all[name][site]) == 0 {
				continue
			}
			t.Run(name, func(t *testing.T) { forgedAt(t, p, site, all[name][site]) })
		}
	}
}

func forgedAt(t *testing.T, p *op, site string, refused []way) {
	conf := loginConf(p, "") + "\ntoken_endpoint {\nissuer https://gw.example.com\n}"
	g := start(t, options{auth: conf, raw: errorRoute(site)})
	v := newVisitor(g)
	cookie := "__Host-caddy-auth-session-corp=none"
	if strings.Contains(site, "auth_login") {
		v.open("/")
		cookie = "__Host-caddy-auth-session-corp=" + v.session()
	}
	scopeless := g.plainKey()
	key := g.key(testKey).Text.Reveal()
	fill := strings.NewReplacer("{session}", cookie, "{bad}", mistyped(scopeless), "{key}", key, "{scopeless}", scopeless)
	g.upstream.take()
	for _, one := range refused {
		for n, spelling := range append(allSpellings, allSpellings...) {
			lines := append(forged(spelling), one.lines...)
			if n >= len(allSpellings) { // Caddy removes itself what Connection names
				lines = append(forged(spelling)[:1], one.lines...)
			}
			if !slices.ContainsFunc(one.lines, func(l string) bool { return strings.HasPrefix(l, "X-API-Key") || strings.HasPrefix(l, "Cookie") }) {
				lines = append(lines, "Authorization: Bearer {scopeless}", "Cookie: {session}; app=1")
				if one.request == "GET /" { // it would pass
					lines = append(lines, "X-API-Key: {bad}")
				}
			}
			a := g.raw(fill.Replace(one.request + " HTTP/1.1\r\nHost: " + g.addr + "\r\nContent-Length: 0\r\n" + strings.Join(lines, "\r\n") + "\r\n\r\n"))
			got := g.upstream.take()
			what := fmt.Sprintf("%s %q as %s", one.request, one.lines, spelling)
			if one.answers != (len(got) == 0) {
				t.Fatalf("%s: %d, %d requests behind the error route", what, a.Status, len(got))
			}
			for _, s := range got {
				if id := identityOf(s.Header); len(id) > 0 != one.passed {
					t.Errorf("%s: the upstream saw %v", what, id)
				}
				for name, values := range s.Header {
					if all := strings.Join(values, " "); strings.Contains(all, scopeless) || strings.Contains(all, key) || strings.Contains(all, "__Host-") || strings.Contains(all, "admin") {
						t.Errorf("%s: the upstream saw %s: %q", what, name, values)
					}
				}
			}
		}
	}
}

// TestForged_WhileTheStoreIsAway: the same for what handlers answer then.
func TestForged_WhileTheStoreIsAway(t *testing.T) {
	p := newOP(t)
	away := "postgres://nobody@" + freeAddr(t) + "/none?sslmode=disable"
	g := start(t, options{
		store: away, auth: loginConf(p, "") + "\ntoken_endpoint {\nissuer https://gw.example.com\n}\nidentity_headers {\nassertion {\naudience x\n}\n}",
		raw: errorRoute("auth_wellknown\nauth_health /ready\nauth_token\nauth_login corp {\nerrors handle_errors\n}"),
	})
	key := "ca_live_" + strings.Repeat("a", 51)
	for _, target := range []string{"GET /.well-known/jwks.json", "GET /ready", "GET /", "POST /auth/logout", "POST /oauth/token"} {
		for _, spelling := range allSpellings {
			lines := append(forged(spelling), "X-API-Key: "+key, "Content-Length: 0")
			a := g.raw(target + " HTTP/1.1\r\nHost: " + g.addr + "\r\n" + strings.Join(lines, "\r\n") + "\r\n\r\n")
			got := g.upstream.take()
			if target == "GET /" && len(got) != 1 {
				t.Fatalf("%d, %d requests behind the error route", a.Status, len(got))
			}
			for _, s := range got {
				if id := identityOf(s.Header); len(id) > 0 || s.Header.Get("X-Api-Key") != "" {
					t.Errorf("%s as %s, %d: the upstream saw %v", target, spelling, a.Status, s.Header)
				}
			}
		}
	}
}

// TestForged_BeforeAnyHandlerOfOurs: a request that fails before auth has seen it
// has no identity in the error routes either; what other gateways tell a site
// without auth stays, and so does what auth established.
func TestForged_BeforeAnyHandlerOfOurs(t *testing.T) {
	p := newOP(t)
	g := start(t, options{global: "order error before auth", auth: loginConf(p, ""), raw: `http://{addr} {
		error /before* 418
		auth {
			identity_headers {
				prefix X-Gw-
				map X-Tenant subject
			}
			public /open
		}
		reverse_proxy /gone http://` + freeAddr(t) + `
		reverse_proxy {upstream}
		handle_errors {
			reverse_proxy {upstream}
		}
	}`})
	for _, spelling := range []string{"X-Gw-Subject", "x_gw_subject", "X-Tenant", "X!Tenant", "X-Auth-Subject", "Grpc-Metadata-X-Gw-Method"} {
		g.get("/before", forged(spelling)[0], "Remote-User: theirs")
		got := g.upstream.take()
		if len(got) != 1 {
			t.Fatalf("%d requests behind the error route", len(got))
		}
		if text := fmt.Sprint(got[0].Header); strings.Contains(text, "admin") || got[0].Header.Get("Remote-User") != "theirs" {
			t.Errorf("%s: the upstream saw %s", spelling, text)
		}
	}
	// Nor does a credential of ours, or a login's cookie; what is somebody else's stays.
	key := g.plainKey()
	g.get("/before", "X-API-Key: "+key, "Authorization: Bearer "+key, "Cookie: __Host-caddy-auth-session-corp=abc; app=1")
	if got := g.upstream.take(); len(got) != 1 || strings.Contains(fmt.Sprint(got[0].Header), key) || got[0].Header.Get("Cookie") != "app=1" {
		t.Errorf("the upstream saw %+v", got)
	}
	g.get("/before", "X-API-Key: of-another", "Authorization: Basic dTpw")
	if got := g.upstream.take(); len(got) != 1 || got[0].Header.Get("X-Api-Key") != "of-another" || got[0].Header.Get("Authorization") != "Basic dTpw" {
		t.Errorf("the upstream saw %+v", got)
	}
	g.get("/gone", "X-API-Key: "+g.plainKey(), "X-Gw-Subject: admin")
	if got := g.upstream.take(); len(got) != 1 || got[0].Header.Get("X-Gw-Subject") != "acme" || got[0].Header.Get("X-Tenant") != "acme" {
		t.Errorf("after auth: %+v", got)
	}
}

// TestForged_ThroughCaddysAuthentication: the provider for Caddy's own handler
// cleans what it refuses too: Caddy runs the error routes for every 401.
func TestForged_ThroughCaddysAuthentication(t *testing.T) {
	g := start(t, options{raw: errorRoute("auth {\nenvironment live\n}")})
	text, _, err := caddyconfig.GetAdapter("caddyfile").Adapt([]byte(g.config), map[string]any{"filename": "Caddyfile"})
	if err != nil {
		t.Fatal(err)
	}
	theirs := strings.Replace(string(text), `{"environments":["live"],"handler":"auth"}`, `{"handler":"authentication","providers":{"auth":{"environments":["live"]}}}`, 1)
	if theirs == string(text) {
		t.Fatalf("no auth handler in %s", text)
	}
	if err := caddy.Load([]byte(theirs), true); err != nil {
		t.Fatal(err)
	}
	g.answers()
	key := g.plainKey()
	for _, spelling := range allSpellings {
		for _, line := range []string{"X-Other: 1", "X-API-Key: " + mistyped(key)} {
			g.get("/", append(forged(spelling), line)...)
			for _, s := range g.upstream.take() {
				if len(identityOf(s.Header)) > 0 || strings.Contains(fmt.Sprint(s.Header), "admin") || s.Header.Get("X-Api-Key") != "" {
					t.Errorf("as %s: the upstream saw %v", spelling, s.Header)
				}
			}
		}
	}
}

// TestForged_NamedRoutes: where auth stands in a named route only, Caddy leaves no
// way to guard the error routes, and a load says so.
func TestForged_NamedRoutes(t *testing.T) {
	g := start(t, options{full: `{
	admin off
	persist_config off
	auto_https off
	storage file_system {dir}/caddy
	log {
		output file {dir}/log.json
		format auth_redact
	}
	auth {
		store sqlite {dir}/auth.db
	}
}
&(guarded) {
	auth
}
http://{addr} {
	route {
		invoke guarded
		reverse_proxy {upstream}
	}
	handle_errors {
		reverse_proxy {upstream}
	}
}`})
	if !strings.Contains(g.logs(), "named route or an error route only") {
		t.Error("nothing is said")
	}
	g.ok(g.get("/", "X-API-Key: "+g.plainKey()))
}
