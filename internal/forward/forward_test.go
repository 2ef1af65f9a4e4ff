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
