package e2e

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"net/url"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/caddy-auth/caddy-auth/internal/auth"
	"github.com/caddy-auth/caddy-auth/internal/manage"
)

// oauthSite has every endpoint and an API.
const oauthSite = "auth_token\nauth_revoke\nauth_introspect\nauth_wellknown\nauth"

func startOAuth(t testing.TB, o options) *gateway {
	t.Helper()
	addr := freeAddr(t)
	o.auth += "\ntoken_endpoint {\nissuer http://" + addr + "\nexchange 5m\n}"
	if o.site == "" {
		o.site = oauthSite
	}
	o.raw = fmt.Sprintf("http://%s {\n%s\nreverse_proxy {upstream}\n}", addr, o.site)
	g := start(t, o)
	g.addr = addr
	return g
}

// client makes an OAuth client.
func (g *gateway) client(spec manage.ClientSpec) manage.MadeClient {
	g.t.Helper()
	if spec.Owner == "" {
		spec.Owner = "acme"
	}
	if spec.Scopes == nil {
		spec.Scopes = []string{"orders:read", "orders:write"}
	}
	made, err := g.manager().CreateClient(context.Background(), spec)
	if err != nil {
		g.t.Fatal(err)
	}
	return made
}

// form posts a body as it is, with headers.
func (g *gateway) form(path, body string, headers ...string) answer {
	g.t.Helper()
	h := http.Header{"Content-Type": {"application/x-www-form-urlencoded"}}
	for i := 0; i < len(headers); i += 2 {
		h[headers[i]] = append(h[headers[i]], headers[i+1])
	}
	req, err := http.NewRequest(http.MethodPost, "http://"+g.addr+path, strings.NewReader(body))
	if err != nil {
		g.t.Fatal(err)
	}
	req.Header = h
	res, err := http.DefaultTransport.RoundTrip(req)
	if err != nil {
		g.t.Fatal(err)
	}
	return readAnswer(g.t, res)
}

func basic(id, secret string) string {
	r := &http.Request{Header: http.Header{}}
	r.SetBasicAuth(url.QueryEscape(id), url.QueryEscape(secret))
	return r.Header.Get("Authorization")
}

func of(c manage.MadeClient) string { return basic(c.Client.ID, c.Secret.Reveal()) }

// oauthError is an error answer (RFC 6749, 5.2).
func oauthError(t testing.TB, a answer) (code, description string) {
	t.Helper()
	var e struct {
		Error       string `json:"error"`
		Description string `json:"error_description"`
	}
	if err := json.Unmarshal([]byte(a.Body), &e); err != nil {
		t.Errorf("no error in JSON: %d %q", a.Status, a.Body)
	}
	return e.Error, e.Description
}

// token gets a token.
func (g *gateway) token(c manage.MadeClient, scope string) string {
	g.t.Helper()
	a := g.form("/oauth/token", url.Values{"grant_type": {"client_credentials"}, "scope": {scope}}.Encode(), "Authorization", of(c))
	var got struct {
		Token string `json:"access_token"`
	}
	if a.Status != 200 || json.Unmarshal([]byte(a.Body), &got) != nil || got.Token == "" {
		g.t.Fatalf("no token: %d %s", a.Status, a.Body)
	}
	return got.Token
}

