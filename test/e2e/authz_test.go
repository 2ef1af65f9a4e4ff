package e2e

import (
	"bytes"
	"strings"
	"testing"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/caddyconfig"

	"github.com/caddy-auth/caddy-auth/internal/auth"
	"github.com/caddy-auth/caddy-auth/internal/manage"
)

// TestMatchers: what an auth handler established can be matched on behind it,
// and in expressions; before it and without an identity nothing matches.
func TestMatchers(t *testing.T) {
	i := newIssuer(t)
	g := start(t, options{auth: i.block(""), site: `
		@early auth_scope orders:read
		route {
			header @early X-Early yes
			auth {
				environment any
				public /open
			}
			@scope auth_scope orders:read
			@both auth_scope orders:read orders:write
			@subject auth_subject acme corp:alice
			@tenant auth_subject {query.tenant}
			@env auth_environment test dev
			@method auth_method jwt
			@expr expression auth_scope("orders:read") && !auth_method("jwt") && auth_environment("live") && auth_subject("acme")
			@not not auth_scope orders:read
			header @scope X-Scope yes
			header @both X-Both yes
			header @subject X-Subject yes
			header @tenant X-Tenant yes
			header @env X-Env yes
			header @method X-Method yes
			header @expr X-Expr yes
			header @not X-Not yes
			reverse_proxy {upstream}
		}`})
	all := []string{"Early", "Scope", "Both", "Subject", "Tenant", "Env", "Method", "Expr", "Not"}
	for name, tc := range map[string]struct {
		path string
		text string
		want string
	}{
		"a key":          {"/x", g.key(manage.KeySpec{Scopes: []string{"orders:read"}}).Text.Reveal(), "Scope Subject Expr"},
		"a wildcard":     {"/x", g.key(manage.KeySpec{Scopes: []string{"orders:*"}, Owner: "other"}).Text.Reveal(), "Scope Both"},
		"another place":  {"/x", g.key(manage.KeySpec{Environment: "test"}).Text.Reveal(), "Subject Env Not"},
		"its tenant":     {"/x?tenant=acme", g.key(manage.KeySpec{}).Text.Reveal(), "Subject Tenant Not"},
		"another tenant": {"/x?tenant=", g.key(manage.KeySpec{}).Text.Reveal(), "Subject Not"},
		"a token":        {"/x", i.token(), "Scope Subject Method"},
		"nobody":         {"/open", "", "Not"},
	} {
		var headers []string
		if tc.text != "" {
			headers = []string{"Authorization", "Bearer " + tc.text}
		}
		a := g.do("GET", tc.path, headers...)
		var got []string
		for _, h := range all {
			if a.Header.Get("X-"+h) != "" {
				got = append(got, h)
			}
		}
		if a.Status != 200 || strings.Join(got, " ") != tc.want {
			t.Errorf("%s: %d, matched %v, want %s", name, a.Status, got, tc.want)
		}
	}
}

func TestRequire_MetaAndIssuer(t *testing.T) {
	i := newIssuer(t)
	g := start(t, options{auth: i.block("meta_claims tenant"), site: `
		auth
		auth_require /t/* meta tenant {query.tenant} root
		auth_require /i/* issuer corp`})
	acme := g.key(manage.KeySpec{Meta: map[string]string{"tenant": "acme"}}).Text.Reveal()
	for _, tc := range []struct {
		path, text string
		status     int
	}{
		{"/t/x?tenant=acme", acme, 200},
		{"/t/x?tenant=other", acme, 403},
		{"/t/x?tenant=", acme, 403},
		{"/t/x", acme, 403},
		{"/t/x?tenant=", g.plainKey(), 403}, // nothing is not nothing
		{"/t/x?tenant=acme", i.token("tenant", "acme", "jti", "a"), 200},
		{"/t/x?tenant=x", i.token("tenant", "root", "jti", "b"), 200},
		{"/t/x?tenant=acme", i.token("tenant", "beta", "jti", "c"), 403},
		{"/i/x", i.token("jti", "d"), 200},
		{"/i/x", acme, 403},
	} {
		if a := g.do("GET", tc.path, "Authorization", "Bearer "+tc.text); a.Status != tc.status || a.Status == 403 && a.Code != string(auth.CodeNotAllowed) {
			t.Errorf("%s: %d %s, want %d", tc.path, a.Status, a.Code, tc.status)
		}
	}
}

// TestProvider: Caddy's own authentication handler over the same engine.
func TestProvider(t *testing.T) {
	i := newIssuer(t)
	o := options{auth: i.block(""), site: `auth {
		public /open
	}
	auth_require /w/* scope orders:write`}
	g := start(t, o)
	text, _, err := caddyconfig.GetAdapter("caddyfile").Adapt([]byte(g.config), map[string]any{"filename": "Caddyfile"})
	if err != nil {
		t.Fatal(err)
	}
	theirs := bytes.Replace(text, []byte(`{"handler":"auth","public":[{"paths":["/open"]}]}`), []byte(`{"handler":"authentication","providers":{"auth":{"public":[{"paths":["/open"]}]}}}`), 1)
	if bytes.Equal(theirs, text) {
		t.Fatalf("no auth handler in %s", text)
	}
	if err := caddy.Load(theirs, true); err != nil {
		t.Fatal(err)
	}
	g.answers()
	key := g.key(manage.KeySpec{Scopes: []string{"orders:read"}})
	saw := g.ok(g.do("GET", "/x", "X-Api-Key", key.Text.Reveal(), "X-Auth-Subject", "root", "X_Auth_Scopes", "all"))
	if saw.Header.Get("X-Auth-Subject") != "acme" || saw.Header.Get("X-Api-Key") != "" || saw.Header.Get("X-Auth-Scopes") != "orders:read" {
		t.Errorf("%v", saw.Header)
	}
	g.ok(g.bearer(i.token()))
	g.want(g.do("GET", "/open"), 200, "")
	if a := g.do("GET", "/x"); a.Status != 401 || !strings.HasPrefix(a.Header.Get("Www-Authenticate"), "Bearer") {
		t.Errorf("without a credential: %d %v", a.Status, a.Header)
	}
	if a := g.do("GET", "/x", "X-Api-Key", "rubbish"); a.Status != 401 || !strings.Contains(a.Header.Get("Www-Authenticate"), "invalid_token") {
		t.Errorf("a bad one: %d %v", a.Status, a.Header)
	}
	g.want(g.do("GET", "/x?api_key=1", "X-Api-Key", key.Text.Reveal()), 400, auth.CodeCredentialInQuery)
	g.want(g.do("GET", "/x", "X-Api-Key", g.key(manage.KeySpec{Environment: "test"}).Text.Reveal()), 403, auth.CodeWrongEnvironment)
	g.want(g.do("GET", "/w/x", "X-Api-Key", key.Text.Reveal()), 403, auth.CodeInsufficientScope)
	g.want(g.do("GET", "/w/x"), 401, "")
	// Beside another provider, which may let a request in that ours never cleaned,
	// it does not load.
	beside := bytes.Replace(theirs, []byte(`"providers":{`), []byte(`"providers":{"http_basic":{"accounts":[{"username":"u","password":"$2a$14$x"}]},`), 1)
	if err := caddy.Load(beside, true); err == nil || !strings.Contains(err.Error(), "must stand alone") {
		t.Errorf("beside another provider: %v", err)
	}
}
