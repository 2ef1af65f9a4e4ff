package e2e

import (
	"net/http"
	"testing"
	"time"

	"github.com/caddy-auth/caddy-auth/internal/auth"
	"github.com/caddy-auth/caddy-auth/internal/manage"
)

// asKey dresses a token as what openStream takes.
func asKey(jti, token string) manage.Made {
	return manage.Made{Key: &auth.Key{ID: jti}, Text: auth.NewSecret(token)}
}

// TestStreams_OfTokens: what is under way with a token ends when the token is
// cut off or expires, and for nothing else.
func TestStreams_OfTokens(t *testing.T) {
	i := newIssuer(t)
	u := startLong(t)
	g := start(t, options{
		auth: i.block("leeway 1s") + i.opaqueBlock(""),
		raw:  "http://{addr} {\nauth\nreverse_proxy " + u.Listener.Addr().String() + " {\nflush_interval -1\n}\n}",
	})
	m := g.manager()
	i.set(func(i *issuer) {
		i.tokens["ey-opaque"] = `{"active":true,"sub":"bob","jti":"o1","iat":1,"exp":99999999999}`
	})
	base := "http://" + g.addr
	now := time.Now().Unix()
	byJTI := openStream(t, http.DefaultClient, base, "/events", asKey("a", i.token("jti", "a")))
	socket := openStream(t, http.DefaultClient, base, "/socket", asKey("a", i.token("jti", "a", "x", 1)))
	bySubject := openStream(t, http.DefaultClient, base, "/download", asKey("b", i.token("jti", "b", "sub", "carol")))
	since := openStream(t, http.DefaultClient, base, "/events", asKey("c", i.token("jti", "c", "sub", "carol", "iat", now+1)))
	expiring := openStream(t, http.DefaultClient, base, "/events", asKey("d", i.token("jti", "d", "sub", "dave", "exp", now+1)))
	opaque := openStream(t, http.DefaultClient, base, "/events", asKey("o1", "ey-opaque"))
	bystander := openStream(t, http.DefaultClient, base, "/events", asKey("e", i.token("jti", "e", "sub", "erin")))
	for what, c := range map[string]auth.CutOff{
		"a":     {Issuer: "corp", JTI: "a"},
		"carol": {Issuer: "corp", Subject: "carol", IssuedBefore: now * 1000},
		"bob":   {Issuer: "legacy", Subject: "legacy:bob"},
		"erin":  {Issuer: "corp", Subject: "erin", IssuedBefore: (now - 3600) * 1000}, // before hers
		"other": {Issuer: "legacy", Subject: "erin"},
	} {
		if changed, err := m.CutOff(t.Context(), c, false); err != nil || !changed {
			t.Fatal(what, changed, err)
		}
	}
	byJTI.wantEnd(u, "by jti")
	socket.wantEnd(u, "by jti, a websocket with a twin of the token")
	bySubject.wantEnd(u, "by subject")
	opaque.wantEnd(u, "an opaque one")
	expiring.wantEnd(u, "expired")
	since.wantOpen(u, "issued since")
	bystander.wantOpen(u, "of another, and named in vain")
	since.close()
	bystander.close()
}
