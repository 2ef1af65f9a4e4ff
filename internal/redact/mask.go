package redact

import (
	"strings"
	"sync/atomic"

	"github.com/caddy-auth/caddy-auth/internal/auth"
)

// Mark stands where a credential stood.
const Mark = "REDACTED"

// Masker masks credentials in what is about to be logged. It knows no
// prefixes: whatever is shaped like a key of anybody's is masked, so that a
// log is safe before a store was read. It fails closed: what it can't mask in
// part it masks as a whole. It is safe for concurrent use.
type Masker struct {
	scanner *Scanner
	headers atomic.Pointer[map[string]bool] // normalized names of headers that carry credentials
}

// Headers whose values are credentials, normalized.
var maskedHeaders = []string{
	"authorization", "proxyauthorization", "cookie", "setcookie",
	"apikey", "xapikey", "apitoken", "xapitoken", "authtoken", "xauthtoken", "authkey", "xauthkey",
	"accesstoken", "xaccesstoken", "idtoken", "xidtoken", "refreshtoken", "xrefreshtoken", "sessiontoken", "xsessiontoken",
	"bearer", "jwt", "xjwt", "token", "xtoken", "secret", "xsecret", "clientsecret", "xclientsecret", "password", "xpassword",
	"dpop", "xcsrftoken", "xgitlabtoken", "privatetoken", "xvaulttoken", "xauthassertion",
}

// NewMasker returns a masker for the built-in names.
func NewMasker() *Masker {
	m := &Masker{scanner: NewScanner(Rules{})}
	known := setOfStrings(maskedHeaders)
	m.headers.Store(&known)
	return m
}

// AddHeaders adds names of headers that carry credentials. None is ever
// forgotten.
func (m *Masker) AddHeaders(names ...string) {
	for {
		old := m.headers.Load()
		known := make(map[string]bool, len(*old)+len(names))
		for n := range *old {
			known[n] = true
		}
		for _, n := range names {
			known[string(normalize(nil, []byte(n)))] = true
		}
		if len(known) == len(*old) || m.headers.CompareAndSwap(old, &known) {
			return
		}
	}
}

func setOfStrings(words []string) map[string]bool {
	out := make(map[string]bool, len(words))
	for _, w := range words {
		out[w] = true
	}
	return out
}

// Header returns what may be logged of a header field. changed is false if
// that is all of it; then name and values are the ones given.
func (m *Masker) Header(name string, values []string) (safeName string, safe []string, changed bool) {
	var buf [64]byte
	secret := (*m.headers.Load())[string(normalize(buf[:0], []byte(name)))]
	for i, v := range values {
		masked := Mark
		if !secret {
			masked = m.String(v)
		}
		if len(masked) == len(v) && masked == v {
			continue
		}
		if !changed {
			safe, changed = append([]string(nil), values...), true
		}
		safe[i] = masked
	}
	if hidesCredential(name) {
		name, changed = Mark, true
	}
	if !changed || safe == nil {
		safe = values
	}
	return name, safe, changed
}

// String returns what may be logged of any text: a target, a URL or prose.
func (m *Masker) String(s string) string {
	if m.clean(s) {
		return s
	}
	if looksLikeTarget(s) {
		return m.target(s)
	}
	return m.prose(s)
}

// clean reports whether nothing in s needs a closer look: no user or escape,
// no parameter whose name can be refused, and no run of characters that is
// long enough for a secret.
func (m *Masker) clean(s string) bool {
	run := 0      // of characters that encode secrets
	part := 0     // of a JWT's alphabet since its last dot
	head := false // a part long enough for a JOSE header ended in a dot
	for i := range len(s) {
		c := s[i]
		switch charKinds[c] {
		case charWord:
			run++
			part++
		case charDot:
			if head {
				return false
			}
			run++
			head, part = part >= shortestHeader, 0
		case charBase64:
			run++
			head, part = false, 0
		case charEquals:
			if i == 0 || m.scanner.last[s[i-1]] {
				return false
			}
			head, run, part = false, 0, 0
		case charLook:
			return false
		default:
			head, run, part = false, 0, 0
		}
		if run >= auth.KeyTailLen {
			return false
		}
	}
	return true
}

// Kinds of characters, as clean tells them apart.
const (
	charOther  = iota
	charWord   // of a key or a JWT
	charDot    // between the parts of a JWT
	charBase64 // of the other base64 alphabet
	charEquals
	charLook
)

