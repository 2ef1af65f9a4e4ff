package login

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/caddy-auth/caddy-auth/internal/auth"
	"github.com/caddy-auth/caddy-auth/internal/fetch"
	"github.com/caddy-auth/caddy-auth/internal/grant"
	"github.com/caddy-auth/caddy-auth/internal/secret"
)

// told is a getter that says what it is told.
type told string

func (t told) Get(context.Context, string) (*fetch.Answer, error) {
	return &fetch.Answer{Status: 200, Body: []byte(t)}, nil
}

func newClient(t *testing.T, revocation string, token http.HandlerFunc) (*Client, string) {
	t.Helper()
	srv := httptest.NewServer(token)
	t.Cleanup(srv.Close)
	if revocation != "" {
		revocation = srv.URL + revocation
	}
	text, _ := json.Marshal(map[string]string{"issuer": srv.URL, "authorization_endpoint": srv.URL + "/a", "token_endpoint": srv.URL + "/t", "revocation_endpoint": revocation})
	e, err := grant.NewEndpoint(grant.Config{ClientID: "gw", Secret: grant.Fixed(auth.NewSecret("s"))})
	if err != nil {
		t.Fatal(err)
	}
	return New(Config{Name: "corp", Issuer: srv.URL, ClientID: "gw"}, NewProvider(srv.URL, told(text)), e, nil, nil), srv.URL
}

// TestRevokeTokens: the refresh token counts; what may pass is tried again, what
// the provider does not do is not.
func TestRevokeTokens(t *testing.T) {
	for _, tc := range []struct {
		refresh, access string
		passes, none    bool
	}{
		{"200", "200", false, true},
		{"200", `400 {"error":"unsupported_token_type"}`, false, true},
		{"200", "400", false, true}, // the grant has ended
		{"503", `400 {"error":"unsupported_token_type"}`, true, false},
		{"503", "400", true, false},
		{`400 {"error":"invalid_client"}`, "200", true, false},
		{"401", "200", true, false},
		{"302", "200", true, false},
		{`400 {"error":"invalid_request"}`, "200", false, false},
		{"400", "503", true, false},
		{"200", "503", true, false},
	} {
		var asked []string
		c, _ := newClient(t, "/r", func(w http.ResponseWriter, r *http.Request) {
			say := map[string]string{"rt": tc.refresh, "at": tc.access}[r.PostFormValue("token")]
			asked = append(asked, r.PostFormValue("token_type_hint"))
			status, body, _ := strings.Cut(say, " ")
			w.Header().Set("Content-Type", "application/json")
			var n int
			_, _ = fmt.Sscan(status, &n)
			w.WriteHeader(n)
			_, _ = w.Write([]byte(body))
		})
		err := c.RevokeTokens(t.Context(), Tokens{Access: "at", Refresh: "rt"})
		if Passes(err) != tc.passes || (err == nil) != tc.none || !slices.Equal(asked, []string{"refresh_token", "access_token"}) {
			t.Errorf("%+v: %v, asked %q", tc, err, asked)
		}
	}
	c, _ := newClient(t, "", func(http.ResponseWriter, *http.Request) { t.Error("asked") })
	if err := c.RevokeTokens(t.Context(), Tokens{Access: "at"}); !errors.Is(err, ErrCantRevoke) || Passes(err) {
		t.Error(err)
	}
	// Another provider's tokens, or another client's, are sent nowhere.
	others := Tokens{Access: "at", Refresh: "rt", Authority: "b"}
	if err := c.RevokeTokens(t.Context(), others); !errors.Is(err, ErrOthers) || Passes(err) {
		t.Error(err)
	}
	if _, err := c.Refresh(t.Context(), others); !errors.Is(err, ErrOver) {
		t.Error(err)
	}
	for authority, want := range map[string]string{"b": "", "": "id"} {
		text, err := (&Tokens{Version: 1, ID: "id", Authority: authority}).Encode()
		if got := c.IDTokenOf(Kept{Plain: text}); err != nil || got != want {
			t.Errorf("an ID token of %q is the hint %q", authority, got)
		}
		// Older gateways don't say whose tokens are; the session does.
		if got := c.IDTokenOf(Kept{Plain: text, Authority: "b"}); got != "" {
			t.Errorf("an ID token of %q, of another's session, is the hint %q", authority, got)
		}
	}
}

// TestRefresh: the refresh token is replaced if there is a new one, and tokens of
// somebody else, or no grant, end it; anything else is a failure that may pass.
func TestRefresh(t *testing.T) {
	var issuer string
	id := func(iss, sub string) string {
		b64 := base64.RawURLEncoding.EncodeToString
		return b64([]byte(`{"alg":"ES256"}`)) + "." + b64(fmt.Appendf(nil, `{"iss":%q,"sub":%q}`, iss, sub)) + ".AAAA"
	}
	answer := ""
	c, issuer := newClient(t, "", func(w http.ResponseWriter, r *http.Request) {
		if r.PostFormValue("grant_type") != "refresh_token" || r.PostFormValue("refresh_token") != "rt" {
			t.Errorf("%v", r.PostForm)
		}
		w.Header().Set("Content-Type", "application/json")
		if strings.Contains(answer, "error") {
			w.WriteHeader(400)
		}
		_, _ = w.Write([]byte(answer))
	})
	for _, tc := range []struct {
		answer  string
		refresh string
		over    bool
		failed  bool
	}{
		{`{"access_token":"at2","token_type":"Bearer"}`, "rt", false, false},
		{`{"access_token":"at2","token_type":"Bearer","refresh_token":"rt2"}`, "rt2", false, false},
		{`{"access_token":"at2","token_type":"Bearer","id_token":"` + id(issuer, "alice") + `"}`, "rt", false, false},
		{`{"access_token":"at2","token_type":"Bearer","id_token":"` + id(issuer, "bob") + `"}`, "", true, false},
		{`{"access_token":"at2","token_type":"Bearer","id_token":"` + id("https://evil.example", "alice") + `"}`, "", true, false},
		{`{"access_token":"at2","token_type":"Bearer","id_token":"nonsense"}`, "", true, false},
		{`{"error":"invalid_grant"}`, "", true, false},
		{`{"error":"invalid_client"}`, "", false, true},
		{`{"error":"temporarily_unavailable"}`, "", false, true},
		{`nonsense`, "", false, true},
	} {
		answer = tc.answer
		got, err := c.Refresh(t.Context(), Tokens{Access: "at", Refresh: "rt", ID: "id", Sub: "alice"})
		if errors.Is(err, ErrOver) != tc.over || (err != nil) != (tc.over || tc.failed) || err == nil && (got.Refresh != tc.refresh || got.ID != "id" || got.Access != "at2" || got.Sub != "alice") {
			t.Errorf("%s: %+v %v", tc.answer, got, err)
		}
	}
}

