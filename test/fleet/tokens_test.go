package fleet

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"testing"
	"time"

	jose "github.com/go-jose/go-jose/v4"

	"github.com/caddy-auth/caddy-auth/internal/auth"
)

// idp issues tokens and publishes its key.
type idp struct {
	*httptest.Server
	key *ecdsa.PrivateKey
}

func startIDP(t *testing.T) *idp {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	set := jose.JSONWebKeySet{Keys: []jose.JSONWebKey{{Key: key.Public(), KeyID: "k"}}}
	i := &idp{key: key}
	i.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _ = json.NewEncoder(w).Encode(set) }))
	t.Cleanup(i.Close)
	return i
}

func (i *idp) token(t *testing.T, sub, jti, more string) string {
	t.Helper()
	s, err := jose.NewSigner(jose.SigningKey{Algorithm: jose.ES256, Key: i.key}, (&jose.SignerOptions{}).WithHeader("kid", "k"))
	if err != nil {
		t.Fatal(err)
	}
	now := time.Now().Unix()
	signed, err := s.Sign(fmt.Appendf(nil, `{"iss":%q,"aud":"api","sub":%q,"jti":%q,"iat":%d,"exp":%d%s}`, i.URL, sub, jti, now-1, now+3600, more))
	if err != nil {
		t.Fatal(err)
	}
	text, err := signed.CompactSerialize()
	if err != nil {
		t.Fatal(err)
	}
	return text
}

func (g *gateway) bearer(token string) int {
	g.f.t.Helper()
	req, err := http.NewRequest(http.MethodGet, "http://"+g.addr+"/x", nil)
	if err != nil {
		g.f.t.Fatal(err)
	}
	req.Header.Set("Authorization", "Bearer "+token)
	res, err := g.f.client.Do(req)
	if err != nil {
		g.f.t.Fatal(err)
	}
	_ = res.Body.Close()
	return res.StatusCode
}

// TestTokens_RevokedEverywhere: when the command has waited, no gateway lets a
// revoked token in, whether it had it cached or never saw it, nor after a
// restart; how long that takes is measured.
func TestTokens_RevokedEverywhere(t *testing.T) {
	i := startIDP(t)
	f := startFleet(t, 3, true, fmt.Sprintf("issuer corp {\nurl %s\njwks %s/keys\naudience api\n}\n", i.URL, i.URL))
	var took []time.Duration
	last := ""
	for n := range 40 {
		sub, jti := fmt.Sprintf("user-%d", n), fmt.Sprintf("token-%d", n)
		cached, unseen := i.token(t, sub, jti, ""), i.token(t, sub, jti, `,"x":1`)
		for _, g := range f.gateways {
			if got := g.bearer(cached); got != http.StatusOK {
				t.Fatalf("%s: %d", g.name, got)
			}
		}
		c := auth.CutOff{Issuer: "corp", JTI: jti}
		if n%2 == 1 {
			c = auth.CutOff{Issuer: "corp", Subject: sub}
		}
		began := time.Now()
		if n%10 == 9 {
			f.must("token", "revoke", "--issuer", "corp", "--subject", sub, "--wait")
		} else {
			if _, err := f.ops.CutOff(context.Background(), c, false); err != nil {
				t.Fatal(err)
			}
			if _, err := f.ops.Wait(t.Context()); err != nil {
				t.Fatal(err)
			}
			took = append(took, time.Since(began))
		}
		for _, g := range f.gateways {
			for what, token := range map[string]string{"cached": cached, "unseen": unseen} {
				if got := g.bearer(token); got != http.StatusUnauthorized {
					t.Errorf("%s, %s token %d: %d", g.name, what, n, got)
				}
			}
		}
		last = cached
	}
	t.Logf("until every gateway had applied it: p50 %v, max %v", quantile(took, 0.5), quantile(took, 1))
	if p50 := quantile(took, 0.5); p50 > 500*time.Millisecond {
		t.Errorf("half took longer than %v", p50)
	}
	f.gateways[1].kill()
	f.gateways[1].start()
	f.gateways[1].ready()
	if got := f.gateways[1].bearer(last); got != http.StatusUnauthorized {
		t.Errorf("after a restart: %d", got)
	}
}
