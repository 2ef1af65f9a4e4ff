package e2e

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/caddy-auth/caddy-auth/internal/auth"
	"github.com/caddy-auth/caddy-auth/internal/manage"
)

var spoofs = []string{
	"X-Auth-Subject", "x-auth-subject", "X-AUTH-SUBJECT", "X_Auth_Subject", "X-Auth_Subject", "X.Auth.Subject", "X-Auth.Subject", "X!Auth!Subject",
	"X-Auth~Subject", "X'Auth'Subject", "X-Auth-Scopes", "X_Auth_Scopes", "X-Auth-Environment", "X-Auth-Anything", "X-Auth-Credential-Id",
	"X-Auth-Method", "X-Auth-Issuer", "X-Auth-Client-Id", "X-Auth-Assertion",
	"Remote-User", "REMOTE_USER", "Remote-Groups", "X-Remote-User", "X-Forwarded-User", "X_Forwarded_User", "X-Forwarded-Email", "X-Forwarded-Groups",
	"X-Forwarded-Preferred-Username", "X-Auth-Request-User", "Cf-Access-Jwt-Assertion", "X-Goog-Authenticated-User-Email", "X-Goog-Iap-Jwt-Assertion", "X-Amzn-Oidc-Identity", "X-Ms-Client-Principal-Id",
	"X-Ms-Token-Aad-Id-Token", "Tailscale-User-Login", "X-Token-Subject", "X-Forwarded-Client-Cert", "Ssl-Client-S-Dn", "X-Client-Cert", "X-Credential-Identifier", "X-Userinfo", "X-Consumer-Id", "X-Consumer-Username", "X-WebAuth-User", "X-Authenticated-Userid",
}

// takenOff are prefixes that an
// upstream takes off a name before it reads it.
var takenOff = []string{"Grpc-Metadata-", "grpc-metadata-", "Grpc_Metadata_", "Http-", "HTTP_", "Http-Http-", "Grpc-Metadata-Http-", "X-Amzn-Remapped-"}

// allSpellings are every header that could be taken for one of ours.
var allSpellings = func() []string {
	all := slices.Clone(spoofs)
	for _, prefix := range takenOff {
		all = append(all, prefix+"X-Auth-Subject", prefix+"X_Auth_Scopes", prefix+"Remote-User")
	}
	return all
}()

// identityOf returns every header that an upstream could take for an identity,
// however it folds names.
func identityOf(h http.Header) map[string][]string {
	out := map[string][]string{}
	for name, vals := range h {
		folded := strings.Map(func(r rune) rune {
			if r >= 'A' && r <= 'Z' {
				return r | 0x20
			}
			if r >= 'a' && r <= 'z' || r >= '0' && r <= '9' {
				return r
			}
			return '_'
		}, name)
		for taken := true; taken; {
			taken = false
			for _, prefix := range []string{"grpc_metadata_", "http_", "x_amzn_remapped_"} {
				if rest, ok := strings.CutPrefix(folded, prefix); ok {
					folded, taken = rest, true
				}
			}
		}
		for _, p := range []string{
			"x_auth_", "remote_", "x_remote_", "x_forwarded_user", "x_forwarded_email", "x_forwarded_groups", "x_forwarded_pref", "x_consumer_", "x_webauth_", "x_authenticated_", "cf_access", "x_goog_", "x_amzn_oidc", "x_ms_", "tailscale_", "x_token_",
			"x_forwarded_client", "ssl_client", "x_client_cert", "x_credential", "x_userinfo",
		} {
			if strings.HasPrefix(folded, p) {
				out[folded] = append(out[folded], vals...)
			}
		}
	}
	return out
}

func TestSpoofedIdentityHeaders(t *testing.T) {
	g := start(t, options{site: "auth {\npublic /open\n}"})
	key := g.plainKey()
	genuine := identityOf(g.ok(g.get("/", "X-API-Key: "+key)).Header)
	if len(genuine) != 4 {
		t.Fatalf("genuine identity %v", genuine)
	}
	for _, spoof := range allSpellings {
		for _, shape := range [][]string{
			{spoof + ": evil", "X-API-Key: " + key},
			{"X-API-Key: " + key, spoof + ": evil"},
			{spoof + ": evil", spoof + ": evil2", "X-API-Key: " + key, strings.ToLower(spoof) + ": evil3"},
			{"X-API-Key: " + key, "Connection: " + spoof + ", keep-alive"},
			{"X-API-Key: " + key, spoof + ": evil", "Connection: close, " + strings.ToLower(spoof), "Connection: " + spoof},
			{"X-API-Key: " + key, "Connection:\t" + spoof + "\t,,close"},
		} {
			a := g.get("/", shape...)
			got := g.upstream.take()
			if a.Status != 200 || len(got) != 1 {
				t.Fatalf("%q: %d", shape, a.Status)
			}
			if id := identityOf(got[0].Header); fmt.Sprint(id) != fmt.Sprint(genuine) {
				t.Errorf("%q: the upstream saw %v", shape, id)
			}
		}
		s := g.ok(g.get("/open", spoof+": evil", "Connection: "+spoof))
		if id := identityOf(s.Header); len(id) != 0 {
			t.Errorf("public path, %s: the upstream saw %v", spoof, id)
		}
	}
}

