package oauth_test

import (
	"context"
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/caddy-auth/caddy-auth/internal/auth"
	"github.com/caddy-auth/caddy-auth/internal/oauth"
	"github.com/caddy-auth/caddy-auth/internal/secret"
)

const (
	goodID     = "client_1"
	goodSecret = "the secret"
)

// credentials knows one client and one key.
type credentials struct{ minter *secret.Minter }

func (credentials) VerifyKey(_ context.Context, text string, _ time.Time) auth.Verdict {
	if text != "the key" {
		return auth.Denied(auth.ReasonUnknown)
	}
	return auth.Verdict{Outcome: auth.Allow, Identity: auth.Identity{Method: auth.MethodAPIKey, CredentialID: "key_1", Scopes: "a"}}
}

func (credentials) VerifySecret(_ context.Context, text string, _ time.Time) auth.Verdict {
	if text != goodSecret {
		return auth.Denied(auth.ReasonUnknown)
	}
	return auth.Verdict{Outcome: auth.Allow, Identity: auth.Identity{ClientID: goodID, Scopes: "a b:*"}}
}

func (credentials) FindClient(context.Context, string, time.Time) auth.Verdict {
	return auth.Denied(auth.ReasonUnknown)
}
func (c credentials) Minter() *secret.Minter { return c.minter }

type tokens struct{ issued []*oauth.Issue }

func (t *tokens) Issue(_ context.Context, i *oauth.Issue) error {
	t.issued = append(t.issued, i)
	return nil
}

func (*tokens) Find(context.Context, auth.Fingerprint) (*auth.AccessToken, error) { return nil, nil }
func (*tokens) UseAssertion(context.Context, *oauth.Issue) error                  { return nil }
func (*tokens) Revoke(context.Context, auth.Fingerprint, string, string) error    { return nil }

// FuzzToken: whatever is sent, nobody gets a token without the secret or the
// key, nor a scope that they may not have, and every answer is JSON that nobody
// may keep.
func FuzzToken(f *testing.F) {
	f.Add("grant_type=client_credentials&scope=a", "Basic Y2xpZW50XzE6dGhlK3NlY3JldA==", "application/x-www-form-urlencoded", "")
	f.Add("grant_type=client_credentials&client_id=client_1&client_secret=the+secret&scope=b:c", "", "application/x-www-form-urlencoded; charset=UTF-8", "a=b")
	f.Add("grant_type=urn:ietf:params:oauth:grant-type:token-exchange&subject_token=the+key&subject_token_type=urn:caddy-auth:token-type:api_key", "", "application/x-www-form-urlencoded", "")
	f.Add("grant_type=client_credentials&client_assertion=eyJhbGciOiJub25lIn0.eyJzdWIiOiJhIn0.eA&client_assertion_type=urn:ietf:params:oauth:client-assertion-type:jwt-bearer", "", "application/x-www-form-urlencoded", "")
	f.Add("%zz&&=&grant_type=%00", "Basic", "text/plain", "client_secret=x;scope=b")
	minter, err := secret.NewMinter([][]byte{make([]byte, secret.MintingSecretLen)}, []string{"ca"})
	if err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, body, authorization, kind, query string) {
		out := &tokens{}
		s := oauth.New(oauth.Config{Issuer: "https://api.example.com", Exchange: true, Prefix: "ca"}, credentials{minter}, out, oauth.NewFailures(), nil)
		r := httptest.NewRequest(http.MethodPost, "/oauth/token", strings.NewReader(body))
		r.URL.RawQuery = query
		r.Header = http.Header{"Content-Type": {kind}}
		if authorization != "" {
			r.Header["Authorization"] = []string{authorization}
		}
		w := httptest.NewRecorder()
		issued, failure := s.ServeToken(w, r, oauth.Caller{Address: netip.MustParseAddr("192.0.2.1")})
		if failure != nil {
			if issued != nil || len(out.issued) > 0 {
				t.Fatal("refused, and given out")
			}
			_ = failure.Write(w, "api")
		}
		var answer map[string]any
		if err := json.Unmarshal(w.Body.Bytes(), &answer); err != nil || w.Header().Get("Cache-Control") != "no-store" {
			t.Fatalf("%d %s %v", w.Code, w.Body, err)
		}
		if failure != nil {
			if answer["error"] == nil || w.Code < 400 {
				t.Fatalf("%d %s", w.Code, w.Body)
			}
			return
		}
		for _, i := range out.issued {
			proved := i.Token.ClientID == goodID && (strings.Contains(body, "client_secret") || authorization != "")
			if i.Token.ClientID != "" && !proved || i.Token.ClientID == "" && (i.Token.KeyID != "key_1" || !strings.Contains(body, "subject_token")) {
				t.Fatalf("a token for %q %q", i.Token.ClientID, i.Token.KeyID)
			}
			for scope := range strings.FieldsSeq(i.Token.Scopes) {
				if scope != "a" && !strings.HasPrefix(scope, "b:") {
					t.Fatalf("the scope %q", scope)
				}
			}
		}
	})
}
