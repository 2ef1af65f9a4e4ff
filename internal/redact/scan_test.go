package redact_test

import (
	"encoding/base64"
	"net/url"
	"regexp"
	"strings"
	"testing"

	"github.com/caddy-auth/caddy-auth/internal/redact"
)

const (
	key = "ca_live_0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmno"
	hdr = `{"alg":"HS256","typ":"JWT"}`
)

var prefixes = []string{"ca", "acme"}

func jwt() string {
	return base64.RawURLEncoding.EncodeToString([]byte(hdr)) + "." + base64.RawURLEncoding.EncodeToString([]byte(`{"sub":"x"}`)) + ".c2ln"
}

// percent writes s with every byte escaped, depth times over.
func percent(s string, depth int) string {
	for range depth {
		var b strings.Builder
		for i := range len(s) {
			b.WriteString("%" + strings.ToUpper(string("0123456789abcdef"[s[i]>>4])) + string("0123456789abcdef"[s[i]&15]))
		}
		s = b.String()
	}
	return s
}

func TestScan_Refuses(t *testing.T) {
	for _, target := range []string{
		"/?api_key=x", "/?apikey=x", "/?api-key=x", "/?x-api-key=x", "/?X-API-Key=x", "/?API_KEY=x", "/?ApiKey=x",
		"/?access_token=x", "/?id_token=x", "/?refresh_token=x", "/?auth_token=x", "/?bearer=x", "/?jwt=x",
		"/?client_secret=x", "/?authorization=x", "/?key=x", "/?token=x", "/?password=x",
		"/?a=1&api_key=x", "/?a=1;api_key=x", "/?;api_key=x", "/?&&api_key=x", "/??api_key=x", "/?api_key==x",
		"/?api_key", "/?api_key=", "/?api_key&a=1", "/?api_key=1&api_key=2",
		"/?api%5fkey=x", "/?api%5Fkey=x", "/?" + percent("api_key", 1) + "=x", "/?" + percent("api_key", 2) + "=x",
		"/?%" + strings.Repeat("25", 20) + "6bey=x", "/?api%255fkey=x", "/?api%u005fkey=x",
		"/?api_key[]=x", "/?api_key[0]=x", "/?auth[api_key]=x", "/?auth%5Bapi_key%5D=x", "/?a.api_key=x", "/?api.key=x",
		"/?api+key=x", "/?api%20key=x", "/?+api_key=x", "/?api[key=x", "/?api_key%00=x", "/?api_key%0d%0a=x", "/?api\xffkey=x",
		"/?a=%zz&api_key=x", "/?api_key=%zz", "/?%zz;api_key=%", "/?a=%&token=x",
		"/x?q=" + key, "/x?q=" + percent(key, 1), "/x?q=" + percent(key, 3), "/x?" + key, "/x?" + key + "=1", "/x?q=a" + key + "b",
		"/x?u=https%3A%2F%2Fy%2F%3Fapi_key%3D" + key, "/x?q=ca%5Flive_" + key[8:], "/x?q=" + strings.Replace(key, "ca", "acme", 1),
		"/" + key, "/a/" + key + "/b", "/" + percent(key, 2), "/a%3Fapi_key=x", "/a%253Fapi_key=x",
		"/x?q=" + jwt(), "/x?q=" + percent(jwt(), 1), "/" + jwt(), "/x?q=pre." + jwt(), "/x?u=" + url.QueryEscape("https://y/?t="+jwt()),
		"http://h/?api_key=x", "http://h?api_key=x", "https://h/" + key, "//h/?api_key=x",
		"http://user:pw@h/", "user:pw@h", "/a#b", "/a?b#api_key=x", "h:443", "a:/x", "a:/admin://c/healthz", "a:b://c/healthz", "http:/x://h/y", "http:///x", "ftp://h/x", "http://" + key + "/", "?a", "x", "/?q=" + strings.Repeat("a=b&", 900) + "api_key=x",
	} {
		if f := redact.NewScanner(redact.Rules{}).Scan(target, prefixes); f.What == redact.Nothing {
			t.Errorf("passed: %.120s", target)
		} else if strings.Contains(f.Name, key) || strings.Contains(f.Name, "x=") {
			t.Errorf("the finding repeats more than a name: %q", f.Name)
		}
	}
}

