package login

import (
	"net/url"
	"strings"

	"github.com/caddy-auth/caddy-auth/internal/urlpath"
)

// maxReturn is the longest place to return to: it travels in a cookie.
const maxReturn = 1800

// decodings is how often a place is looked at decoded.
const decodings = 5

// SafeReturn reports whether a text is a place on this host, a path with or
// without a query, however a browser, a proxy or an upstream reads it. What can
// be read as anything else is refused, not mended.
func SafeReturn(text string) bool {
	if len(text) > maxReturn || !plainPath(text, "# ") {
		return false
	}
	u, err := url.Parse(text)
	if err != nil || u.Scheme != "" || u.Host != "" || u.User != nil || u.Opaque != "" || u.Fragment != "" || !strings.HasPrefix(u.Path, "/") {
		return false
	}
	path, _, _ := strings.Cut(text, "?")
	if urlpath.Read(path) == urlpath.Ambiguous {
		return false
	}
	for range decodings {
		if !plainPath(path, "") {
			return false
		}
		next := urlpath.Decode(path)
		if next == path {
			return true
		}
		path = next
	}
	return false // it hides something
}

// plainPath reports whether a text begins like a path that is not one of a host,
// and has nothing that browsers drop, fold or read as a slash. What is beyond
// ASCII is no slash in any encoding, and none of without is in it.
func plainPath(text, without string) bool {
	if text == "" || text[0] != '/' {
		return false
	}
	path, _, _ := strings.Cut(text, "?")
	if strings.Contains(path, "//") || strings.HasSuffix(path, "/..") || strings.Contains(path, "/../") || strings.Contains(path, "/./") || strings.HasSuffix(path, "/.") {
		return false
	}
	for _, r := range text {
		if r < ' ' || r == '\\' || r == 0x7f || strings.ContainsRune(without, r) || foldsToSlash(r) {
			return false
		}
	}
	return true
}

// foldsToSlash reports whether some reader takes a character for one that
// separates, or for none (Unicode's compatibility forms, controls, and what
// overlong and broken encodings become).
func foldsToSlash(r rune) bool {
	switch {
	case r >= 0x80 && r <= 0xa0, r == 0xfffd, r == 0xfeff, r >= 0x2000 && r <= 0x200f, r >= 0x2024 && r <= 0x202f, r >= 0x2044 && r <= 0x206f,
		r == 0x2215, r == 0x2571, r == 0x29f8, r == 0x3000, r == 0x3002, r >= 0xfe00 && r <= 0xfe0f, r >= 0xff00 && r <= 0xffef:
		return true
	}
	return false
}
