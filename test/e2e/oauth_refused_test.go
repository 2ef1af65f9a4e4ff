package e2e

import (
	"bytes"
	"compress/gzip"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"

	"github.com/caddy-auth/caddy-auth/internal/manage"
	"github.com/caddy-auth/caddy-auth/test/servers"
)

// refusedRequest is a request to the token endpoint and what becomes of it.
type refusedRequest struct {
	section string // of the RFC, and what is wrong
	body    string
	headers []string
	status  int
	code    string
}

// TestToken_RefusesBadRequests: the table of what is wrong with requests to the
// token endpoint, by the section of the RFC that says so.
func TestToken_RefusesBadRequests(t *testing.T) {
	g := startOAuth(t, options{})
	c := g.client(manage.ClientSpec{})
	other := g.client(manage.ClientSpec{})
	id, secret := c.Client.ID, c.Secret.Reveal()
	good, cc := of(c), "grant_type=client_credentials"
	posted := cc + "&client_id=" + id + "&client_secret=" + secret
	b64 := func(s string) string { return "Basic " + base64.StdEncoding.EncodeToString([]byte(s)) }
	auth := func(v string) []string { return []string{"Authorization", v} }
	kind := func(v string) []string { return []string{"Content-Type", v, "Authorization", good} }
	const (
		req, cli   = "invalid_request", "invalid_client"
		assertType = "&client_assertion_type=urn%3Aietf%3Aparams%3Aoauth%3Aclient-assertion-type%3Ajwt-bearer"
	)
	cases := []refusedRequest{
		{"6749 3.2: nothing in the body", "", auth(good), 400, req},
		{"6749 3.2: grant_type twice", cc + "&" + cc, auth(good), 400, req},
		{"6749 3.2: scope twice", cc + "&scope=orders:read&scope=orders:write", auth(good), 400, req},
		{"6749 3.2: the same scope twice", cc + "&scope=orders:read&scope=orders:read", auth(good), 400, req},
		{"6749 3.2: an empty parameter twice", cc + "&scope=&scope=", auth(good), 400, req},
		{"6749 3.2: a parameter twice, once escaped", cc + "&sc%6fpe=a&scope=b", auth(good), 400, req},
		{"6749 3.2: client_id twice", posted + "&client_id=" + id, nil, 400, req},
		{"6749 3.2: client_secret twice", posted + "&client_secret=" + secret, nil, 400, req},
		{"6749 3.2: an unknown parameter twice", cc + "&foo=1&foo=2", auth(good), 400, req},
		{"6749 3.2: too many parameters", cc + strings.Repeat("&a=", 100), auth(good), 400, req},
		{"6749 3.2: a body that is too big", cc + "&x=" + strings.Repeat("a", 20<<10), auth(good), 413, req},
		{"6749 3.2: a bad escape", cc + "&scope=%zz", auth(good), 400, req},
		{"6749 3.2: a cut escape", cc + "&scope=%4", auth(good), 400, req},
		{"6749 3.2: NUL", cc + "&scope=a%00b", auth(good), 400, req},
		{"6749 3.2: a line break", cc + "&scope=a%0d%0ab", auth(good), 400, req},
		{"6749 B: not UTF-8", cc + "&scope=%ff%fe", auth(good), 400, req},
		{"6749 B: JSON", `{"grant_type":"client_credentials"}`, kind("application/json"), 400, req},
		{"6749 B: JSON that says it is a form", `{"grant_type":"client_credentials"}`, auth(good), 400, req},
		{"6749 B: multipart", cc, kind("multipart/form-data; boundary=x"), 400, req},
		{"6749 B: plain text", cc, kind("text/plain"), 400, req},
		{"6749 B: no type", cc, kind(""), 400, req},
		{"6749 B: two types", cc, append(kind("text/plain"), "Content-Type", "application/x-www-form-urlencoded"), 400, req},
		{"6749 B: another charset", cc, kind("application/x-www-form-urlencoded; charset=utf-16"), 400, req},
		{"6749 B: a broken type", cc, kind("application/x-www-form-urlencoded; charset"), 400, req},
		{"6749 B: compressed", gzipped(cc), append(kind("application/x-www-form-urlencoded"), "Content-Encoding", "gzip"), 400, req},

		{"6749 2.3: two ways, Basic and post", posted, auth(good), 400, req},
		{"6749 2.3: two ways, Basic and an assertion", cc + "&client_assertion=a.b.c" + assertType, auth(good), 400, req},
		{"6749 2.3: two ways, post and an assertion", posted + "&client_assertion=a.b.c" + assertType, nil, 400, req},
		{"6749 2.3: another client_id than Basic's", cc + "&client_id=" + other.Client.ID, auth(good), 400, req},
		{"6749 2.3: Authorization twice", cc, append(auth(good), auth(good)...), 400, req},
		{"6749 2.3.1: no client", cc, nil, 401, cli},
		{"6749 2.3.1: a client_id alone", cc + "&client_id=" + id, nil, 401, cli},
		{"6749 2.3.1: a secret alone", cc + "&client_secret=" + secret, nil, 401, cli},
		{"6749 2.3.1: an unknown client", cc, auth(basic("client_nobody", secret)), 401, cli},
		{"6749 2.3.1: an unknown client and secret", cc, auth(basic("client_nobody", "x")), 401, cli},
		{"6749 2.3.1: a wrong secret", cc, auth(basic(id, "wrong")), 401, cli},
		{"6749 2.3.1: a wrong secret, posted", cc + "&client_id=" + id + "&client_secret=wrong", nil, 401, cli},
		{"6749 2.3.1: a mistyped secret", cc, auth(basic(id, secret[:len(secret)-1]+"_")), 401, cli},
		{"6749 2.3.1: another client's secret", cc, auth(basic(id, other.Secret.Reveal())), 401, cli},
		{"6749 2.3.1: the secret in another case", cc, auth(basic(id, strings.ToUpper(secret))), 401, cli},
		{"6749 2.3.1: the id in another case", cc, auth(basic(strings.ToUpper(id), secret)), 401, cli},
		{"6749 2.3.1: an empty id", cc, auth(b64(":" + secret)), 401, cli},
		{"6749 2.3.1: an empty secret", cc, auth(b64(id + ":")), 401, cli},
		{"6749 2.3.1: no colon", cc, auth(b64(id + secret)), 401, cli},
		{"6749 2.3.1: a secret that is not form-encoded", cc, auth(b64(id + ":%zz")), 401, cli},
		{"6749 2.3.1: NUL in Basic", cc, auth(b64(id + "%00:" + secret)), 401, cli},
		{"6749 2.3.1: a client_id that is too long", cc, auth(basic(strings.Repeat("a", 300), "x")), 401, cli},
		{"7617 2: no base64", cc, auth("Basic !!!"), 401, cli},
		{"7617 2: an empty Basic", cc, auth("Basic "), 401, cli},
		{"7617 2: Basic alone", cc, auth("Basic"), 401, cli},
		{"7617 2: a Basic that is too long", cc, auth(b64(strings.Repeat("a", 4000) + ":b")), 401, cli},
		{"6750 2.1: Bearer", cc, auth("Bearer " + secret), 401, cli},
		{"6749 2.3.1: another scheme", cc, auth("Digest username=a"), 401, cli},

		{"6749 4.4.2: no grant_type", "scope=orders:read", auth(good), 400, req},
		{"6749 4.4.2: an empty grant_type", "grant_type=", auth(good), 400, req},
		{"6749 5.2: an unknown grant", "grant_type=magic", auth(good), 400, "unsupported_grant_type"},
		{"6749 5.2: the grant in another case", "grant_type=Client_Credentials", auth(good), 400, "unsupported_grant_type"},
		{"6749 5.2: a grant with a blank", "grant_type=client_credentials%20", auth(good), 400, "unsupported_grant_type"},
		{"9700 2.4: the password grant", "grant_type=password&username=a&password=b", auth(good), 400, "unsupported_grant_type"},
		{"6749 4.1.3: a code", "grant_type=authorization_code&code=a", auth(good), 400, "unsupported_grant_type"},
		{"6749 6: a refresh token", "grant_type=refresh_token&refresh_token=a", auth(good), 400, "unsupported_grant_type"},
		{"7523 2.1: a JWT as the grant", "grant_type=urn:ietf:params:oauth:grant-type:jwt-bearer&assertion=a.b.c", auth(good), 400, "unsupported_grant_type"},

		{"6749 3.3: a scope that the client may not have", cc + "&scope=admin", auth(good), 400, "invalid_scope"},
		{"6749 3.3: one of two", cc + "&scope=orders:read+admin", auth(good), 400, "invalid_scope"},
		{"6749 3.3: a scope in another case", cc + "&scope=Orders:read", auth(good), 400, "invalid_scope"},
		{"6749 3.3: a wildcard over what it may have", cc + "&scope=orders:*", auth(good), 400, "invalid_scope"},
		{"6749 3.3: a part of a scope", cc + "&scope=orders", auth(good), 400, "invalid_scope"},
		{"6749 3.3: two blanks", cc + "&scope=orders:read++orders:write", auth(good), 400, "invalid_scope"},
		{"6749 3.3: commas", cc + "&scope=orders:read,orders:write", auth(good), 400, "invalid_scope"},
		{"6749 3.3: a quote", cc + "&scope=%22orders:read%22", auth(good), 400, "invalid_scope"},
		{"6749 3.3: not ASCII", cc + "&scope=%C3%A9", auth(good), 400, "invalid_scope"},
		{"6749 3.3: too many", cc + "&scope=" + strings.TrimSuffix(strings.Repeat("orders:read+", 100), "+"), auth(good), 400, "invalid_scope"},

		{"8707 2: a token for somebody else", cc + "&resource=https://other.example", auth(good), 400, "invalid_target"},
		{"8707 2: for us and somebody else", cc + "&resource=http://" + g.addr + "&resource=https://other.example", auth(good), 400, "invalid_target"},
		{"8707 2: a host that begins like ours", cc + "&resource=http://" + g.addr + ".evil.example", auth(good), 400, "invalid_target"},
		{"8707 2: an audience", cc + "&audience=billing", auth(good), 400, "invalid_target"},
		{"7521 4.2: no type of assertion", cc + "&client_assertion=a.b.c", nil, 400, req},
		{"7521 4.2: another type of assertion", cc + "&client_assertion=a.b.c&client_assertion_type=saml", nil, 400, req},
		{"7521 4.2: a type without an assertion", cc + assertType, nil, 400, req},
		{"7523 3: no token", cc + "&client_assertion=abc" + assertType, nil, 401, cli},
		{"7523 3: a token of rubbish", cc + "&client_assertion=a.b.c" + assertType, nil, 401, cli},
		{"7523 3: a long token", cc + "&client_assertion=e" + strings.Repeat("y", 9000) + ".b.c" + assertType, nil, 401, cli},
		{"7523 3: alg none", cc + "&client_assertion=eyJhbGciOiJub25lIn0.eyJzdWIiOiJhIn0.eA" + assertType, nil, 401, cli},
		{"8693 2.1: no subject", "grant_type=urn:ietf:params:oauth:grant-type:token-exchange", nil, 400, req},
		{"8693 2.1: no type of subject", "grant_type=urn:ietf:params:oauth:grant-type:token-exchange&subject_token=a", nil, 400, req},
		{"8693 3: another type of subject", "grant_type=urn:ietf:params:oauth:grant-type:token-exchange&subject_token=a&subject_token_type=urn:ietf:params:oauth:token-type:saml2", nil, 400, req},
		{"8693 2.1: a client without proof", exchangeForm(g.plainKey(), "&client_id="+id), nil, 401, cli},
		{"8693 2.2.2: an unknown subject", exchangeForm("nobody", ""), nil, 400, req},
	}
	if len(cases) < 60 {
		t.Fatalf("%d cases", len(cases))
	}
	bodies := map[string]bool{}
	for i, tc := range cases {
		t.Run(tc.section, func(t *testing.T) {
			headers := http.Header{"Content-Type": {"application/x-www-form-urlencoded"}}
			for j := 0; j < len(tc.headers); j += 2 {
				if tc.headers[j] == "Content-Type" && slices.Index(tc.headers, "Content-Type") == j {
					headers.Del("Content-Type")
				}
				if tc.headers[j+1] != "" {
					headers.Add(tc.headers[j], tc.headers[j+1])
				}
			}
			headers.Set("X-Forwarded-For", fmt.Sprintf("10.0.%d.1", i)) // nobody is trusted to say so
			res := send(t, "http://"+g.addr+"/oauth/token", tc.body, headers)
			code, description := oauthError(t, res)
			if res.Status != tc.status || code != tc.code {
				t.Errorf("%d %s, want %d %s", res.Status, res.Body, tc.status, tc.code)
			}
			wantRefusal(t, res, description, secret)
			if code == cli {
				bodies[res.Body] = true
			}
		})
	}
	if len(bodies) != 1 {
		t.Errorf("who is no client can tell from the answer what was wrong: %v", bodies)
	}
	if a := g.form("/oauth/token", cc, "Authorization", good); a.Status != 200 {
		t.Errorf("after all that the good client gets %d %s", a.Status, a.Body)
	}
}

