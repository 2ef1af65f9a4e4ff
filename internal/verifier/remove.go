package verifier

import (
	"net/http"
	"slices"
	"strings"

	"github.com/caddy-auth/caddy-auth/internal/auth"
	"github.com/caddy-auth/caddy-auth/internal/redact"
)

// shortestKey is the length of the shortest text that can be a key of ours.
const shortestKey = len("a_a_") + auth.KeyTailLen

// RemoveOurs removes from h every header that holds a key or token of this gateway,
// whatever the site reads: no service behind it may see one. Of Cookie only the
// cookies that hold one go. keep says that the site forwards its credential: then
// the headers that it reads stay.
func (s *Sources) RemoveOurs(h http.Header, prefixes []string, imported *auth.Imported, keep bool) {
	for name, values := range h {
		if !slices.ContainsFunc(values, func(v string) bool { return holdsOurs(name, v, prefixes, imported) }) {
			continue
		}
		switch {
		case keep && (name == authorization && s.bearer || slices.Contains(s.keyHeaders, name)):
		case name == "Cookie":
			removeCookies(h, values, prefixes, imported)
		default:
			delete(h, name)
		}
	}
}

// removeCookies removes the cookies that hold a key or token of ours.
func removeCookies(h http.Header, lines []string, prefixes []string, imported *auth.Imported) {
	var kept []string
	for _, line := range lines {
		for pair := range strings.SplitSeq(line, ";") {
			if !holdsOurs("Cookie", pair, prefixes, imported) {
				kept = append(kept, strings.TrimSpace(pair))
			}
		}
	}
	if len(kept) == 0 {
		delete(h, "Cookie")
		return
	}
	h["Cookie"] = []string{strings.Join(kept, "; ")}
}

// holdsOurs reports whether a header's value holds a credential of this gateway. It
// costs next to nothing where none of the prefixes stands before something that may
// be an underscore.
func holdsOurs(name, value string, prefixes []string, imported *auth.Imported) bool {
	if name == authorization {
		return hidesKey(value, prefixes) || imported.Len() > 0 && redact.ScanImported(value, imported).What != redact.Nothing
	}
	if imported.Len() > 0 && redact.ScanImported(value, imported).What != redact.Nothing {
		return true
	}
	if len(value) < shortestKey {
		return false
	}
	for _, p := range prefixes {
		for rest := value; ; {
			i := strings.Index(rest, p)
			if i < 0 || i+len(p) == len(rest) {
				break
			}
			rest = rest[i+len(p):]
			if strings.IndexByte("_%=&-\\", rest[0]) >= 0 {
				return redact.HasKey(value, prefixes)
			}
		}
	}
	return false
}