// TestState: what a browser keeps is good for its login, until it is too old, and
// fits into a cookie whatever the place to return to is.
func TestState(t *testing.T) {
	ring, err := secret.NewRing("test", make([]byte, 32))
	if err != nil {
		t.Fatal(err)
	}
	now := time.Now()
	s := newState("corp", "j", "https://app.example.com/auth/callback", "/a?"+strings.Repeat("&x=1", 400), now)
	text, err := s.seal(ring)
	if err != nil || len(text) > maxSealed {
		t.Fatal(err, len(text))
	}
	got, ok := openState(ring, "corp", "j", text, now.Add(stateLife-time.Second))
	if !ok || got.State != s.State || !strings.HasPrefix(got.Return, "/a?&x=1") {
		t.Errorf("%+v", got)
	}
	for what, try := range map[string]func() bool{
		"too old":       func() bool { _, ok := openState(ring, "corp", "j", text, now.Add(stateLife)); return ok },
		"of the future": func() bool { _, ok := openState(ring, "corp", "j", text, now.Add(-2*time.Minute)); return ok },
		"another login": func() bool { _, ok := openState(ring, "staff", "j", text, now); return ok },
		"another rule":  func() bool { _, ok := openState(ring, "corp", "k", text, now); return ok },
		"changed":       func() bool { _, ok := openState(ring, "corp", "j", text[:len(text)-4]+"AAAA", now); return ok },
		"too long": func() bool {
			_, ok := openState(ring, "corp", "j", text+strings.Repeat("A", maxCookie), now)
			return ok
		},
		"nothing": func() bool { _, ok := openState(ring, "corp", "j", "", now); return ok },
	} {
		if try() {
			t.Errorf("%s: it opens", what)
		}
	}
	long := newState("corp", "j", "https://app.example.com/"+strings.Repeat("r", 1200), "/"+strings.Repeat("a", 1700), now)
	if text, err := long.seal(ring); err != nil || len(text) > maxSealed || long.Return != "/" {
		t.Error(err, len(text), long.Return[:10])
	}
	if stateCookies("a") == stateCookies("a-b")[:len(stateCookies("a"))] {
		t.Error("one login's cookies are another's")
	}
}

// TestJudgement: what says the same has one digest, in every release; what decides
// otherwise has another.
func TestJudgement(t *testing.T) {
	base := Judgement{
		Issuer: "https://a", ClientID: "gw", Algorithms: []string{"RS256", "ES256"}, Scopes: []string{"openid", "profile"}, Subject: "sub", Env: "live", Meta: []string{"email", "groups"},
		Required: []ClaimRule{{"groups", []string{"a", "b"}}, {"hd", nil}},
	}
	of := func(change func(*Judgement)) (judgedBy, authority string) {
		j := base
		change(&j)
		judgedBy, authority, err := j.Digests()
		if err != nil {
			t.Fatal(err)
		}
		return judgedBy, authority
	}
	judgedBy, authority := of(func(*Judgement) {})
	if judgedBy != "7d546a0419b1348093fe95f14c7531b3" || authority != "577ac96a4bd627bd7a0c414b23a4611f" {
		t.Errorf("%s %s: sessions of other releases would end", judgedBy, authority)
	}
	if same, _ := of(func(j *Judgement) {
		j.Algorithms, j.Scopes, j.Meta = []string{"ES256", "RS256"}, []string{"profile", "openid"}, []string{"groups", "email"}
		j.Required = []ClaimRule{{"hd", nil}, {"groups", []string{"b", "a"}}}
	}); same != judgedBy {
		t.Error("the order of lists counts")
	}
	seen := map[string]bool{judgedBy: true}
	for n, change := range []func(*Judgement){
		func(j *Judgement) { j.Issuer = "https://b" }, func(j *Judgement) { j.ClientID = "gx" }, func(j *Judgement) { j.Algorithms = j.Algorithms[:1] }, func(j *Judgement) { j.Scopes = nil },
		func(j *Judgement) { j.Subject = "email" }, func(j *Judgement) { j.Raw = true }, func(j *Judgement) { j.ScopeClaim = "roles" }, func(j *Judgement) { j.Env = "test" },
		func(j *Judgement) { j.Required = j.Required[:1] }, func(j *Judgement) { j.Required = []ClaimRule{{"groups", []string{"a"}}, {"hd", nil}} }, func(j *Judgement) { j.Meta = nil },
	} {
		other, whose := of(change)
		if seen[other] {
			t.Errorf("change %d has no digest of its own", n)
		}
		if seen[other] = true; (whose != authority) != (n < 2) {
			t.Errorf("change %d: another authority %v", n, whose != authority)
		}
	}
}
