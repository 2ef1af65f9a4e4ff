package test

import (
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"go.yaml.in/yaml/v3"
)

func readFile(t *testing.T, path string) string {
	t.Helper()
	text, err := os.ReadFile(filepath.Join("..", path))
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// TestPackaging_Unit checks what a unit can get wrong without systemd noticing,
// and lets systemd look at the rest where it is installed.
func TestPackaging_Unit(t *testing.T) {
	unit := readFile(t, "packaging/systemd/caddy-auth.service")
	conf := readFile(t, "packaging/systemd/Caddyfile")
	for _, want := range []string{
		"User=caddy-auth", "StateDirectory=caddy-auth", "StateDirectoryMode=0700", "UMask=0077", "NoNewPrivileges=yes", "ProtectSystem=strict", "CapabilityBoundingSet=CAP_NET_BIND_SERVICE", "Type=notify",
		"ExecStart=/usr/local/bin/caddy-auth run --config /etc/caddy-auth/Caddyfile", "--address unix//run/caddy-auth/admin.sock",
	} {
		if !strings.Contains(unit, want) {
			t.Errorf("the unit lacks %s", want)
		}
	}
	for line := range strings.Lines(unit) {
		if strings.HasPrefix(line, "Exec") && strings.Contains(line, "--environ") {
			t.Error("--environ prints the secrets of the environment")
		}
	}
	for _, want := range []string{"unix//run/caddy-auth/admin.sock|0600", "store sqlite /var/lib/caddy-auth/", "/var/log/caddy-auth/", "format auth_redact"} {
		if !strings.Contains(conf, want) {
			t.Errorf("the Caddyfile lacks %s", want)
		}
	}
	analyze, err := exec.LookPath("systemd-analyze")
	if err != nil {
		t.Log("systemd-analyze is not installed: the unit's syntax is not checked")
		return
	}
	dir := t.TempDir()
	file := filepath.Join(dir, "caddy-auth.service")
	if err := os.WriteFile(file, []byte(strings.ReplaceAll(unit, "/usr/local/bin/caddy-auth", "/bin/true")), 0o600); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command(analyze, "verify", file).CombinedOutput(); err != nil || strings.Contains(string(out), "caddy-auth.service:") {
		t.Errorf("systemd-analyze verify: %v\n%s", err, out)
	}
}

var fromImage = regexp.MustCompile(`(?m)^FROM (\S+)`)

// TestPackaging_Dockerfile lints by hand what can't be built here.
func TestPackaging_Dockerfile(t *testing.T) {
	text := readFile(t, "packaging/docker/Dockerfile")
	images := fromImage.FindAllStringSubmatch(text, -1)
	if len(images) != 2 || images[1][1] != "scratch" || !strings.Contains(images[0][1], ":") || strings.HasSuffix(images[0][1], ":latest") {
		t.Errorf("images %v", images)
	}
	_, last, _ := strings.Cut(text, "FROM scratch")
	for _, want := range []string{"\nUSER 65532:65532\n", `ENTRYPOINT ["/caddy-auth"]`, "--chmod=0700", `VOLUME ["/data"]`} {
		if !strings.Contains(last, want) {
			t.Errorf("the last stage lacks %q", want)
		}
	}
	if strings.Contains(last, "\nRUN ") {
		t.Error("RUN in a stage without a shell")
	}
	tags := regexp.MustCompile(`TAGS := (\S+)`).FindStringSubmatch(readFile(t, "Makefile"))
	if tags == nil || !strings.Contains(text, "CGO_ENABLED=0 go build") || !strings.Contains(text, "-tags "+tags[1]+" ") {
		t.Error("the image is not built as make build builds")
	}
	for line := range strings.Lines(text) {
		fields := strings.Fields(line)
		if len(fields) < 3 || fields[0] != "COPY" || strings.HasPrefix(fields[1], "--from") {
			continue
		}
		for _, source := range fields[1 : len(fields)-1] {
			if _, err := os.Stat(filepath.Join("..", source)); err != nil {
				t.Errorf("COPY of %s: %v", source, err)
			}
		}
	}
	ignored := readFile(t, ".dockerignore")
	for _, secret := range []string{"redis_password", "redis.acl", "*.master-key", "*.db"} {
		if !strings.Contains(ignored, secret) {
			t.Errorf("%s could get into the image", secret)
		}
	}
}

func TestPackaging_Compose(t *testing.T) {
	text := readFile(t, "packaging/docker/compose.yaml")
	type service struct {
		Image, User string
		Ports       []string
		Networks    []string
		Secrets     []string
		ReadOnly    bool     `yaml:"read_only"`
		CapDrop     []string `yaml:"cap_drop"`
		SecurityOpt []string `yaml:"security_opt"`
		Sysctls     any
		Privileged  bool
	}
	var c struct {
		Services map[string]service
		Networks map[string]struct{ Internal bool }
		Secrets  map[string]struct{ File string }
		Volumes  map[string]any
	}
	if err := yaml.Unmarshal([]byte(text), &c); err != nil {
		t.Fatal(err)
	}
	if len(c.Services) != 3 {
		t.Errorf("%d services", len(c.Services))
	}
	for name, s := range c.Services {
		if !s.ReadOnly || !slices.Contains(s.CapDrop, "ALL") || !slices.Contains(s.SecurityOpt, "no-new-privileges:true") || s.Privileged || s.Sysctls != nil {
			t.Errorf("%s may do more than it needs", name)
		}
		if name != "gateway" && len(s.Ports) > 0 {
			t.Errorf("%s can be reached around the gateway", name)
		}
		for _, n := range s.Networks {
			if _, ok := c.Networks[n]; !ok {
				t.Errorf("%s: no network %s", name, n)
			}
			if name != "gateway" && !c.Networks[n].Internal {
				t.Errorf("%s is on the network %s, which leads outside", name, n)
			}
		}
		for _, secret := range s.Secrets {
			if _, ok := c.Secrets[secret]; !ok {
				t.Errorf("%s: no secret %s", name, secret)
			}
		}
	}
	// The rights that the tests use, docs/redis.md names and compose sets are the same.
	rights := "resetkeys ~caddy-auth:* resetchannels &caddy-auth:* -@all +getrange +set +ping +publish +subscribe +hello +auth"
	for _, file := range []string{"packaging/docker/compose.yaml", "docs/redis.md"} {
		if !strings.Contains(readFile(t, file), rights) {
			t.Errorf("%s gives other rights", file)
		}
	}
	if !strings.Contains(readFile(t, "test/e2e/redis_test.go"), `"`+strings.ReplaceAll(rights, " ", `", "`)+`"`) {
		t.Error("the tests use other rights")
	}
}
