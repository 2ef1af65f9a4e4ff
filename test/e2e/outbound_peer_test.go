package e2e

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"encoding/json"
	"fmt"
	"net/http"
	"net/url"
	"strings"
	"testing"

	"github.com/go-jose/go-jose/v4"
)

// TestPeer_OutboundToProvider: tokens from oidc-provider, with each way to say
// who we are, toward an API that verifies them: another site, with the
// provider as its issuer. What is revoked there is replaced.
func TestPeer_OutboundToProvider(t *testing.T) {
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	jwk := jose.JSONWebKey{Key: private, KeyID: "k1", Algorithm: "ES256"}
	public, err := json.Marshal(jose.JSONWebKey{Key: &private.PublicKey, KeyID: "k1", Algorithm: "ES256", Use: "sig"})
	if err != nil {
		t.Fatal(err)
	}
	secret, err := json.Marshal(jwk)
	if err != nil {
		t.Fatal(err)
	}
	issuer, stop := node(t, "provider.mjs", port(freeAddr(t)), string(public))
	dir := dirWith(t, map[string]string{"key.jwk": string(secret)})
	api := freeAddr(t)
	auth := fmt.Sprintf(`
		issuer corp {
			url %[1]s
			audience https://api.example.com
		}
		introspection opaque {
			url %[1]s/token/introspection
			client_id gateway
			client_secret "gateway secret: %%&+"
			ttl 1s
		}
		outbound basic {
			token_url %[1]s/token
			client_id app
			client_secret app-secret
			resource urn:jwt
			scopes orders:read
		}
		outbound post {
			token_url %[1]s/token
			client_id poster
			client_secret poster-secret
			auth post
			resource urn:jwt:ES256
			scopes orders:read orders:write
		}
		outbound signed {
			token_url %[1]s/token
			client_id signer
			private_key file %[2]s/key.jwk
			assertion_audience %[1]s
			resource urn:opaque
			scopes orders:read
		}
		outbound refused {
			token_url %[1]s/token
			client_id app
			client_secret wrong
		}`, issuer, dir)
	routes := ""
	for _, name := range []string{"basic", "post", "signed", "refused"} {
		routes += fmt.Sprintf("handle /%s {\nreverse_proxy %s {\ntransport auth_outbound %s\n}\n}\n", name, api, name)
	}
	g := start(t, options{
		auth: auth, dir: dir,
		raw: "http://{addr} {\nauth\n" + routes + "\n}\nhttp://" + api + " {\nauth {\nfrom header Authorization\naccept jwt introspection\n}\nreverse_proxy {upstream}\n}",
	})
	key := g.plainKey()
	for name, want := range map[string][2]string{
		"basic": {"corp:app", "orders:read"}, "post": {"corp:poster", "orders:read orders:write"}, "signed": {"opaque:client:signer", "orders:read"},
	} {
		var last string
		for range 3 {
			h := g.ok(g.do("GET", "/"+name, "X-API-Key", key)).Header
			if h.Get("X-Auth-Subject") != want[0] || h.Get("X-Auth-Scopes") != want[1] || h.Get("Authorization") != "" {
				t.Errorf("%s: %v", name, h)
			}
			if id := h.Get("X-Auth-Credential-Id"); last != "" && id != last {
				t.Errorf("%s: another token", name)
			} else {
				last = id
			}
		}
	}
	g.want(g.do("GET", "/refused", "X-API-Key", key), 502, "upstream_credential_refused")

	// Every token of the provider dies with it: the opaque one is replaced when
	// it refuses the old one, and asks for a key anew.
	stop()
	if again, _ := node(t, "provider.mjs", strings.TrimPrefix(issuer, "http://127.0.0.1:"), string(public)); again != issuer {
		t.Fatal(again)
	}
	eventually(t, "the opaque token is replaced", func() bool {
		g.upstream.take()
		return g.do("GET", "/signed", "X-API-Key", key).Status == http.StatusOK && gathered(t, "caddy_auth_outbound_refused_total", map[string]string{"outbound": "signed", "result": "renewed"}) > 0
	})
	if logs := g.logs(); strings.Contains(logs, "app-secret") || strings.Contains(logs, "eyJ") || strings.Contains(logs, url.QueryEscape("gateway secret")) {
		t.Error("a secret is in the logs")
	}
}
