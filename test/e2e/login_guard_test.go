package e2e

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/textproto"
	"strings"
	"testing"
	"time"
)

// rawUpstream answers every connection with the same bytes.
func rawUpstream(t testing.TB, answer string) string {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer conn.Close()
				if _, err := http.ReadRequest(bufio.NewReader(conn)); err == nil {
					_, _ = io.WriteString(conn, answer)
				}
			}()
		}
	}()
	return l.Addr().String()
}

// TestSession_UpstreamAnswers: no part of an answer sets or clears our cookies:
// neither informational answers, nor trailers, nor an upgrade, nor Clear-Site-Data.
func TestSession_UpstreamAnswers(t *testing.T) {
	const evil = "Set-Cookie: __Host-caddy-auth-session-corp=evil; Path=/; Secure\r\nClear-Site-Data: \"*\"\r\nclear-site-data: \"cookies\", \"storage\"\r\n"
	const chunked = "Transfer-Encoding: chunked\r\n"
	p := newOP(t)
	for what, answer := range map[string]string{
		"1xx":                   "HTTP/1.1 103 Early Hints\r\n" + evil + "Link: </x>\r\n\r\nHTTP/1.1 102 Processing\r\n" + evil + "\r\nHTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok",
		"a header":              "HTTP/1.1 200 OK\r\n" + evil + "Content-Length: 2\r\n\r\nok",
		"trailers":              "HTTP/1.1 200 OK\r\n" + chunked + "Trailer: Set-Cookie, Clear-Site-Data, X-Sum\r\n\r\n2\r\nok\r\n0\r\n" + evil + "X-Sum: 1\r\n\r\n",
		"trailers unannounced":  "HTTP/1.1 200 OK\r\n" + chunked + "\r\n2\r\nok\r\n0\r\n" + evil + "X-Sum: 1\r\n\r\n",
		"trailers and headers":  "HTTP/1.1 200 OK\r\n" + chunked + evil + "Trailer: Set-Cookie\r\nTrailer: X-Sum\r\n\r\n2\r\nok\r\n0\r\n" + evil + "X-Sum: 1\r\n\r\n",
		"an error":              "HTTP/1.1 500 Oops\r\n" + evil + "Content-Length: 2\r\n\r\nok",
		"a redirect":            "HTTP/1.1 302 Found\r\nLocation: /x\r\n" + evil + "Content-Length: 2\r\n\r\nok",
		"nothing but a header":  "HTTP/1.1 204 No Content\r\n" + evil + "\r\n",
		"an upgrade":            "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n" + evil + "\r\n",
		"an event stream":       "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n" + evil + "Connection: close\r\n\r\ndata: 1\n\n",
		"a trailer of TrailerX": "HTTP/1.1 200 OK\r\n" + chunked + "Trailer:Set-Cookie: __Host-caddy-auth-session-corp=evil\r\n\r\n2\r\nok\r\n0\r\n\r\n",
	} {
		upstream := rawUpstream(t, answer)
		g := start(t, options{auth: loginConf(p, ""), raw: "http://{addr} {\nauth_login corp {\noptional\n}\nreverse_proxy " + upstream + "\n}"})
		conn, err := net.Dial("tcp", g.addr)
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		_ = conn.SetDeadline(time.Now().Add(10 * time.Second))
		upgrade := ""
		if what == "an upgrade" {
			upgrade = "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n"
		} else {
			upgrade = "Connection: close, TE\r\nTE: trailers\r\n"
		}
		fmt.Fprintf(conn, "GET / HTTP/1.1\r\nHost: %s\r\n%s\r\n", g.addr, upgrade)
		all, err := io.ReadAll(conn)
		if err != nil || len(all) == 0 {
			t.Fatalf("%s: %v", what, err)
		}
		low := strings.ToLower(string(all))
		if strings.Contains(low, "__host-") || strings.Contains(low, `"*"`) || strings.Contains(low, `"cookies"`) {
			t.Errorf("%s: the browser would see %s", what, all)
		}
		if strings.HasPrefix(what, "trailers") && !strings.Contains(low, "x-sum: 1") {
			t.Errorf("%s: the upstream's own trailer is gone: %s", what, all)
		}
		// The same service behind the error routes.
		e := start(t, options{auth: loginConf(p, ""), raw: "http://{addr} {\nauth_login corp {\nerrors handle_errors\n}\nhandle_errors {\nreverse_proxy " + upstream + "\n}\n}"})
		if a := e.get("/", "Accept: */*", "Cookie: __Host-caddy-auth-session-corp=x"); what != "1xx" && what != "an upgrade" && strings.Contains(strings.ToLower(fmt.Sprint(a.Header)), "__host-") {
			t.Errorf("%s, behind the error routes: %v", what, a.Header)
		}
		if what == "a header" && !strings.Contains(low, `"storage"`) {
			t.Errorf("%s: what else the upstream clears is gone: %s", what, all)
		}
	}
}

