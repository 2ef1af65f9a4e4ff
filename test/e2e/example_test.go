package e2e

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/caddyconfig"
	"github.com/caddyserver/caddy/v2/caddyconfig/caddyfile"

	"github.com/caddy-auth/caddy-auth/internal/auth"
	"github.com/caddy-auth/caddy-auth/internal/manage"
)

// TestCaddyfileExample loads Caddyfile.example as it is, but for its
// addresses and its store's place, and uses it.
func TestCaddyfileExample(t *testing.T) {
	text, err := os.ReadFile("../../Caddyfile.example")
	if err != nil {
		t.Fatal(err)
	}
	if string(caddyfile.Format(text)) != string(text) {
		t.Error("Caddyfile.example is not formatted: run make fmt")
	}
	g := &gateway{t: t, dir: storeDir(t), addr: freeAddr(t), upstream: newUpstream(t)}
	used := string(text)
	for from, to := range map[string]string{
		"./caddy-auth-example/auth.db": filepath.Join(g.dir, "auth.db"),
		"http://127.0.0.1:8080":        "http://" + g.addr,
		"127.0.0.1:9000":               g.upstream.Listener.Addr().String(),
	} {
		if !strings.Contains(used, from) {
			t.Fatalf("Caddyfile.example lacks %q", from)
		}
		used = strings.ReplaceAll(used, from, to)
	}
	used = strings.Replace(used, "{\n", "{\n\tadmin off\n\tpersist_config off\n\tauto_https off\n", 1)
	config, warnings, err := caddyconfig.GetAdapter("caddyfile").Adapt([]byte(used), map[string]any{"filename": "Caddyfile.example"})
	if err != nil || len(warnings) > 0 {
		t.Fatalf("%v, warnings %v", err, warnings)
	}
	if err := caddy.Load(config, true); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = caddy.Stop() })
	reader := g.key(manage.KeySpec{Scopes: []string{"orders:read"}}).Text.Reveal()
	g.ok(g.do("GET", "/orders", "X-API-Key", reader))
	g.want(g.do("POST", "/orders", "X-API-Key", reader), 403, auth.CodeInsufficientScope)
	g.want(g.do("GET", "/orders"), 401, auth.CodeMissingCredential)
	g.want(g.do("GET", "/healthz"), 200, "")
}
