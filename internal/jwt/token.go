package jwt

import (
	"encoding/base64"
	"strings"

	"github.com/caddy-auth/caddy-auth/internal/auth"
	"github.com/caddy-auth/caddy-auth/internal/strictjson"
)

const (
	// maxHeaderLen and maxKeyIDLen bound what a token says of itself.
	maxHeaderLen = 2048
	maxKeyIDLen  = 256
)

// Token is a JWS in compact form whose signature was not checked yet: nothing
// in it is true before Verify said so.
type Token struct {
	Algorithm string // alg
	KeyID     string // kid, "" without one
	Type      string // typ, "" without one
	Claims    strictjson.Object

	signed    string // what the signature is of
	signature []byte
}

// canonical takes one text for each value: no padding, no spare bits, and,
// since Looks checked the alphabet, no line breaks.
var canonical = base64.RawURLEncoding.Strict()

// Looks reports whether text has the form of a signed token: three parts in
// the base64url alphabet, of which the first can be a JSON object. It does not
// allocate.
func Looks(text string) bool {
	if len(text) < 4 || text[0] != 'e' { // every text that begins with '{'
		return false
	}
	dots := 0
	for i := range len(text) {
		switch c := text[i]; {
		case c == '.':
			dots++
		case c >= '0' && c <= '9', c >= 'A' && c <= 'Z', c >= 'a' && c <= 'z', c == '-', c == '_':
		default:
			return false
		}
	}
	return dots == 2
}

// refused are header parameters that a token must not have here: keys and
// places of keys that the token itself names (RFC 8725, 3.10), extensions that
// must be understood (RFC 7515, 4.1.11), and what makes it another thing than
// the signed claims of RFC 7519.
var refused = []string{"crit", "b64", "jku", "jwk", "x5u", "x5c", "zip", "enc", "epk", "p2c", "p2s", "iv", "tag"}

// Parse reads a token. Reasons: ReasonMalformed, ReasonHeader.
func Parse(text string) (*Token, auth.Reason) {
	t, payload, r := parseSigned(text)
	if r != auth.ReasonNone {
		return nil, r
	}
	var ok bool
	if t.Claims, ok = decode(payload); !ok {
		return nil, auth.ReasonMalformed
	}
	return t, auth.ReasonNone
}

// parseSigned reads all but the payload, which is anything that was signed.
func parseSigned(text string) (t *Token, payload string, r auth.Reason) {
	if !Looks(text) {
		return nil, "", auth.ReasonMalformed
	}
	first := strings.IndexByte(text, '.')
	last := strings.LastIndexByte(text, '.')
	if first > maxHeaderLen {
		return nil, "", auth.ReasonMalformed
	}
	header, ok := decode(text[:first])
	if !ok {
		return nil, "", auth.ReasonMalformed
	}
	t = &Token{signed: text[:last]}
	if r := t.readHeader(header); r != auth.ReasonNone {
		return nil, "", r
	}
	var err error
	if t.signature, err = canonical.DecodeString(text[last+1:]); err != nil || len(t.signature) == 0 {
		return nil, "", auth.ReasonMalformed
	}
	return t, text[first+1 : last], auth.ReasonNone
}

func decode(part string) (strictjson.Object, bool) {
	raw, err := canonical.DecodeString(part)
	if err != nil {
		return nil, false
	}
	o, err := strictjson.Decode(raw)
	return o, err == nil
}

func (t *Token) readHeader(h strictjson.Object) auth.Reason {
	for _, name := range refused {
		if _, there := h[name]; there {
			return auth.ReasonHeader
		}
	}
	var ok [4]bool
	var contentType string
	t.Algorithm, ok[0] = h.Text("alg")
	t.KeyID, ok[1] = h.Text("kid")
	t.Type, ok[2] = h.Text("typ")
	contentType, ok[3] = h.Text("cty") // RFC 7519, 5.2: a token within the token
	if ok != [4]bool{true, true, true, true} || t.Algorithm == "" || len(t.KeyID) > maxKeyIDLen || contentType != "" {
		return auth.ReasonHeader
	}
	return auth.ReasonNone
}

// IsType reports whether typ is want, which may be written with or without
// "application/" and in any case (RFC 7515, 4.1.9).
func (t *Token) IsType(want string) bool {
	return strings.EqualFold(plainType(t.Type), plainType(want))
}

func plainType(s string) string {
	const long = "application/"
	if len(s) > len(long) && strings.EqualFold(s[:len(long)], long) {
		return s[len(long):]
	}
	return s
}

// Peek returns what a token that Parse may refuse says of who issued it, or "".
func Peek(text string) string {
	_, rest, _ := strings.Cut(text, ".")
	payload, _, _ := strings.Cut(rest, ".")
	claims, ok := decode(payload)
	if !ok {
		return ""
	}
	iss, _ := claims.Text("iss")
	return iss
}
