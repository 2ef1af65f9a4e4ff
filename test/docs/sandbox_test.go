package docs

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/caddy-auth/caddy-auth/internal/auth"
	"github.com/caddy-auth/caddy-auth/internal/secret"
	"github.com/caddy-auth/caddy-auth/internal/store"
	"github.com/caddy-auth/caddy-auth/internal/store/sqlite"
	"github.com/caddy-auth/caddy-auth/test/servers"
)

// elsewhere are commands that need what no test has, or that other tests run. Files
// of the project that they name must exist all the same.
var elsewhere = regexp.MustCompile(`^(sudo |docker |xcaddy |createuser |make |go run |curl https://gate)`)

// sandbox is where the commands of the documents run: an operator's machine.
type sandbox struct {
	t    *testing.T
	dir  string
	env  []string
	fill *strings.Replacer
}

func (s *sandbox) run(script string) (string, error) {
	s.t.Helper()
	cmd := exec.Command("bash", "-euo", "pipefail", "-c", script)
	cmd.Dir, cmd.Env = s.dir, s.env
	out, err := cmd.CombinedOutput()
	return string(out), err
}

// must runs a script whose standard output is wanted.
func (s *sandbox) must(script string) string {
	s.t.Helper()
	cmd := exec.Command("bash", "-euo", "pipefail", "-c", script)
	cmd.Dir, cmd.Env = s.dir, s.env
	out, err := cmd.Output()
	if err != nil {
		var exit *exec.ExitError
		if errors.As(err, &exit) {
			err = fmt.Errorf("%w: %s", err, exit.Stderr)
		}
		s.t.Fatalf("%s: %v", script, err)
	}
	return strings.TrimSpace(string(out))
}

// gatewayConfig is that of the sandbox: the parts that the documents' commands
// speak of.
const gatewayConfig = `{
	admin off
	persist_config off
	auto_https off
	storage file_system {dir}/caddy
	log {
		output file {dir}/log.json
		format auth_redact
	}
	auth {
		store sqlite {dir}/auth.db
		token_endpoint https://api.example.com {
			exchange
		}
		identity_headers {
			assertion {
				audience orders
			}
		}
		issuer corp {
			url https://idp.example.com
			audience api
		}
		login corp1 {
			issuer https://idp.example.com
			client_id gateway
			client_secret file {dir}/secret
		}
		outbound billing {
			token_url http://{idp}/token
			client_id gateway
			client_secret file {dir}/secret
		}
	}
}
http://:{port} {
	auth_token /oauth/token
	auth_wellknown
	auth
	reverse_proxy {upstream}
}
https://api.example.com:443 {
	auth
	reverse_proxy {upstream}
}
`

func newSandbox(t *testing.T) *sandbox {
	dir := t.TempDir()
	bin := filepath.Join(dir, "bin")
	if out, err := exec.Command("go", "build", "-o", filepath.Join(bin, "caddy-auth"), "../../cmd/caddy-auth").CombinedOutput(); err != nil {
		t.Fatalf("building: %v: %s", err, out)
	}
	upstream := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method == http.MethodPost { // it is a token endpoint too
			w.Header().Set("Content-Type", "application/json")
			_, _ = io.WriteString(w, `{"access_token":"upstream.token","token_type":"Bearer","expires_in":600}`)
			return
		}
		_, _ = io.WriteString(w, "orders for "+r.Header.Get("X-Auth-Subject")+"\n")
	}))
	t.Cleanup(upstream.Close)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	_, port, _ := net.SplitHostPort(l.Addr().String())
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	s := &sandbox{t: t, dir: dir, env: append(os.Environ(), "PATH="+bin+":"+os.Getenv("PATH"), "HOME="+dir, "XDG_DATA_HOME="+dir, "XDG_CONFIG_HOME="+dir, "CADDY_AUTH_CONFIG="+dir+"/Caddyfile", "AUTH_DSN="+servers.StartPostgres(t).DSN(), "AUTH_MASTER_KEY=MDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY3ODlhYmNkZWY=")}
	addr := upstream.Listener.Addr().String()
	config := strings.NewReplacer("{dir}", dir, "{port}", port, "{upstream}", addr, "{idp}", addr).Replace(gatewayConfig)
	for name, text := range map[string]string{"Caddyfile": config, "secret": "s3cret\n"} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.MkdirAll(filepath.Join(dir, "backup"), 0o700); err != nil {
		t.Fatal(err)
	}
	s.must("caddy-auth store init")
	key := s.must("caddy-auth key create --owner acme-billing --scope orders:read --json")
	var made struct{ ID, Key string }
	if err := json.Unmarshal([]byte(key), &made); err != nil {
		t.Fatal(err)
	}
	s.must("caddy-auth key create --owner acme-billing --scope orders:read --out key.txt; cp key.txt leaked.txt")
	session := s.session()
	s.must("caddy-auth store backup --out backup/auth-2026-11-22.db")
	s.fill = strings.NewReplacer("key_01a2…", made.ID, "key_…", made.ID, "ses_01a2…", session, "7f3a…", "7f3a", "/backup/", dir+"/backup/",
		"pass show api/key", "cat key.txt", "/etc/caddy-auth/", dir+"/", "https://api.example.com/o", "http://127.0.0.1:"+port+"/o", "corp --yes", "corp1 --yes")
	s.serve(port)
	return s
}

