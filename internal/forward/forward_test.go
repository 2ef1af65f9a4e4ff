package forward_test

import (
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"

	"github.com/caddy-auth/caddy-auth/internal/auth"
	"github.com/caddy-auth/caddy-auth/internal/forward"
)

func policy(t testing.TB, c forward.Config) *forward.Policy {
	t.Helper()
	p, err := forward.Compile(c)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func TestInject_CanonicalNamesAndOwnSlices(t *testing.T) {
	p := policy(t, forward.Config{Prefix: "x-gw-", Map: []forward.Mapping{{Header: "x-tenant", Field: "meta.tenant"}, {Header: "x-user", Field: "subject"}}})
	for _, n := range p.Names() {
		if n != http.CanonicalHeaderKey(n) {
			t.Errorf("%s is not canonical: direct map access would miss it", n)
		}
	}
	id := auth.Identity{Subject: "acme", Method: "jwt", Scopes: "a b", Meta: auth.EncodeMeta([]string{"tenant"}, map[string]string{"tenant": "t\r\nX-Evil: 1"})}
	h := http.Header{}
	p.Inject(h, &id, make([]string, forward.UsualHeaders))
	if got := h["X-Tenant"][0]; got != "t%0D%0AX-Evil:%201" {
		t.Errorf("tenant %q", got)
	}
	if got := h["X-Gw-Scopes"][0]; got != "a b" {
		t.Errorf("scopes %q", got)
	}
	h["X-Gw-Subject"][0] = "evil" // as request_header does, in place
	h["X-Gw-Method"] = append(h["X-Gw-Method"], "evil")
	if h["X-User"][0] != "acme" || id.Subject != "acme" || h["X-Gw-Scopes"][0] != "a b" {
		t.Errorf("headers share memory: %v %v", h, id)
	}
}

func TestEncode(t *testing.T) {
	for in, want := range map[string]string{"plain-1.2:3": "plain-1.2:3", "a b": "a%20b", "50%": "50%25", "é": "%C3%A9", "a\x00b\x7f": "a%00b%7F", "": ""} {
		if got := forward.Encode(in, false); got != want {
			t.Errorf("%q: %q, want %q", in, got, want)
		}
	}
	if got := forward.Encode("a b", true); got != "a b" {
		t.Errorf("%q", got)
	}
}

func TestCompile_Refuses(t *testing.T) {
	for name, c := range map[string]forward.Config{
		"prefix without hyphen": {Prefix: "XAuth"},
		"prefix with a blank":   {Prefix: "X Auth-"},
		"unknown field":         {Map: []forward.Mapping{{Header: "X-A", Field: "password"}}},
		"hop-by-hop":            {Map: []forward.Mapping{{Header: "Connection", Field: "subject"}}},
		"authorization":         {Map: []forward.Mapping{{Header: "authorization", Field: "subject"}}},
		"strip everything":      {Strip: []string{"*"}},
		"keep ours":             {Keep: []string{"x_auth_subject"}},
		"keep mapped":           {Map: []forward.Mapping{{Header: "X-A", Field: "subject"}}, Keep: []string{"X-A"}},
	} {
		if _, err := forward.Compile(c); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
}

// FuzzClean compares with a naive fold of each name.
func FuzzClean(f *testing.F) {
	f.Add("X-Auth-Subject", "close, x-auth-subject")
	f.Add("x_AUTH.Subject", "X!Auth!Method\t, upgrade")
	f.Add("Remote-User", "")
	p := policy(f, forward.Config{Map: []forward.Mapping{{Header: "X-Tenant", Field: "meta.t"}}})
	f.Fuzz(func(t *testing.T, name, connection string) {
		r := httptest.NewRequest(http.MethodGet, "/", nil)
		r.Header = http.Header{name: {"evil"}, "Connection": {connection}, "X-Other": {"1"}}
		p.Clean(r, map[string]bool{"x_api_key": true})
		for n := range r.Header {
			folded := strings.Map(func(c rune) rune {
				if c < 0x80 && (c >= '0' && c <= '9' || c|0x20 >= 'a' && c|0x20 <= 'z') {
					if c >= 'A' && c <= 'Z' {
						c |= 0x20
					}
					return c
				}
				return '_'
			}, n)
			if strings.HasPrefix(folded, "x_auth_") || slices.Contains([]string{"x_tenant", "remote_user", "x_forwarded_user"}, folded) {
				t.Fatalf("%q was left", n)
			}
		}
		if v := r.Header["Connection"]; len(v) > 0 && (len(v) != 1 || v[0] != "Upgrade") {
			t.Fatalf("Connection %q", v)
		}
	})
}

// TestEncodePlaceholder: a value is encoded so that it climbs nowhere, also when a
// rewrite has decoded it once.
func TestEncodePlaceholder(t *testing.T) {
	for in, want := range map[string]string{
		"plain-1.2:3@x": "plain-1.2:3@x", "a b": "a%20b", "50%": "50%25", "é": "%C3%A9", "a/b": "a%2Fb", `a\b`: "a%5Cb", "a?b#c": "a%3Fb%23c", "{env.X}": "%7Benv.X%7D",
		"..": "%252E%252E", ".": "%252E", "../../admin": "%252E%252E%252F%252E%252E%252Fadmin", ".. /x": "%252E%252E%2520%252Fx", "a..b": "a..b", "...": "...", "a;b": "a%3Bb", "..;": "%252E%252E%253B",
		"．．": "%25EF%25BC%258E%25EF%25BC%258E", "．．／x": "%25EF%25BC%258E%25EF%25BC%258E%25EF%25BC%258Fx", "x/．": "x%252F%25EF%25BC%258E", "": "",
	} {
		if got := forward.EncodePlaceholder(in, false); got != want {
			t.Errorf("%q: %q, want %q", in, got, want)
		}
	}
	if got := forward.EncodePlaceholder("orders:read a/b", true); got != "orders:read a%2Fb" {
		t.Errorf("%q", got)
	}
}

// TestClean_TakenOff: what upstreams take off a name hides nothing, of identity and
// of credential headers, and what is kept is kept.
func TestClean_TakenOff(t *testing.T) {
	p := policy(t, forward.Config{Map: []forward.Mapping{{Header: "X-Tenant", Field: "meta.t"}}, Keep: []string{"X-HTTP-Method-Override"}})
	for name, gone := range map[string]bool{
		"Grpc-Metadata-X-Auth-Subject": true, "Grpc-Metadata-Grpc-Metadata-X_Tenant": true, "Http_x_auth_method": true, "X-Amzn-Remapped-Remote-User": true, "Grpc-Metadata-X-Api-Key": true, "X_Api_Key": true,
		"Grpc-Metadata-Trace": false, "Http-Referer": false, "X-Amzn-Trace-Id": false, "X-Api-Key": false, "X-Http-Method-Override": false, "X-Http-Method": true, "X-Original-Url": true, "Grpc-Timeout": false,
	} {
		r := httptest.NewRequest(http.MethodGet, "/", nil)
		r.Header = http.Header{name: {"evil"}}
		if p.Clean(r, map[string]bool{"x_api_key": true}); (len(r.Header) == 0) != gone {
			t.Errorf("%s: gone %v, want %v", name, !gone, gone)
		}
	}
	// An error route loses what is ours, and nothing of others.
	r := httptest.NewRequest(http.MethodGet, "/", nil)
	r.Header = http.Header{"X-Auth-Subject": {"evil"}, "Grpc-Metadata-X-Tenant": {"evil"}, "Remote-User": {"theirs"}, "X-Http-Method": {"x"}}
	if p.RemoveOwn(r); len(r.Header) != 2 || r.Header.Get("Remote-User") == "" {
		t.Errorf("%v", r.Header)
	}
}

func BenchmarkClean_Browser(b *testing.B) {
	p := policy(b, forward.Config{})
	h := http.Header{}
	for _, name := range []string{
		"Accept", "Accept-Encoding", "Accept-Language", "Cache-Control", "Content-Type", "Content-Length", "Cookie", "Origin", "Referer", "Sec-Ch-Ua", "Sec-Ch-Ua-Mobile", "Sec-Fetch-Dest", "Sec-Fetch-Mode",
		"Sec-Fetch-Site", "Upgrade-Insecure-Requests", "User-Agent", "X-Api-Key", "X-Request-Id",
	} {
		h[name] = []string{"x"}
	}
	r := &http.Request{Header: h}
	b.ReportAllocs()
	for b.Loop() {
		p.Clean(r, map[string]bool{"x_api_key": true})
	}
}
