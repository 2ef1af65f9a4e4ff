package verifier_test

import (
	"net/http"
	"net/netip"
	"net/url"
	"path"
	"strings"
	"testing"

	"github.com/caddy-auth/caddy-auth/internal/auth"
	"github.com/caddy-auth/caddy-auth/internal/verifier"
)

// naive decodes a path until it stays as it is and cleans it, as the most
// generous upstream would.
func naive(p string) []string {
	var out []string
	for range 12 {
		out = append(out, path.Clean(strings.ReplaceAll(p, `\`, "/")))
		next, err := url.PathUnescape(p)
		if err != nil || next == p {
			break
		}
		p = next
	}
	return out
}

// FuzzPublic: whatever a client sends, a path that counts as public is not
// read as one outside by anybody who decodes and cleans.
func FuzzPublic(f *testing.F) {
	for _, s := range []string{"/docs/a", "/docs/../x", "/docs/%2e%2e/x", "/docs//x", "/docs/%252e%252e/x", "/docs/..;/x", `/docs/..\x`, "/docs/%5c..%5cx", "/docs/.%00./x"} {
		f.Add(s)
	}
	rules := []verifier.PathRule{{Paths: []string{"/docs/*", "/healthz"}}}
	f.Fuzz(func(t *testing.T, p string) {
		if !verifier.MatchRules(rules, "GET", p) {
			return
		}
		for _, read := range naive(p) {
			if read != "/docs" && !strings.HasPrefix(read, "/docs/") && read != "/healthz" {
				t.Fatalf("%q counts as public and can be read as %q", p, read)
			}
		}
	})
}

// FuzzTake: one credential or none comes out, it is a value that was sent, and
// nothing that could be one is left in the request.
func FuzzTake(f *testing.F) {
	f.Add("ca_live_x", "", "Bearer y")
	f.Add("", "a,b", "Basic dXNlcjpwdw==")
	f.Add(" ", "", "bearer\tz")
	s, err := verifier.NewSources([]string{"X-API-Key", "Authorization"})
	if err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, key1, key2, authorization string) {
		h := http.Header{}
		var sent []string
		for _, k := range []string{key1, key2} {
			if k != "" {
				h["X-Api-Key"] = append(h["X-Api-Key"], k)
			}
			if strings.Trim(k, " \t") != "" { // what is empty is none
				sent = append(sent, k)
			}
		}
		if authorization != "" {
			h["Authorization"] = []string{authorization}
			scheme, token, _ := strings.Cut(authorization, " ")
			if len(sent) == 0 || strings.EqualFold(scheme, "Bearer") && strings.Trim(token, " \t") != "" { // another scheme is not ours
				sent = append(sent, authorization)
			}
		}
		p := s.Take(h, []string{"ca"}, false)
		if p.Refusal != nil && p.Credential != "" && len(sent) > 1 {
			t.Fatalf("a refusal and a credential: %+v", p)
		}
		if p.Refusal == nil && len(sent) > 1 {
			t.Fatalf("%d credentials passed", len(sent))
		}
		if p.Refusal == nil && p.Credential != "" && sent[0] != p.Credential && !strings.HasSuffix(sent[0], " "+p.Credential) {
			t.Fatalf("credential %q was not sent: %q", p.Credential, sent)
		}
		for i := range len(p.Credential) {
			if c := p.Credential[i]; p.Refusal == nil && (c <= 0x20 || c > 0x7e || c == ',') {
				t.Fatalf("credential %q", p.Credential)
			}
		}
		if _, ok := h["X-Api-Key"]; ok {
			t.Fatal("the key is left in the request")
		}
		if left := h["Authorization"]; len(left) > 0 && !p.Foreign {
			t.Fatalf("left %q", left)
		}
		if left := h["Authorization"]; len(left) > 0 && len(left[0]) > 7 && strings.EqualFold(left[0][:7], "bearer ") {
			t.Fatalf("a bearer token is left: %q", left)
		}
	})
}

func TestJudgeNetworks(t *testing.T) {
	site, err := verifier.NewSite(verifier.SiteRules{})
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		networks, addr string
		ok             bool
	}{
		{"10.0.0.0/8", "10.1.2.3", true},
		{"10.0.0.0/8", "::ffff:10.1.2.3", true},
		{"10.0.0.0/8", "11.1.2.3", false},
		{"fe80::/10", "fe80::1%eth0", true},
		{"192.0.2.0/24 2001:db8::/32", "2001:db8::1", true},
		{"nonsense", "10.1.2.3", false},
		{"10.0.0.0/8", "", false},
	} {
		addr, _ := netip.ParseAddr(c.addr)
		r := site.JudgeIdentity(&auth.Identity{Environment: "live", Networks: c.networks}, addr)
		if (r == nil) != c.ok {
			t.Errorf("%s from %s: %+v", c.networks, c.addr, r)
		}
	}
}

func TestHasScope(t *testing.T) {
	id := auth.Identity{Scopes: "orders:read orders:write"}
	for scope, want := range map[string]bool{"orders:read": true, "orders:write": true, "orders": false, "read": false, "": false, "orders:read orders:write": false, "Orders:read": false} {
		if id.HasScope(scope) != want {
			t.Errorf("%q: %v", scope, !want)
		}
	}
}