// session puts a session of somebody who signed in by corp1 into the store.
func (s *sandbox) session() string {
	t := s.t
	check := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	backend := sqlite.New(filepath.Join(s.dir, "auth.db"))
	master, err := backend.MasterKey()
	check(err)
	raw, err := secret.ParseMasterKey(master)
	check(err)
	ring, err := secret.NewRing("store secrets", raw)
	check(err)
	db, err := store.Open(context.Background(), backend, store.Existing)
	check(err)
	defer db.Close()
	id := uuid.Must(uuid.NewV7()).String()
	check(db.InsertSession(context.Background(), ring, &auth.Session{
		ID: "ses_" + id, Fingerprint: auth.SessionFingerprint("corp1", id), Login: "corp1", Subject: "corp:alice", Sub: "alice", SID: "s-alice",
		Environment: "live", Scopes: "openid", JudgedBy: "another configuration", Meta: auth.EncodeMeta(nil, nil),
	}, time.Now(), []byte(`{"v":1,"access":"x"}`), time.Hour, 2*time.Hour))
	return "ses_" + id
}

// serve runs the sandbox's gateway until the test ends. The site on port 443 is for
// explain only.
func (s *sandbox) serve(port string) {
	text, err := os.ReadFile(filepath.Join(s.dir, "Caddyfile"))
	if err != nil {
		s.t.Fatal(err)
	}
	served, _, _ := strings.Cut(string(text), "https://api.example.com:443")
	if err := os.WriteFile(filepath.Join(s.dir, "served"), []byte(served), 0o600); err != nil {
		s.t.Fatal(err)
	}
	cmd := exec.Command(filepath.Join(s.dir, "bin", "caddy-auth"), "run", "--config", "served", "--adapter", "caddyfile")
	cmd.Dir, cmd.Env, cmd.Stderr = s.dir, s.env, os.Stderr
	if err := cmd.Start(); err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait() // it was killed
	})
	for deadline := time.Now().Add(30 * time.Second); ; <-time.NewTimer(20 * time.Millisecond).C {
		res, err := http.Get("http://127.0.0.1:" + port + "/")
		if err == nil {
			_ = res.Body.Close()
			if res.StatusCode == http.StatusUnauthorized {
				return
			}
		}
		if time.Now().After(deadline) {
			s.t.Fatalf("the gateway does not answer: %v", err)
		}
	}
}

// prompt begins a command in a block that shows output too.
const prompt = "$ "

// script is what of a block is to be run.
func (s *sandbox) script(t *testing.T, f *fence) string {
	var out []string
	shown := strings.HasPrefix(f.text, prompt)
	for line := range strings.Lines(f.text) {
		command := strings.TrimPrefix(line, prompt)
		if shown && command == line {
			continue // what it printed
		}
		if elsewhere.MatchString(command) {
			for _, name := range regexp.MustCompile(`\b(packaging|cmd|examples|test)/[A-Za-z0-9_./-]+`).FindAllString(command, -1) {
				if _, err := os.Stat(filepath.Join("../..", name)); err != nil {
					t.Errorf("%s names %s: %v", f.at(), name, err)
				}
			}
			continue
		}
		out = append(out, command)
	}
	return s.fill.Replace(strings.Join(out, ""))
}
