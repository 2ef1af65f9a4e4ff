package e2e

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"path"
	"regexp"
	"strings"
	"testing"
	"time"

	"golang.org/x/text/unicode/norm"

	"github.com/caddy-auth/caddy-auth/internal/auth"
	"github.com/caddy-auth/caddy-auth/internal/manage"
)

func TestRequire(t *testing.T) {
	g := start(t, options{site: `
		auth {
			public /healthz
			environment live test
		}
		@read method GET HEAD
		@write not method GET HEAD
		auth_require @write scope orders:write
		auth_require @read any_scope orders:read orders:write
		@admin path /admin/*
		auth_require @admin {
			subject root ops
			environment live
			method api_key
		}
		@tenant path /tenants/*
		auth_require @tenant subject {http.request.uri.path.1}
		@none path /none
		auth_require @none subject {http.request.header.Nope}
		@both path /both
		auth_require @both scope a b
		auth_require @both scope c
	`})
	keys := map[string]string{}
	for name, spec := range map[string]manage.KeySpec{
		"reader": {Owner: "reader", Scopes: []string{"orders:read"}},
		"writer": {Owner: "writer", Scopes: []string{"orders:write", "a", "b"}},
		"ops":    {Owner: "ops", Scopes: []string{"orders:read"}},
		"opsT":   {Owner: "ops", Scopes: []string{"orders:read"}, Environment: "test"},
		"abc":    {Owner: "abc", Scopes: []string{"orders:read", "a", "b", "c"}},
		"none":   {Owner: "none"},
	} {
		keys[name] = g.key(spec).Text.Reveal()
	}
	for _, c := range []struct {
		who, method, path string
		status            int
		code              auth.Code
	}{
		{"reader", "GET", "/", 200, ""},
		{"reader", "POST", "/", 403, auth.CodeInsufficientScope},
		{"writer", "POST", "/", 200, ""},
		{"writer", "GET", "/", 200, ""},
		{"none", "GET", "/", 403, auth.CodeInsufficientScope},
		{"none", "GET", "/healthz", 200, ""},
		{"", "GET", "/healthz", 200, ""},
		{"", "GET", "/", 401, auth.CodeMissingCredential},
		{"ops", "GET", "/admin/x", 200, ""},
		{"reader", "GET", "/admin/x", 403, auth.CodeNotAllowed},
		{"opsT", "GET", "/admin/x", 403, auth.CodeWrongEnvironment},
		{"reader", "GET", "/tenants/reader", 200, ""},
		{"reader", "GET", "/tenants/writer", 403, auth.CodeNotAllowed},
		{"reader", "GET", "/none", 403, auth.CodeNotAllowed},
		{"writer", "GET", "/both", 403, auth.CodeInsufficientScope},
		{"abc", "GET", "/both", 200, ""},
	} {
		var lines []string
		if c.who != "" {
			lines = append(lines, "X-API-Key", keys[c.who])
		}
		a := g.do(c.method, c.path, lines...)
		t.Run(fmt.Sprintf("%s %s %s", c.who, c.method, c.path), func(t *testing.T) {
			g.t = t
			g.want(a, c.status, c.code)
		})
		if c.code == auth.CodeInsufficientScope {
			if h := a.Header.Get("Www-Authenticate"); !strings.Contains(h, `error="insufficient_scope"`) || !strings.Contains(h, `scope="`) {
				t.Errorf("challenge %q", h)
			}
		}
	}
}

func TestRequireWithoutAuthIs401(t *testing.T) {
	g := start(t, options{site: "auth_require scope a"})
	g.want(g.get("/"), 401, auth.CodeMissingCredential)
	g = start(t, options{site: "auth {\noptional\n}\nauth_require scope a"})
	g.want(g.get("/"), 401, auth.CodeMissingCredential)
}

