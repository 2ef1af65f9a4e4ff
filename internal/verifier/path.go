package verifier

import (
	"net/http"
	"net/url"
	"slices"
	"strings"

	"github.com/caddy-auth/caddy-auth/internal/auth"
	"github.com/caddy-auth/caddy-auth/internal/urlpath"
)

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
	case urlpath.Read(exact) != urlpath.One:
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
	return urlpath.Read(path) == urlpath.One && p.matchDecoded(decodePath(path))
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
	if len(rules) == 0 || urlpath.Read(path) != urlpath.One {
		return false
	}
	decoded := decodePath(path)
	for _, r := range rules {
		if r.takes(method) && Paths(r.Paths).matchDecoded(decoded) {
			return true
		}
	}
	return false
}

// takes reports whether a rule is for a method. HEAD is GET without the answer's
// body (RFC 9110, 9.3.2), so a rule for GET is for it too.
func (r *PathRule) takes(method string) bool {
	return len(r.Methods) == 0 || slices.Contains(r.Methods, method) || method == http.MethodHead && slices.Contains(r.Methods, http.MethodGet)
}

// oddMethod reports whether a method has lower-case letters: RFC 9110, 9.1
// makes methods case-sensitive, but not everyone behind us agrees.
func oddMethod(method string) bool {
	if method == http.MethodGet || method == http.MethodPost {
		return false
	}
	return strings.ToUpper(method) != method
}
