package e2e

import (
	"encoding/base64"
	"encoding/hex"
	"net/url"
	"strings"
	"testing"

	"github.com/caddy-auth/caddy-auth/internal/auth"
	"github.com/caddy-auth/caddy-auth/internal/manage"
)

func TestKeysInURLsAreRefused(t *testing.T) {
	g := start(t, options{site: "auth {\npublic /open\n}"})
	key := g.plainKey()
	jwt := base64.RawURLEncoding.EncodeToString([]byte(`{"alg":"RS256"}`)) + "." + base64.RawURLEncoding.EncodeToString([]byte(`{}`)) + ".c2ln"
	for _, target := range []string{
		"/?api_key=" + key, "/?API-KEY=" + key, "/?x-api-key=" + key, "/?apikey=", "/?api_key", "/?access_token=" + jwt, "/?token=x", "/?key=x", "/?password=x",
		"/?%61%70%69%5f%6b%65%79=x", "/?%2561pi_key=x", "/?a=1;api_key=x", "/?api_key[]=x", "/?a[api_key]=x", "/?a.api_key=x", "/?a=%zz&api_key=x",
		"/?api_key=1&api_key=2", "/?q=" + key, "/?q=" + url.QueryEscape("https://x/?k="+key), "/" + key, "/a/" + jwt + "/b", "/?" + key + "=1",
		"http://" + g.addr + "/?api_key=x", "/open?api_key=" + key, "/open/?token=x", "/%" + "3Fapi_key=x",
	} {
		for _, lines := range [][]string{nil, {"X-API-Key: " + key}} {
			a := g.get(target, lines...)
			g.want(a, 400, auth.CodeCredentialInQuery)
			if strings.Contains(a.Body, key[10:30]) || strings.Contains(a.Body, jwt[:20]) {
				t.Errorf("%s: the answer repeats the secret: %s", target, a.Body)
			}
		}
	}
	for _, method := range []string{"POST", "OPTIONS", "HEAD", "DELETE", "TRACE", "PROPFIND", "QUERY"} {
		a := g.raw(method + " /?api_key=x HTTP/1.1\r\nHost: " + g.addr + "\r\nConnection: close\r\n\r\n")
		if a.Status != 400 {
			t.Errorf("%s: %d", method, a.Status)
		}
	}
	if a := g.raw("GET /?api_key=x HTTP/1.0\r\nHost: " + g.addr + "\r\n\r\n"); a.Status != 400 {
		t.Errorf("HTTP/1.0: %d", a.Status)
	}
	for _, target := range []string{"http://user:pw@" + g.addr + "/", "/a#b", "/?a#b"} {
		if a := g.get(target, "X-API-Key: "+key); a.Status != 400 || len(g.upstream.take()) != 0 {
			t.Errorf("%s: %d", target, a.Status)
		}
	}
}

func TestLookAlikesPassByteForByte(t *testing.T) {
	g := start(t, options{site: "auth"})
	key := g.plainKey()
	for _, target := range []string{
		"/?keyword=x", "/?q=api_key", "/?page[size]=10&page[key]=2", "/?monkey=1", "/?q=%zz", "/?a=b;c=d", "/?q=%C3%A9+x%20y", "/?tokens=2&keys=3", "/v1.2/a-b_c~d",
		"/?empty=&=x&&", "/?state=" + base64.RawURLEncoding.EncodeToString([]byte(`{"alg":"RS256"}`)) + ".e30.c2ln", "/a%20b/c%2Fd",
	} {
		if s := g.ok(g.get(target, "X-API-Key: "+key)); s.Target != target {
			t.Errorf("%s arrived as %s", target, s.Target)
		}
	}
}

