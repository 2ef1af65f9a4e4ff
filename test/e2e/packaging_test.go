package e2e

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/caddyconfig"
	"github.com/caddyserver/caddy/v2/caddyconfig/caddyfile"
)

// TestPackagedCaddyfiles: what is shipped is formatted, adapts without a
// warning and would load.
func TestPackagedCaddyfiles(t *testing.T) {
	dir := t.TempDir()
	password := filepath.Join(dir, "redis_password")
	if err := os.WriteFile(password, []byte("x\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, file := range []string{"../../packaging/systemd/Caddyfile", "../../packaging/docker/Caddyfile"} {
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		if string(caddyfile.Format(text)) != string(text) {
			t.Errorf("%s is not formatted: run make fmt", file)
		}
		used := strings.NewReplacer("/var/lib/caddy-auth/", dir+"/", "/var/log/caddy-auth/", dir+"/", "/run/caddy-auth/", dir+"/", "/data/", dir+"/", "/run/secrets/redis_password", password).Replace(string(text))
		raw, warnings, err := caddyconfig.GetAdapter("caddyfile").Adapt([]byte(used), map[string]any{"filename": file})
		if err != nil || len(warnings) > 0 {
			t.Errorf("%s: %v %v", file, err, warnings)
			continue
		}
		var cfg caddy.Config
		if err := json.Unmarshal(raw, &cfg); err != nil {
			t.Fatal(err)
		}
		if err := caddy.Validate(&cfg); err != nil {
			t.Errorf("%s: %v", file, err)
		}
	}
}
