package e2e

import (
	"encoding/json"
	"fmt"
	"net/http"
	"strings"
	"testing"

	"github.com/caddy-auth/caddy-auth/internal/manage"
	"github.com/caddy-auth/caddy-auth/test/servers"
)

// TestToken_Outage: without Redis everything works; without the store tokens
// that a gateway knows pass, nothing is given out, ended or called inactive, and
// nobody is called bad.
func TestToken_Outage(t *testing.T) {
	pg, redis := servers.StartPostgres(t), servers.StartRedis(t)
	g := startOAuth(t, options{store: pg.DSN(), auth: "redis " + redis.URL() + "\nidentity_headers {\nassertion {\naudience orders\n}\n}"})
	c := g.client(manage.ClientSpec{})
	key := newClientKey(t)
	signed := g.client(manage.ClientSpec{JWKS: key.jwks()})
	token := g.token(c, "")
	if saw := g.ok(g.bearer(token)); saw.Header.Get("X-Auth-Assertion") == "" {
		t.Error("no assertion")
	}
	if a := g.asserted(key, signed.Client.ID); a.Status != 200 {
		t.Fatalf("%d %s", a.Status, a.Body)
	}
	if dump := fmt.Sprint(redis.Dump()); strings.Contains(dump, token[6:30]) || strings.Contains(dump, c.Secret.Reveal()[6:30]) || strings.Contains(dump, c.Client.ID) {
		t.Error("Redis holds what it must not")
	}
	redis.Kill()
	fresh := g.token(c, "")
	g.ok(g.bearer(fresh))
	ended := g.token(c, "")
	g.ok(g.bearer(ended))
	if a := g.form("/oauth/revoke", "token="+ended, "Authorization", of(c)); a.Status != 200 {
		t.Errorf("revoked without Redis: %d %s", a.Status, a.Body)
	}
	if a := g.bearer(ended); a.Status != 401 {
		t.Errorf("after that: %d", a.Status)
	}
	unseen, unknown := g.token(c, ""), unknownKey(t, g)
	pg.Kill()
	saw := g.ok(g.bearer(token))
	if saw.Header.Get("X-Auth-Assertion") == "" {
		t.Error("no assertion while the store is away")
	}
	for what, ask := range map[string]func() answer{
		"a token for a secret":         func() answer { return g.form("/oauth/token", "grant_type=client_credentials", "Authorization", of(c)) },
		"a token for an assertion":     func() answer { return g.asserted(key, signed.Client.ID) },
		"a token for a key":            func() answer { return g.form("/oauth/token", exchangeForm(unknown, "")) },
		"revocation":                   func() answer { return g.form("/oauth/revoke", "token="+token, "Authorization", of(c)) },
		"introspection of the unknown": func() answer { return g.form("/oauth/introspect", "token="+unseen, "Authorization", of(c)) },
	} {
		a := ask()
		code, _ := oauthError(t, a)
		if a.Status != http.StatusServiceUnavailable || code != "temporarily_unavailable" || a.Header.Get("Retry-After") == "" {
			t.Errorf("%s: %d %s", what, a.Status, a.Body)
		}
	}
	if a := g.bearer(unseen); a.Status != 503 {
		t.Errorf("a token that nobody here knows: %d", a.Status)
	}
	if a := g.bearer(ended); a.Status != 401 {
		t.Errorf("a token that was ended: %d", a.Status)
	}
	if a := g.form("/oauth/token", "grant_type=client_credentials", "Authorization", basic(c.Client.ID, "wrong")); a.Status != 401 {
		t.Errorf("a wrong secret: %d %s", a.Status, a.Body)
	}
	if a := g.form("/oauth/introspect", "token="+token, "Authorization", of(c)); a.Status != 200 || !strings.Contains(a.Body, `"active":true`) {
		t.Errorf("introspection of what is known: %d %s", a.Status, a.Body)
	}
	pg.Start()
	eventually(t, "tokens again", func() bool {
		a := g.form("/oauth/token", "grant_type=client_credentials", "Authorization", of(c))
		if a.Status != 200 && a.Status != 503 {
			t.Fatalf("%d %s", a.Status, a.Body)
		}
		return a.Status == 200
	})
	eventually(t, "the unseen token passes", func() bool { return g.bearer(unseen).Status == 200 })
}

