package e2e

import (
	"crypto/tls"
	"strings"
	"testing"

	"github.com/caddy-auth/caddy-auth/internal/manage"
)

// TestRedirect_CredentialInURL: a redirect from HTTP to HTTPS repeats no credential,
// and one that was sent in clear is audited; Caddy's own redirect and a site's.
func TestRedirect_CredentialInURL(t *testing.T) {
	addrs := freeAddrs(t, 3)
	plain, https, other := addrs[0], addrs[1], addrs[2]
	o := tlsSite(https, "auth {\nallow_query cursor\n}\nreverse_proxy {upstream}")
	o.full = strings.Replace(o.full, "auto_https disable_redirects", "http_port "+port(plain)+"\nhttps_port "+port(https), 1)
	o.full += "\nhttp://localhost:" + port(other) + " {\nhandle /there/* {\nredir https://localhost:" + port(https) + "{uri} 302\n}\nhandle {\nreverse_proxy {upstream}\n}\n}\n"
	g := start(t, o)
	eventually(t, "a certificate", func() bool {
		conn, err := tls.Dial("tcp", https, insecureTLS())
		return err == nil && conn.Close() == nil
	})
	made := g.key(manage.KeySpec{})
	key := made.Text.Reveal()
	for _, at := range []string{plain, other} {
		g.addr = at
		ask := func(target string) answer {
			return g.raw("GET " + target + " HTTP/1.1\r\nHost: localhost\r\nX-Auth-Subject: admin\r\nConnection: close\r\n\r\n")
		}
		for _, target := range []string{"/there/p?api_key=" + key, "/there/p?x=" + key, "/there/" + key, "/there/p?api_key=made-up"} {
			a := ask(target)
			if a.Status != 400 || a.Code != "credential_in_query" || a.Header.Get("Location") != "" || strings.Contains(a.Body, key[10:]) {
				t.Errorf("%s: %d %v %s", target, a.Status, a.Header, a.Body)
			}
		}
		for target, want := range map[string]string{"/there/p?q=1": "/there/p?q=1", "/there/p?cursor=abc": "/there/p?cursor=abc"} {
			if a := ask(target); a.Status/100 != 3 || !strings.HasSuffix(a.Header.Get("Location"), want) || !strings.HasPrefix(a.Header.Get("Location"), "https://localhost") {
				t.Errorf("%s: %d %v", target, a.Status, a.Header)
			}
		}
	}
	// A site without auth keeps what belongs to it.
	if a := g.raw("GET /p?api_key=theirs HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"); a.Status != 200 {
		t.Errorf("a site without auth: %d", a.Status)
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

// TestRedirect_OnTheSameServer: sites of one server keep their routes, and those that
// redirect repeat no credential, whether auth stands before or behind them.
func TestRedirect_OnTheSameServer(t *testing.T) {
	for _, hosts := range [][3]string{{"a.test", "m.test", "z.test"}, {"z.test", "m.test", "a.test"}} {
		g := start(t, options{raw: "http://" + hosts[0] + ":{port} {\nredir https://" + hosts[0] + "{uri}\n}\n" +
			"http://" + hosts[1] + ":{port} {\nauth\nredir /old https://new.test{uri}\nreverse_proxy {upstream}\n}\n" +
			"http://" + hosts[2] + ":{port} {\nreverse_proxy {upstream}\n}"})
		key := g.plainKey()
		ask := func(host, target string, more ...string) answer {
			return g.raw("GET " + target + " HTTP/1.1\r\nHost: " + host + "\r\n" + strings.Join(append(more, "Connection: close"), "\r\n") + "\r\n\r\n")
		}
		if a := ask(hosts[0], "/p?api_key="+key); a.Status != 400 || a.Code != "credential_in_query" || a.Header.Get("Location") != "" {
			t.Errorf("%v: %d %v", hosts, a.Status, a.Header)
		}
		if a := ask(hosts[0], "/p?q=1"); a.Status != 302 || a.Header.Get("Location") != "https://"+hosts[0]+"/p?q=1" {
			t.Errorf("%v: %d %v", hosts, a.Status, a.Header)
		}
		if s := g.ok(ask(hosts[1], "/x", "X-API-Key: "+key)); s.Header.Get("X-Auth-Subject") != "acme" {
			t.Errorf("%v: %v", hosts, s.Header)
		}
		if a := ask(hosts[1], "/x"); a.Status != 401 {
			t.Errorf("%v: %d", hosts, a.Status)
		}
		if s := g.ok(ask(hosts[2], "/x?api_key=theirs")); s.Target != "/x?api_key=theirs" {
			t.Errorf("%v: %+v", hosts, s)
		}
	}
}