func TestToken_ClientCredentials(t *testing.T) {
	g := startOAuth(t, options{})
	c := g.client(manage.ClientSpec{Meta: map[string]string{"tenant": "t1"}})
	id, secret := c.Client.ID, c.Secret.Reveal()
	shape := regexp.MustCompile(`^ca_at_[0-9A-Za-z]{51}$`)
	for what, ask := range map[string]func() answer{
		"basic": func() answer { return g.form("/oauth/token", "grant_type=client_credentials", "Authorization", of(c)) },
		"basic in lower case": func() answer {
			return g.form("/oauth/token", "grant_type=client_credentials", "Authorization", strings.Replace(of(c), "Basic", "basic", 1))
		},
		"basic that escapes too much": func() answer {
			return g.form("/oauth/token", "grant_type=client_credentials", "Authorization", escapedBasic(id, secret))
		},
		"basic with the same id again": func() answer {
			return g.form("/oauth/token", "grant_type=client_credentials&client_id="+id, "Authorization", of(c))
		},
		"post": func() answer {
			return g.form("/oauth/token", "grant_type=client_credentials&client_id="+id+"&client_secret="+secret)
		},
		"unknown parameters": func() answer {
			return g.form("/oauth/token", "grant_type=client_credentials&foo=1&bar=", "Authorization", of(c))
		},
		"empty parameters": func() answer {
			return g.form("/oauth/token", "grant_type=client_credentials&scope=&client_secret=&client_assertion=", "Authorization", of(c))
		},
		"a charset": func() answer {
			return g.form("/oauth/token", "grant_type=client_credentials", "Authorization", of(c), "X", "", "Accept", "*/*")
		},
		"a resource": func() answer {
			return g.form("/oauth/token", "grant_type=client_credentials&resource=http://"+g.addr+"/&resource=http://"+g.addr+"/orders", "Authorization", of(c))
		},
		"an ordinary query": func() answer {
			return g.form("/oauth/token?trace=1", "grant_type=client_credentials", "Authorization", of(c))
		},
	} {
		a := ask()
		var got struct {
			Token   string `json:"access_token"`
			Type    string `json:"token_type"`
			Expires int    `json:"expires_in"`
			Scope   string `json:"scope"`
			Refresh string `json:"refresh_token"`
		}
		if err := json.Unmarshal([]byte(a.Body), &got); a.Status != 200 || err != nil {
			t.Errorf("%s: %d %s", what, a.Status, a.Body)
			continue
		}
		if !shape.MatchString(got.Token) || got.Type != "Bearer" || got.Expires != 3600 || got.Scope != "orders:read orders:write" || got.Refresh != "" {
			t.Errorf("%s: %s", what, a.Body)
		}
		if a.Header.Get("Cache-Control") != "no-store" || a.Header.Get("Pragma") != "no-cache" || a.Header.Get("Content-Type") != "application/json" {
			t.Errorf("%s: headers %v", what, a.Header)
		}
		saw := g.ok(g.bearer(got.Token))
		for name, want := range map[string]string{
			"X-Auth-Subject": "client:" + id, "X-Auth-Method": "access_token", "X-Auth-Client-Id": id, "X-Auth-Scopes": "orders:read orders:write",
			"X-Auth-Environment": "live", "X-Auth-Issuer": "", "Authorization": "",
		} {
			if saw.Header.Get(name) != want {
				t.Errorf("%s: %s is %q, want %q", what, name, saw.Header.Get(name), want)
			}
		}
		if !strings.HasPrefix(saw.Header.Get("X-Auth-Credential-Id"), "at_") {
			t.Errorf("%s: %v", what, saw.Header)
		}
	}
	if got := g.token(c, "orders:read"); g.ok(g.bearer(got)).Header.Get("X-Auth-Scopes") != "orders:read" {
		t.Error("the token has more than it was asked for with")
	}
}

// escapedBasic escapes every byte, as RFC 6749, 2.3.1 allows.
func escapedBasic(id, secret string) string {
	var parts [2]string
	for i, s := range []string{id, secret} {
		for _, b := range []byte(s) {
			parts[i] += fmt.Sprintf("%%%02x", b)
		}
	}
	r := &http.Request{Header: http.Header{}}
	r.SetBasicAuth(parts[0], parts[1])
	return r.Header.Get("Authorization")
}

