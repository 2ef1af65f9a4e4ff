package redact

import (
	"encoding/base64"
	"encoding/hex"
	"slices"
	"strings"
	"testing"
)

// hostileParts are repeated to make headers that are as much work as possible.
var hostileParts = map[string]string{
	"harmless": "lorem ipsum dolor ", "json": `{"a":`, "pairs": "a=b&", "escapes": "%25", "nested escapes": "%2541", "users": "//x@", "slashes": "//", "keys": "a_b_" + strings.Repeat("x", 40),
	"base64": "QUJD", "base64 words": strings.Repeat("QUJD", 20) + " ", "base64 lines": strings.Repeat("QUJD", 14) + "\n", "hex": "0a1b2c", "objects": "eyJhIjoxfQ.", "headers": "eyJhbGciOjF9.",
	"objects of alg": base64.RawURLEncoding.EncodeToString([]byte(`{"x":"alg"}`)) + ".", "quotes": `a="b `, "equals": "=", "names": "key =", "colons": ": ", "ampersands": `\u0026`, "semicolons": "a;b=c;",
	"words": "token: x ", "line ends": "%0a", "ats": "@", "paths": "/a=b", "headers in text": "api_key:x ", "questions": "?a", "entities": "&lowbar;", "percents": "%", "u escapes": "%u0041",
	"schemes": "http://", "backslashes": `\\\:`, "separators": "ca-live=5F", "short names": "xey:", "dotted names": ".y:", "bracketed names": "]y:", "names in parts": "a.a.a.y:", "callbacks": "/auth/callback?&code=x", "codes": "&code=x",
}

// split cuts a text into headers of so many bytes.
func split(text string, size int) (out []string) {
	for part := range slices.Chunk([]byte(text), size) {
		out = append(out, string(part))
	}
	return out
}

// TestMask_WorkIsBounded: whatever 16 KB of headers hold, in one header or many,
// no more than mostClose of them is looked at closely, and what is not looked at
// does not come through.
func TestMask_WorkIsBounded(t *testing.T) {
	m := NewMasker()
	m.AddCallback("/auth/callback")
	for _, part := range []string{".y:", "]y:", "a.a.a.y:", "xey:", "key "} { // names are looked up a few times, then it is not clean
		if text := strings.Repeat(part, 4000); m.clean(text) != (part == "key ") {
			t.Errorf("%q: every name is looked up", part)
		}
	}
	for what, part := range hostileParts {
		whole := strings.Repeat(part, 16<<10/len(part))
		for _, size := range []int{len(whole), 5000, 1000, 100, 60} {
			b := m.Block()
			passed, looked := 0, 0
			for _, text := range split(whole, size) {
				before := b.left
				_, got, _ := b.Header("X-H", []string{text})
				if b.left >= 0 {
					looked += before - b.left
				} else if before != b.left && got[0] != Mark {
					t.Errorf("%s in headers of %d: %.40q comes through, and nobody looked", what, size, text)
				}
				passed += len(got[0])
			}
			if looked > mostClose {
				t.Errorf("%s in headers of %d: %d bytes were looked at", what, size, looked)
			}
			if what == "harmless" && passed != len(whole) {
				t.Errorf("harmless headers of %d: %d of %d bytes are left", size, passed, len(whole))
			}
		}
		if strings.ContainsAny(whole, blanks) || what == "callbacks" {
			continue // it is looked at word by word, where it is no header
		}
		if size := testing.AllocsPerRun(5, func() { m.String(whole) }); size > 1 {
			t.Errorf("%s: %v allocations for a text that is too long to be looked at", what, size)
		}
	}
	// A key behind more than anybody looks at does not come through.
	for _, part := range []string{"%25", `{"a":`, "a_b_"} {
		if got := m.String(strings.Repeat(part, 4000) + maskKey); strings.Contains(got, maskKey[10:]) {
			t.Errorf("behind %q a key comes through", part)
		}
		b := m.Block()
		for range 100 {
			b.Header("X-A", []string{strings.Repeat(part, 60)})
		}
		if _, got, _ := b.Header("X-B", []string{maskKey}); got[0] != Mark {
			t.Errorf("behind %q a key comes through in a header: %q", part, got)
		}
	}
}

// readingsOf are ways to write a key that some reader takes for it.
func readingsOf(key string) map[string]string {
	sep := func(s string) string { return strings.ReplaceAll(key, "_", s) }
	std, raw := base64.StdEncoding.EncodeToString, base64.RawURLEncoding.EncodeToString
	return map[string]string{
		"itself": key, "quoted-printable": sep("=5F"), "quoted-printable, lower": sep("=5f"), "an entity": sep("&lowbar;"), "a numeric entity": sep("&#95;"), "a hexadecimal entity": sep("&#x5f;"),
		"overlong": sep("%c1%9f"), "overlong, raw": sep("\xc1\x9f"), "hyphens": sep("-"), "a JSON escape": sep(`\u005f`), "full-width": sep("＿"), "escaped": sep("%5f"), "escaped twice": sep("%255F"), "u-escaped": sep("%u005f"),
		"the tail in quoted-printable": strings.Replace(key, "A", "=41", 1), "the tail in JSON": strings.Replace(key, "B", `\u0042`, 1), "the tail in hex escapes": strings.Replace(key, "C", `\x43`, 1), "octal": sep(`\137`), "UTF-7": sep("+AF8-"),
		"a tail in entities": strings.Replace(key, "D", "&#68;", 1), "a padded entity": sep("&#095;"), "a soft line break": key[:30] + "=\r\n" + key[30:], "no width": key[:30] + "\u200b" + key[30:], "full-width letters": strings.Replace(key, "E", "Ｅ", 1),
		"base64": std([]byte(key)), "base64url": raw([]byte(key)), "base64 of more": raw([]byte("user:" + key + ":x")), "base64, escaped": strings.ReplaceAll(std([]byte(key)), "=", "%3D"), "hex": hex.EncodeToString([]byte(key)),
		"base64 of separators": raw([]byte(sep("_"))),
	}
}

