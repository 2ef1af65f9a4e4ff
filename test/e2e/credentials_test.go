package e2e

import (
	"context"
	"encoding/base64"
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/caddy-auth/caddy-auth/internal/auth"
	"github.com/caddy-auth/caddy-auth/internal/manage"
)

func TestIdentityReachesTheUpstream(t *testing.T) {
	g := start(t, options{site: "auth"})
	k := g.key(manage.KeySpec{Owner: "acme-billing", Scopes: []string{"orders:write", "orders:read"}})
	for _, headers := range [][]string{
		{"X-API-Key", k.Text.Reveal()},
		{"Authorization", "Bearer " + k.Text.Reveal()},
		{"Authorization", "bearer " + k.Text.Reveal()},
		{"Authorization", "BEARER " + k.Text.Reveal()},
	} {
		s := g.ok(g.do("GET", "/x?a=1&b=%20;c", headers...))
		for name, want := range map[string]string{
			"X-Auth-Subject": "acme-billing", "X-Auth-Method": "api_key", "X-Auth-Credential-Id": k.Key.ID,
			"X-Auth-Scopes": "orders:read orders:write", "X-Auth-Environment": "live",
		} {
			if got := s.Header[name]; len(got) != 1 || got[0] != want {
				t.Errorf("%s: %q, want %q", name, got, want)
			}
		}
		for _, absent := range []string{"X-Auth-Issuer", "X-Auth-Client-Id", "X-Api-Key", "Authorization"} {
			if got, ok := s.Header[absent]; ok {
				t.Errorf("%s reached the upstream: %q", absent, got)
			}
		}
		if s.Target != "/x?a=1&b=%20;c" {
			t.Errorf("target changed: %q", s.Target)
		}
	}
}