func TestRequireScopeAcceptAndRealm(t *testing.T) {
	g := start(t, options{site: "auth {\nrequire_scope a b\nrealm \"my api\"\n}"})
	g.want(g.do("GET", "/", "X-API-Key", g.plainKey()), 403, auth.CodeInsufficientScope)
	g.want(g.do("GET", "/", "X-API-Key", g.key(manage.KeySpec{Scopes: []string{"b", "a"}}).Text.Reveal()), 200, "")
	if h := g.get("/").Header.Get("Www-Authenticate"); h != `Bearer realm="my api"` {
		t.Errorf("challenge %q", h)
	}
	g = start(t, options{site: "auth {\naccept access_token jwt\n}"})
	g.want(g.do("GET", "/", "X-API-Key", g.plainKey()), 403, auth.CodeNotAllowed)
	g = start(t, options{site: "auth {\naccept api_key\n}"})
	g.want(g.do("GET", "/", "X-API-Key", g.plainKey()), 200, "")
}

func TestOptional(t *testing.T) {
	g := start(t, options{site: "auth {\noptional\n}"})
	key := g.plainKey()
	s := g.ok(g.get("/", "X-Auth-Subject: evil"))
	if len(identityOf(s.Header)) > 0 {
		t.Errorf("anonymous with the identity %v", s.Header)
	}
	s = g.ok(g.get("/", "Authorization: Basic dXNlcjpwdw=="))
	if s.Header.Get("Authorization") == "" {
		t.Error("a scheme that isn't ours was removed")
	}
	if s = g.ok(g.get("/", "X-API-Key: "+key)); s.Header.Get("X-Auth-Subject") != "acme" {
		t.Errorf("identity %v", s.Header)
	}
	g.want(g.get("/", "X-API-Key: "+key[:20]), 401, auth.CodeInvalidCredential)
	g.want(g.get("/", "X-API-Key:"), 400, auth.CodeInvalidRequest)
}

func TestPreflight(t *testing.T) {
	lines := []string{"Origin: https://app.example", "Access-Control-Request-Method: PUT"}
	send := func(g *gateway, method, target string, lines ...string) answer {
		return g.raw(method + " " + target + " HTTP/1.1\r\nHost: " + g.addr + "\r\n" + strings.Join(append(lines, "Connection: close"), "\r\n") + "\r\n\r\n")
	}
	g := start(t, options{site: "auth"})
	g.want(send(g, "OPTIONS", "/", lines...), 401, auth.CodeMissingCredential)
	g = start(t, options{site: "auth {\npreflight pass\n}"})
	g.want(send(g, "OPTIONS", "/", lines...), 200, "")
	g.want(send(g, "OPTIONS", "/?api_key=x", lines...), 400, auth.CodeCredentialInQuery)
	g.want(send(g, "OPTIONS", "/", lines[0]), 401, auth.CodeMissingCredential)
	g.want(send(g, "PUT", "/", lines...), 401, auth.CodeMissingCredential)
	s := g.ok(send(g, "OPTIONS", "/", append([]string{"X-Auth-Subject: evil"}, lines...)...))
	if len(identityOf(s.Header)) > 0 {
		t.Errorf("preflight with the identity %v", s.Header)
	}
}