// TestToken_EndsWithWhatItHangsOn: whatever ends a token, every request after it
// is refused, and what can be undone is undone.
func TestToken_EndsWithWhatItHangsOn(t *testing.T) {
	g := startOAuth(t, options{auth: "cache {\nttl 5m\n}"})
	m := g.manager()
	ctx := t.Context()
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	refused := func(what, token string) {
		t.Helper()
		eventually(t, "refused after "+what, func() bool { return g.bearer(token).Status == 401 })
		g.upstream.take()
	}
	passes := func(what, token string) {
		t.Helper()
		eventually(t, "passes after "+what, func() bool { return g.bearer(token).Status == 200 })
		g.upstream.take()
	}
	c := g.client(manage.ClientSpec{Owner: "one"})
	ids := []string{c.Client.ID}
	token := g.token(c, "")
	passes("issuing", token)

	_, err := m.SetClientsDisabled(ctx, ids, true, "")
	must(err)
	refused("the client was disabled", token)
	if a := g.form("/oauth/token", "grant_type=client_credentials", "Authorization", of(c)); a.Status != 401 {
		t.Errorf("a disabled client got: %d %s", a.Status, a.Body)
	}
	_, err = m.SetClientsDisabled(ctx, ids, false, "")
	must(err)
	passes("the client was enabled", token)

	_, err = m.SetOwnerDisabled(ctx, "one", true, "")
	must(err)
	refused("the owner was disabled", token)
	if a := g.form("/oauth/token", "grant_type=client_credentials", "Authorization", of(c)); a.Status != 401 {
		t.Errorf("a client of a disabled owner got: %d %s", a.Status, a.Body)
	}
	_, err = m.SetOwnerDisabled(ctx, "one", false, "")
	must(err)
	passes("the owner was enabled", token)

	_, err = m.EditClients(ctx, ids, func(s *manage.ClientSpec) { s.Scopes = []string{"orders:read"} })
	must(err)
	eventually(t, "the token lost what its client lost", func() bool {
		a := g.bearer(token)
		saw, err := parseSeen(a.Body)
		return a.Status == 200 && err == nil && saw.Header.Get("X-Auth-Scopes") == "orders:read"
	})
	_, err = m.EditClients(ctx, ids, func(s *manage.ClientSpec) { s.Networks = []string{"192.0.2.0/24"} })
	must(err)
	eventually(t, "bound to another network", func() bool { return g.bearer(token).Status == 403 })
	if a := g.form("/oauth/token", "grant_type=client_credentials", "Authorization", of(c)); a.Status != 400 || !strings.Contains(a.Body, "unauthorized_client") {
		t.Errorf("from another network: %d %s", a.Status, a.Body)
	}
	_, err = m.EditClients(ctx, ids, func(s *manage.ClientSpec) { s.Networks = nil })
	must(err)
	passes("bound to none", token)

	rotated, err := m.RotateClient(ctx, c.Client.ID, time.Hour)
	must(err)
	second := manage.MadeClient{Client: rotated.Client, Secret: rotated.Secret}
	g.token(second, "")
	g.token(c, "") // both work
	third, err := m.RotateClient(ctx, c.Client.ID, 0)
	must(err)
	for what, old := range map[string]manage.MadeClient{"first": c, "second": second} {
		eventually(t, "the "+what+" secret ended", func() bool {
			return g.form("/oauth/token", "grant_type=client_credentials", "Authorization", of(old)).Status == 401
		})
	}
	passes("the secret was rotated", token)
	last := manage.MadeClient{Client: third.Client, Secret: third.Secret}
	g.token(last, "")
	_, err = m.RevokeClients(ctx, ids, "left")
	must(err)
	refused("the client was revoked", token)
	if a := g.form("/oauth/token", "grant_type=client_credentials", "Authorization", of(last)); a.Status != 401 {
		t.Errorf("a revoked client got: %d %s", a.Status, a.Body)
	}
	if _, err := m.SetClientsDisabled(ctx, ids, false, ""); err == nil {
		t.Error("a revoked client was enabled")
	}
}

// exchangeForm asks for a token for a key (RFC 8693).
func exchangeForm(key, more string) string {
	return url.Values{
		"grant_type": {"urn:ietf:params:oauth:grant-type:token-exchange"}, "subject_token": {key}, "subject_token_type": {"urn:caddy-auth:token-type:api_key"},
	}.Encode() + more
}