// unknownKey is a key with a good tag that no gateway has seen.
func unknownKey(t *testing.T, g *gateway) string {
	t.Helper()
	minter := g.minter()
	text, err := minter.Mint("ca", "live")
	if err != nil {
		t.Fatal(err)
	}
	return text.Reveal()
}

// TestAssertion_NeedsAMasterKey: what is signed with never lies open in a
// database.
func TestAssertion_NeedsAMasterKey(t *testing.T) {
	pg := servers.StartPostgres(t)
	full := fmt.Sprintf("{\nadmin off\npersist_config off\nauto_https off\nlog {\noutput file {dir}/log.json\nformat auth_redact\n}\nauth {\nstore postgres %q\n%s\n}\n}\nhttp://{addr} {\nauth\nreverse_proxy {upstream}\n}", pg.DSN(), fmt.Sprintf(withAssertion, ""))
	if got := startError(t, options{full: full}); !strings.Contains(got, "assertion needs a master_key") {
		t.Error(got)
	}
}

// TestStreams_OfOwnTokens: what is under way with a token of ours ends with it,
// and with what it hangs on.
func TestStreams_OfOwnTokens(t *testing.T) {
	u := startLong(t)
	g := startOAuth(t, options{site: "auth_token\nauth_revoke\nauth\nhandle /long/* {\nuri strip_prefix /long\nreverse_proxy " + u.Listener.Addr().String() + " {\nflush_interval -1\n}\n}"})
	base := "http://" + g.addr + "/long"
	c, other := g.client(manage.ClientSpec{Owner: "one"}), g.client(manage.ClientSpec{Owner: "two"})
	open := func(path, token string) *stream {
		t.Helper()
		id := g.ok(g.bearer(token)).Header.Get("X-Auth-Credential-Id")
		return openStream(t, http.DefaultClient, base, path, asKey(id, token))
	}
	first, second, third := g.token(c, ""), g.token(c, ""), g.token(other, "")
	byToken, byClient, bystander := open("/events", first), open("/download", second), open("/events", third)
	exchanged := func(owner string, k manage.Made) *stream {
		t.Helper()
		var got struct {
			Token string `json:"access_token"`
		}
		a := g.form("/oauth/token", exchangeForm(k.Text.Reveal(), ""), "Authorization", of(g.client(manage.ClientSpec{Owner: owner})))
		if err := json.Unmarshal([]byte(a.Body), &got); err != nil || got.Token == "" {
			t.Fatalf("%d %s", a.Status, a.Body)
		}
		return open("/events", got.Token)
	}
	k := g.key(manage.KeySpec{Owner: "keys", Scopes: []string{"orders:read"}})
	byKey, byClientsOwner := exchanged("four", k), exchanged("three", g.key(manage.KeySpec{Owner: "keys", Scopes: []string{"orders:read"}}))
	if _, err := g.manager().SetOwnerDisabled(t.Context(), "three", true, ""); err != nil {
		t.Fatal(err)
	}
	byClientsOwner.wantEnd(u, "its client's owner was disabled")
	byKey.wantOpen(u, "another client's owner was disabled")
	if _, err := g.manager().Revoke(t.Context(), []string{k.Key.ID}, ""); err != nil {
		t.Fatal(err)
	}
	byKey.wantEnd(u, "its key was revoked")
	if a := g.form("/oauth/revoke", "token="+first, "Authorization", of(c)); a.Status != 200 {
		t.Fatalf("%d %s", a.Status, a.Body)
	}
	byToken.wantEnd(u, "its token was ended")
	byClient.wantOpen(u, "another token of the client was ended")
	if _, err := g.manager().RevokeClients(t.Context(), []string{c.Client.ID}, ""); err != nil {
		t.Fatal(err)
	}
	byClient.wantEnd(u, "its client was revoked")
	bystander.wantOpen(u, "another client was revoked")
	if _, err := g.manager().SetOwnerDisabled(t.Context(), "two", true, ""); err != nil {
		t.Fatal(err)
	}
	bystander.wantEnd(u, "its owner was disabled")
}
