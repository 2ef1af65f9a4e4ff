package urlpath_test

import (
	"net/url"
	"path"
	"strings"
	"testing"

	"golang.org/x/text/unicode/norm"

	"github.com/caddy-auth/caddy-auth/internal/urlpath"
)

func TestRead(t *testing.T) {
	for want, paths := range map[urlpath.Reading][]string{
		urlpath.One: {
			"/", "/a/b", "/a.b/c..d/...", "/%61", "/100%25", "/a%20b", "*", "", "/été", "/%C3%A9t%C3%A9", "/日本語/東京.html", "/%E6%97%A5", "/документ-№5", "/العربية", "/e\u0301te", "/ｶﾀｶﾅ",
			"/👨\u200d👩\u200d👧", "/می\u200cخواهم", "/文章。", "/ΑΩ/ß/ı", "/한국어", "/हिन्दी", "/%20x", "/Screenshot%202024-01-01%20at%209.41.00%E2%80%AFAM.png", "/10\u00a0km", "/東京１２３", "/Müller™s", "/admin.", "/wiki/Foo_Inc.", "/a:b@c!$&'()*+,=~-_",
		},
		urlpath.Slash:      {"/a%2Fb", "/a%3Bb", "/a%3Fb", "/a%23b", "/ですか？", "/価格100％", "/あ；い", "/あ＃い", "/a%2520b", "/100%2525", "/%25C3%25A9", "/proxy/https:%2F%2Fx.example%2Fy"},
		urlpath.Parameters: {"/a;b", "/;", "/a%2fb;c"},
		urlpath.Ambiguous: {
			"/.", "/..", "/a/..", "//", "/a//b", `/a\b`, "/%2e", "/%5c", "/%zz", "/%", "/%0a", "/a%2f..%2fb", "/%252e%252e/", "/%25252e", "/x/%2e%2e%2fy", "/..;/x", "/%00", "/%7f",
			// escapes within escapes that hide what a rule may name
			"/%2561dmin", "/admin%252fx", "/a%253ab", "/%25252561", "/" + strings.Repeat("%25", 20) + "61",
			// invalid and overlong UTF-8
			"/%c0%ae%c0%ae/x", "/%c1%a1dmin", "/%ff", "/caf%e9", "/\xc0\xae", "/%ed%a0%80", "/%25c0%25ae", "/%ef%bf%bd",
			// compatibility forms of dots, slashes, backslashes, letters
			"/．．/x", "/%ef%bc%8e%ef%bc%8e", "/a／b", "/a＼b", "/a﹨b", "/‥/x", "/a…", "/ａdmin", "/%ef%bd%81dmin", "/𝐚dmin", "/ªdmin", "/\u212aind", "/ſtatic", "/admin²", "/a％2e", "/a；b", "/m²", "/１２３", "/ad－min", "/日／本", "/日＼本", "/日…", "/a…日", "/。。/x", "/a∕b", "/a⁄b",
			"/%25ef%25bc%258e/", "/ad\u00admin", "/ad\u200bmin", "/admin\ufe0f", "/a\u2028b", "/a\u0085b",
			// blanks and controls
			"/admin%20", "/..%20", "/..%20/x", "/%20../x", "/..%09/x", "/. /x", "/admin\u00a0", "/admin\u3000/x", "/admin ", "/admin%2520",
		},
	} {
		for _, p := range paths {
			if got := urlpath.Read(p); got != want {
				t.Errorf("%q: %d, want %d", p, got, want)
			}
		}
	}
}

// FuzzRead: a path with one reading says the same to whoever decodes it once or
// twice, cleans it, or folds it by NFKC: it stays below its first segment.
func FuzzRead(f *testing.F) {
	for _, s := range []string{"/a/../b", "/%2561", "/．．", "/%c0%ae", "/é", "/a%20"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		p := "/public/" + s
		if urlpath.Read(p) != urlpath.One {
			return
		}
		once, err := url.PathUnescape(p)
		if err != nil {
			t.Fatalf("%q: %v", p, err)
		}
		twice := urlpath.Decode(once)
		for _, read := range []string{p, once, twice, norm.NFKC.String(once), norm.NFKC.String(twice), strings.ReplaceAll(once, `\`, "/"), strings.ToValidUTF8(once, "")} {
			if cleaned := path.Clean(read); !strings.HasPrefix(cleaned+"/", "/public/") {
				t.Errorf("%q is read as %q", p, cleaned)
			}
		}
	})
}

func BenchmarkRead(b *testing.B) {
	for _, p := range []string{"/v1/orders/123", "/v1/orders.json", "/%E6%97%A5"} {
		b.Run(p, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				urlpath.Read(p)
			}
		})
	}
}

// TestRead_DotsAndBlanks: a dot segment with anything round or in it that some
// reader drops is never below a prefix.
func TestRead_DotsAndBlanks(t *testing.T) {
	for _, p := range []string{"/static/..%20/x", "/static/%20../x", "/static/.%20./x", "/static/..%09/x", "/static/%09../x", "/static/.%09./x", "/static/..%00/x", "/static/%01../x", "/static/..%0d%0a/x", "/static/..%c2%a0/x", "/static/..%e2%80%83/x", "/static/..%e3%80%80/x", "/static/%e2%80%8b../x", "/static/..%2520/x", "/static/..%7f/x", "/static/..%c2%85/x", "/static/.%e2%80%8b./x", "/static/..%ef%bb%bf/x", "/static/..%c2%ad/x", "/static/.. /x", "/static/..%e1%a0%8e/x", "/static/..%e2%81%a0/x"} {
		if r := urlpath.Read(p); r != urlpath.Ambiguous {
			t.Errorf("%s: %d", p, r)
		}
	}
}
