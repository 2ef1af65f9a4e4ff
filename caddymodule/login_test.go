package caddymodule

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/caddyserver/caddy/v2"
)

// TestLoginConfig_Refuses: what can't work, or would be unsafe, does not load,
// and the error says what it is.
func TestLoginConfig_Refuses(t *testing.T) {
	good := func() *LoginConfig {
		return &LoginConfig{Issuer: "https://idp.example.com", ClientID: "gw", ClientSecret: "s"}
	}
	check := func(c *LoginConfig) error {
		full, err := c.withDefaults()
		if err != nil {
			return err
		}
		return full.check("corp")
	}
	if err := check(good()); err != nil {
		t.Fatal(err)
	}
	for want, change := range map[string]func(*LoginConfig){
		"issuer: http:// beyond":        func(c *LoginConfig) { c.Issuer = "http://idp.example.com" },
		"no query":                      func(c *LoginConfig) { c.Issuer += "?x=y" },
		"no client_id":                  func(c *LoginConfig) { c.ClientID = "" },
		"want one client_secret":        func(c *LoginConfig) { c.ClientSecret = "" },
		"or auth none":                  func(c *LoginConfig) { c.Auth = "none" },
		"param state":                   func(c *LoginConfig) { c.Params = map[string]string{"state": "x"} },
		"HS256":                         func(c *LoginConfig) { c.Algorithms = []string{"HS256"} },
		"timeout 11s":                   func(c *LoginConfig) { c.Timeout = caddy.Duration(11 * time.Second) },
		"idle 24h0m0s":                  func(c *LoginConfig) { c.Idle = caddy.Duration(24 * time.Hour) },
		"at most 2160h0m0s":             func(c *LoginConfig) { c.Lifetime = caddy.Duration(2161 * time.Hour) },
		`redirect "auth"`:               func(c *LoginConfig) { c.Redirect = "auth" },
		`redirect "//evil.example"`:     func(c *LoginConfig) { c.Redirect = "//evil.example" },
		`sign_in_path "/a/*"`:           func(c *LoginConfig) { c.SignInPath = "/a/*" },
		"are the same path":             func(c *LoginConfig) { c.LogoutPath = defaultRedirect },
		"after_logout":                  func(c *LoginConfig) { c.AfterLogout = "http://elsewhere.example" },
		`logout_path "/"`:               func(c *LoginConfig) { c.LogoutPath = "/" },
		"auth: unknown value":           func(c *LoginConfig) { c.Auth = "jwt" },
		"client_secret can't be used: ": func(c *LoginConfig) { c.ClientSecret = "{env.NO_SUCH_THING}" },
	} {
		c := good()
		change(c)
		err := check(c)
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v, want %q", err, want)
		}
	}
}

// TestPages_Templates: a directory replaces some pages or all; one that can't be
// shown, or has nothing, does not load.
func TestPages_Templates(t *testing.T) {
	write := func(files map[string]string) string {
		dir := t.TempDir()
		for name, text := range files {
			if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
				t.Fatal(err)
			}
		}
		return dir
	}
	p, err := newPages(write(map[string]string{"page.html": `all {{.Title}} {{.Text}}`, "denied.html": `<p title="{{.Instance}}">{{.Page}} {{.Action.URL}}`}))
	if err != nil {
		t.Fatal(err)
	}
	s := &signIn{LoginConfig: &LoginConfig{SignInPath: "/in"}, loginSource: &loginSource{}, name: "corp", pages: p}
	if got := string(s.page(pageDenied, `/x"><script>`, `"><script>`)); got != `<p title="&#34;&gt;&lt;script&gt;">denied /in?return=%2Fx%22%3E%3Cscript%3E` {
		t.Errorf("%s", got)
	}
	if got := string(s.page(pageSignedOut, "/", "")); !strings.HasPrefix(got, "all You are signed out") {
		t.Errorf("%s", got)
	}
	for what, files := range map[string]map[string]string{
		"nothing": {}, "another file": {"x.html": "x"}, "no template": {"denied.html": "{{"}, "what is not there": {"denied.html": "{{.Nonsense}}"}, "too long": {"page.html": strings.Repeat("x", maxTemplate+1)},
	} {
		if _, err := newPages(write(files)); err == nil {
			t.Errorf("%s: no error", what)
		}
	}
	if _, err := newPages("/no/such/directory"); err == nil {
		t.Error("no error")
	}
}
