package e2e

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"testing"
	"time"

	jose "github.com/go-jose/go-jose/v4"

	"github.com/caddy-auth/caddy-auth/internal/auth"
)

func TestZZEncodedJTI(t *testing.T) {
	i := newIssuer(t)
	g := start(t, options{auth: i.block(""), site: "auth"})
	m := g.manager()
	tok := i.token("jti", "50%/a b", "sub", "Jürgen")
	saw := g.ok(g.bearer(tok))
	j, s := saw.Header.Get("X-Auth-Credential-Id"), saw.Header.Get("X-Auth-Subject")
	for _, c := range []auth.CutOff{{Issuer: "corp", JTI: j}, {Issuer: "corp", Subject: s}} {
		changed, err := m.CutOff(t.Context(), c)
		if _, err := m.Wait(t.Context()); err != nil {
			t.Fatal(err)
		}
		t.Logf("revoked %+v changed=%v err=%v; request now: %d", c, changed, err, g.bearer(tok).Status)
	}
}

func TestZZRoleWithSpace(t *testing.T) {
	i := newIssuer(t)
	g := start(t, options{auth: i.block("scope_claim realm_access.roles\nmeta_claims groups"), site: "auth\nauth_require /adm/* meta groups admin"})
	t.Log("roles ok:", g.bearer(i.token("realm_access", map[string]any{"roles": []string{"a"}})).Status)
	t.Log("role with space:", g.bearer(i.token("realm_access", map[string]any{"roles": []string{"a", "Team Lead"}})).Status)
	t.Log("groups [admin]:", g.do("GET", "/adm/x", "Authorization", "Bearer "+i.token("groups", []string{"admin"}, "jti", "1")).Status)
	t.Log("groups [admin dev]:", g.do("GET", "/adm/x", "Authorization", "Bearer "+i.token("groups", []string{"admin", "dev"}, "jti", "2")).Status)
	t.Log("groups [] :", g.bearer(i.token("groups", []string{}, "jti", "3")).Status)
	t.Log("groups null :", g.bearer(i.token("groups", nil, "jti", "4")).Status)
	t.Log("scope null :", g.bearer(i.sign(jose.ES256, fmt.Sprintf(`{"iss":%q,"aud":"api","sub":"a","iat":%d,"exp":%d,"realm_access":null,"groups":null,"client_id":null}`, i.URL, time.Now().Unix(), time.Now().Unix()+100))).Status)
	t.Log("double-space scope, default claim")
}

func TestZZSkewRotation(t *testing.T) {
	i := newIssuer(t)
	g := start(t, options{auth: i.block(""), site: "auth"})
	g.ok(g.bearer(i.token()))
	t.Log("attacker's unknown kid:", g.bearer(i.sign(jose.ES256, i.good(), "kid", "nope")).Status)
	i.rotate("k2")
	now := time.Now().Unix()
	t.Log("new key, issuer's clock right:", g.bearer(i.token("iat", now+1, "jti", "r1")).Status)
	t.Log("new key, issuer's clock 10 s behind:", g.bearer(i.token("iat", now-10, "jti", "r2")).Status)
	t.Log("new key, same second:", g.bearer(i.token("iat", now, "jti", "r3")).Status)
}

func TestZZBreaker(t *testing.T) {
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		tok := r.PostFormValue("token")
		if tok != "good" && tok != "good2" {
			w.WriteHeader(400)
			fmt.Fprint(w, `{"error":"invalid_request"}`)
			return
		}
		w.Header().Set("Content-Type", "application/json")
		fmt.Fprint(w, `{"active":true,"sub":"bob"}`)
	}))
	defer srv.Close()
	g := start(t, options{auth: fmt.Sprintf("introspection legacy {\nurl %s\nclient_id g\nclient_secret s\n}\n", srv.URL), site: "auth"})
	g.ok(g.bearer("good"))
	for n := range 5 {
		t.Log("junk:", g.bearer(fmt.Sprintf("junk%d", n)).Status)
	}
	t.Log("another good token:", g.bearer("good2").Status)
}

func TestZZMistypedKey(t *testing.T) {
	got := make(chan string, 10)
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		got <- r.PostFormValue("token")
		w.Header().Set("Content-Type", "application/json")
		fmt.Fprint(w, `{"active":false}`)
	}))
	defer srv.Close()
	g := start(t, options{auth: fmt.Sprintf("introspection legacy {\nurl %s\nclient_id g\nclient_secret s\n}\n", srv.URL), site: "auth"})
	key := g.plainKey()
	t.Log(g.bearer(key[:len(key)-1]).Status, g.bearer(key+".").Status)
	close(got)
	for s := range got {
		t.Logf("introspection server was sent %d of %d characters of a live key: prefix match %v", len(s), len(key), s[:20] == key[:20])
	}
}
