package e2e

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"

	"github.com/caddy-auth/caddy-auth/test/servers"
)

// TestFoldingUpstreams: WSGI, PHP and CGI fold header names, so that
// X_Auth_Subject and X-Auth-Subject become one variable. Whatever a client
// sends, they see our identity once, or none on a public path.
func TestFoldingUpstreams(t *testing.T) {
	wsgi := servers.StartWSGI(t)
	fpm, root := servers.StartPHP(t)
	cgi, program := servers.StartCGI(t)
	for name, c := range map[string]struct {
		proxy string
		parse func(string) (map[string]string, error)
	}{
		"WSGI":    {"reverse_proxy " + wsgi, parseJSONVars},
		"PHP-FPM": {"root " + root + "\nphp_fastcgi unix/" + fpm, parseJSONVars},
		"CGI":     {fmt.Sprintf("reverse_proxy unix/%s {\ntransport fastcgi {\nroot /\nenv SCRIPT_FILENAME %s\n}\n}", cgi, program), parseEnv},
	} {
		t.Run(name, func(t *testing.T) {
			g := start(t, options{raw: "http://{addr} {\nauth {\npublic /open /open/*\nidentity_headers {\nmap X-Tenant meta.tenant\n}\n}\n" + c.proxy + "\n}"})
			key := g.plainKey()
			spoofed := []string{
				"X-Auth-Subject: evil", "X_Auth_Subject: evil", "X-Auth.Subject: evil", "X-Auth_Subject: evil", "x-auth-subject: evil", "X!Auth!Subject: evil", "X~Auth~Subject: evil",
				"X-Auth-Scopes: admin", "X_Auth_Scopes: admin", "X'Auth'Scopes: admin", "X-Auth-Anything: evil", "X_AUTH_METHOD: evil", "Remote-User: evil", "Remote_User: evil", "X-Tenant: evil", "X_Tenant: evil", "X-Forwarded-User: evil",
				"Connection: close, X-Auth-Subject, X-Auth-Scopes",
			}
			vars := func(target string, more ...string) map[string]string {
				t.Helper()
				a := g.get(target, append(append([]string{}, spoofed...), more...)...)
				if a.Status != 200 {
					t.Fatalf("%d %s", a.Status, a.Body)
				}
				v, err := c.parse(a.Body)
				if err != nil {
					t.Fatalf("%v in %q", err, a.Body)
				}
				return v
			}
			for _, target := range []string{"/", "/index.php"} {
				got := vars(target, "X-API-Key: "+key)
				if got["HTTP_X_AUTH_SUBJECT"] != "acme" || got["HTTP_X_AUTH_METHOD"] != "api_key" {
					t.Errorf("subject %q, method %q", got["HTTP_X_AUTH_SUBJECT"], got["HTTP_X_AUTH_METHOD"])
				}
				wantNothingForged(t, got, key)
			}
			got := vars("/open")
			for variable := range got {
				if strings.HasPrefix(variable, "HTTP_X_AUTH") {
					t.Errorf("%s on a public path", variable)
				}
			}
			wantNothingForged(t, got, key)
		})
	}
}

func wantNothingForged(t *testing.T, vars map[string]string, key string) {
	t.Helper()
	for variable, value := range vars {
		if strings.Contains(value, "evil") || strings.Contains(value, "admin") || strings.Contains(value, key) {
			t.Errorf("%s=%s", variable, value)
		}
	}
}

func parseJSONVars(body string) (vars map[string]string, err error) {
	return vars, json.Unmarshal([]byte(body), &vars)
}

func parseEnv(body string) (map[string]string, error) {
	vars := map[string]string{}
	for line := range strings.Lines(body) {
		name, value, ok := strings.Cut(strings.TrimSpace(line), "=")
		if !ok {
			return nil, fmt.Errorf("no variable: %q", line)
		}
		vars[name] = value
	}
	return vars, nil
}