// TestSeveralAuths: a later auth keeps the identity and adds its own checks.
func TestSeveralAuths(t *testing.T) {
	g := start(t, options{site: `
		route {
			auth {
				public /open /both
				environment live test
			}
			handle /strict* {
				auth {
					environment live
					require_scope a
				}
			}
			handle /open {
				auth
			}
			handle /both {
				auth {
					public /both
				}
			}
			handle /opt {
				auth {
					optional
				}
			}
		}
	`})
	good := g.key(manage.KeySpec{Owner: "good", Scopes: []string{"a"}}).Text.Reveal()
	plain := g.key(manage.KeySpec{Owner: "plain"}).Text.Reveal()
	test := g.key(manage.KeySpec{Owner: "test", Environment: "test", Scopes: []string{"a"}}).Text.Reveal()
	for _, c := range []struct {
		path, key string
		status    int
		code      auth.Code
		subject   string
	}{
		{"/strict", good, 200, "", "good"},
		{"/strict", plain, 403, auth.CodeInsufficientScope, ""},
		{"/strict", test, 403, auth.CodeWrongEnvironment, ""},
		{"/other", test, 200, "", "test"},
		{"/open", "", 401, auth.CodeMissingCredential, ""},
		{"/open", good, 401, auth.CodeMissingCredential, ""},
		{"/both", "", 200, "", ""},
		{"/opt", good, 200, "", "good"},
		{"/opt", "", 401, auth.CodeMissingCredential, ""},
	} {
		var lines []string
		if c.key != "" {
			lines = []string{"X-API-Key: " + c.key}
		}
		a := g.get(c.path, lines...)
		if a.Status == 200 {
			if s := g.ok(a); s.Header.Get("X-Auth-Subject") != c.subject {
				t.Errorf("%s: subject %q", c.path, s.Header.Get("X-Auth-Subject"))
			}
			if c.status != 200 {
				t.Errorf("%s: passed, want %d", c.path, c.status)
			}
			continue
		}
		g.want(a, c.status, c.code)
	}
}

// TestLaterAuthCleansToo: what a second auth calls its own is as safe as what
// the first does, also where it refuses or lets pass without an identity.
func TestLaterAuthCleansToo(t *testing.T) {
	g := start(t, options{
		auth: "identity_headers {\nstrip X-Legacy-User\n}",
		raw: `http://{addr} {
			route {
				auth {
					public /healthz /pub/*
					from header X-API-Key
				}
				auth {
					public /healthz
					optional
					from header X-Second-Key
					errors handle_errors
					identity_headers {
						prefix X-Gw-
						map X-Tenant meta.tenant
					}
				}
				@scoped path /scoped
				auth_require @scoped scope a
				auth_require /pub/* subject nobody
				reverse_proxy {upstream}
			}
			handle_errors {
				reverse_proxy {upstream}
			}
		}`,
	})
	key := g.plainKey()
	evil := []string{"X-Gw-Subject: evil", "X-Tenant: evil", "X-Auth-Subject: evil", "X_Gw_Method: evil", "X-Legacy-User: evil", "X-Second-Key: " + key}
	for target, lines := range map[string][]string{"/healthz": nil, "/": {"X-API-Key: " + key}, "/?x=" + key: nil, "/scoped": {"X-API-Key: " + key}, "/x": nil} {
		g.get(target, append(lines, evil...)...)
		for _, s := range g.upstream.take() {
			for name, vals := range s.Header {
				for _, v := range vals {
					if v == "evil" || strings.Contains(v, key) {
						t.Errorf("%s: %s: %s reached an upstream", target, name, v)
					}
				}
			}
			if len(lines) > 0 && (s.Header.Get("X-Auth-Subject") != "acme" || s.Header.Get("X-Gw-Subject") != "acme") {
				t.Errorf("%s: identity lost: %v", target, s.Header)
			}
		}
	}
	// Public at the first only, optional at the second: no identity, so no
	// requirement is met.
	g.want(g.get("/pub/a"), 401, auth.CodeMissingCredential)
}

// TestOnlyWebsocketsUpgrade: through h2c, requests would pass that nobody judged.
func TestOnlyWebsocketsUpgrade(t *testing.T) {
	g := start(t, options{site: "auth {\npublic /open\n}"})
	for _, up := range []string{"h2c", "h2c, websocket", "SPDY/3.1", "TLS/1.0", "HTTP/2.0"} {
		s := g.ok(g.get("/open", "Upgrade: "+up, "HTTP2-Settings: AAMAAABkAAQAAP__", "Connection: Upgrade, HTTP2-Settings"))
		for _, name := range []string{"Upgrade", "Http2-Settings", "Connection"} {
			if v := s.Header.Get(name); v != "" {
				t.Errorf("%s: the upstream saw %s: %s", up, name, v)
			}
		}
	}
}