func TestBadCredentials(t *testing.T) {
	g := start(t, options{site: "auth"})
	key := g.plainKey()
	flip := func(i int) string {
		b := []byte(key)
		if b[i] == 'A' {
			b[i] = 'B'
		} else {
			b[i] = 'A'
		}
		return string(b)
	}
	basic := func(s string) string { return "Authorization: Basic " + base64.StdEncoding.EncodeToString([]byte(s)) }
	const (
		missing = auth.CodeMissingCredential
		bad     = auth.CodeInvalidCredential
		invalid = auth.CodeInvalidRequest
	)
	for name, c := range map[string]struct {
		lines  []string
		status int
		code   auth.Code
	}{
		"no credential":            {nil, 401, missing},
		"another scheme":           {[]string{basic("user:pw")}, 401, missing},
		"empty key":                {[]string{"X-API-Key:"}, 400, invalid},
		"blank key":                {[]string{"X-API-Key:    "}, 400, invalid},
		"4 KiB key":                {[]string{"X-API-Key: " + strings.Repeat("a", 4096)}, 401, bad},
		"10 KiB key":               {[]string{"X-API-Key: " + strings.Repeat("a", 10<<10)}, 400, invalid},
		"64 KiB header":            {[]string{"X-API-Key: " + strings.Repeat("a", 64<<10)}, 431, ""},
		"non-ASCII":                {[]string{"X-API-Key: " + key[:20] + "\u00e9" + key[20:]}, 400, invalid},
		"control character":        {[]string{"X-API-Key: " + key[:20] + "\x01" + key[20:]}, 400, ""},
		"tab inside":               {[]string{"X-API-Key: " + key[:20] + "\t" + key[20:]}, 400, invalid},
		"two keys":                 {[]string{"X-API-Key: " + key, "X-API-Key: " + key}, 400, invalid},
		"two keys, other case":     {[]string{"X-API-Key: " + key, "x-api-key: other"}, 400, invalid},
		"key and bearer":           {[]string{"X-API-Key: " + key, "Authorization: Bearer " + key}, 400, invalid},
		"key and bad bearer":       {[]string{"X-API-Key: " + key, "Authorization: Bearer x"}, 400, invalid},
		"two bearers":              {[]string{"Authorization: Bearer " + key, "Authorization: Bearer " + key}, 400, invalid},
		"list of keys":             {[]string{"X-API-Key: " + key + "," + key}, 400, invalid},
		"scheme in the key header": {[]string{"X-API-Key: Bearer " + key}, 400, invalid},
		"bearer without token":     {[]string{"Authorization: Bearer"}, 400, invalid},
		"bearer and blanks":        {[]string{"Authorization: Bearer   "}, 400, invalid},
		"several spaces":           {[]string{"Authorization: Bearer  " + key}, 400, invalid},
		"tab":                      {[]string{"Authorization: Bearer\t" + key}, 400, invalid},
		"commas":                   {[]string{"Authorization: Bearer " + key + ", Bearer " + key}, 400, invalid},
		"equals sign":              {[]string{"Authorization: Bearer=" + key}, 400, invalid},
		"quoted":                   {[]string{`Authorization: Bearer "` + key + `"`}, 400, invalid},
		"empty authorization":      {[]string{"Authorization:"}, 400, invalid},
		"key without a scheme":     {[]string{"Authorization: " + key}, 400, invalid},
		"key under another scheme": {[]string{"Authorization: ApiKey " + key}, 400, invalid},
		"key as basic, unpadded":   {[]string{strings.TrimRight(basic("u:"+key), "=")}, 400, invalid},
		"key as basic user":        {[]string{basic(key + ":")}, 400, invalid},
		"wrong prefix":             {[]string{"X-API-Key: zz" + key[2:]}, 401, bad},
		"wrong environment":        {[]string{"X-API-Key: " + strings.Replace(key, "live", "test", 1)}, 401, bad},
		"wrong tag":                {[]string{"X-API-Key: " + flip(len(key)-1)}, 401, bad},
		"one bit off":              {[]string{"X-API-Key: " + flip(20)}, 401, bad},
		"truncated":                {[]string{"X-API-Key: " + key[:len(key)-1]}, 401, bad},
		"extended":                 {[]string{"X-API-Key: " + key + "a"}, 401, bad},
		"upper case":               {[]string{"X-API-Key: " + strings.ToUpper(key)}, 401, bad},
		"its own hash":             {[]string{"X-API-Key: " + auth.FingerprintOf(key).String()}, 401, bad},
		"star":                     {[]string{"X-API-Key: *"}, 401, bad},
		"sql":                      {[]string{"X-API-Key: '/**/OR/**/1=1--"}, 401, bad},
		"placeholder":              {[]string{"X-API-Key: {env.HOME}"}, 401, bad},
		"unsigned token":           {[]string{"Authorization: Bearer eyJhbGciOiJub25lIn0.eyJzdWIiOiJ4In0."}, 401, bad},
		"in the body's place":      {[]string{"Cookie: api_key=" + key}, 401, missing},
		"in a trailer's name":      {[]string{"Trailer: X-API-Key"}, 401, missing},
		"underscore spelling":      {[]string{"X_API_Key: " + key}, 401, missing},
		"named in connection":      {[]string{"X-API-Key: " + key, "Connection: X-API-Key"}, 200, ""},
	} {
		t.Run(name, func(t *testing.T) {
			g.t = t
			a := g.get("/", c.lines...)
			g.want(a, c.status, c.code)
			if strings.Contains(a.Body, key[8:]) && c.status != 200 {
				t.Error("the answer repeats the key")
			}
			challenge := a.Header.Get("Www-Authenticate")
			switch {
			case a.Code == string(missing) && challenge != `Bearer realm="api"`,
				a.Code == string(bad) && challenge != `Bearer realm="api", error="invalid_token"`,
				a.Code == string(invalid) && challenge != "":
				t.Errorf("challenge %q", challenge)
			}
			if a.Code != "" && (a.Header.Get("Cache-Control") != "no-store" || !strings.HasPrefix(a.Inst, "urn:uuid:")) {
				t.Errorf("headers %v, instance %q", a.Header, a.Inst)
			}
		})
	}
}

