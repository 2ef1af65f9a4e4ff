package test

import (
	"bytes"
	"context"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/caddy-auth/caddy-auth/test/servers"
)

// scratchMain is what xcaddy writes for --with caddymodule.
const scratchMain = `package main

import (
	caddycmd "github.com/caddyserver/caddy/v2/cmd"

	_ "github.com/caddy-auth/caddy-auth/caddymodule"
	_ "github.com/caddyserver/caddy/v2/modules/standard"
)

func main() { caddycmd.Main() }
`

// TestBuild_AsXcaddyDoes builds somebody else's Caddy with the module, without
// cgo, and runs Caddyfile.example with it.
func TestBuild_AsXcaddyDoes(t *testing.T) {
	root, err := filepath.Abs("..")
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	ours, err := os.ReadFile(filepath.Join(root, "go.mod"))
	if err != nil {
		t.Fatal(err)
	}
	if strings.Contains(string(ours), "\nreplace ") {
		t.Error("go.mod has replace directives, which nobody's build but ours would see")
	}
	requires := string(ours)[strings.Index(string(ours), "\nrequire "):] // without the module and go lines
	mod := "module caddy\n\ngo 1.26.0\n\n" + requires + "\nrequire github.com/caddy-auth/caddy-auth v0.0.0\n\nreplace github.com/caddy-auth/caddy-auth => " + root + "\n"
	sums, err := os.ReadFile(filepath.Join(root, "go.sum"))
	if err != nil {
		t.Fatal(err)
	}
	for name, text := range map[string][]byte{"main.go": []byte(scratchMain), "go.mod": []byte(mod), "go.sum": sums} {
		if err := os.WriteFile(filepath.Join(dir, name), text, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	build := exec.Command("go", "build", "-mod=mod", "-o", "caddy", ".")
	build.Dir = dir
	build.Env = append(os.Environ(), "CGO_ENABLED=0", "GOWORK=off")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("go build: %v\n%s", err, out)
	}

	example, err := os.ReadFile(filepath.Join(root, "Caddyfile.example"))
	if err != nil {
		t.Fatal(err)
	}
	addr := servers.SpareAddr(t)
	text := strings.NewReplacer("http://127.0.0.1:8080", "http://"+addr).Replace(string(example))
	text = strings.Replace(text, "{\n", "{\n\tadmin off\n", 1)
	if err := os.WriteFile(filepath.Join(dir, "Caddyfile"), []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	var log bytes.Buffer
	gateway := exec.CommandContext(ctx, filepath.Join(dir, "caddy"), "run", "--config", "Caddyfile")
	gateway.Dir, gateway.Stderr = dir, &log
	gateway.Env = append(os.Environ(), "HOME="+dir, "XDG_DATA_HOME="+dir, "XDG_CONFIG_HOME="+dir)
	gateway.Cancel = func() error { return gateway.Process.Signal(os.Interrupt) }
	if err := gateway.Start(); err != nil {
		t.Fatal(err)
	}
	servers.Eventually(t, "the gateway listens", func() bool {
		c, err := net.Dial("tcp", addr)
		return err == nil && c.Close() == nil
	})
	res, err := http.Get("http://" + addr + "/orders")
	if err != nil {
		t.Fatal(err)
	}
	_ = res.Body.Close()
	if res.StatusCode != http.StatusUnauthorized {
		t.Errorf("status %d", res.StatusCode)
	}
	// The commands are there too, below auth.
	create := exec.Command(filepath.Join(dir, "caddy"), "auth", "key", "create", "--owner", "acme", "--scope", "orders:read", "--config", "Caddyfile")
	create.Dir = dir
	key, err := create.Output()
	if err != nil {
		t.Fatal(err)
	}
	req, _ := http.NewRequest(http.MethodGet, "http://"+addr+"/orders", nil)
	req.Header.Set("X-Api-Key", strings.TrimSpace(string(key)))
	if res, err = http.DefaultClient.Do(req); err != nil {
		t.Fatal(err)
	}
	_ = res.Body.Close()
	if res.StatusCode != http.StatusBadGateway { // the example's upstream does not run
		t.Errorf("status %d with a key", res.StatusCode)
	}
	cancel()
	_ = gateway.Wait()
	if strings.Contains(log.String(), strings.TrimSpace(string(key))) {
		t.Error("the key is in the log")
	}
}