func TestConnectionAttackOnOtherHeaders(t *testing.T) {
	g := start(t, options{site: "auth"})
	key := g.plainKey()
	s := g.ok(g.get("/", "X-API-Key: "+key, "Connection: X-API-Key, Authorization, Host, X-Forwarded-For, X-Custom", "X-Custom: 1"))
	if s.Header.Get("X-Auth-Subject") != "acme" || s.Header.Get("X-Forwarded-For") == "" || s.Header.Get("X-Custom") != "" {
		t.Errorf("upstream saw %v", s.Header)
	}
}

func TestTrailersNeverReachTheUpstream(t *testing.T) {
	g := start(t, options{site: "auth {\npublic /open\n}"})
	key := g.plainKey()
	for _, path := range []string{"/", "/open"} {
		a := g.raw("POST " + path + " HTTP/1.1\r\nHost: " + g.addr + "\r\nX-API-Key: " + key + "\r\nTransfer-Encoding: chunked\r\nTrailer: X-Auth-Subject, X-Other\r\nConnection: close\r\n\r\n" +
			"3\r\nabc\r\n0\r\nX-Auth-Subject: evil\r\nX-Other: 1\r\nX_Auth_Scopes: admin\r\nX-API-Key: " + key + "\r\n\r\n")
		s := g.ok(a)
		if len(s.Trailer) > 0 || s.Header.Get("Trailer") != "" {
			t.Errorf("%s: trailers %v reached the upstream", path, s.Trailer)
		}
		if s.Body != "abc" {
			t.Errorf("body %q", s.Body)
		}
		if path == "/" && s.Header.Get("X-Auth-Subject") != "acme" {
			t.Errorf("identity %v", s.Header)
		}
	}
	// A credential in a trailer does not authenticate.
	a := g.raw("POST / HTTP/1.1\r\nHost: " + g.addr + "\r\nTransfer-Encoding: chunked\r\nTrailer: X-API-Key\r\nConnection: close\r\n\r\n0\r\nX-API-Key: " + key + "\r\n\r\n")
	g.want(a, 401, auth.CodeMissingCredential)
}

// TestErrorHandlerThatProxies: a refused request may still reach a service
// through the site's error routes, without identity and credential.
func TestErrorHandlerThatProxies(t *testing.T) {
	g := start(t, options{raw: `http://{addr} {
		auth {
			errors handle_errors
		}
		reverse_proxy {upstream}
		handle_errors {
			reverse_proxy {upstream}
		}
	}`})
	key := g.plainKey()
	for _, lines := range [][]string{
		{"X-Auth-Subject: evil", "Remote-User: evil", "X_Auth_Subject: evil"},
		{"X-Auth-Subject: evil", "X-API-Key: " + key[:len(key)-1] + "!", "Connection: X-Auth-Method"},
		{"X-API-Key: " + key, "Authorization: Bearer " + key, "X!Auth!Subject: evil"},
	} {
		for _, target := range []string{"/", "/?api_key=x"} {
			g.get(target, lines...)
			got := g.upstream.take()
			if len(got) != 1 {
				t.Fatalf("%d requests at the upstream", len(got))
			}
			if id := identityOf(got[0].Header); len(id) > 0 {
				t.Errorf("%q: the error handler's upstream saw %v", lines, id)
			}
			for _, h := range []string{"X-Api-Key", "Authorization"} {
				if v := got[0].Header.Get(h); v != "" {
					t.Errorf("the error handler's upstream saw %s", h)
				}
			}
		}
	}
}

