package redact

import "strings"

// Target is a request target taken apart (RFC 9112, 3.2).
type Target struct {
	Authority string // of the absolute form
	Path      string // raw
	Query     string // raw, without the question mark
}

// SplitTarget takes a raw target apart: origin-form, the asterisk, or
// absolute-form with http or https. Anything else is not ok, so that nobody
// reads a path in it that we did not judge: Go's parser, for one, takes a:/x
// for the path /x. User information and fragments are not ok either.
func SplitTarget(target string) (t Target, ok bool) {
	if target == "*" {
		return Target{Path: "*"}, true
	}
	if target == "" || strings.IndexByte(target, '#') >= 0 {
		return t, false
	}
	rest := target
	if target[0] != '/' {
		scheme, after, found := strings.Cut(target, "://")
		if !found || !strings.EqualFold(scheme, "http") && !strings.EqualFold(scheme, "https") {
			return t, false
		}
		end := strings.IndexAny(after, "/?")
		if end < 0 {
			end = len(after)
		}
		t.Authority, rest = after[:end], after[end:]
		if t.Authority == "" || strings.ContainsAny(t.Authority, "@\\") {
			return t, false
		}
	}
	t.Path, t.Query, _ = strings.Cut(rest, "?")
	if t.Path == "" {
		t.Path = "/"
	}
	return t, true
}