// TestPublicMatchesWhatTheClientSent: also inside handle_path and behind a
// rewrite.
func TestPublicMatchesWhatTheClientSent(t *testing.T) {
	g := start(t, options{site: `
		route {
			handle_path /api/* {
				auth {
					public /api/open
				}
				reverse_proxy {upstream}
			}
			rewrite /secret /healthz
			auth {
				public /healthz
			}
		}
	`})
	s := g.ok(g.get("/api/open"))
	if s.Target != "/open" {
		t.Errorf("target %s", s.Target)
	}
	g.want(g.get("/api/closed"), 401, auth.CodeMissingCredential)
	g.want(g.get("/open"), 401, auth.CodeMissingCredential)
	g.want(g.get("/healthz"), 200, "")
	g.want(g.get("/secret"), 401, auth.CodeMissingCredential)
	noted := false
	for _, l := range g.logLines("auth.decision") {
		noted = noted || l["note"] != nil
	}
	if !noted {
		t.Error("the decision log does not say that the rewritten path would have matched")
	}
}

func TestPlaceholdersAndAccessLog(t *testing.T) {
	g := start(t, options{site: `
		log {
			output file {dir}/access.json
			format auth_redact
		}
		auth
		header X-Seen "{http.auth.user.id} {http.auth.user.credential_id} {http.auth.user.method} {http.auth.user.environment} {http.auth.user.scopes} {http.auth.user.meta.tenant}"
		header >X-Late "{http.auth.user.id}"
		request_header X-From-Placeholder "{http.auth.user.id}/{http.auth.user.meta.tenant}"
	`, dir: storeDir(t)})
	k := g.key(manage.KeySpec{Owner: "acme", Scopes: []string{"a", "b"}, Meta: map[string]string{"tenant": "t1"}})
	a := g.do("GET", "/", "X-API-Key", k.Text.Reveal())
	s := g.ok(a)
	if got := s.Header.Get("X-From-Placeholder"); got != "acme/t1" {
		t.Errorf("placeholder %q", got)
	}
	eventually(t, "an access log line with the user", func() bool { return strings.Contains(g.file("access.json"), `"user_id":"acme"`) })
	g.do("GET", "/")
	eventually(t, "a line without a user", func() bool { return strings.Contains(g.file("access.json"), `"user_id":""`) })
}

// TestRewrittenHeadersStayInTheirRequest: a directive that rewrites identity
// headers in place must not reach the cached identity.
func TestRewrittenHeadersStayInTheirRequest(t *testing.T) {
	g := start(t, options{site: "auth\n@evil path /evil\nrequest_header @evil X-Auth-Subject acme evil"})
	key := g.plainKey()
	for range 3 {
		if s := g.ok(g.get("/evil", "X-API-Key: "+key)); s.Header.Get("X-Auth-Subject") != "evil" {
			t.Fatalf("not rewritten: %v", s.Header)
		}
		if s := g.ok(g.get("/", "X-API-Key: "+key)); s.Header.Get("X-Auth-Subject") != "acme" {
			t.Errorf("another request sees %q", s.Header.Get("X-Auth-Subject"))
		}
	}
}

func TestHeaderDirectiveAlsoAppliesToRefusals(t *testing.T) {
	g := start(t, options{site: "auth\nheader Access-Control-Allow-Origin https://app.example\nredir /old /new"})
	if a := g.get("/"); a.Status != 401 || a.Header.Get("Access-Control-Allow-Origin") == "" {
		t.Errorf("answer %+v", a)
	}
	if a := g.get("/old"); a.Status != 401 {
		t.Errorf("redir answered before auth: %d", a.Status)
	}
}