func TestAllowAndRefuseQuery(t *testing.T) {
	g := start(t, options{
		auth: "allow_query token /hooks/*\nrefuse_query signature",
		site: "auth {\nallow_query key /maps\nrefuse_query sid\nallow_jwt_path /verify/*\n}",
	})
	key := g.plainKey()
	jwt := base64.RawURLEncoding.EncodeToString([]byte(`{"alg":"RS256"}`)) + ".e30.c2ln"
	for target, status := range map[string]int{
		"/hooks/a?token=x": 200, "/hooks/a?token=" + jwt: 200, "/hooks/a?token=" + key: 400, "/a?token=x": 400, "/hooks/../a?token=x": 400,
		"/maps?key=x": 200, "/maps/?key=x": 400, "/?signature=x": 400, "/?sid=x": 400, "/verify/" + jwt: 200, "/other/" + jwt: 400, "/verify/" + key: 400,
	} {
		if a := g.get(target, "X-API-Key: "+key); a.Status != status {
			t.Errorf("%s: %d, want %d (%s)", target, a.Status, status, a.Detail)
		}
	}
}

func TestLiveKeyInURLIsBurnt(t *testing.T) {
	g := start(t, options{site: "auth"})
	key := g.plainKey()
	for range 5 {
		g.get("/?api_key=" + key)
		g.get("/?api_key=" + key[:len(key)-1] + "!")
	}
	eventually(t, "an audit event", func() bool { return len(g.logLines("auth.audit")) > 0 })
	lines := g.logLines("auth.audit")
	if len(lines) != 1 || lines[0]["action"] != "key.leaked" || lines[0]["credential_id"] == "" {
		t.Errorf("audit events %v, want one", lines)
	}
	if strings.Contains(g.logLinesText("auth"), key) {
		t.Error("our own logs show the key")
	}
}

func (g *gateway) logLinesText(prefix string) string {
	var b strings.Builder
	for line := range strings.Lines(g.logs()) {
		if strings.Contains(line, `"logger":"`+prefix) {
			b.WriteString(line)
		}
	}
	return b.String()
}

func TestPublicPathsHaveOneReading(t *testing.T) {
	g := start(t, options{site: "auth {\npublic /healthz /docs/*\npublic GET /files/*\n}"})
	for _, target := range []string{"/healthz", "/docs/", "/docs/a/b.html", "/files/x", "/health%7A", "/docs/%C3%A9", "/docs/a%20b", "/healthz?x=1"} {
		s := g.ok(g.get(target, "X-Auth-Subject: evil", "X-API-Key: whatever"))
		if len(s.Header["X-Auth-Subject"])+len(s.Header["X-Api-Key"]) > 0 {
			t.Errorf("%s: %v", target, s.Header)
		}
	}
	for target, status := range map[string]int{
		"/Healthz": 401, "/healthz/": 401, "/healthzz": 401, "/docs": 401, "/Docs/a": 401, "/healthz.json": 401, "/x/healthz": 401, "/docs%2Fa": 401, "/docs/a%2F..": 400,
		"/docs/../admin": 400, "/docs/%2e%2e/admin": 400, "/docs/%2E%2e/admin": 400, "/docs/.%2e/admin": 400, "/docs/..%2fadmin": 400, "/docs/..%5cadmin": 400,
		"/docs/..\\admin": 400, "/docs//admin": 400, "//docs/a": 400, "/docs/./a": 400, "/docs/a/..": 400, "/docs/;/admin": 400, "/docs/..;/admin": 400, "/docs/a;x=y": 400,
		"/docs/%252e%252e/admin": 400, "/docs/%25252e%25252e/admin": 400, "/docs/%00": 400, "/docs/a%0a": 400, "/docs/%7f": 400, "/admin/%2e%2e/docs/a": 400, "/docs/a%3bb": 401,
		"/docs/%252fadmin": 400, "/.": 400, "/..": 400, "/docs/...": 200, "/healthz%20": 400, "/%68ealthz": 200,
		"/docs/%c0%ae%c0%ae/admin": 400, "/docs/%ef%bc%8e%ef%bc%8e/admin": 400, "/docs/．．/admin": 400, "/docs/..%20/admin": 400, "/docs/%20../admin": 400, "/docs/%09..%09/admin": 400,
		"/docs/%e2%80%a5/admin": 400, "/docs/..%ef%bc%8fadmin": 400, "/docs/..%ef%bc%bcadmin": 400, "/docs/%e2%88%95..": 400, "/docs/a%2520b": 401, "/docs/caf%e9": 400, "/docs/%25c0%25ae": 400,
		"/docs/日本語/東京.html": 200, "/docs/%E6%97%A5%E6%9C%AC": 200, "/docs/документ-№5": 200, "/docs/العربية": 200, "/docs/une%20été": 200, "/docs/👨\u200d👩\u200d👧": 200,
	} {
		if a := g.get(target); a.Status != status {
			t.Errorf("%s: %d, want %d (%s)", target, a.Status, status, a.Detail)
		}
	}
	g.upstream.take()
	// Targets that Go reads a path in and we must not read another.
	for _, target := range []string{
		"a:/admin/users://c/healthz", "http:/admin/x/..;/y://c/docs/z", "a:b://c/healthz", "a:/healthz", "HTTP:/healthz", "healthz", "x://c/healthz", "http://c:80@d/healthz",
	} {
		// Some name another host, for which Caddy itself has an empty answer.
		a := g.get(target)
		if got := g.upstream.take(); len(got) > 0 {
			t.Errorf("%s: %d, the upstream received %+v", target, a.Status, got)
		}
	}
	g.ok(g.get("http://" + g.addr + "/healthz"))
	for method, status := range map[string]int{"POST": 401, "GET": 200, "get": 400, "Get": 400} {
		if a := g.raw(method + " /files/x HTTP/1.1\r\nHost: " + g.addr + "\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"); a.Status != status {
			t.Errorf("%s: %d, want %d", method, a.Status, status)
		}
	}
}

