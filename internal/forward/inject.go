package forward

import (
	"net/http"
	"strings"

	"golang.org/x/text/unicode/norm"

	"github.com/caddy-auth/caddy-auth/internal/auth"
	"github.com/caddy-auth/caddy-auth/internal/urlpath"
)

// UsualHeaders is how many headers of a default policy a key's identity fills.
const UsualHeaders = 5

// Inject sets the identity's headers. values is where the values are kept for
// as long as the request lives; what it has no room for gets room of its own.
// Headers with nothing to say are absent.
//
// Each header has a slice of its own: a later handler may rewrite values in
// place, and must not reach another request's.
func (p *Policy) Inject(h http.Header, id *auth.Identity, values []string) {
	for i := range p.headers {
		hd := &p.headers[i]
		v := hd.field(id)
		if v == "" {
			continue
		}
		if len(values) == 0 {
			values = make([]string, len(p.headers)-i)
		}
		values[0] = Encode(v, hd.words)
		h[hd.name], values = values[:1:1], values[1:]
	}
}

// Encode percent-encodes every byte outside 0x21-0x7E and '%' itself, so that
// an upstream can always decode. With words, spaces stay.
func Encode(v string, words bool) string { return encode(v, words, "") }

// encode is Encode for some more bytes.
func encode(v string, words bool, more string) string {
	plain := true
	for i := range len(v) {
		if mustEncode(v[i], words, more) {
			plain = false
			break
		}
	}
	if plain {
		return v
	}
	const digits = "0123456789ABCDEF"
	var b strings.Builder
	for i := range len(v) {
		if c := v[i]; mustEncode(c, words, more) {
			b.Write([]byte{'%', digits[c>>4], digits[c&15]})
		} else {
			b.WriteByte(c)
		}
	}
	return b.String()
}

// separators are what separates something in a path or begins a placeholder.
const separators = `/\?#;{}`

// EncodePlaceholder is Encode for a value that a configuration may put anywhere,
// into a path too: what separates there is encoded as well. Caddy's rewrite
// decodes a path once, so a value that would climb is encoded twice, as a whole
// but for its letters and digits. With words, spaces stay.
func EncodePlaceholder(v string, words bool) string {
	encoded := encode(v, words, separators)
	if !climbs(v) {
		return encoded
	}
	return strings.ReplaceAll(encode(v, words, separators+"."), "%", "%25")
}

// climbs reports whether a value has a dot segment, for anybody who folds it by
// Unicode's compatibility forms or takes parameters off.
func climbs(v string) bool {
	if !strings.Contains(v, ".") && !strings.ContainsFunc(v, func(r rune) bool { return r >= 0x80 }) {
		return false
	}
	for segment := range strings.FieldsFuncSeq(norm.NFKC.String(v), func(r rune) bool { return r == '/' || r == '\\' }) {
		if before, _, _ := strings.Cut(segment, ";"); urlpath.Dots(before) {
			return true
		}
	}
	return false
}

func mustEncode(c byte, words bool, more string) bool {
	return c < 0x21 && !(words && c == ' ') || c > 0x7e || c == '%' || more != "" && strings.IndexByte(more, c) >= 0
}