func TestWebsocketUpgrade(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	got := make(chan http.Header, 1)
	go func() { // an upstream that upgrades and echoes
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			r := bufio.NewReader(c)
			req, err := http.ReadRequest(r)
			if err != nil {
				_ = c.Close()
				continue
			}
			got <- req.Header
			fmt.Fprint(c, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n")
			go func() { _, _ = io.Copy(c, r); _ = c.Close() }()
		}
	}()
	g := start(t, options{raw: "http://{addr} {\nauth\nreverse_proxy " + l.Addr().String() + "\n}"})
	key := g.plainKey()
	conn, err := net.Dial("tcp", g.addr)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	_ = conn.SetDeadline(time.Now().Add(10 * time.Second))
	fmt.Fprintf(conn, "GET /ws HTTP/1.1\r\nHost: %s\r\nConnection: Upgrade, x-auth-subject\r\nUpgrade: websocket\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\nX-API-Key: %s\r\n\r\n", g.addr, key)
	r := bufio.NewReader(conn)
	res, err := http.ReadResponse(r, nil)
	if err != nil {
		t.Fatal(err)
	}
	if res.StatusCode != 101 {
		t.Fatalf("status %d", res.StatusCode)
	}
	if h := <-got; h.Get("X-Auth-Subject") != "acme" || h.Get("X-Api-Key") != "" || !strings.EqualFold(h.Get("Connection"), "upgrade") {
		t.Errorf("upstream saw %v", h)
	}
	fmt.Fprint(conn, "ping")
	back := make([]byte, 4)
	if _, err := io.ReadFull(r, back); err != nil || string(back) != "ping" {
		t.Errorf("echo %q, %v", back, err)
	}
	if a := g.get("/ws", "Upgrade: websocket"); a.Status != 401 {
		t.Errorf("without a key: %d", a.Status)
	}
}

// parameters are what some servers take off a path's segments.
var parameters = regexp.MustCompile(`;[^/]*`)

// TestPlaceholdersStayWhereTheyArePut: a value of an identity does not climb out
// of the path that a site puts it into, however it is written.
func TestPlaceholdersStayWhereTheyArePut(t *testing.T) {
	g := start(t, options{site: `auth
		@path path /p/*
		rewrite @path /t/{http.auth.user.meta.p}/x
		request_header X-P "{http.auth.user.meta.p}"
		request_header X-Raw "{http.auth.user.raw.meta.p}"
		request_header X-Scopes "{http.auth.user.scopes}"`})
	for _, value := range []string{
		"../../admin", "..", ".", `..\..\admin`, "..%2f..%2fadmin", "%2e%2e/%2e%2e/admin", "/admin", "a/../../../admin", "x?admin=1", "x#y", "{env.HOME}", "．．/．．/admin", ".. /admin", "..;", "..;a=b", "../..;x/admin", "．．／．．／admin", "..；x", "a..b", "group/project",
	} {
		key := g.key(manage.KeySpec{Meta: map[string]string{"p": value}, Scopes: []string{"a", "b"}})
		s := g.ok(g.get("/p/1", "X-API-Key: "+key.Text.Reveal()))
		target, query, _ := strings.Cut(s.Target, "?")
		decoded, err := url.PathUnescape(target) // as an upstream does
		if err != nil {
			t.Fatal(err)
		}
		for _, read := range []string{target, decoded, norm.NFKC.String(decoded)} {
			if cleaned := path.Clean(parameters.ReplaceAllString(strings.ReplaceAll(read, `\`, "/"), "")); !strings.HasPrefix(cleaned, "/t/") {
				t.Errorf("%q: the upstream was asked for %s, which is %s", value, s.Target, cleaned)
			}
		}
		if query != "" || s.Header.Get("X-Scopes") != "a b" || strings.Contains(s.Header.Get("X-P"), "/") {
			t.Errorf("%q: %s, %v", value, s.Target, s.Header)
		}
		if raw := s.Header.Get("X-Raw"); raw != value {
			t.Errorf("%q: raw %q", value, raw)
		}
	}
}
