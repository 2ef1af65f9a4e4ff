// Package test holds what concerns the whole module.
package test

import (
	"encoding/json"
	"errors"
	"io"
	"os/exec"
	"slices"
	"strings"
	"testing"
)

const module = "github.com/caddy-auth/caddy-auth/"

// levels is design section 2: a package imports only lower levels.
var levels = map[string]int{
	"internal/auth":            0,
	"internal/strictjson":      0,
	"internal/urlpath":         1,
	"internal/body":            1,
	"internal/routes":          1,
	"internal/secret":          1,
	"internal/redact":          1,
	"internal/problem":         1,
	"internal/redisx":          1,
	"internal/jwt":             1,
	"internal/fetch":           1,
	"internal/pace":            1,
	"internal/limit":           2,
	"internal/store":           2,
	"internal/store/sqlite":    2,
	"internal/store/postgres":  2,
	"internal/store/storetest": 2,
	"internal/cache":           2,
	"internal/feed":            2,
	"internal/stream":          2,
	"internal/jwks":            2,
	"internal/introspect":      2,
	"internal/grant":           2,
	"internal/verifier":        3,
	"internal/forward":         3,
	"internal/manage":          3,
	"internal/oauth":           3,
	"internal/assertion":       3,
	"internal/outbound":        3,
	"internal/login":           3,
	"caddymodule":              4,
	"upstream":                 4,
	"examples/go":              5,
	"examples/clients/go":      5,
	"cmd/caddy-auth":           5,
	"test/load":                6,
	"test/load/stock":          6,
	"test/load/authservice":    6,
	"test/servers":             5,
	"test/ledger":              6,
	"test/e2e":                 6,
	"test/adapt":               6,
	"test/script":              6,
	"test/docs":                6,
	"test/machine":             6,
	"test/fleet":               6,
	"test":                     6,
}

// sameLevel lists arrows inside a level: a package's own parts.
var sameLevel = map[string][]string{
	"internal/store/sqlite":    {"internal/store"},
	"internal/store/postgres":  {"internal/store"},
	"internal/store/storetest": {"internal/store"},
}

// onlyIn says which packages may import what.
var onlyIn = map[string][]string{
	"github.com/caddyserver/":           {"caddymodule", "cmd/caddy-auth", "test/load/stock"},
	"github.com/prometheus/":            {"caddymodule"},
	"modernc.org/sqlite":                {"internal/store/sqlite"},
	"github.com/jackc/":                 {"internal/store/postgres", "test/servers"},
	"github.com/redis/":                 {"internal/redisx", "internal/limit", "test/servers", "test/load/authservice"},
	"github.com/sony/gobreaker":         {"internal/redisx", "internal/introspect"},
	"go.opentelemetry.io/":              {"caddymodule"},
	"golang.org/x/oauth2":               {"examples/clients/go"},
	"go.uber.org/zap":                   {"caddymodule"},
	"github.com/spf13/cobra":            {"caddymodule"},
	"github.com/spf13/pflag":            {"caddymodule"},
	"pgregory.net/rapid":                {},
	"go.uber.org/goleak":                {},
	"github.com/go-jose/":               {},
	"github.com/google/go-cmp":          {},
	"github.com/rogpeppe/go-internal":   {},
	module + "internal/store/storetest": {},
}

type listed struct {
	ImportPath string
	Imports    []string
}

func packages(t *testing.T) []listed {
	t.Helper()
	out, err := exec.Command("go", "list", "-json=ImportPath,Imports", "../...").Output()
	if err != nil {
		t.Fatalf("go list: %v", err)
	}
	var all []listed
	for dec := json.NewDecoder(strings.NewReader(string(out))); ; {
		var p listed
		if err := dec.Decode(&p); errors.Is(err, io.EOF) {
			return all
		} else if err != nil {
			t.Fatal(err)
		}
		all = append(all, p)
	}
}

func TestArch_ImportsPointInward(t *testing.T) {
	for _, p := range packages(t) {
		name := strings.TrimPrefix(p.ImportPath, module)
		level, ok := levels[name]
		if !ok {
			t.Errorf("%s has no level: add it here and to the design", name)
		}
		for _, imp := range p.Imports {
			checkOnly(t, name, imp)
			to, inside := strings.CutPrefix(imp, module)
			if !inside {
				if level == 0 && strings.Contains(imp, ".") {
					t.Errorf("%s imports %s, wants the standard library only", name, imp)
				}
				continue
			}
			if levels[to] >= level && !slices.Contains(sameLevel[name], to) {
				t.Errorf("%s (level %d) imports %s (level %d)", name, level, to, levels[to])
			}
		}
	}
}

func checkOnly(t *testing.T, name, imp string) {
	t.Helper()
	for what, allowed := range onlyIn {
		if strings.HasPrefix(imp, what) && !slices.Contains(allowed, name) {
			t.Errorf("%s imports %s, which only %v may", name, imp, allowed)
		}
	}
}

// TestArch_Libc guards the pair of versions that modernc.org/sqlite needs: its
// libc must be exactly the one it was made with.
func TestArch_Libc(t *testing.T) {
	out, err := exec.Command("go", "list", "-m", "-f", "{{.Version}}", "modernc.org/libc").Output()
	if err != nil {
		t.Fatal(err)
	}
	if got, want := strings.TrimSpace(string(out)), "v1.77.1"; got != want {
		t.Errorf("modernc.org/libc is %s, want %s", got, want)
	}
}