// TestToken_Exchange: a key for a token that dies with it.
func TestToken_Exchange(t *testing.T) {
	g := startOAuth(t, options{})
	m := g.manager()
	exchange := func(key, more string, headers ...string) (token string, a answer) {
		t.Helper()
		a = g.form("/oauth/token", exchangeForm(key, more), headers...)
		var got struct {
			Token   string `json:"access_token"`
			Issued  string `json:"issued_token_type"`
			Expires int    `json:"expires_in"`
		}
		if a.Status == 200 && (json.Unmarshal([]byte(a.Body), &got) != nil || got.Issued != "urn:ietf:params:oauth:token-type:access_token" || got.Expires > 300) {
			t.Errorf("%s", a.Body)
		}
		return got.Token, a
	}
	made := g.key(manage.KeySpec{Owner: "acme", Scopes: []string{"orders:*"}, Meta: map[string]string{"tenant": "t9"}})
	key := made.Text.Reveal()
	token, _ := exchange(key, "&scope=orders:read")
	saw := g.ok(g.bearer(token))
	if saw.Header.Get("X-Auth-Subject") != "acme" || saw.Header.Get("X-Auth-Method") != "access_token" || saw.Header.Get("X-Auth-Scopes") != "orders:read" || saw.Header.Get("X-Auth-Client-Id") != "" {
		t.Errorf("%v", saw.Header)
	}
	c := g.client(manage.ClientSpec{Scopes: []string{"orders:read"}})
	both, _ := exchange(key, "&scope=orders:read", "Authorization", of(c))
	if h := g.ok(g.bearer(both)).Header; h.Get("X-Auth-Subject") != "acme" || h.Get("X-Auth-Client-Id") != c.Client.ID {
		t.Errorf("with a client: %v", h)
	}
	short := g.client(manage.ClientSpec{Scopes: []string{"orders:read", "orders:write"}, TokenLifetime: 20 * time.Second})
	if _, a := exchange(key, "", "Authorization", of(short)); !strings.Contains(a.Body, `"expires_in":20,"scope":"orders:read orders:write"`) {
		t.Errorf("with a client whose tokens live shortly, and has some of the key's scopes: %s", a.Body)
	}
	none := g.client(manage.ClientSpec{Scopes: []string{"users:read"}})
	if _, a := exchange(key, "", "Authorization", of(none)); a.Status != 400 || !strings.Contains(a.Body, "invalid_scope") {
		t.Errorf("with a client that has none of the key's scopes: %d %s", a.Status, a.Body)
	}
	for what, tc := range map[string]struct {
		body string
		head []string
		code string
	}{
		"more than the key has":    {exchangeForm(key, "&scope=users:read"), nil, "invalid_scope"},
		"more than the client has": {exchangeForm(key, "&scope=orders:write"), []string{"Authorization", of(c)}, "invalid_scope"},
		"a wrong client":           {exchangeForm(key, ""), []string{"Authorization", basic(c.Client.ID, "x")}, "invalid_client"},
		"an unknown key":           {exchangeForm(mistyped(key), ""), nil, "invalid_request"},
		"a token for a token":      {exchangeForm(token, ""), nil, "invalid_request"},
		"a client's secret":        {exchangeForm(c.Secret.Reveal(), ""), nil, "invalid_request"},
		"no key":                   {exchangeForm("", ""), nil, "invalid_request"},
		"an actor":                 {exchangeForm(key, "&actor_token="+token), nil, "invalid_request"},
		"a JWT wanted":             {exchangeForm(key, "&requested_token_type=urn:ietf:params:oauth:token-type:jwt"), nil, "invalid_request"},
		"for somebody else":        {exchangeForm(key, "&audience=billing"), nil, "invalid_target"},
		"for another resource":     {exchangeForm(key, "&resource=https://other.example"), nil, "invalid_target"},
	} {
		a := g.form("/oauth/token", tc.body, tc.head...)
		if code, _ := oauthError(t, a); code != tc.code || a.Status == 200 {
			t.Errorf("%s: %d %s, want %s", what, a.Status, a.Body, tc.code)
		}
	}
	soon := g.key(manage.KeySpec{ExpiresAt: time.Now().Add(30 * time.Second).UnixMilli()})
	if _, a := exchange(soon.Text.Reveal(), ""); a.Status != 200 || !regexp.MustCompile(`"expires_in":(2\d|30),`).MatchString(a.Body) {
		t.Errorf("it would live longer than its key: %d %s", a.Status, a.Body)
	}
	ends := func(what, token string, end func() error) {
		t.Helper()
		if g.bearer(token).Status != 200 {
			t.Fatalf("%s: refused before", what)
		}
		if err := end(); err != nil {
			t.Fatal(err)
		}
		eventually(t, "ended: "+what, func() bool { return g.bearer(token).Status == 401 })
	}
	ids := []string{made.Key.ID}
	ctx := t.Context()
	ends("the client of both", both, func() error { _, err := m.RevokeClients(ctx, []string{c.Client.ID}, ""); return err })
	ends("the key is disabled", token, func() error { _, err := m.SetDisabled(ctx, ids, true, ""); return err })
	if _, err := m.SetDisabled(ctx, ids, false, ""); err != nil {
		t.Fatal(err)
	}
	eventually(t, "enabled again", func() bool { return g.bearer(token).Status == 200 })
	ends("the owner is disabled", token, func() error { _, err := m.SetOwnerDisabled(ctx, "acme", true, ""); return err })
	if _, err := m.SetOwnerDisabled(ctx, "acme", false, ""); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the owner is enabled", func() bool { return g.bearer(token).Status == 200 })
	ends("the key is rotated without overlap", token, func() error { _, err := m.Rotate(ctx, made.Key.ID, 0, nil); return err })
	if _, a := exchange(key, ""); a.Status != 400 {
		t.Errorf("a replaced key: %d %s", a.Status, a.Body)
	}
	other := g.key(manage.KeySpec{})
	token, _ = exchange(other.Text.Reveal(), "")
	ends("the key is revoked", token, func() error { _, err := m.Revoke(ctx, []string{other.Key.ID}, ""); return err })
	last := g.key(manage.KeySpec{Owner: "gone"})
	token, _ = exchange(last.Text.Reveal(), "")
	ends("the owner's keys are revoked", token, func() error { _, err := m.RevokeOwner(ctx, "gone", ""); return err })
}

