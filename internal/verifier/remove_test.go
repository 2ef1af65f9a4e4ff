package verifier

import (
	"bytes"
	"encoding/base64"
	"fmt"
	"net/http"
	"strings"
	"testing"

	"github.com/caddy-auth/caddy-auth/internal/auth"
	"github.com/caddy-auth/caddy-auth/internal/secret"
)

// TestRemoveOurs: a key of ours goes from every header, and nothing else does.
func TestRemoveOurs(t *testing.T) {
	m, err := secret.NewMinter([][]byte{bytes.Repeat([]byte("s"), 32)}, []string{"ca"})
	if err != nil {
		t.Fatal(err)
	}
	made, err := m.Mint("ca", "live")
	if err != nil {
		t.Fatal(err)
	}
	issued, err := m.MintKind("ca", secret.AccessToken)
	if err != nil {
		t.Fatal(err)
	}
	key, token := made.Reveal(), issued.Reveal()
	imported, _ := auth.NewImported([]string{`zq-[0-9]{20}`}, []uint64{auth.Sum(auth.FingerprintOf("zq-01234567890123456789"))})
	s, err := NewSources([]string{"X-API-Key"})
	if err != nil {
		t.Fatal(err)
	}
	basic := func(text string) string { return "Basic " + base64.StdEncoding.EncodeToString([]byte(text)) }
	for _, c := range []struct{ name, value, want string }{
		{"Authorization", "Bearer " + key, ""},
		{"Authorization", basic("me:" + key), ""},
		{"Authorization", basic(token + ":"), ""},
		{"Authorization", "Bearer zq-01234567890123456789", ""},
		{"Authorization", "Bearer of-their-own", "Bearer of-their-own"},
		{"Authorization", basic("me:secret"), basic("me:secret")},
		{"X-Whatever", key, ""},
		{"X-Whatever", "a " + token + " b", ""},
		{"X-Whatever", "zq-01234567890123456789", ""},
		{"X-Whatever", strings.Replace(key, "_", "%5F", 1), ""},
		{"X-Whatever", "ca_live_" + strings.Repeat("x", 20), "ca_live_" + strings.Repeat("x", 20)},
		{"X-Whatever", strings.Repeat("application/ca ", 10), strings.Repeat("application/ca ", 10)},
		{"X-Forwarded-Authorization", basic("me:" + key), ""},
		{"X-Whatever", "%63" + key[1:], ""},
		{"Referer", "https://x.example/?k=" + key, ""},
		{"Sec-Websocket-Protocol", "bearer, " + key, ""},
		{"Baggage", "k=" + key, ""},
		{"Cookie", "a=1; k=" + key + "; b=2", "a=1; b=2"},
		{"Cookie", "k=" + key, ""},
		{"Cookie", "a=1;  b=2", "a=1;  b=2"},
	} {
		h := http.Header{c.name: {c.value}, "Accept": {"*/*"}}
		s.RemoveOurs(h, []string{"ca"}, imported, false)
		if got := strings.Join(h[c.name], "|"); got != c.want || h.Get("Accept") == "" {
			t.Errorf("%s: %.20s…: %q, want %q", c.name, c.value, got, c.want)
		}
	}
	// Clients choose how much there is to search: a long value is searched in clear.
	for _, c := range []struct {
		value string
		stays bool
	}{{strings.Repeat("ca_", 5000) + key, false}, {strings.Repeat("ca_", 5000), true}, {strings.Repeat("=5F", 5000), true}} {
		h := http.Header{"X-Long": {c.value}}
		if s.RemoveOurs(h, []string{"ca"}, imported, false); (h["X-Long"] != nil) != c.stays {
			t.Errorf("%.20s… of %d bytes stays: %v", c.value, len(c.value), !c.stays)
		}
	}
	h := http.Header{"X-Api-Key": {key}, "X-Other": {key}, "Cookie": {"a=1", "k=" + key}}
	s.RemoveOurs(h, []string{"ca"}, imported, true)
	if fmt.Sprint(h) != fmt.Sprint(http.Header{"X-Api-Key": {key}, "Cookie": {"a=1"}}) {
		t.Error("with forward_credential: ", h)
	}
}