// TestDenialsLookAlike: unknown, expired, revoked and disabled keys get one
// answer.
func TestDenialsLookAlike(t *testing.T) {
	g := start(t, options{site: "auth"})
	m, ctx := g.manager(), context.Background()
	made := map[string]manage.Made{}
	for _, name := range []string{"revoked", "disabled", "replaced", "owner"} {
		made[name] = g.key(manage.KeySpec{Owner: name})
	}
	soon := g.key(manage.KeySpec{Owner: "expired", ExpiresAt: time.Now().Add(500 * time.Millisecond).UnixMilli()})
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	_, err := m.Revoke(ctx, []string{made["revoked"].Key.ID}, "x")
	must(err)
	_, err = m.SetDisabled(ctx, []string{made["disabled"].Key.ID}, true, "x")
	must(err)
	_, err = m.Rotate(ctx, made["replaced"].Key.ID, 0, nil)
	must(err)
	_, err = m.SetOwnerDisabled(ctx, "owner", true, "x")
	must(err)
	made["expired"] = soon
	eventually(t, "the key expires", func() bool { return g.do("GET", "/", "X-API-Key", soon.Text.Reveal()).Status == 401 })
	g.upstream.take()
	want := g.do("GET", "/", "X-API-Key", "nonsense")
	for name, k := range made {
		a := g.do("GET", "/", "X-API-Key", k.Text.Reveal())
		g.want(a, 401, auth.CodeInvalidCredential)
		if a.Detail != want.Detail || a.Header.Get("Www-Authenticate") != want.Header.Get("Www-Authenticate") || len(a.Body) != len(want.Body) {
			t.Errorf("%s: %s differs from %s", name, a.Body, want.Body)
		}
	}
	reasons := map[string]bool{}
	for _, l := range g.logLines("auth.decision") {
		reasons[l["reason"].(string)] = true
	}
	for _, r := range []string{"revoked", "disabled", "replaced", "owner_disabled", "expired", "malformed"} {
		if !reasons[r] {
			t.Errorf("no decision with the reason %s in %v", r, reasons)
		}
	}
}

func TestChangesTakeEffectWhileRunning(t *testing.T) {
	g := start(t, options{site: "auth"})
	m, ctx := g.manager(), context.Background()
	k := g.key(manage.KeySpec{Owner: "acme"})
	status := func(k manage.Made) int { return g.do("GET", "/", "X-API-Key", k.Text.Reveal()).Status }
	if status(k) != 200 {
		t.Fatal("a new key does not work")
	}
	change := func(what string, want int, do func() error) {
		t.Helper()
		if err := do(); err != nil {
			t.Fatal(err)
		}
		eventually(t, what, func() bool { return status(k) == want })
	}
	change("owner disabled", 401, func() error { _, err := m.SetOwnerDisabled(ctx, "acme", true, ""); return err })
	change("owner enabled", 200, func() error { _, err := m.SetOwnerDisabled(ctx, "acme", false, ""); return err })
	change("key disabled", 401, func() error { _, err := m.SetDisabled(ctx, []string{k.Key.ID}, true, ""); return err })
	change("key enabled", 200, func() error { _, err := m.SetDisabled(ctx, []string{k.Key.ID}, false, ""); return err })
	made, err := m.Rotate(ctx, k.Key.ID, time.Hour, nil)
	if err != nil {
		t.Fatal(err)
	}
	if status(made) != 200 || status(k) != 200 {
		t.Error("old and new key work during the overlap")
	}
	change("revoked", 401, func() error { _, err := m.Revoke(ctx, []string{k.Key.ID}, ""); return err })
	if status(made) != 200 {
		t.Error("the new key was revoked too")
	}
	k = made
	change("owner's keys revoked", 401, func() error { _, err := m.RevokeOwner(ctx, "acme", ""); return err })
}

func TestLastUsedIsWrittenInBatches(t *testing.T) {
	g := start(t, options{site: "auth"})
	k := g.key(manage.KeySpec{})
	for range 50 {
		if g.do("GET", "/", "X-API-Key", k.Text.Reveal()).Status != http.StatusOK {
			t.Fatal("refused")
		}
	}
	find := func() int64 {
		found, err := g.manager().Find(context.Background(), k.Text)
		if err != nil {
			t.Fatal(err)
		}
		return found.LastUsedAt
	}
	if find() != 0 {
		t.Error("last use was written per request")
	}
	if err := stopCaddy(); err != nil {
		t.Fatal(err)
	}
	if at := find(); time.Since(time.UnixMilli(at)) > time.Minute {
		t.Errorf("last used %d after a clean stop", at)
	}
}