// TestToken_Revocation is RFC 7009.
func TestToken_Revocation(t *testing.T) {
	g := startOAuth(t, options{})
	c, other := g.client(manage.ClientSpec{}), g.client(manage.ClientSpec{})
	token := g.token(c, "")
	revoke := func(token string, headers ...string) answer {
		return g.form("/oauth/revoke", url.Values{"token": {token}, "token_type_hint": {"refresh_token"}}.Encode(), headers...)
	}
	for what, tc := range map[string]struct {
		a      answer
		status int
		code   string
	}{
		"nobody":             {revoke(token), 401, "invalid_client"},
		"a wrong secret":     {revoke(token, "Authorization", basic(c.Client.ID, other.Secret.Reveal())), 401, "invalid_client"},
		"another client":     {revoke(token, "Authorization", of(other)), 400, "unauthorized_client"},
		"no token":           {revoke("", "Authorization", of(c)), 400, "invalid_request"},
		"a key":              {revoke(g.plainKey(), "Authorization", of(c)), 400, "unsupported_token_type"},
		"GET":                {g.do("GET", "/oauth/revoke", "Authorization", of(c)), 405, "invalid_request"},
		"a token in the URL": {g.form("/oauth/revoke?token="+token, "", "Authorization", of(c)), 400, "invalid_request"},
	} {
		if code, _ := oauthError(t, tc.a); tc.a.Status != tc.status || code != tc.code {
			t.Errorf("%s: %d %s", what, tc.a.Status, tc.a.Body)
		}
	}
	if g.bearer(token).Status != 200 {
		t.Fatal("one of those ended it")
	}
	for what, text := range map[string]string{"unknown": mistyped(token), "nonsense": "nonsense", "a secret": c.Secret.Reveal()} {
		if a := revoke(text, "Authorization", of(c)); a.Status != 200 {
			t.Errorf("%s: %d %s", what, a.Status, a.Body)
		}
	}
	for range 2 { // again changes nothing
		if a := revoke(token, "Authorization", of(c)); a.Status != 200 || a.Body != "" || a.Header.Get("Cache-Control") != "no-store" {
			t.Fatalf("%d %s", a.Status, a.Body)
		}
		if a := g.bearer(token); a.Status != 401 { // at once, on this gateway
			t.Fatalf("after its revocation: %d", a.Status)
		}
	}
	// One that is refused at the moment is ended all the same.
	made := g.key(manage.KeySpec{Scopes: []string{"orders:read"}})
	a := g.form("/oauth/token", exchangeForm(made.Text.Reveal(), ""), "Authorization", of(c))
	var got struct {
		Token string `json:"access_token"`
	}
	if err := json.Unmarshal([]byte(a.Body), &got); err != nil {
		t.Fatal(err)
	}
	m, ids := g.manager(), []string{made.Key.ID}
	if _, err := m.SetDisabled(t.Context(), ids, true, ""); err != nil {
		t.Fatal(err)
	}
	eventually(t, "refused", func() bool { return g.bearer(got.Token).Status == 401 })
	if a := revoke(got.Token, "Authorization", of(c)); a.Status != 200 {
		t.Errorf("%d %s", a.Status, a.Body)
	}
	if _, err := m.SetDisabled(t.Context(), ids, false, ""); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the key works again", func() bool { return g.do("GET", "/", "X-API-Key", made.Text.Reveal()).Status == 200 })
	if a := g.bearer(got.Token); a.Status != 401 {
		t.Errorf("a token that was ended while it was refused: %d", a.Status)
	}
	key := g.plainKey()
	a = g.form("/oauth/token", exchangeForm(key, ""))
	if err := json.Unmarshal([]byte(a.Body), &got); err != nil {
		t.Fatal(err)
	}
	if a := revoke(got.Token); a.Status != 200 { // who has it may end it: it is nobody's
		t.Errorf("%d %s", a.Status, a.Body)
	}
	if g.bearer(got.Token).Status != 401 || g.do("GET", "/", "X-API-Key", key).Status != 200 {
		t.Error("the token works, or the key does not")
	}
}

