package e2e

import (
	"fmt"
	"math/rand/v2"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/caddy-auth/caddy-auth/caddymodule"
	"github.com/caddy-auth/caddy-auth/internal/auth"
	"github.com/caddy-auth/caddy-auth/internal/manage"
)

const explainSite = `
	handle /open/* {
		auth {
			optional
			environment any
		}
		reverse_proxy {upstream}
	}
	handle_path /api/* {
		auth {
			public /api/healthz /api/docs/*
			public GET /api/news
			environment live test
			accept api_key jwt
			issuers corp
			require_scope orders:read
			preflight pass
		}
		@write not method GET HEAD OPTIONS
		auth_require @write scope orders:write
		@admin path /admin/*
		auth_require @admin {
			any_scope admin super
			method api_key
		}
		@robots auth_subject acme
		respond @robots 204
		@scoped expression auth_scope("secret") && auth_method("jwt")
		respond @scoped 206
		reverse_proxy {upstream}
	}
	handle /both/* {
		route {
			auth {
				environment any
			}
			auth {
				require_scope both
			}
			auth_require subject acme corp:alice
		}
		reverse_proxy {upstream}
	}
	auth_require /nobody/* scope x
	reverse_proxy {upstream}
`

// TestExplain_IsWhatTheGatewaySays holds the explanation of random requests
// against the live verdict on them.
func TestExplain_IsWhatTheGatewaySays(t *testing.T) {
	i := newIssuer(t)
	o := options{auth: i.block(""), site: explainSite}
	g := start(t, o)
	m := g.manager()
	key := func(spec manage.KeySpec) manage.Made { return g.key(spec) }
	ends := time.Now().Add(time.Second) // making one key does not take that long
	soon := key(manage.KeySpec{ExpiresAt: ends.UnixMilli()})
	keys := []manage.Made{
		key(manage.KeySpec{Scopes: []string{"orders:read"}}),
		key(manage.KeySpec{Scopes: []string{"orders:*"}, Owner: "other"}),
		key(manage.KeySpec{Scopes: []string{"orders:read", "orders:write", "admin", "both"}, Owner: "other"}),
		key(manage.KeySpec{Environment: "test", Scopes: []string{"orders:read"}, Owner: "other"}),
		key(manage.KeySpec{Environment: "dev", Scopes: []string{"orders:*", "both"}}),
		key(manage.KeySpec{Networks: []string{"10.0.0.0/8"}, Scopes: []string{"orders:*"}}),
		key(manage.KeySpec{Networks: []string{"127.0.0.0/8"}, Scopes: []string{"orders:*"}, Owner: "other"}),
		soon,
		key(manage.KeySpec{Scopes: []string{"orders:*"}}), // revoked
		key(manage.KeySpec{Scopes: []string{"orders:*"}}), // disabled
	}
	if _, err := m.Revoke(t.Context(), []string{keys[8].Key.ID}, ""); err != nil {
		t.Fatal(err)
	}
	if _, err := m.SetDisabled(t.Context(), []string{keys[9].Key.ID}, true, ""); err != nil {
		t.Fatal(err)
	}
	cut := i.token("jti", "cut", "scope", "orders:*")
	if _, err := m.CutOff(t.Context(), auth.CutOff{Issuer: "corp", JTI: "cut"}, false); err != nil {
		t.Fatal(err)
	}
	if _, err := m.Wait(t.Context()); err != nil {
		t.Fatal(err)
	}
	eventually(t, "a key has expired", func() bool { return time.Now().After(ends) })
	texts := []string{"", "", "rubbish", keys[0].Text.Reveal() + "x", i.token(), i.token("scope", "orders:* both secret", "jti", "t2"), i.token("aud", "others"), i.token("exp", 1), cut}
	for _, k := range keys {
		texts = append(texts, k.Text.Reveal())
	}
	paths := []string{
		"/", "/open/x", "/api/x", "/api/healthz", "/api/docs/a", "/api/news", "/api/admin/x", "/both/x", "/nobody/x", "/api/../x", "/api//x", "/API/x", "/api/x?api_key=1",
		"/api/x?q=" + keys[0].Text.Reveal(), "/api/x;a=b", "/api/docs/%2e%2e/x", "/open/%2fx",
	}
	r := rand.New(rand.NewPCG(1, uint64(time.Now().UnixNano())))
	pick := func(list []string) string { return list[r.IntN(len(list))] }
	statuses := map[int]int{}
	for range 250 {
		method, path, text := pick([]string{"GET", "GET", "POST", "DELETE", "OPTIONS", "get"}), pick(paths), pick(texts)
		header := http.Header{}
		if text != "" {
			switch r.IntN(6) {
			case 0:
				header.Set("X-API-Key", text)
			case 1:
				header["X-Api-Key"] = []string{text, text}
			case 2:
				header.Set("Authorization", "Basic "+text)
			default:
				header.Set("Authorization", "Bearer "+text)
			}
		}
		if r.IntN(4) == 0 {
			header.Set("Origin", "https://app.example")
			header.Set("Access-Control-Request-Method", "POST")
		}
		header.Set("X-Auth-Subject", "acme")
		what := fmt.Sprintf("%s %s %v", method, path, header)
		live := g.doHeader(method, path, header)
		explained, err := caddymodule.Explain(t.Context(), []byte(g.config), "Caddyfile", "caddyfile", caddymodule.Question{Method: method, URL: "http://" + g.addr + path, Header: header})
		if err != nil {
			t.Fatalf("%s: %v", what, err)
		}
		statuses[live.Status]++
		if explained.Status != live.Status || explained.Code != live.Code || explained.Detail != live.Detail {
			t.Errorf("%s: the gateway says %d %s (%s), the explanation %d %s (%s)\n%+v", what, live.Status, live.Code, live.Detail, explained.Status, explained.Code, explained.Detail, explained.Steps)
		}
		if live.Status >= 400 && (explained.Decided == nil || explained.Decided.Result != "refused") {
			t.Errorf("%s: %d, and nothing is said to have decided: %+v", what, live.Status, explained.Steps)
		}
		if refused := len(g.upstream.take()) == 0; refused != (explained.Reaches == "") {
			t.Errorf("%s: reached the upstream: %v, explained: %q", what, !refused, explained.Reaches)
		}
	}
	t.Logf("answers by status: %v", statuses)
	for _, status := range []int{200, 400, 401, 403} {
		if statuses[status] == 0 {
			t.Errorf("no request was answered %d", status)
		}
	}
	for n, k := range keys { // by id it is the same as with the text
		url := "http://" + g.addr + "/api/x"
		live := g.do("GET", "/api/x", "Authorization", "Bearer "+k.Text.Reveal())
		explained, err := caddymodule.Explain(t.Context(), []byte(g.config), "Caddyfile", "caddyfile", caddymodule.Question{URL: url, Key: k.Key.ID})
		if err != nil || explained.Status != live.Status || explained.Code != live.Code {
			t.Errorf("key %d: %v, the gateway says %d %s, the explanation %+v", n, err, live.Status, live.Code, explained)
		}
	}
}

// TestExplain_NamesTheLine: the line that decided is the one in the Caddyfile.
func TestExplain_NamesTheLine(t *testing.T) {
	g := start(t, options{site: "auth {\nenvironment test\n}"})
	k := g.key(manage.KeySpec{})
	line := 0
	for n, text := range strings.Split(g.config, "\n") {
		if text == "environment test" {
			line = n + 1
		}
	}
	e, err := caddymodule.Explain(t.Context(), []byte(g.config), "Caddyfile", "caddyfile", caddymodule.Question{URL: "http://" + g.addr + "/x", Key: k.Key.ID})
	if err != nil {
		t.Fatal(err)
	}
	if e.Decided == nil || e.Decided.Check != "environment" || e.Decided.Where != fmt.Sprintf("Caddyfile:%d", line) {
		t.Errorf("%+v, want line %d", e.Decided, line)
	}
	if shown, err := g.manager().Wait(t.Context()); err != nil || shown.Nodes != 1 {
		t.Errorf("an explanation became a gateway: %+v, %v", shown, err)
	}
}
