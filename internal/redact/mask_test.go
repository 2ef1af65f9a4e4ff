package redact

import (
	"encoding/base64"
	"encoding/hex"
	"net/url"
	"strings"
	"testing"
)

const maskKey = "acme_live_0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmno"

var maskJWT = base64.RawURLEncoding.EncodeToString([]byte(`{"alg":"none"}`)) + ".eyJzdWIiOiJ4In0.c2ln"

func TestMask_TextsThatAreSafe(t *testing.T) {
	m := NewMasker()
	for _, s := range []string{
		"", "/", "/orders/17?q=api_key&page=2", "https://api.example.com/v1/x?keyword=a", "Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/120.0.0.0 Safari/537.36",
		"text/html,application/xhtml+xml;q=0.9,*/*;q=0.8", "dial tcp 127.0.0.1:9000: connect: connection refused", "a%20b", "/a%2Fb?x=%20",
		"e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855", "what? no key here", "key_01931f1a-8c5b-7a7b-9c3e-1f2d3c4b5a69",
		"sqlite:/var/lib/caddy-auth/auth.db", "user@example.com", "/a//@scope/pkg", "/file%20name%20(1)%20x=C%20minor.pdf", "12:30:01 error: dial tcp [::1]:80: i/o timeout", "/maps/zoom=5/x", "max-age=31536000; includeSubDomains", "text/html; charset=utf-8", "/" + strings.Repeat("long/", 100),
	} {
		if got := m.String(s); got != s {
			t.Errorf("%q became %q", s, got)
		}
	}
}

func TestMask_SecretsGo(t *testing.T) {
	m := NewMasker()
	m.AddParams("sig", "ticket")
	escaped := ""
	for i := range len(maskKey) {
		escaped += "%" + hex.EncodeToString([]byte{maskKey[i]})
	}
	for s, want := range map[string]string{
		"/x?api_key=s3cret&page=2":                  "/x?api_key=REDACTED&page=2",
		"/x?page=2;X-API-Key=s3cret":                "/x?page=2;X-API-Key=REDACTED",
		"/x?user[access_token]=s3cret":              "/x?user[access_token]=REDACTED",
		"/x?%61pi_key=s3cret":                       "/x?%61pi_key=REDACTED",
		"/x#access_token=s3cret":                    "/x#access_token=REDACTED",
		"https://user:s3cret@host/x":                "https://REDACTED@host/x",
		"https://h/cb?next=%2Fy%3Fapi_key%3Ds3cret": "https://h/cb?next=REDACTED",
		"/x?q=" + maskKey:                           "/x?q=REDACTED",
		"/x?" + maskKey + "=1":                      "/x?REDACTED",
		"/files/" + maskKey + "/y":                  "/files/REDACTED/y",
		"/x?q=" + escaped:                           "/x?q=REDACTED",
		"/x/" + escaped:                             "REDACTED",
		"/x?q=" + maskJWT:                           "/x?q=REDACTED",
		"key " + maskKey + " was sent":              "key REDACTED was sent",
		`Get "http://up/x?api_key=s3cret": EOF`:     `Get "http://up/x?api_key=REDACTED EOF`,
		"/x%3Fapi_key=s3cret":                       "REDACTED",
		"Basic " + base64.StdEncoding.EncodeToString([]byte("user:"+maskKey)):              "REDACTED",
		"x=" + hex.EncodeToString([]byte(maskKey)):                                         "x=REDACTED",
		"/x?q=" + url.QueryEscape(base64.URLEncoding.EncodeToString([]byte("ab"+maskKey))): "/x?q=REDACTED",
		"a" + base64.StdEncoding.EncodeToString([]byte(maskKey)):                           "REDACTED",
	} {
		if got := m.String(s); got != want {
			t.Errorf("%q became %q, want %q", s, got, want)
		}
	}
}

func TestMask_Headers(t *testing.T) {
	m := NewMasker()
	m.AddHeaders("X-Acme-Secret-Thing")
	for name, secret := range map[string]bool{
		"Authorization": true, "X-Api-Key": true, "X_api_KEY": true, "Cookie": true, "x.api.key": true, "X-Acme-Secret-Thing": true, "X_Acme_Secret_Thing": true,
		"HTTP_X_API_KEY": true, "HTTP_COOKIE": true, "X-Forwarded-Access-Token": true, "X-Goog-Api-Key": true, "X-Amz-Security-Token": true,
		"Accept": false, "X-Request-Id": false, "Idempotency-Key": false,
	} {
		_, got, _ := m.Header(name, []string{"s3cret"})
		if masked := got[0] == Mark; masked != secret {
			t.Errorf("%s: %q", name, got)
		}
	}
	for name, value := range map[string]string{"Referer": "https://h/x?token=s3cret", "Location": "/x?api_key=s3cret", "Link": "</x?api_key=s3cret>; rel=next", "Sec-Websocket-Protocol": "v1, " + maskKey} {
		if _, got, changed := m.Header(name, []string{value}); !changed || strings.Contains(got[0], "s3cret") || strings.Contains(got[0], maskKey) {
			t.Errorf("%s: %q", name, got)
		}
	}
	values := []string{"a", maskKey}
	if name, got, _ := m.Header("X-"+maskKey, values); strings.Contains(name, maskKey) || got[1] != Mark || values[1] != maskKey {
		t.Errorf("%q %q %q", name, got, values)
	}
	if _, got, changed := m.Header("Accept", values[:1]); changed || &got[0] != &values[0] {
		t.Error("a clean header was copied")
	}
}

// FuzzMask: whatever surrounds a key, and however it is spelled, it does not
// come through; and masking what is masked changes nothing of importance.
func FuzzMask(f *testing.F) {
	for _, s := range []string{"/x?", "?q=", "https://u:", "a b\"", "/x;", "%2", "&", "#"} {
		f.Add(s, s, byte(0))
	}
	m := NewMasker()
	spell := []func(string) string{
		func(s string) string { return s },
		func(s string) string { return strings.ReplaceAll(s, "_", "%5F") },
		func(s string) string { return strings.ReplaceAll(s, "_", "%255f") },
		func(s string) string { return base64.StdEncoding.EncodeToString([]byte(s)) },
		func(s string) string { return hex.EncodeToString([]byte(s)) },
	}
	f.Fuzz(func(t *testing.T, before, after string, how byte) {
		spelled := spell[int(how)%len(spell)](maskKey)
		got := m.String(before + spelled + after)
		if strings.Contains(got, spelled) {
			// Glued to more digits of its alphabet an encoded key is another text.
			if int(how)%len(spell) >= 3 && (glued(before, true) || glued(after, false)) {
				return
			}
			t.Errorf("%q came through in %q", spelled, got)
		}
	})
}

func glued(s string, end bool) bool {
	if s == "" {
		return false
	}
	c := s[0]
	if end {
		c = s[len(s)-1]
	}
	return isBase64(c) || c == '%' || c == '='
}

func BenchmarkMask_CleanHeader(b *testing.B) {
	m := NewMasker()
	v := []string{"Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/120.0.0.0 Safari/537.36"}
	for b.Loop() {
		m.Header("User-Agent", v)
	}
}
