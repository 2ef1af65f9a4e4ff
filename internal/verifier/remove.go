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
	look := lookout{prefixes, imported, mostClose}
	for name, values := range h {
		if name == "Cookie" {
			look.removeCookies(h, values)
			continue
		}
		if !slices.ContainsFunc(values, look.holdsOurs) {
			continue
		}
		switch {
		case keep && (name == authorization && s.bearer || slices.Contains(s.keyHeaders, name)):
		default:
			delete(h, name)
		}
	}
}

// mostClose is how many bytes of a request's headers are searched in every reading;
// of the rest only what stands there in clear is found. Clients choose how much there
// is.
const mostClose = 4 << 10

// lookout searches a request's headers.
type lookout struct {
	prefixes []string
	imported *auth.Imported
	close    int // bytes that may still be searched closely
}

// removeCookies removes the cookies that hold a key or token of ours.
func (l *lookout) removeCookies(h http.Header, lines []string) {
	var kept []string
	found := false
	for _, line := range lines {
		for pair := range strings.SplitSeq(line, ";") {
			if l.holdsOurs(pair) {
				found = true
			} else {
				kept = append(kept, strings.TrimSpace(pair))
			}
		}
	}
	switch {
	case !found:
		return
	case len(kept) == 0:
		delete(h, "Cookie")
	default:
		h["Cookie"] = []string{strings.Join(kept, "; ")}
	}
}

// holdsOurs reports whether a header's value holds a credential of this gateway. It
// costs next to nothing where none of the prefixes stands before something that may
// be an underscore.
func (l *lookout) holdsOurs(value string) bool {
	if l.holdsImported(value) {
		return true
	}
	switch {
	case len(value) < shortestKey:
		return false
	case isBasic(value) && len(value) <= l.close: // also in X-Forwarded-Authorization and the like
		l.close -= len(value)
		return hidesKey(value, l.prefixes)
	case !l.mayHold(value) && (strings.IndexByte(value, '%') < 0 || len(value) > l.close):
		return false
	case len(value) > l.close:
		return redact.HasPlainKey(value, l.prefixes)
	}
	l.close -= len(value)
	return redact.HasKey(value, l.prefixes)
}

func isBasic(value string) bool {
	const scheme = "basic "
	return len(value) > len(scheme) && strings.EqualFold(value[:len(scheme)], scheme)
}

func (l *lookout) holdsImported(value string) bool {
	switch {
	case l.imported.Len() == 0:
		return false
	case len(value) <= mostClose && strings.IndexByte(value, '%') >= 0:
		return redact.ScanImported(value, l.imported).What != redact.Nothing
	}
	found, _ := l.imported.FindAll(value)
	return len(found) > 0
}

// mayHold reports whether a prefix of our keys stands before what may be read as an
// underscore.
func (l *lookout) mayHold(value string) bool {
	for _, p := range l.prefixes {
		for rest := value; ; {
			i := strings.Index(rest, p)
			if i < 0 || i+len(p) == len(rest) {
				break
			}
			rest = rest[i+len(p):]
			if strings.IndexByte("_%=&-\\", rest[0]) >= 0 {
				return true
			}
		}
	}
	return false
}
