package verifier

import (
	"net/http"
	"net/url"
	"slices"
	"strings"

	"github.com/caddy-auth/caddy-auth/internal/auth"
)

// Reading says how many ways there are to read a request's path.
type Reading uint8

// Readings of a path.
const (
	OneReading   Reading = iota
	SlashReading         // a plain %2f or %3b: passes, but is never public
	Ambiguous            // refused, unless the site allows it; never public
)

// ReadPath says how the path of a raw target can be read. Ambiguous are dot
// segments in any encoding, empty segments, backslashes, parameters after a
// semicolon, control bytes and invalid escapes: a path matcher, this gateway
// and the upstream may each see another path in them.
func ReadPath(path string) Reading {
	if plainPath(path) {
		return OneReading
	}
	reading, escaped := OneReading, false
	for i := 0; i < len(path); i++ {
		switch c := path[i]; {
		case c == '\\' || c == ';' || c < 0x20 || c == 0x7f:
			return Ambiguous
		case c == '/' && i+1 < len(path) && path[i+1] == '/':
			return Ambiguous
		case c == '%':
			b, ok := unescape(path, i)
			if !ok || b == '\\' || b < 0x20 || b == 0x7f {
				return Ambiguous
			}
			if b == '/' || b == ';' {
				reading = SlashReading
			}
			escaped = true
			i += 2
		}
	}
	if hasDotSegment(path, "/") {
		return Ambiguous
	}
	if !escaped {
		return reading
	}
	return max(reading, readDecoded(path))
}

// ordinary are the bytes that need no closer look in a path.
var ordinary = func() (t [256]bool) {
	for c := 0x20; c < 0x100; c++ {
		t[c] = !strings.ContainsRune("%\\;./\x7f", rune(c)) || c > 0x7f
	}
	return t
}()

// plainPath reports whether a path has one reading at first sight.
func plainPath(path string) bool {
	slash := false
	for i := range len(path) {
		c := path[i]
		if c == '/' {
			if slash {
				return false
			}
			slash = true
			continue
		}
		if !ordinary[c] {
			return false
		}
		slash = false
	}
	return true
}

// readDecoded looks at every further decoding of a path: dot segments are
// ambiguous however deep they lie, other surprises are never public.
func readDecoded(path string) Reading {
	reading := OneReading
	for range 8 {
		next := unescapeAll(path)
		if next == path {
			return reading
		}
		path = next
		if hasDotSegment(path, `/\`) {
			return Ambiguous
		}
		if strings.ContainsAny(path, "%") && unescapeAll(path) != path {
			reading = SlashReading
		}
	}
	return Ambiguous // escapes nested deeper than anything honest
}

func hasDotSegment(path, separators string) bool {
	start := 0
	for i := 0; i <= len(path); i++ {
		if i < len(path) && strings.IndexByte(separators, path[i]) < 0 {
			continue
		}
		if seg := path[start:i]; seg == "." || seg == ".." {
			return true
		}
		start = i + 1
	}
	return false
}

func unescape(s string, i int) (byte, bool) {
	if i+2 >= len(s) {
		return 0, false
	}
	hi, ok1 := hexDigit(s[i+1])
	lo, ok2 := hexDigit(s[i+2])
	return hi<<4 | lo, ok1 && ok2
}

func unescapeAll(s string) string {
	if strings.IndexByte(s, '%') < 0 {
		return s
	}
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		if c, ok := unescape(s, i); s[i] == '%' && ok {
			b.WriteByte(c)
			i += 2
			continue
		}
		b.WriteByte(s[i])
	}
	return b.String()
}

func hexDigit(c byte) (byte, bool) {
	switch {
	case c >= '0' && c <= '9':
		return c - '0', true
	case c|0x20 >= 'a' && c|0x20 <= 'f':
		return c | 0x20 - 'a' + 10, true
	}
	return 0, false
}

// PathRule selects requests by method and path as the client sent it.
type PathRule struct {
	Methods []string // none: any
	Paths   []string // exact, or a prefix that ends in /*
}

// Validate says what is wrong with a rule.
func (r PathRule) Validate() error {
	for _, m := range r.Methods {
		if m == "" || strings.ToUpper(m) != m || strings.ContainsAny(m, " /*{") {
			return auth.Invalidf("method %q: want upper-case letters", m)
		}
	}
	if len(r.Paths) == 0 {
		return auth.Invalidf("no path")
	}
	for _, p := range r.Paths {
		if err := checkPattern(p); err != nil {
			return err
		}
	}
	return nil
}

func checkPattern(p string) error {
	exact := strings.TrimSuffix(p, "*")
	switch {
	case !strings.HasPrefix(p, "/"):
		return auth.Invalidf("path %q: want a leading slash", p)
	case strings.ContainsAny(p, "{}"):
		return auth.Invalidf("path %q: placeholders are not allowed here", p)
	case strings.ContainsAny(p, "?#"):
		return auth.Invalidf("path %q: want a path without a query", p)
	case strings.Contains(exact, "*") || exact != p && !strings.HasSuffix(exact, "/"):
		return auth.Invalidf("path %q: a star may only stand at the end, after a slash", p)
	case ReadPath(exact) != OneReading:
		return auth.Invalidf("path %q has more than one reading", p)
	}
	return nil
}

// Paths is a set of path patterns. It matches only paths with one reading.
type Paths []string

// Validate says what is wrong with the patterns.
func (p Paths) Validate() error {
	for _, x := range p {
		if err := checkPattern(x); err != nil {
			return err
		}
	}
	return nil
}

// Empty reports whether the set has no patterns.
func (p Paths) Empty() bool { return len(p) == 0 }

// Match reports whether a raw path matches a pattern, case-sensitively.
func (p Paths) Match(path string) bool {
	return ReadPath(path) == OneReading && p.matchDecoded(decodePath(path))
}

func (p Paths) matchDecoded(path string) bool {
	for _, pattern := range p {
		if prefix, ok := strings.CutSuffix(pattern, "*"); ok {
			if strings.HasPrefix(path, prefix) {
				return true
			}
		} else if path == pattern {
			return true
		}
	}
	return false
}

func decodePath(path string) string {
	if s, err := url.PathUnescape(path); err == nil {
		return s
	}
	return path
}

// MatchRules reports whether one of rules selects a request. path is raw.
func MatchRules(rules []PathRule, method, path string) bool {
	if len(rules) == 0 || ReadPath(path) != OneReading {
		return false
	}
	decoded := decodePath(path)
	for _, r := range rules {
		if (len(r.Methods) == 0 || slices.Contains(r.Methods, method)) && Paths(r.Paths).matchDecoded(decoded) {
			return true
		}
	}
	return false
}

// oddMethod reports whether a method has lower-case letters: RFC 9110, 9.1
// makes methods case-sensitive, but not everyone behind us agrees.
func oddMethod(method string) bool {
	if method == http.MethodGet || method == http.MethodPost {
		return false
	}
	return strings.ToUpper(method) != method
}