func TestScan_Passes(t *testing.T) {
	for _, target := range []string{
		"/", "*", "/?", "/?keyword=x", "/?monkey=x", "/?q=api_key", "/?page[size]=10", "/?page[key]=1", "/?sort.token=1", "/?api_key_id=1",
		"/?q=%zz", "/?a=b;c=d", "/?q=1%2B1", "/?tokens=1", "/?keys=1", "/?x=ca_live_short", "/?x=" + key[:len(key)-1],
		"/?x=zz_live_" + key[8:], "/?x=ca_" + key[8:], "/?file=a.b.c", "/?v=1.2.3", "/v1.2.3/x", "/?x=" + key[8:],
		"/?state=" + jwt(), "/?response=" + jwt(), "/?request=" + jwt(), "/?id_token_hint=" + jwt(), "/?logout_token=" + jwt(),
		"/?q=eyJhbGciOiJIUzI1NiJ9", "/?q=eyJhIjoxfQeyJh.eyJhIjoxfQ.x", "/9f1c2b6e-6f3c-4c1e-9d0f-2a6f3f0b7a11/edit", "http://h/x", "HTTPS://h",
		"/?%61%70%69=1", "/?q=a%20b+c&r=%C3%A9", "/caf%C3%A9",
	} {
		if f := redact.NewScanner(redact.Rules{}).Scan(target, prefixes); f.What != redact.Nothing {
			t.Errorf("refused (%d %q): %s", f.What, f.Name, target)
		}
	}
}

type paths []string

func (p paths) Empty() bool { return len(p) == 0 }
func (p paths) Match(path string) bool {
	for _, x := range p {
		if x == path {
			return true
		}
	}
	return false
}

func TestScan_Rules(t *testing.T) {
	s := redact.NewScanner(redact.Rules{
		Refuse: []string{"sig-nature"},
		Allow: []redact.Allowance{
			{Names: []string{"token"}},
			{Names: []string{"access_token"}, Paths: paths{"/ws"}},
		},
		AllowJWTPaths: paths{"/verify/" + jwt()},
	})
	for target, want := range map[string]redact.What{
		"/?token=x":                 redact.Nothing,
		"/?To-Ken=x":                redact.Nothing,
		"/?token=" + jwt():          redact.Nothing,
		"/?token=" + key:            redact.KeyShape,
		"/?access_token=x":          redact.RefusedName,
		"/ws?access_token=x":        redact.Nothing,
		"/ws?access_token=" + jwt(): redact.Nothing,
		"/ws?access_token=" + key:   redact.KeyShape,
		"/ws?api_key=x":             redact.RefusedName,
		"/?signature=x":             redact.RefusedName,
		"/?a[SIG_NATURE]=x":         redact.RefusedName,
		"/verify/" + jwt():          redact.Nothing,
		"/verify2/" + jwt():         redact.JWTShape,
	} {
		if got := s.Scan(target, prefixes).What; got != want {
			t.Errorf("%s: %d, want %d", target, got, want)
		}
	}
}

func TestScan_FindsKeysToBurn(t *testing.T) {
	f := redact.NewScanner(redact.Rules{}).Scan("/?api_key="+percent(key, 1)+"&b="+key+"&c="+strings.Replace(key, "live", "test", 1), prefixes)
	if len(f.Keys) != 2 || f.Keys[0] != key {
		t.Fatalf("Keys = %q", f.Keys)
	}
	if f.Name != "api_key" {
		t.Errorf("Name = %q", f.Name)
	}
	if f := redact.NewScanner(redact.Rules{}).Scan("/?access_token.s3cr3t[x]=1", prefixes); f.Name != "access_token" {
		t.Errorf("the finding names %q: what stands beside the name may be a secret", f.Name)
	}
}

func TestScan_PlainTargetsDoNotAllocate(t *testing.T) {
	s := redact.NewScanner(redact.Rules{})
	for _, target := range []string{"/v1/orders/17", "/v1/orders?page[size]=10&sort=created", "/9f1c2b6e-6f3c-4c1e-9d0f-2a6f3f0b7a11"} {
		if n := testing.AllocsPerRun(100, func() { s.Scan(target, prefixes) }); n != 0 {
			t.Errorf("%s: %v allocations", target, n)
		}
	}
}

// FuzzSplitTarget compares with what Go's server makes of a target: the path
// we judge is the path Caddy and the upstream get.
func FuzzSplitTarget(f *testing.F) {
	for _, s := range []string{"/x?y", "http://h/x", "a:/x", "a:/x://h/y", "http:/x://h/y", "//h/x", "*", "http://h?x", "http:x", "HTTP://h/%2e%2e/x", "http://[::1]:80/x"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, target string) {
		u, err := url.ParseRequestURI(target)
		got, ok := redact.SplitTarget(target)
		if err != nil || !ok || target == "*" {
			return
		}
		if u.Opaque != "" || u.User != nil {
			t.Fatalf("%q is opaque or has user information, and passed", target)
		}
		path, err := url.PathUnescape(got.Path)
		if err != nil {
			return // an invalid escape is judged elsewhere
		}
		// Go takes //x for an authority only behind a scheme, as we do.
		if want := u.Path; path != want && !(want == "" && path == "/") {
			t.Fatalf("%q: path %q, Go's %q", target, path, want)
		}
	})
}