func TestHandleErrors(t *testing.T) {
	g := start(t, options{raw: `http://{addr} {
		auth {
			errors handle_errors
			realm orders
		}
		reverse_proxy {upstream}
		handle_errors {
			respond "sorry: {err.status_code}"
		}
	}`})
	a := g.get("/")
	if a.Status != 401 || a.Body != "sorry: 401" || a.Header.Get("Www-Authenticate") != `Bearer realm="orders"` || a.Header.Get("Cache-Control") != "no-store" {
		t.Errorf("answer %+v", a)
	}
	if a := g.get("/?api_key=x"); a.Status != 400 || a.Body != "sorry: 400" {
		t.Errorf("answer %+v", a)
	}
	// Without `errors handle_errors` the problem is written although the site has error routes.
	g2 := start(t, options{raw: "http://{addr} {\nauth\nreverse_proxy {upstream}\nhandle_errors {\nrespond \"sorry\"\n}\n}"})
	if a := g2.get("/"); a.Code != string(auth.CodeMissingCredential) {
		t.Errorf("answer %+v", a)
	}
}

func TestForwardCredentialAndFromHeader(t *testing.T) {
	g := start(t, options{site: "auth {\nforward_credential\n}"})
	key := g.plainKey()
	if s := g.ok(g.get("/", "X-API-Key: "+key)); s.Header.Get("X-Api-Key") != key {
		t.Error("forward_credential removed the credential")
	}

	g = start(t, options{site: "auth {\nfrom header X-API-Key\n}"})
	key = g.plainKey()
	if s := g.ok(g.get("/", "X-API-Key: "+key, "Authorization: Bearer of-the-app")); s.Header.Get("Authorization") != "Bearer of-the-app" || s.Header.Get("X-Api-Key") != "" {
		t.Errorf("upstream saw %v", s.Header)
	}
	g.want(g.get("/", "Authorization: Bearer "+key), 401, auth.CodeMissingCredential)

	g = start(t, options{site: "auth {\nfrom header Authorization\n}"})
	key = g.plainKey()
	if s := g.ok(g.get("/", "X-API-Key: of-the-app", "Authorization: Bearer "+key)); s.Header.Get("X-Api-Key") != "of-the-app" || s.Header.Get("Authorization") != "" {
		t.Errorf("upstream saw %v", s.Header)
	}

	g = start(t, options{auth: "key_header X-Orders-Key X-Legacy-Key", site: "auth"})
	key = g.plainKey()
	g.ok(g.get("/", "X-Legacy-Key: "+key))
	g.want(g.get("/", "X-Legacy-Key: "+key, "X-Orders-Key: "+key), 400, auth.CodeInvalidRequest)
	a := g.get("/", "X-API-Key: "+key)
	g.want(a, 401, auth.CodeMissingCredential)
	if !strings.Contains(a.Detail, "X-Orders-Key") {
		t.Errorf("detail %q does not name this site's headers", a.Detail)
	}
}

func TestIdentityHeadersBlock(t *testing.T) {
	g := start(t, options{site: `auth {
		identity_headers {
			prefix X-Gw-
			map X-Tenant meta.tenant
			map X-User subject
			strip X-Internal-* X-Role
			keep Remote-User
		}
	}`})
	key := g.key(manage.KeySpec{Owner: "acme", Meta: map[string]string{"tenant": "100% caf\u00e9, x"}, Scopes: []string{"a%b", "c"}}).Text.Reveal()
	s := g.ok(g.get("/", "X-API-Key: "+key, "X-Tenant: evil", "X_User: evil", "X-Gw-Subject: evil", "X-Internal-Id: evil", "X-Role: evil", "Remote-User: kept", "X-Auth-Subject: evil"))
	for name, want := range map[string]string{
		"X-Gw-Subject": "acme", "X-User": "acme", "X-Tenant": "100%25%20caf%C3%A9,%20x", "X-Gw-Scopes": "a%25b c", "X-Internal-Id": "", "X-Role": "", "Remote-User": "kept", "X-Auth-Subject": "",
	} {
		if got := strings.Join(s.Header[name], "|"); got != want {
			t.Errorf("%s: %q, want %q", name, got, want)
		}
	}
}

