package e2e

import (
	"bufio"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/caddy-auth/caddy-auth/internal/auth"
	"github.com/caddy-auth/caddy-auth/internal/manage"
)

// exampleDir is a copy of a folder of examples beside what npm installed for
// the tests.
func exampleDir(t *testing.T, name string) string {
	t.Helper()
	dir := t.TempDir()
	if err := os.CopyFS(dir, os.DirFS(filepath.Join("..", "..", "examples", name))); err != nil {
		t.Fatal(err)
	}
	modules, err := filepath.Abs(filepath.Join("..", "peers", "node_modules"))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(modules); err != nil {
		t.Fatal("test/peers is not installed: make deps")
	}
	if err := os.Symlink(modules, filepath.Join(dir, "node_modules")); err != nil {
		t.Fatal(err)
	}
	return dir
}

// built is a Go example as a program.
func built(t *testing.T, name string) string {
	t.Helper()
	out := filepath.Join(t.TempDir(), "example")
	cmd := exec.Command("go", "build", "-o", out, "../../examples/"+name)
	if text, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, text)
	}
	return out
}

// systemPython is Debian's Python: its packages are for no other.
const systemPython = "/usr/bin/python3"

// TestExamples_Vectors: the verifiers of other languages come to the same about
// every vector as ours.
func TestExamples_Vectors(t *testing.T) {
	path, err := filepath.Abs("../../examples/vectors.json")
	if err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	var vectors struct {
		Cases []struct {
			Name, Subject string
			Valid         bool
		}
	}
	if err := json.Unmarshal(text, &vectors); err != nil {
		t.Fatal(err)
	}
	for name, command := range map[string][]string{"node": {"node", "vectors.mjs"}, "python": {systemPython, "-B", "vectors.py"}, "php": {"php", "vectors.php"}} {
		t.Run(name, func(t *testing.T) {
			cmd := exec.Command(command[0], append(command[1:], path)...)
			cmd.Dir, cmd.Stderr = exampleDir(t, name), os.Stderr
			out, err := cmd.Output()
			if err != nil {
				t.Fatal(err)
			}
			lines := strings.Split(strings.TrimSpace(string(out)), "\n")
			if len(lines) != len(vectors.Cases) {
				t.Fatalf("%d verdicts on %d vectors", len(lines), len(vectors.Cases))
			}
			for i, want := range vectors.Cases {
				var got struct {
					Name, Subject string
					Valid         bool
				}
				if err := json.Unmarshal([]byte(lines[i]), &got); err != nil || got.Name != want.Name || got.Valid != want.Valid || got.Subject != want.Subject {
					t.Errorf("%s, want %+v", lines[i], want)
				}
			}
		})
	}
}