// TestReadings: what one of the scan and the mask knows as a key, the other knows
// too; and a key's secret part is masked wherever it stands, however its beginning
// is written.
func TestReadings(t *testing.T) {
	const key = "ca_live_0aB3456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmno"
	tail := key[len("ca_live_"):]
	s, m := NewScanner(Rules{}), NewMasker()
	prefixes := []string{"ca"}
	for what, text := range readingsOf(key) {
		for _, target := range []string{"/?q=" + text, "/?a=1&b=x" + strings.ReplaceAll(text, "x", "x"), "/files/" + text + "/x"} {
			if strings.Contains(target, "/files/") && strings.ContainsAny(text, "#?") || strings.Contains(text, "#") {
				continue // another part of the URL begins there, which is refused
			}
			if what == "base64" && strings.Contains(target, "b=x") || strings.HasPrefix(what, "base64") && strings.Contains(target, "b=x") || what == "hex" && strings.Contains(target, "b=x") {
				continue // glued to more digits it is another text
			}
			if f := s.Scan(target, prefixes); f.What != KeyShape {
				t.Errorf("%s: %s passes the scan (%d)", what, target, f.What)
			} else if len(f.Keys) == 0 || !strings.HasSuffix(f.Keys[0], tail) {
				t.Errorf("%s: %s: to be burnt: %q", what, target, f.Keys)
			}
		}
		for _, in := range []string{text, "/?q=" + text, "x=" + text + "; y", "Value " + text + " was sent", `{"k":"` + text + `"}`} {
			if got := m.String(in); strings.Contains(got, tail) || strings.Contains(got, text) || strings.Contains(got, tail[3:48]) {
				t.Errorf("%s: %q became %q", what, in, got)
			}
		}
	}
	session := "ABCDEFGHIJKLMNOPQRSTUVWXYZABCDEFGHIJKLMNOPQRSTUV2345-0aB3456789"[:61]
	for _, in := range []string{tail, "secret=" + tail, "/x/" + tail, "a" + tail + "b", "ca:live:" + tail, "ca live " + tail, session, "X: " + session, "/?s=" + session, "ca*live*" + tail} {
		if got := m.String(in); strings.Contains(got, tail) || strings.Contains(got, session[:52]) {
			t.Errorf("%q became %q", in, got)
		}
	}
	for _, in := range []string{"/?q=%ca-live-" + tail, "/%ca=5Flive=5F" + tail, "/?q=%ca_live-" + tail} {
		if f := s.Scan(in, prefixes); f.What != KeyShape {
			t.Errorf("%q passes", in)
		}
	}
	stack := strings.Repeat("goroutine 1 [running]:\nmain.main()\n\t/src/app/main.go:12 +0x1d\n", 150)
	if got := m.String(stack + "key " + key + "\n" + stack); got != stack+"key REDACTED\n"+stack {
		t.Errorf("a stack trace: %.200q", got)
	}
	for _, safe := range []string{
		"/assets/africa-map-3b7e01c9" + strings.Repeat("0a", 28) + ".png", "/assets/ca-map-" + strings.Repeat("0a", 32) + ".png",
		"/" + strings.Repeat("a", 60), strings.Repeat("0", 64), "sha256:" + strings.Repeat("0a", 32), "E3B0C44298FC1C149AFBF4C8996FB92427AE41E4649B934CA495991B7852B855", "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
		"a-very-long-slug-with-many-words-that-goes-on-and-on-and-on-until-the-end", "/wiki/Donaudampfschifffahrtsgesellschaft",
	} {
		if got := m.String(safe); got != safe {
			t.Errorf("%q became %q", safe, got)
		}
		if f := s.Scan("/?q="+safe, prefixes); f.What != Nothing {
			t.Errorf("%q is refused", safe)
		}
	}
	if f := s.Scan("/?q="+tail, prefixes); f.What != Nothing {
		t.Error("a tail alone is refused: it is no key")
	}
}

func BenchmarkMask_Hostile(b *testing.B) {
	m := NewMasker()
	for what, part := range hostileParts {
		whole := strings.Repeat(part, 16<<10/len(part))
		for _, size := range []int{len(whole), 100} {
			values := split(whole, size)
			b.Run(what, func(b *testing.B) {
				b.ReportAllocs()
				for b.Loop() {
					block := m.Block()
					for _, v := range values {
						block.Header("X-H", []string{v})
					}
				}
			})
		}
	}
}