// TestBackChannelLogout_SlowBody: a body that never ends holds nothing for long,
// whoever reads it.
func TestBackChannelLogout_SlowBody(t *testing.T) {
	p := newOP(t)
	g := start(t, options{auth: loginConf(p, "") + "\ntoken_endpoint {\nissuer https://gw.example.com\n}", site: "auth_token\nauth_revoke\nauth_introspect\nauth_login corp"})
	type end struct {
		target string
		status string
	}
	ends := make(chan end, 64)
	n := 0
	for _, target := range []string{"/auth/backchannel-logout", "/auth/logout", "/oauth/token", "/oauth/revoke", "/oauth/introspect"} {
		for _, length := range []string{"Content-Length: 1000", "Transfer-Encoding: chunked"} {
			n++
			go func() {
				conn, err := net.Dial("tcp", g.addr)
				if err != nil {
					ends <- end{target, err.Error()}
					return
				}
				defer conn.Close()
				_ = conn.SetDeadline(time.Now().Add(90 * time.Second))
				fmt.Fprintf(conn, "POST %s HTTP/1.1\r\nHost: %s\r\nContent-Type: application/x-www-form-urlencoded\r\nSec-Fetch-Site: same-origin\r\n%s\r\n\r\n", target, g.addr, length)
				line, err := textproto.NewReader(bufio.NewReader(conn)).ReadLine()
				if err != nil {
					line = err.Error()
				}
				ends <- end{target, line}
			}()
		}
	}
	for range n {
		if e := <-ends; !strings.HasPrefix(e.status, "HTTP/1.1 400") && !strings.HasPrefix(e.status, "HTTP/1.1 408") && !strings.HasPrefix(e.status, "HTTP/1.1 303") {
			t.Errorf("%s: %s", e.target, e.status)
		}
	}
}

// TestSession_GuardBesideLogins: a site without a login, on the host of one, does
// not let its service set or clear the login's cookies either.
func TestSession_GuardBesideLogins(t *testing.T) {
	p := newOP(t)
	evil := rawUpstream(t, "HTTP/1.1 200 OK\r\nSet-Cookie: __Host-caddy-auth-session-corp=evil; Path=/; Secure\r\nSet-Cookie: app=1\r\nClear-Site-Data: \"cookies\"\r\nContent-Length: 2\r\n\r\nok")
	g := start(t, options{auth: loginConf(p, ""), raw: "http://{addr} {\nhandle /api/* {\nauth {\npublic /api/open\n}\nreverse_proxy " + evil + "\n}\nhandle {\nauth_login corp\nreverse_proxy {upstream}\n}\n}"})
	for target, lines := range map[string][]string{"/api/open": nil, "/api/x": {"X-API-Key: " + g.plainKey()}} {
		a := g.get(target, lines...)
		if got := a.Header["Set-Cookie"]; a.Status != 200 || len(got) != 1 || got[0] != "app=1" || len(a.Header["Clear-Site-Data"]) > 0 {
			t.Errorf("%s: %d %v", target, a.Status, a.Header)
		}
	}
}