func TestEnvironments(t *testing.T) {
	live, test := manage.KeySpec{}, manage.KeySpec{Environment: "test"}
	for site, want := range map[string][2]int{
		"auth":                             {200, 403},
		"auth {\nenvironment test\n}":      {403, 200},
		"auth {\nenvironment live test\n}": {200, 200},
		"auth {\nenvironment any\n}":       {200, 200},
	} {
		g := start(t, options{site: site})
		for i, spec := range []manage.KeySpec{live, test} {
			a := g.do("GET", "/", "X-API-Key", g.key(spec).Text.Reveal())
			code := auth.Code("")
			if want[i] == 403 {
				code = auth.CodeWrongEnvironment
				if !strings.Contains(a.Detail, "live") || !strings.Contains(a.Detail, "test") {
					t.Errorf("detail %q does not name both environments", a.Detail)
				}
			}
			g.want(a, want[i], code)
		}
	}
}

func TestNetworks(t *testing.T) {
	const trusted = "servers {\ntrusted_proxies static 127.0.0.0/8\n%\n}"
	for name, c := range map[string]struct {
		global string
		allow  string
		lines  []string
		status int
	}{
		"allowed":                                {"", "127.0.0.0/8", nil, 200},
		"not allowed":                            {"", "10.0.0.0/8", nil, 403},
		"header of a client":                     {"", "10.0.0.0/8", []string{"X-Forwarded-For: 10.1.2.3"}, 403},
		"other headers":                          {"", "10.0.0.0/8", []string{"X-Real-IP: 10.1.2.3", "Forwarded: for=10.1.2.3"}, 403},
		"trusted, not strict: the peer is meant": {trusted, "10.0.0.0/8", []string{"X-Forwarded-For: 10.1.2.3"}, 403},
		"trusted, not strict, peer allowed":      {trusted, "127.0.0.0/8", []string{"X-Forwarded-For: 10.1.2.3"}, 200},
		"trusted and strict":                     {strings.Replace(trusted, "%", "trusted_proxies_strict", 1), "10.0.0.0/8", []string{"X-Forwarded-For: 10.1.2.3"}, 200},
		"strict: the client's own entry":         {strings.Replace(trusted, "%", "trusted_proxies_strict", 1), "10.0.0.0/8", []string{"X-Forwarded-For: 10.1.2.3, 192.0.2.1"}, 403},
		"a header that is no list":               {strings.Replace(trusted, "%", "client_ip_headers X-Real-IP", 1), "10.0.0.0/8", []string{"X-Real-IP: 10.1.2.3"}, 200},
	} {
		t.Run(name, func(t *testing.T) {
			g := start(t, options{global: strings.Replace(c.global, "%", "", 1), site: "auth"})
			key := g.key(manage.KeySpec{Networks: []string{c.allow}}).Text.Reveal()
			a := g.get("/", append(c.lines, "X-API-Key: "+key)...)
			code := auth.Code("")
			if c.status == 403 {
				code = auth.CodeNetworkNotAllowed
				if !strings.Contains(a.Detail, ".") {
					t.Errorf("detail %q does not name the address", a.Detail)
				}
			}
			g.want(a, c.status, code)
			warned := strings.Contains(g.logs(), "trusted_proxies_strict }")
			if want := strings.Contains(name, "not strict"); warned != want {
				t.Errorf("warned: %v, want %v", warned, want)
			}
		})
	}
}

// TestCredentials_NoneGoesUpstream: a service never sees a key of this gateway in a
// header, whatever the site reads.
func TestCredentials_NoneGoesUpstream(t *testing.T) {
	g := start(t, options{site: "auth {\nfrom header X-API-Key\npublic /open\n}"})
	key := g.plainKey()
	for _, target := range []string{"/", "/open"} {
		s := g.ok(g.get(target, "X-API-Key: "+key, "Authorization: Bearer "+key, "X-Other: k "+key, "Cookie: a=1; k="+key, "Referer: http://x.test/?k="+key))
		if text := fmt.Sprint(s.Header); strings.Contains(text, key[10:]) || s.Header.Get("Cookie") != "a=1" {
			t.Errorf("%s: the upstream sees %s", target, text)
		}
	}
	s := g.ok(g.get("/", "X-API-Key: "+key, "Authorization: Bearer of-an-app"))
	if s.Header.Get("Authorization") != "Bearer of-an-app" {
		t.Error("the app's own token is gone")
	}
}
