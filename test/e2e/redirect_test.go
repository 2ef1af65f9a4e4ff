package e2e

import (
	"crypto/tls"
	"strings"
	"testing"

	"github.com/caddy-auth/caddy-auth/internal/manage"
)

// TestRedirect_CredentialInURL: Caddy's own redirect from HTTP to HTTPS repeats no
// credential, and one that was sent in clear is audited. It is tried several times,
// since Caddy sets servers up in random order, and with the redirects in a server of
// their own and in one that has sites without auth too.
func TestRedirect_CredentialInURL(t *testing.T) {
	for round := range 6 {
		addrs := freeAddrs(t, 2)
		plain, https := addrs[0], addrs[1]
		o := tlsSite(https, "auth {\nallow_query cursor\n}\nreverse_proxy {upstream}")
		o.full = strings.Replace(o.full, "auto_https disable_redirects", "http_port "+port(plain)+"\nhttps_port "+port(https), 1)
		if shared := round%2 == 1; shared {
			o.full += "\nhttp://other.test {\nredir /old* https://new.test{uri}\nreverse_proxy {upstream}\n}\n"
		}
		g := start(t, o)
		eventually(t, "a certificate", func() bool {
			conn, err := tls.Dial("tcp", https, insecureTLS())
			return err == nil && conn.Close() == nil
		})
		made := g.key(manage.KeySpec{})
		key := made.Text.Reveal()
		g.addr = plain
		ask := func(host, target string) answer {
			return g.raw("GET " + target + " HTTP/1.1\r\nHost: " + host + "\r\nX-Auth-Subject: admin\r\nConnection: close\r\n\r\n")
		}
		for _, target := range []string{"/p?api_key=" + key, "/p?x=" + key, "/a/" + key, "/p?api_key=made-up"} {
			a := ask("localhost", target)
			if a.Status != 400 || a.Code != "credential_in_query" || a.Header.Get("Location") != "" || strings.Contains(a.Body, key[10:]) {
				t.Errorf("round %d: %s: %d %v %s", round, target, a.Status, a.Header, a.Body)
			}
		}
		for _, target := range []string{"/p?q=1", "/p?cursor=abc"} {
			if a := ask("localhost", target); a.Status != 308 || a.Header.Get("Location") != "https://localhost"+target {
				t.Errorf("round %d: %s: %d %v", round, target, a.Status, a.Header)
			}
		}
		if round%2 == 1 { // a site without auth keeps what belongs to it
			if s := g.ok(ask("other.test", "/reset?token=theirs")); s.Target != "/reset?token=theirs" {
				t.Errorf("round %d: %+v", round, s)
			}
			if a := ask("other.test", "/old?token=theirs"); a.Status != 302 || a.Header.Get("Location") != "https://new.test/old?token=theirs" {
				t.Errorf("round %d: %d %v", round, a.Status, a.Header)
			}
		}
		eventually(t, "the audit", func() bool {
			for _, line := range g.logLines("auth.audit") {
				if line["action"] == "key.leaked" && line["credential_id"] == made.Key.ID {
					return true
				}
			}
			return false
		})
		if strings.Contains(g.logs(), key[len(key)-40:]) {
			t.Error("the log has the key")
		}
	}
}