// TestExamples_Upstreams: each example service, behind a real gateway, knows who
// calls, and lets nobody in who comes another way.
func TestExamples_Upstreams(t *testing.T) {
	services := map[string]func(t *testing.T, addr string) (dir string, command []string){
		"node": func(t *testing.T, _ string) (string, []string) {
			return exampleDir(t, "node"), []string{"node", "server.mjs"}
		},
		"python": func(t *testing.T, _ string) (string, []string) {
			return exampleDir(t, "python"), []string{systemPython, "-B", "server.py"}
		},
		"php": func(t *testing.T, addr string) (string, []string) {
			return exampleDir(t, "php"), []string{"php", "-S", addr, "server.php"}
		},
		"go": func(t *testing.T, _ string) (string, []string) { return "", []string{built(t, "go")} },
	}
	for name, service := range services {
		t.Run(name, func(t *testing.T) {
			addr := freeAddr(t)
			g := start(t, options{auth: fmt.Sprintf(withAssertion, ""), raw: "http://{addr} {\nauth_wellknown\nauth\nreverse_proxy " + addr + "\n}"})
			dir, command := service(t, addr)
			run(t, dir, append(os.Environ(), "KEYS_URL=http://"+g.addr+"/.well-known/jwks.json", "AUDIENCE=orders", "PORT="+port(addr), "TMPDIR="+t.TempDir()), command...)
			key := g.key(manage.KeySpec{Owner: "acme", Scopes: []string{"orders:read"}}).Text.Reveal()
			var a answer
			eventually(t, "the service answers", func() bool {
				a = g.do("GET", "/orders/7%20a?page=2", "X-API-Key", key)
				return a.Status != 502
			})
			if a.Status != 200 || !strings.Contains(a.Body, "acme") || !strings.Contains(a.Body, "orders:read") {
				t.Fatalf("%d %s", a.Status, a.Body)
			}
			if a := g.do("POST", "/orders", "X-API-Key", key); a.Status != 200 {
				t.Errorf("POST: %d %s", a.Status, a.Body)
			}
			for what, header := range map[string]string{"nothing": "", "nonsense": "x", "headers that the gateway would set": "-"} {
				r, err := http.NewRequest("GET", "http://"+addr+"/orders/7", nil)
				if err != nil {
					t.Fatal(err)
				}
				if header != "" {
					r.Header.Set("X-Auth-Assertion", header)
				}
				r.Header.Set("X-Auth-Subject", "acme")
				res, err := http.DefaultTransport.RoundTrip(r)
				if err != nil {
					t.Fatal(err)
				}
				if a := readAnswer(t, res); a.Status != 401 {
					t.Errorf("past the gateway, %s: %d %s", what, a.Status, a.Body)
				}
			}
		})
	}
}

// run runs a program until the test ends.
func run(t *testing.T, dir string, env []string, command ...string) (in io.Writer, out *bufio.Scanner) {
	t.Helper()
	cmd := exec.Command(command[0], command[1:]...)
	cmd.Dir, cmd.Env = dir, env
	stdin, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	var errs strings.Builder
	cmd.Stderr = &errs
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = stdin.Close()
		_ = cmd.Process.Kill()
		_ = cmd.Wait() // it was killed
		if t.Failed() && errs.Len() > 0 {
			t.Logf("%s: %s", command, errs.String())
		}
	})
	return stdin, bufio.NewScanner(stdout)
}

// TestExamples_Clients: real clients get a token, call the API, go on after the
// token was ended, and after it expired, and are refused when they are revoked.
func TestExamples_Clients(t *testing.T) {
	g := startOAuth(t, options{site: "auth_token\nauth_revoke\nauth_introspect\nauth_wellknown\nauth {\nrequire_scope orders:read\n}"})
	key := newClientKey(t)
	der, err := x509.MarshalPKCS8PrivateKey(key.PrivateKey)
	if err != nil {
		t.Fatal(err)
	}
	private := filepath.Join(t.TempDir(), "key.pem")
	if err := os.WriteFile(private, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}), 0o600); err != nil {
		t.Fatal(err)
	}
	dir := exampleDir(t, "clients")
	const lifetime = 10 * time.Second // the shortest there is
	type example struct {
		name string
		ask  func(line string) string
		id   string
	}
	var examples []example
	for name, command := range map[string][]string{"go": {built(t, "clients/go")}, "openid-client": {"node", "openid-client.mjs"}, "oauth4webapi": {"node", "oauth4webapi.mjs"}, "curl": {"bash", "curl.sh"}} {
		spec := manage.ClientSpec{TokenLifetime: lifetime}
		if name == "oauth4webapi" {
			spec.JWKS = key.jwks()
		}
		c := g.client(spec)
		in, out := run(t, dir, append(os.Environ(), "ISSUER=http://"+g.addr, "API_URL=http://"+g.addr+"/orders", "CLIENT_ID="+c.Client.ID, "CLIENT_SECRET="+c.Secret.Reveal(), "PRIVATE_KEY="+private), command...)
		examples = append(examples, example{name, func(line string) string {
			fmt.Fprintln(in, line)
			if !out.Scan() {
				return "it ended"
			}
			return out.Text()
		}, c.Client.ID})
	}
	want := func(e example, line, want string) {
		t.Helper()
		if got := e.ask(line); !strings.Contains(got, want) {
			t.Errorf("%s, %s: %s, want %s", e.name, line, got, want)
		}
		g.upstream.take()
	}
	for _, e := range examples {
		want(e, "call", `"status":200`)
		want(e, "call", `"status":200`)
		want(e, "revoke", `"status":200`)
		want(e, "call", `"status":200`)
	}
	tokens := func() (n int) {
		for _, line := range g.logLines("http.handlers.auth_token") {
			if line["msg"] == "issued a token" {
				n++
			}
		}
		return n
	}
	before := tokens()
	last := g.token(g.client(manage.ClientSpec{TokenLifetime: lifetime}), "")
	within(t, 3*lifetime, "all of them have expired", func() bool { return g.bearer(last).Status == 401 })
	g.upstream.take()
	for _, e := range examples {
		want(e, "call", `"status":200`)
	}
	if n := tokens() - before - 1; n != len(examples) {
		t.Errorf("%d new tokens for %d clients", n, len(examples))
	}
	for _, e := range examples {
		if _, err := g.manager().RevokeClients(t.Context(), []string{e.id}, "left"); err != nil {
			t.Fatal(err)
		}
	}
	for _, e := range examples {
		var got string
		eventually(t, e.name+" is refused", func() bool { got = e.ask("call"); return !strings.Contains(got, `"status":200`) })
		if !strings.Contains(got, `"error":"invalid_client"`) {
			t.Errorf("%s after its revocation: %s", e.name, got)
		}
	}
	g.upstream.take()
	g.want(g.bearer(last), 401, auth.CodeInvalidCredential)
}