// TestPathsOfRequirements: a path that the upstream may take for one that a
// requirement names, and the requirement's matcher does not, reaches nobody.
func TestPathsOfRequirements(t *testing.T) {
	g := start(t, options{site: "auth\nauth_require /admin/* scope admin\nauth_require /admin scope admin"})
	key := "X-API-Key: " + g.plainKey()
	for _, target := range []string{"/admin", "/admin/x", "/%61dmin/x", "/ADMIN/x"} {
		g.want(g.get(target, key), 403, auth.CodeInsufficientScope)
	}
	for _, target := range []string{
		"/%2561dmin/x", "/%252561dmin/x", "/%c1%a1dmin/x", "/%ef%bd%81dmin/x", "/ａdmin/x", "/ａｄｍｉｎ", "/admin%20", "/admin%20/x", "/admin%09", "/admin%c2%a0/x", "/admin%252fx", "/admin%253bx", "/adm\u0131n%e2%80%8b/../admin",
		"/ad%c2%admin/x", "/%f0%9d%90%9admin/x", "/admin%e3%80%80", "/admin%2520/x", "/admin;x", "/./admin/x", "/x/..%2fadmin",
	} {
		g.want(g.get(target, key), 400, auth.CodeInvalidRequest)
	}
	for _, target := range []string{"/日本語", "/%D0%B0dmin/x", "/m%C3%BCnchen/straße", "/a%2Fb", "/a%2520b"} {
		g.ok(g.get(target, key))
	}
}

func TestAmbiguousPathsAllowed(t *testing.T) {
	g := start(t, options{site: "auth {\npublic /docs/*\nambiguous_paths allow\n}"})
	key := g.plainKey()
	if a := g.get("/a//b", "X-API-Key: "+key); a.Status != 200 {
		t.Errorf("with a key: %d", a.Status)
	}
	for _, target := range []string{"/docs//b", "/docs/../admin", "/docs/%2e%2e/admin"} {
		if a := g.get(target); a.Status != 401 {
			t.Errorf("%s without a key: %d: an ambiguous path is never public", target, a.Status)
		}
	}
}