// TestToken_Introspection is RFC 7662.
func TestToken_Introspection(t *testing.T) {
	g := startOAuth(t, options{})
	c := g.client(manage.ClientSpec{Environment: "test"})
	reader := g.client(manage.ClientSpec{})
	token := g.token(c, "orders:read")
	ask := func(text string, headers ...string) answer {
		return g.form("/oauth/introspect", url.Values{"token": {text}}.Encode(), headers...)
	}
	a := ask(token, "Authorization", of(reader))
	var got map[string]any
	if err := json.Unmarshal([]byte(a.Body), &got); err != nil || a.Header.Get("Cache-Control") != "no-store" {
		t.Fatalf("%d %s %v", a.Status, a.Body, err)
	}
	for name, want := range map[string]any{
		"active": true, "scope": "orders:read", "client_id": c.Client.ID, "sub": "client:" + c.Client.ID, "token_type": "Bearer", "iss": "http://" + g.addr, "environment": "test",
	} {
		if got[name] != want {
			t.Errorf("%s: %v, want %v", name, got[name], want)
		}
	}
	if exp, iat := got["exp"].(float64), got["iat"].(float64); exp-iat < 3599 || exp-iat > 3601 {
		t.Errorf("exp %v, iat %v", exp, iat)
	}
	key := g.plainKey()
	if err := func() error { _, err := g.manager().RevokeClients(t.Context(), []string{c.Client.ID}, ""); return err }(); err != nil {
		t.Fatal(err)
	}
	eventually(t, "inactive", func() bool { return ask(token, "Authorization", of(reader)).Body == `{"active":false}` })
	for what, text := range map[string]string{"a key": key, "nonsense": "x", "empty but there": " ", "a secret": reader.Secret.Reveal(), "forged": token[:len(token)-1] + "_"} {
		if a := ask(text, "Authorization", of(reader)); a.Status != 200 || a.Body != `{"active":false}` {
			t.Errorf("%s: %d %s", what, a.Status, a.Body)
		}
	}
	for what, a := range map[string]answer{"nobody": ask(token), "a key as the caller": ask(token, "Authorization", "Bearer "+key), "a revoked client": ask(token, "Authorization", of(c))} {
		if code, _ := oauthError(t, a); a.Status != 401 || code != "invalid_client" {
			t.Errorf("%s: %d %s", what, a.Status, a.Body)
		}
	}
}