// TestExamples_KeysAway: a service that can't have the gateway's keys, or is told
// nonsense, answers 503, never 200 and never that the assertion is bad; when the
// keys are there again it goes on.
func TestExamples_KeysAway(t *testing.T) {
	for name, command := range map[string][]string{"python": {systemPython, "-B", "server.py"}, "php": {"php", "server.php"}, "node": {"node", "server.mjs"}} {
		t.Run(name, func(t *testing.T) {
			g := start(t, options{auth: fmt.Sprintf(withAssertion, ""), site: "auth_wellknown\nauth"})
			saw := g.ok(g.do("GET", "/", "X-API-Key", g.plainKey()))
			for what, body := range map[string]string{"no set": "5", "an empty set": `{"keys":[]}`, "members that are none": `{"keys":[1,{"kid":7},{"kid":"a","alg":"EdDSA","crv":"Ed25519","x":"AA"},{"kid":"b","alg":"ES256","crv":"P-256","x":"!"}]}`, "deep": strings.Repeat("[", 50_000), "HTML": "<p>"} {
				keys := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
					w.Header().Set("Content-Type", "application/json")
					_, _ = io.WriteString(w, body)
				}))
				addr := freeAddr(t)
				program := command
				if name == "php" {
					program = []string{"php", "-S", addr, "server.php"}
				}
				run(t, exampleDir(t, name), append(os.Environ(), "KEYS_URL="+keys.URL, "AUDIENCE=orders", "PORT="+port(addr), "TMPDIR="+t.TempDir()), program...)
				var a answer
				eventually(t, "the service answers", func() bool {
					r, err := http.NewRequest("GET", "http://"+addr+"/", nil)
					if err != nil {
						t.Fatal(err)
					}
					r.Header.Set("X-Auth-Assertion", saw.Header.Get("X-Auth-Assertion"))
					res, err := http.DefaultTransport.RoundTrip(r)
					if err != nil {
						return false
					}
					a = readAnswer(t, res)
					return true
				})
				if a.Status != http.StatusServiceUnavailable {
					t.Errorf("%s: %d %s", what, a.Status, a.Body)
				}
				keys.Close()
			}
		})
	}
}