// TestUnreadBodies: a body that never comes must not delay a refusal.
func TestUnreadBodies(t *testing.T) {
	g := start(t, options{site: "auth"})
	for name, head := range map[string]string{
		"huge":                "Content-Length: 10000000\r\n\r\nabc",
		"small and slow":      "Content-Length: 1000\r\n\r\nabc",
		"chunked and slow":    "Transfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n",
		"expecting continue":  "Content-Length: 1000\r\nExpect: 100-continue\r\n\r\n",
		"pipelined afterward": "Content-Length: 3\r\n\r\nabc",
		"endless":             "Transfer-Encoding: chunked\r\n\r\n",
	} {
		for _, path := range []string{"/", "/?api_key=x"} {
			conn, err := net.Dial("tcp", g.addr)
			if err != nil {
				t.Fatal(err)
			}
			began := time.Now()
			_ = conn.SetDeadline(began.Add(10 * time.Second))
			fmt.Fprintf(conn, "POST %s HTTP/1.1\r\nHost: %s\r\n%s", path, g.addr, head)
			if name == "endless" {
				go func() {
					for chunk := []byte("3e8\r\n" + strings.Repeat("x", 1000) + "\r\n"); ; {
						if _, err := conn.Write(chunk); err != nil {
							return
						}
					}
				}()
			}
			answer, err := io.ReadAll(conn) // until the gateway closes
			took := time.Since(began)
			_ = conn.Close()
			if err != nil && len(answer) == 0 {
				t.Errorf("%s: no answer: %v", name, err)
			}
			if !strings.HasPrefix(string(answer), "HTTP/1.1 40") || !strings.Contains(string(answer), "Connection: close") {
				t.Errorf("%s: %.60q", name, answer)
			}
			if took > 3*time.Second {
				t.Errorf("%s: closed after %s", name, took)
			}
		}
	}
	if n := len(g.upstream.take()); n != 0 {
		t.Errorf("%d requests reached the upstream", n)
	}
}

func TestKeepAliveRequestsAreJudgedAlone(t *testing.T) {
	g := start(t, options{site: "auth"})
	key := g.plainKey()
	conn, err := net.Dial("tcp", g.addr)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	_ = conn.SetDeadline(time.Now().Add(10 * time.Second))
	r := bufio.NewReader(conn)
	fmt.Fprintf(conn, "GET /1 HTTP/1.1\r\nHost: %[1]s\r\nX-API-Key: %[2]s\r\n\r\nGET /2 HTTP/1.1\r\nHost: %[1]s\r\n\r\nGET /3 HTTP/1.1\r\nHost: %[1]s\r\nX-API-Key: %[2]s\r\n\r\n", g.addr, key)
	for i, want := range []int{200, 401, 200} {
		res, err := http.ReadResponse(r, nil)
		if err != nil {
			t.Fatal(err)
		}
		if a := readAnswer(t, res); a.Status != want {
			t.Errorf("request %d: %d, want %d", i+1, a.Status, want)
		}
	}
}

// TestMethodOverrides: nobody behind the gateway is told another method or place
// than the one that was judged, unless the site keeps the header.
func TestMethodOverrides(t *testing.T) {
	g := start(t, options{site: "auth"})
	key := "X-API-Key: " + g.plainKey()
	for _, name := range []string{
		"X-HTTP-Method-Override", "x-http-method-override", "X_HTTP_Method_Override", "X-HTTP-Method", "X-Method-Override", "X.Method.Override", "X-Original-URL", "X_ORIGINAL_URL", "X-Rewrite-URL",
		"X-Original-URI", "X-Original-Method", "Grpc-Metadata-X-HTTP-Method-Override",
	} {
		if s := g.ok(g.get("/", key, name+": DELETE")); strings.Contains(fmt.Sprint(s.Header), "DELETE") {
			t.Errorf("%s: the upstream saw %v", name, s.Header)
		}
	}
	k := start(t, options{auth: "identity_headers {\nkeep X-HTTP-Method-Override X-Original-URL\n}", site: "auth"})
	s := k.ok(k.get("/", "X-API-Key: "+k.plainKey(), "X-HTTP-Method-Override: DELETE", "X-Original-URL: /x"))
	if s.Header.Get("X-HTTP-Method-Override") != "DELETE" || s.Header.Get("X-Original-Url") != "/x" {
		t.Errorf("the upstream saw %v", s.Header)
	}
}

// TestKeyHeaderWithAForeignName: a header that others use for identities may carry
// a site's keys.
func TestKeyHeaderWithAForeignName(t *testing.T) {
	g := start(t, options{site: "auth {\nfrom header X-Token-Key\nforward_credential\n}"})
	key := g.plainKey()
	if s := g.ok(g.get("/", "X-Token-Key: "+key, "X-Token-Subject: admin")); s.Header.Get("X-Auth-Subject") != "acme" || s.Header.Get("X-Token-Key") != key || s.Header.Get("X-Token-Subject") != "" {
		t.Errorf("the upstream saw %v", s.Header)
	}
}
