package e2e

import (
	"bufio"
	"crypto/tls"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/caddy-auth/caddy-auth/test/servers"
)

// TestPeer_Browser: what people do, in Chromium, with oidc-provider; see
// test/peers/browser.mjs. With SCREENSHOTS the pictures are kept there.
func TestPeer_Browser(t *testing.T) {
	addr := freeAddr(t)
	origin := "https://localhost:" + port(addr)
	issuer, stop := node(t, "login-provider.mjs", port(freeAddr(t)), origin, "6")
	r := servers.StartRedis(t)
	g := start(t, options{full: `{
		admin off
		persist_config off
		skip_install_trust
		auto_https disable_redirects
		storage file_system {dir}/caddy
		log {
			output file {dir}/log.json
			format auth_redact
			level DEBUG
		}
		auth {
			store sqlite {dir}/auth.db
			poll_interval 20ms
			redis ` + r.URL() + `
			login corp {
				issuer ` + issuer + `
				client_id gw
				client_secret "login secret: %&+"
				scopes openid offline_access
			}
		}
	}
	` + origin + ` {
		tls internal
		auth_login corp
		handle /api/* {
			reverse_proxy {upstream} {
				transport auth_outbound user
			}
		}
		handle {
			header Content-Type "text/html; charset=utf-8"
			respond "<!doctype html><html lang=en><title>page</title><h1>Hello {http.auth.user.id}</h1><form method=post action=/form><button>send</button></form>"
		}
	}`})
	eventually(t, "a certificate", func() bool {
		conn, err := tls.Dial("tcp", "localhost:"+port(addr), insecureTLS())
		return err == nil && conn.Close() == nil
	})
	shots := os.Getenv("SCREENSHOTS")
	if shots == "" {
		shots = t.TempDir()
	}
	cmd := exec.Command("node", "browser.mjs", origin, issuer, shots)
	cmd.Dir = filepath.Join("..", "peers")
	var said strings.Builder
	cmd.Stderr = &said
	in, err1 := cmd.StdinPipe()
	out, err2 := cmd.StdoutPipe()
	if err1 != nil || err2 != nil || cmd.Start() != nil {
		t.Fatal(err1, err2)
	}
	late := time.AfterFunc(90*time.Second, func() { _ = cmd.Process.Kill() })
	defer late.Stop()
	done, step := false, "the beginning"
	for lines := bufio.NewScanner(out); lines.Scan(); {
		switch word, rest, _ := strings.Cut(lines.Text(), " "); word {
		case "STEP":
			step = rest
			t.Log(time.Now().Format("05.000"), step)
		case "DONE":
			done = true
		case "DO":
			switch rest {
			case "kill":
				stop()
				r.Kill()
			case "restart":
				if again, _ := node(t, "login-provider.mjs", strings.TrimPrefix(issuer, "http://127.0.0.1:"), origin, "6"); again != issuer {
					t.Fatal(again)
				}
				r.Start()
			}
			if _, err := io.WriteString(in, "done\n"); err != nil {
				t.Fatal(err)
			}
		}
	}
	if err := cmd.Wait(); err != nil || !done {
		t.Fatalf("at %q: %v\n%.3000s", step, err, said.String())
	}
	if logs := g.logs(); strings.Contains(logs, "login secret") || strings.Contains(logs, "eyJ") {
		t.Error("a secret is in the logs")
	}
}