// FuzzScan compares the scanner with an oracle that decodes a target in every
// way it can think of, level by level, and looks at every text it gets.
func FuzzScan(f *testing.F) {
	for _, s := range []string{"/?api_key=x", "/?a=1;%61pi%255fkey[]=x", "/" + key, "/?q=" + jwt(), "/?keyword=1&page[key]=2", "/a%3Ftoken=1", "/?%u0061pikey=1", "/?%%361=1"} {
		f.Add(s)
	}
	s := redact.NewScanner(redact.Rules{})
	f.Fuzz(func(t *testing.T, target string) {
		if !strings.HasPrefix(target, "/") || len(target) > 4096 {
			return
		}
		got := s.Scan(target, prefixes).What != redact.Nothing
		must := oracleMust(target)
		if must && !got {
			t.Fatalf("passed: %q", target)
		}
		if got && !must && !oracleMay(target) {
			t.Fatalf("refused without a reason: %q", target)
		}
	})
}

var (
	oracleWhole = regexp.MustCompile(`^(x?apikey|(access|id|refresh|auth)token|bearer|jwt|clientsecret|authorization|key|token|password)$`)
	oraclePart  = regexp.MustCompile(`^(x?apikey|(access|id|refresh|auth)token|bearer|jwt|clientsecret|authorization)$`)
	oracleKey   = regexp.MustCompile(`(?i:(ca|acme)_[a-z0-9]{1,16}_)[0-9A-Za-z]{51}`)
	oracleEsc   = regexp.MustCompile(`%[0-9a-fA-F]{2}`)
	notAlnum    = regexp.MustCompile(`[^0-9A-Za-z]+`)
)

// levels returns s and what each further decoding makes of it.
func levels(s string) []string {
	out := []string{s}
	for range 64 {
		next := oracleEsc.ReplaceAllStringFunc(s, func(e string) string {
			b, _ := url.PathUnescape(e)
			return b
		})
		if next == s {
			break
		}
		out, s = append(out, next), next
	}
	return out
}

func oracleMust(target string) bool {
	if strings.Contains(target, "#") {
		return true
	}
	for _, l := range levels(target) {
		if oracleKey.MatchString(l) {
			return true
		}
	}
	_, query, ok := strings.Cut(target, "?")
	return ok && oracleNames(query)
}

func oracleNames(query string) bool {
	for _, pair := range strings.FieldsFunc(query, func(r rune) bool { return r == '&' || r == ';' }) {
		name, _, _ := strings.Cut(pair, "=")
		for _, l := range levels(name) {
			if oracleWhole.MatchString(strings.ToLower(notAlnum.ReplaceAllString(l, ""))) {
				return true
			}
			for _, part := range strings.FieldsFunc(l, func(r rune) bool { return strings.ContainsRune("[].", r) }) {
				if oraclePart.MatchString(strings.ToLower(notAlnum.ReplaceAllString(part, ""))) {
					return true
				}
			}
		}
	}
	return false
}

// oracleMay lists the reasons beyond the musts: a JWT's first part, a query
// that only decoding shows, and %u escapes.
func oracleMay(target string) bool {
	for _, l := range levels(target) {
		for _, w := range strings.FieldsFunc(l, func(r rune) bool { return !strings.ContainsRune("-_", r) && notAlnum.MatchString(string(r)) }) {
			if b, err := base64.RawURLEncoding.DecodeString(w); err == nil && strings.Contains(string(b), "alg") {
				return true
			}
		}
		if i := strings.Index(l, "?"); i >= 0 && oracleNames(l[i+1:]) {
			return true
		}
	}
	return strings.Contains(strings.ToLower(target), "%u00") || strings.Contains(strings.ToLower(target), "%25")
}

func BenchmarkScan(b *testing.B) {
	s := redact.NewScanner(redact.Rules{})
	for name, target := range map[string]string{"path": "/v1/orders/4711", "query": "/v1/orders?page=2&sort=created", "long": "/9f1c2b6e-6f3c-4c1e-9d0f-2a6f3f0b7a11?cursor=" + strings.Repeat("ab%20", 40)} {
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				s.Scan(target, prefixes)
			}
		})
	}
}