func send(t *testing.T, target, body string, headers http.Header) answer {
	t.Helper()
	req, err := http.NewRequest(http.MethodPost, target, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	req.Header = headers
	res, err := http.DefaultTransport.RoundTrip(req)
	if err != nil {
		t.Fatal(err)
	}
	return readAnswer(t, res)
}

// wantRefusal checks what every refusal has (RFC 6749, 5.2).
func wantRefusal(t *testing.T, a answer, description, secret string) {
	t.Helper()
	if a.Header.Get("Cache-Control") != "no-store" || a.Header.Get("Content-Type") != "application/json" {
		t.Errorf("headers %v", a.Header)
	}
	if challenge := a.Header.Get("WWW-Authenticate"); (a.Status == 401) != strings.HasPrefix(challenge, "Basic realm=") {
		t.Errorf("%d with the challenge %q", a.Status, challenge)
	}
	if description == "" || strings.ContainsFunc(description, func(r rune) bool { return r < 0x20 || r > 0x7e || r == '"' || r == '\\' }) {
		t.Errorf("description %q", description)
	}
	if strings.Contains(a.Body, secret[8:30]) {
		t.Error("the answer repeats a part of the secret")
	}
}

func gzipped(s string) string {
	var b bytes.Buffer
	z := gzip.NewWriter(&b)
	_, _ = z.Write([]byte(s))
	_ = z.Close()
	return b.String()
}

// TestToken_RefusesWhatIsInTheURL: RFC 6749, 2.3.1 and 3.2: secrets and
// parameters are never in the URL, and only POST asks for tokens.
func TestToken_RefusesWhatIsInTheURL(t *testing.T) {
	g := startOAuth(t, options{})
	c := g.client(manage.ClientSpec{})
	secret := c.Secret.Reveal()
	for what, query := range map[string]string{
		"a secret":                "client_secret=" + secret,
		"a secret, escaped":       "cl%69ent_secret=x",
		"a secret, other name":    "foo=" + secret,
		"the id":                  "client_id=" + c.Client.ID,
		"the grant":               "grant_type=client_credentials",
		"the grant, in capitals":  "GRANT_TYPE=client_credentials",
		"the scope, a semicolon":  "a=1;scope=orders:read",
		"an assertion":            "client_assertion=eyJhbGciOiJub25lIn0.eyJzdWIiOiJhIn0.eA",
		"a password":              "password=x",
		"a subject":               "subject_token=" + g.plainKey(),
		"a name that is no token": "access_token=x",
	} {
		a := g.form("/oauth/token?"+query, "grant_type=client_credentials", "Authorization", of(c))
		code, description := oauthError(t, a)
		if a.Status != 400 || code != "invalid_request" {
			t.Errorf("%s: %d %s", what, a.Status, a.Body)
		}
		wantRefusal(t, a, description, secret)
	}
	for _, method := range []string{"GET", "PUT", "DELETE", "HEAD", "OPTIONS", "PATCH"} {
		a := g.do(method, "/oauth/token", "Authorization", of(c))
		if a.Status != 405 || a.Header.Get("Allow") != "POST" || a.Header.Get("Cache-Control") != "no-store" {
			t.Errorf("%s: %d %v", method, a.Status, a.Header)
		}
	}
}

// TestToken_Throttles: who fails again and again is told to wait, and nobody
// else is, at the same address either.
func TestToken_Throttles(t *testing.T) {
	g := startOAuth(t, options{auth: "refusal_rate off"})
	c := g.client(manage.ClientSpec{})
	key := newClientKey(t)
	signed := g.client(manage.ClientSpec{JWKS: key.jwks()})
	stranger := newClientKey(t)
	tooMany := func(what string, most int, ask func(i int) answer) {
		t.Helper()
		var a answer
		for i := range most {
			if a = ask(i); a.Status != 401 {
				break
			}
		}
		if code, _ := oauthError(t, a); a.Status != 429 || code != "temporarily_unavailable" || a.Header.Get("Retry-After") == "" {
			t.Errorf("%s: %d %s %v", what, a.Status, a.Body, a.Header)
		}
	}
	g.asserted(key, signed.Client.ID) // memory knows it
	tooMany("wrong secrets", 100, func(int) answer {
		return g.form("/oauth/token", "grant_type=client_credentials", "Authorization", basic(c.Client.ID, "wrong"))
	})
	tooMany("wrong signatures", 100, func(int) answer { return g.asserted(stranger, signed.Client.ID) })
	tooMany("a client that is not there", 100, func(int) answer { return g.asserted(stranger, "client_nobody") })
	for i := range 200 { // each is told so, and nobody can tell by it who is there
		if a := g.asserted(stranger, fmt.Sprint("client_", i)); a.Status != 401 {
			t.Fatalf("client %d: %d %s", i, a.Status, a.Body)
		}
	}
	g.token(c, "")
	g.token(g.client(manage.ClientSpec{}), "") // that nobody here knew
	if a := g.asserted(key, signed.Client.ID); a.Status != 200 {
		t.Errorf("a good client whose name others use: %d %s", a.Status, a.Body)
	}
	if a := g.form("/oauth/token", exchangeForm(g.plainKey(), "")); a.Status != 200 {
		t.Errorf("a good key: %d %s", a.Status, a.Body)
	}
	late := g.client(manage.ClientSpec{JWKS: key.jwks()})
	if a := g.asserted(key, late.Client.ID); a.Status != 200 {
		t.Errorf("a good client that is new here: %d %s", a.Status, a.Body)
	}
}

// TestToken_MaxTokens: a client, or a key, that asks for token after token has some
// in the end, and no more: the first ones stay good, the store does not grow, and
// others are not concerned. On PostgreSQL too.
func TestToken_MaxTokens(t *testing.T) {
	for what, dsn := range map[string]func() string{"a file": func() string { return "" }, "PostgreSQL": func() string { return servers.StartPostgres(t).DSN() }} {
		t.Run(what, func(t *testing.T) {
			g := start(t, options{store: dsn(), auth: "token_endpoint {\nissuer https://gw.example.com\nexchange 5m\nmax_tokens 20\n}", site: "auth_token\nauth_revoke\nauth"})
			c, other := g.client(manage.ClientSpec{}), g.client(manage.ClientSpec{})
			key := g.plainKey()
			own := func(c manage.MadeClient) func() answer {
				return func() answer {
					return g.form("/oauth/token", "grant_type=client_credentials", "Authorization", of(c))
				}
			}
			exchange := func() answer {
				return g.form("/oauth/token", url.Values{"grant_type": {"urn:ietf:params:oauth:grant-type:token-exchange"}, "subject_token": {key}, "subject_token_type": {"urn:caddy-auth:token-type:api_key"}}.Encode())
			}
			for what, ask := range map[string]func() answer{"a client": own(c), "a key": exchange} {
				var mu sync.Mutex
				var tokens []string
				codes := map[int]int{}
				var all sync.WaitGroup
				for range 8 {
					all.Go(func() {
						for range 10 {
							a := ask()
							var got struct {
								Token string `json:"access_token"`
							}
							_ = json.Unmarshal([]byte(a.Body), &got)
							mu.Lock()
							codes[a.Status]++
							if a.Status == 200 {
								tokens = append(tokens, got.Token)
							}
							wait, _ := strconv.Atoi(a.Header.Get("Retry-After"))
							if a.Status == 429 && (wait < 1 || wait > 3600 || !strings.Contains(a.Body, "20 living tokens")) {
								t.Errorf("%s: Retry-After %q, %s", what, a.Header.Get("Retry-After"), a.Body)
							}
							mu.Unlock()
						}
					})
				}
				all.Wait()
				if codes[200] != 20 || codes[429] != 60 {
					t.Errorf("%s: %v", what, codes)
				}
				for _, token := range tokens {
					g.want(g.bearer(token), 200, "")
				}
				if what == "a client" {
					if a := g.form("/oauth/revoke", url.Values{"token": {tokens[0]}}.Encode(), "Authorization", of(c)); a.Status != 200 {
						t.Errorf("revoking: %d %s", a.Status, a.Body)
					}
					eventually(t, "there is room for one more", func() bool { return ask().Status == 200 })
				}
			}
			if a := own(other)(); a.Status != 200 {
				t.Errorf("another client: %d %s", a.Status, a.Body)
			}
		})
	}
}