// TestReadingsOfAKey: however a live key is written in a URL, it is refused and
// written down; wherever its secret part stands, and wherever a session's cookie
// does, no log shows it.
func TestReadingsOfAKey(t *testing.T) {
	p := newOP(t)
	g := start(t, options{auth: loginConf(p, ""), raw: "http://{addr} {\nlog {\noutput file {dir}/access.json\nformat auth_redact\n}\nauth_login corp\nreverse_proxy {upstream}\n}"})
	v := newVisitor(g)
	v.signIn("/")
	good := "X-API-Key: " + g.plainKey()
	for _, spell := range []func(string) string{
		func(k string) string { return strings.ReplaceAll(k, "_", "=5F") }, func(k string) string { return strings.ReplaceAll(k, "_", "&lowbar;") },
		func(k string) string { return strings.ReplaceAll(k, "_", "%c1%9f") }, func(k string) string { return strings.ReplaceAll(k, "_", "-") },
		func(k string) string { return base64.StdEncoding.EncodeToString([]byte(k)) }, func(k string) string { return base64.RawURLEncoding.EncodeToString([]byte("x:" + k)) },
		func(k string) string { return hex.EncodeToString([]byte(k)) },
	} {
		made := g.key(manage.KeySpec{})
		key := made.Text.Reveal()
		text := spell(key)
		a := g.get("/?q="+text, good)
		if a.Status != 400 || a.Code != string(auth.CodeCredentialInQuery) || strings.Contains(a.Body, key[8:]) {
			t.Errorf("%.30s: %d %s", text, a.Status, a.Body)
		}
		eventually(t, "it is burnt", func() bool { return strings.Contains(g.logLinesText("auth.audit"), made.Key.ID) })
		tail := key[len("ca_live_"):]
		for _, lines := range [][]string{{"X-Note: " + text}, {"X-Note: " + tail}, {"Referer: https://x/" + text}, {"User-Agent: a " + tail + " b"}, {"X-" + tail + ": 1"}} {
			g.get("/x", append(lines, good)...)
		}
		g.get("/"+tail, good)
		for _, logs := range []string{g.logs(), g.file("access.json")} {
			if strings.Contains(logs, tail) || strings.Contains(logs, text) {
				t.Errorf("%.30s: a log shows it", text)
			}
		}
	}
	for _, lines := range [][]string{{"X-Note: " + v.session()}, {"Referer: https://x/?s=" + v.session()}, {"X-A: a=" + v.session() + ";b"}} {
		g.get("/x", append(lines, good)...)
	}
	eventually(t, "the access log is written", func() bool { return strings.Count(g.file("access.json"), "\n") > 40 })
	if id, _, _ := strings.Cut(v.session(), "-"); strings.Contains(g.logs()+g.file("access.json"), id) {
		t.Error("a log shows a session's cookie outside of Cookie")
	}
}

// TestOurLogsNeverShowAKey plants a live key wherever a request has room.
func TestOurLogsNeverShowAKey(t *testing.T) {
	g := start(t, options{site: "auth"})
	key := g.plainKey()
	for _, request := range []string{
		"GET /?api_key=" + key + " HTTP/1.1\r\nHost: x",
		"GET /" + key + " HTTP/1.1\r\nHost: x",
		"GET / HTTP/1.1\r\nHost: " + strings.ReplaceAll(key, "_", "_") + ".example",
		key + " / HTTP/1.1\r\nHost: x",
		"GET / HTTP/1.1\r\nHost: x\r\nReferer: https://y/?api_key=" + key,
		"GET / HTTP/1.1\r\nHost: x\r\nUser-Agent: " + key,
		"GET / HTTP/1.1\r\nHost: x\r\nX-API-Key: " + key + "\r\nAuthorization: Bearer " + key,
		"GET / HTTP/1.1\r\nHost: x\r\nAuthorization: " + key,
		"GET / HTTP/1.1\r\nHost: x\r\nX-API-Key: " + key + "x",
	} {
		request = strings.Replace(request, "Host: x", "Host: "+g.addr, 1)
		a := g.raw(request + "\r\nConnection: close\r\n\r\n")
		if strings.Contains(a.Body, key[:40]) {
			t.Errorf("%.60q: the answer shows the key", request)
		}
	}
	if text := g.logLinesText("auth"); strings.Contains(text, key[8:40]) {
		t.Errorf("our logs show the key: %s", text)
	} else if !strings.Contains(text, "auth.decision") {
		t.Error("nothing was logged")
	}
}