var charKinds = func() (kinds [256]uint8) {
	for c := range kinds {
		switch {
		case isAlnum(byte(c)) || c == '_' || c == '-':
			kinds[c] = charWord
		case c == '+' || c == '/':
			kinds[c] = charBase64
		case c == '.':
			kinds[c] = charDot
		case c == '=':
			kinds[c] = charEquals
		case c == '%' || c == '@':
			kinds[c] = charLook
		}
	}
	return kinds
}()

// looksLikeTarget reports whether all of s may be one request target or URL.
func looksLikeTarget(s string) bool {
	if s[0] == '/' || s[0] == '?' {
		return true
	}
	scheme, _, ok := strings.Cut(s, "://")
	return ok && len(scheme) <= 12 && !strings.ContainsAny(scheme, " \"'?#/")
}

// target masks a request target or URL: user information, the values of
// parameters with refused names in query and fragment, and credentials by
// their shape everywhere.
func (m *Masker) target(s string) string {
	head, tail := s, ""
	if i := strings.IndexAny(s, "?#"); i >= 0 {
		head, tail = s[:i], s[i:]
	}
	if tail == "" && strings.Contains(head, "%3") { // an escaped ? or =
		if d := string(decode(nil, head)); d != head && strings.ContainsAny(d, "?#") && m.target(d) != d {
			return Mark
		}
	}
	return maskUser(shapes(head)) + m.pairs(tail)
}

// prose masks a text that may contain URLs.
func (m *Masker) prose(s string) string {
	var out strings.Builder
	rest := s
	for {
		i := strings.IndexAny(rest, "?#&;")
		if i < 0 {
			break
		}
		end := i
		for end < len(rest) && !strings.ContainsRune(" \t\r\n\"'<>`", rune(rest[end])) {
			end++
		}
		out.WriteString(rest[:i])
		out.WriteString(m.pairs(rest[i:end]))
		rest = rest[end:]
	}
	out.WriteString(rest)
	return maskUser(shapes(out.String()))
}

// pairs masks a query, fragment or cookie-like list that begins with its
// delimiter.
func (m *Masker) pairs(s string) string {
	if s == "" {
		return s
	}
	var out strings.Builder
	for len(s) > 0 {
		out.WriteByte(s[0]) // the delimiter
		s = s[1:]
		end := strings.IndexAny(s, "?#&;")
		if end < 0 {
			end = len(s)
		}
		out.WriteString(m.pair(s[:end]))
		s = s[end:]
	}
	masked := out.String()
	if hidesCredential(masked) { // split at delimiters it was none
		return masked[:1] + Mark
	}
	return masked
}

func (m *Masker) pair(pair string) string {
	rawName, rawValue, has := strings.Cut(pair, "=")
	if hidesCredential(rawName) {
		return Mark
	}
	var nameBuf, foldBuf [128]byte
	name := decode(nameBuf[:0], rawName)
	if has && m.scanner.refusedPart(name, normalize(foldBuf[:0], name)) != nil {
		return rawName + "=" + Mark
	}
	if hidesCredential(rawValue) || m.nested(rawValue) {
		return rawName + "=" + Mark
	}
	return pair
}

// nested reports whether a value, decoded, is itself a URL with credentials.
func (m *Masker) nested(value string) bool {
	if !strings.ContainsAny(value, "%?&#") {
		return false
	}
	d := string(decode(nil, value))
	i := strings.IndexAny(d, "?&#;")
	return i >= 0 && m.pairsHide(d[i:])
}

func (m *Masker) pairsHide(s string) bool {
	for pair := range strings.FieldsFuncSeq(s, func(r rune) bool { return strings.ContainsRune("?&#;", r) }) {
		name, _, has := strings.Cut(pair, "=")
		var foldBuf [128]byte
		if has && m.scanner.refusedPart([]byte(name), normalize(foldBuf[:0], []byte(name))) != nil {
			return true
		}
	}
	return false
}

// maskUser masks user information before the @ of an authority.
func maskUser(s string) string {
	if !strings.Contains(s, "://") {
		return s
	}
	var out strings.Builder
	for {
		i := strings.Index(s, "://")
		if i < 0 {
			out.WriteString(s)
			return out.String()
		}
		start := i + len("://")
		end := len(s)
		if n := strings.IndexAny(s[start:], "/?# \t\r\n\"'<>`"); n >= 0 {
			end = start + n
		}
		out.WriteString(s[:start])
		if at := strings.LastIndexByte(s[start:end], '@'); at >= 0 {
			out.WriteString(Mark)
			start += at
		}
		out.WriteString(s[start:end])
		s = s[end:]
	}
}
