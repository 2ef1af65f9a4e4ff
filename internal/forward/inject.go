package forward

import (
	"net/http"
	"strings"

	"github.com/caddy-auth/caddy-auth/internal/auth"
)

// MaxHeaders is how many headers of a default policy one identity fills.
const MaxHeaders = 7

// Inject sets the identity's headers. values is where the values are kept for
// as long as the request lives; a policy with more headers than it has room
// for makes its own room. Headers with nothing to say are absent.
//
// Each header has a slice of its own: a later handler may rewrite values in
// place, and must not reach another request's.
func (p *Policy) Inject(h http.Header, id *auth.Identity, values []string) {
	if len(values) < len(p.headers) {
		values = make([]string, len(p.headers))
	}
	for i := range p.headers {
		hd := &p.headers[i]
		v := hd.field(id)
		if v == "" {
			continue
		}
		values[i] = Encode(v, hd.words)
		h[hd.name] = values[i : i+1 : i+1]
	}
}

// Encode percent-encodes every byte outside 0x21-0x7E and '%' itself, so that
// an upstream can always decode. With words, spaces stay.
func Encode(v string, words bool) string {
	plain := true
	for i := range len(v) {
		if mustEncode(v[i], words) {
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
		if c := v[i]; mustEncode(c, words) {
			b.Write([]byte{'%', digits[c>>4], digits[c&15]})
		} else {
			b.WriteByte(c)
		}
	}
	return b.String()
}

func mustEncode(c byte, words bool) bool {
	return c < 0x21 && !(words && c == ' ') || c > 0x7e || c == '%'
}