// TestToken_IsNothingElse: tokens, secrets and keys are never taken for each
// other, wherever they are sent.
func TestToken_IsNothingElse(t *testing.T) {
	g := startOAuth(t, options{})
	c := g.client(manage.ClientSpec{})
	token, secret := g.token(c, ""), c.Secret.Reveal()
	g.want(g.bearer(secret), 401, auth.CodeInvalidCredential)
	g.want(g.do("GET", "/", "X-API-Key", secret), 401, auth.CodeInvalidCredential)
	g.want(g.do("GET", "/", "X-API-Key", token), 400, auth.CodeInvalidRequest)
	g.want(g.do("GET", "/", "Authorization", of(c)), 400, auth.CodeInvalidRequest)
	g.want(g.do("GET", "/?a="+token), 400, auth.CodeCredentialInQuery)
	g.want(g.do("GET", "/"+secret), 400, auth.CodeCredentialInQuery)
	g.want(g.do("GET", "/", "X-API-Key", g.plainKey(), "Authorization", "Bearer "+token), 400, auth.CodeInvalidRequest)
	for what, text := range map[string]string{"a key": g.plainKey(), "a token": token} {
		if a := g.form("/oauth/token", "grant_type=client_credentials", "Authorization", basic(c.Client.ID, text)); a.Status != 401 {
			t.Errorf("%s for a secret: %d %s", what, a.Status, a.Body)
		}
	}
	g.ok(g.bearer(token))
	if logs := g.logs(); strings.Contains(logs, token[6:40]) || strings.Contains(logs, secret[6:40]) {
		t.Error("a part of a token or a secret was logged")
	}
	if stored := g.file("auth.db") + g.file("auth.db-wal"); !strings.Contains(stored, c.Client.ID) || strings.Contains(stored, token[6:30]) || strings.Contains(stored, secret[6:30]) {
		t.Error("the store holds a token or a secret, or was not looked at")
	}
	eventually(t, "the leaks are told", func() bool {
		text := g.logs()
		return strings.Contains(text, "token.leaked") && strings.Contains(text, "client_secret.leaked")
	})
}

// TestToken_ManyAtOnce: clients that ask at the same time all get tokens that
// work, and few transactions are made.
func TestToken_ManyAtOnce(t *testing.T) {
	g := startOAuth(t, options{})
	c := g.client(manage.ClientSpec{})
	const n = 300
	tokens := make([]string, n)
	var wg sync.WaitGroup
	for i := range n {
		wg.Go(func() { tokens[i] = g.token(c, "") })
	}
	wg.Wait()
	seen := map[string]bool{}
	for _, token := range tokens {
		if seen[token] {
			t.Fatal("a token was given out twice")
		}
		seen[token] = true
		if a := g.bearer(token); a.Status != 200 {
			t.Fatalf("%d %s", a.Status, a.Body)
		}
	}
}
