package e2e

import (
	"strings"
	"testing"

	"github.com/caddy-auth/caddy-auth/internal/manage"
)

// TestConfig_RefusedWhereItCouldNeverWork: what could never let anybody in is refused
// when it is loaded, with the way out.
func TestConfig_RefusedWhereItCouldNeverWork(t *testing.T) {
	t.Setenv("REALM_OF_TEST", "shop")
	t.Setenv("ENVIRONMENT_OF_TEST", "staging")
	t.Setenv("SCOPE_OF_TEST", "orders:read")
	g := start(t, options{site: "auth"})
	for name, c := range map[string]struct{ global, site, want string }{
		"an underscore in a key header":   {"", "auth {\nfrom header api_key\n}", "expected_underscore_headers api_key"},
		"a dot in a key header":           {"key_header X.Key", "auth", "expected_dot_headers x.key"},
		"a placeholder of a request":      {"", "auth {\nenvironment {http.request.host}\n}", "environments: unrecognized placeholder {http.request.host}"},
		"an empty placeholder":            {"", "auth {\nrequire_scope {env.NOT_SET_IN_TEST}\n}", "require_scopes: evaluated placeholder {env.NOT_SET_IN_TEST} is empty"},
		"in a list of headers":            {"", "auth {\nfrom header {env.NOT_SET_IN_TEST}\n}", "{env.NOT_SET_IN_TEST}"},
		"in the global block":             {"refuse_query {env.NOT_SET_IN_TEST}", "auth", "refuse_query: evaluated placeholder"},
		"an environment of no key":        {"", "auth {\nenvironment LIVE\n}", "did you mean live?"},
		"demanded":                        {"", "auth\nauth_require environment LIVE", "did you mean live?"},
		"a comma in a scope":              {"", "auth {\nrequire_scope a,b\n}", "name each scope by itself: a and b"},
		"demanded too":                    {"", "auth\nauth_require any_scope a,b", "name each scope by itself: a and b"},
		"a path without a slash":          {"", "auth {\npublic healthz\n}", `"healthz" is no path, which begins with a slash (/healthz)`},
		"a key header of our prefix":      {"key_header X-Auth-Token", "auth", "identity_headers { prefix X-Gateway- }"},
		"a misspelt subdirective":         {"", "auth {\npublik /x\n}", "unrecognized subdirective of auth: publik: did you mean public?"},
		"globally":                        {"stoer sqlite", "auth", "did you mean store?"},
		"a login that is not there":       {"", "auth_login corp", `there is no login "corp"`},
		"an issuer that is not there":     {"issuer corp {\nurl https://x.test\naudience a\n}", "auth {\nissuers corq\n}", "did you mean corp?"},
		"demanded, an issuer":             {"issuer corp {\nurl https://x.test\naudience a\n}", "auth\nauth_require issuer other", `there is no issuer "other": there is only corp`},
		"an outbound that is not there":   {"outbound a {\nheader X-Key v\n}", "auth\nreverse_proxy x.test {\ntransport auth_outbound b\n}", `there is no outbound "b": there is only a`},
		"an environment of an issuer":     {"issuer corp {\nurl https://x.test\naudience a\nenvironment LIVE\n}", "auth", `environment "LIVE"`},
		"a placeholder in a realm":        {"", "auth {\nrealm {env.NOT_SET_IN_TEST}\n}", "realm: evaluated placeholder"},
		"a placeholder in a public path":  {"", "auth {\npublic /{env.REALM_OF_TEST}\n}", "placeholders are not allowed here"},
		"a placeholder in a login's name": {"", "auth_login {env.NOT_SET_IN_TEST}", "{env.NOT_SET_IN_TEST} is empty"},
	} {
		err := g.load(options{auth: c.global, site: c.site})
		if err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v, want %q", name, err, c.want)
		}
	}
	for name, c := range map[string]struct{ globals, global, site string }{
		"underscores that the server expects": {"servers {\nexpected_underscore_headers api_*\n}", "", "auth {\nfrom header api_key\n}"},
		"placeholders that are known":         {"", "", "auth {\nrealm {env.REALM_OF_TEST}\nenvironment {env.ENVIRONMENT_OF_TEST}\nrequire_scope {env.SCOPE_OF_TEST}\n}"},
		"a key header and another prefix":     {"", "key_header X-Auth-Token\nidentity_headers {\nprefix X-Gateway-\n}", "auth"},
	} {
		if err := g.load(options{global: c.globals, auth: c.global, site: c.site}); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// TestConfig_Placeholders: they mean what they stand for.
func TestConfig_Placeholders(t *testing.T) {
	t.Setenv("REALM_OF_TEST", "shop")
	t.Setenv("ENVIRONMENT_OF_TEST", "staging")
	t.Setenv("SCOPE_OF_TEST", "orders:read")
	t.Setenv("PREFIX_OF_TEST", "X-Shop-")
	g := start(t, options{
		auth: "identity_headers {\nprefix {env.PREFIX_OF_TEST}\n}",
		site: "auth {\nrealm {env.REALM_OF_TEST}\nenvironment {env.ENVIRONMENT_OF_TEST}\nrequire_scope {env.SCOPE_OF_TEST}\n}\n@staging auth_environment {env.ENVIRONMENT_OF_TEST}\nheader @staging X-Matched yes",
	})
	key := g.key(manage.KeySpec{Environment: "staging", Scopes: []string{"orders:read"}}).Text.Reveal()
	a := g.get("/", "X-API-Key: "+key)
	if s := g.ok(a); s.Header.Get("X-Shop-Environment") != "staging" || s.Header.Get("X-Auth-Environment") != "" {
		t.Errorf("%v", s.Header)
	}
	g.want(g.get("/", "X-API-Key: "+g.plainKey()), 403, "wrong_environment")
	if a := g.get("/"); !strings.Contains(a.Header.Get("Www-Authenticate"), `realm="shop"`) {
		t.Errorf("%v", a.Header)
	}
}

// TestConfig_KeyHeaderOfTheOldPrefix: a key header may have the default prefix of
// identity headers once those have another.
func TestConfig_KeyHeaderOfTheOldPrefix(t *testing.T) {
	g := start(t, options{auth: "key_header X-Auth-Token\nidentity_headers {\nprefix X-Gateway-\n}", site: "auth"})
	s := g.ok(g.get("/", "X-Auth-Token: "+g.plainKey(), "X-Auth-Subject: admin", "X-Gateway-Subject: admin"))
	if s.Header.Get("X-Gateway-Subject") != "acme" || s.Header.Get("X-Auth-Subject") != "" || s.Header.Get("X-Auth-Token") != "" {
		t.Errorf("%v", s.Header)
	}
}

// TestPublic_Head: what is public for GET is for HEAD.
func TestPublic_Head(t *testing.T) {
	g := start(t, options{site: "auth {\npublic GET /x\n}"})
	for method, want := range map[string]int{"GET": 200, "HEAD": 200, "POST": 401} {
		if a := g.do(method, "/x"); a.Status != want {
			t.Errorf("%s: %d", method, a.Status)
		}
	}
}

// TestCredential_BesideNone: an empty header, and one of another scheme, are no
// second credential.
func TestCredential_BesideNone(t *testing.T) {
	g := start(t, options{site: "auth"})
	key := g.plainKey()
	for _, c := range []struct {
		headers []string
		status  int
		passes  string // of Authorization
	}{
		{[]string{"X-API-Key: ", "Authorization: Bearer " + key}, 200, ""},
		{[]string{"X-API-Key:", "X-API-Key: " + key}, 200, ""},
		{[]string{"X-API-Key: " + key, "Authorization: Basic"}, 200, "Basic"},
		{[]string{"X-API-Key: " + key, "Authorization: Basic dXNlcjpwdw=="}, 200, "Basic dXNlcjpwdw=="},
		{[]string{"X-API-Key: " + key, "Authorization: "}, 200, ""},
		{[]string{"X-API-Key: " + key, "Authorization: Bearer"}, 200, ""},
		{[]string{"X-API-Key: " + key, "Authorization: Digest username=x"}, 200, "Digest username=x"},
		{[]string{"X-API-Key: " + key, "Authorization: Bearer other"}, 400, ""},
		{[]string{"X-API-Key: " + key, "Authorization: Bearer " + key}, 400, ""},
		{[]string{"X-API-Key: " + key, "Authorization: Token " + key}, 400, ""},
		{[]string{"X-API-Key: " + key, "X-API-Key: other"}, 400, ""},
		{[]string{"X-API-Key: "}, 400, ""},
	} {
		a := g.get("/", c.headers...)
		if a.Status != c.status {
			t.Errorf("%.40q: %d %s, want %d", c.headers, a.Status, a.Body, c.status)
			continue
		}
		if a.Status == 200 {
			if s := g.ok(a); s.Header.Get("Authorization") != c.passes || s.Header.Get("X-Auth-Subject") != "acme" || s.Header.Get("X-Api-Key") != "" {
				t.Errorf("%.40q: the upstream sees %v", c.headers, s.Header)
			}
		}
	}
}
