package redact

import (
	"bytes"
	"maps"
	"slices"
	"strings"
	"sync"
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
	mu    sync.Mutex // held while known or keys is exchanged
	known atomic.Pointer[maskedNames]

	imported map[any]*auth.Imported // guarded by mu
	keys     atomic.Pointer[[]*auth.Imported]

	secrets  map[any][]auth.Secret // guarded by mu
	literals atomic.Pointer[[]string]

	callbacks atomic.Pointer[[]string] // paths with a ? behind; see AddCallback
}

// NewMasker returns a masker for the built-in names.
func NewMasker() *Masker {
	m := &Masker{}
	n := &maskedNames{headers: map[string]bool{}, scanner: NewScanner(Rules{})}
	for _, h := range maskedHeaders {
		n.headers[h] = true
	}
	n.setPlain()
	m.known.Store(n)
	return m
}

// AddHeaders adds names of headers that carry credentials. None is ever
// forgotten.
func (m *Masker) AddHeaders(names ...string) { m.add(names, nil) }

// AddParams adds names of parameters that are refused in URLs. None is ever
// forgotten.
func (m *Masker) AddParams(names ...string) { m.add(nil, names) }

func (m *Masker) add(headers, params []string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	old := m.known.Load()
	n := &maskedNames{headers: maps.Clone(old.headers), params: slices.Clone(old.params), scanner: old.scanner}
	for _, h := range headers {
		n.headers[string(normalize(nil, []byte(h)))] = true
	}
	for _, p := range params {
		if !slices.Contains(n.params, p) {
			n.params = append(n.params, p)
		}
	}
	if len(n.params) != len(old.params) {
		n.scanner = NewScanner(Rules{Refuse: n.params})
	}
	n.setPlain()
	m.known.Store(n)
}

// Name reports whether what is called name is a credential: a header, in any
// spelling, as CGI spells it too, or a parameter.
func (m *Masker) Name(name string) bool { return m.known.Load().name(name) }

// Key returns what may be logged of a field's name, and whether its value is a
// credential.
func (m *Masker) Key(name string) (safe string, secret bool) {
	n := m.known.Load()
	if n.plain[name] {
		return name, false
	}
	return m.String(name), n.name(name)
}

// masked is what is logged of a header that is a credential. It is never
// written to.
var masked = []string{Mark}

// String returns what may be logged of any text: a target, a URL or prose.
func (m *Masker) String(s string) string {
	s = m.exact(s)
	if m.clean(s) {
		return s
	}
	return m.closely(s)
}

// inPieces masks a text that is too long to be looked at closely at once, as a
// stack trace is: line by line, or word by word. One without lines and words, or
// of enormous length, goes as a whole.
func (m *Masker) inPieces(s string) string {
	const most = 64 << 10
	if len(s) > most {
		return Mark
	}
	var out strings.Builder
	for s != "" {
		piece := s
		if len(s) > mostClose {
			end := strings.LastIndexByte(s[:mostClose], '\n')
			if end <= 0 {
				end = strings.LastIndexAny(s[:mostClose], blanks)
			}
			if end <= 0 {
				return Mark
			}
			piece = s[:end]
		}
		if s = s[len(piece):]; !m.clean(piece) {
			piece = m.closely(piece)
		}
		out.WriteString(piece)
		if s != "" {
			out.WriteByte(s[0])
			s = s[1:]
		}
	}
	return out.String()
}

// exact masks secrets that are known by their text, and codes.
func (m *Masker) exact(s string) string { return m.maskCodes(m.maskImported(m.maskLiterals(s))) }

// closely masks a text that is not clean.
func (m *Masker) closely(s string) string {
	if len(s) > mostClose {
		return m.inPieces(s)
	}
	if strings.Contains(s, `\u0026`) { // JSON's way to write &
		s = strings.ReplaceAll(s, `\u0026`, "&")
	}
	if looksLikeTarget(s) {
		return m.target(s)
	}
	return m.prose(s)
}

// looksLikeTarget reports whether all of s may be one request target or URL.
func looksLikeTarget(s string) bool {
	if strings.ContainsAny(s, blanks) {
		return false
	}
	if s[0] == '/' || s[0] == '?' {
		return true
	}
	scheme, _, ok := strings.Cut(s, "://")
	return ok && len(scheme) <= 12 && !strings.ContainsAny(scheme, " \"'?#/")
}

// target masks a request target or URL: user information, the values of
// parameters with refused names in path, query and fragment, and credentials
// by their shape everywhere.
func (m *Masker) target(s string) string {
	s = maskUser(s)
	head, tail := s, ""
	if i := strings.IndexAny(s, "?#"); i >= 0 {
		head, tail = s[:i], s[i:]
	}
	if strings.IndexByte(head, '%') >= 0 { // an escaped ? begins a query for whoever decodes first
		if d := string(decode(nil, head)); strings.ContainsAny(d, "?#") && m.hides(d) {
			return Mark + m.pairs(tail, "&")
		}
	}
	return m.pairs(shapes(head), "/&") + m.pairs(tail, "&")
}

const (
	blanks     = " \t\r\n"
	delimiters = "?#&;,"
)

// prose masks a text that may contain URLs, parameters and headers.
func (m *Masker) prose(s string) string {
	var out strings.Builder
	for s != "" {
		end := strings.IndexAny(s, blanks)
		if end < 0 {
			end = len(s)
		}
		word := s[:end]
		s = s[end:]
		masked := word
		if strings.IndexByte(word, '=') >= 0 || strings.IndexByte(word, '%') >= 0 {
			if masked = m.pairs(word, "&"); masked != word {
				s = afterQuote(word, s)
			}
		}
		out.WriteString(masked)
		if s != "" {
			out.WriteByte(s[0])
			s = s[1:]
		}
	}
	return maskUser(shapes(m.named(out.String())))
}

// afterQuote returns what follows a quoted value that began in word and goes
// on in rest.
func afterQuote(word, rest string) string {
	_, value, _ := strings.Cut(word, "=")
	value = strings.TrimLeft(value, "\\")
	if value == "" || value[0] != '"' && value[0] != '\'' || strings.Count(value, value[:1]) != 1 {
		return rest
	}
	if i := strings.IndexByte(rest, value[0]); i >= 0 {
		return rest[i+1:]
	}
	return ""
}

// pairs masks a query, a fragment, a path with parameters, or any other text
// in which delimiters separate names and values. A value that is masked goes
// on to the next of ends, whatever else is in it.
func (m *Masker) pairs(s, ends string) string {
	if s == "" || m.clean(s) {
		return s
	}
	var out strings.Builder
	for from := 0; ; {
		end := len(s)
		if n := strings.IndexAny(s[from:], delimiters); n >= 0 {
			end = from + n
		}
		masked := m.pair(s[from:end])
		out.WriteString(masked)
		if masked != s[from:end] {
			n := strings.IndexAny(s[end:], ends)
			if n < 0 {
				break
			}
			end += n
		}
		if end == len(s) {
			break
		}
		out.WriteByte(s[end])
		from = end + 1
	}
	masked := out.String()
	if hidesCredential(masked) { // split at delimiters it was none
		if strings.IndexByte(delimiters, masked[0]) >= 0 {
			return masked[:1] + Mark
		}
		return Mark
	}
	return masked
}

func (m *Masker) pair(pair string) string {
	if pair == "" || m.clean(pair) {
		return pair
	}
	if before, _, _ := strings.Cut(pair, "="); hidesCredential(before) {
		return Mark
	}
	for at := 0; ; { // every = may be the one
		n := strings.IndexByte(pair[at:], '=')
		if n < 0 {
			break
		}
		if n > 0 && m.refusesName(pair[at:at+n]) {
			return pair[:at+n+1] + Mark
		}
		at += n + 1
	}
	rawName, rawValue, has := strings.Cut(pair, "=")
	if hidesCredential(rawValue) {
		return rawName + "=" + Mark
	}
	if strings.IndexByte(pair, '%') < 0 {
		return pair
	}
	if has && m.hides(string(decode(nil, rawValue))) {
		return rawName + "=" + Mark
	}
	if m.hides(string(decode(nil, pair))) {
		return Mark
	}
	return pair
}

// refusesName looks at the whole name and at what follows its last slash.
func (m *Masker) refusesName(rawName string) bool {
	n := m.known.Load()
	if refused, simple := n.simple(rawName); simple {
		return refused
	}
	var nameBuf, foldBuf [128]byte
	name := decode(nameBuf[:0], rawName)
	if n.scanner.refusedPart(name, normalize(foldBuf[:0], name)) != nil || n.name(string(name)) {
		return true
	}
	i := bytes.LastIndexByte(name, '/')
	return i >= 0 && n.scanner.refusedPart(name[i+1:], normalize(foldBuf[:0], name[i+1:])) != nil
}

// hides reports whether a decoded text holds parameters with refused names or
// user information.
func (m *Masker) hides(d string) bool {
	if maskUser(d) != d {
		return true
	}
	for pair := range strings.FieldsFuncSeq(d, func(r rune) bool { return strings.ContainsRune(delimiters+quotesAndBlanks, r) }) {
		if name, value, has := strings.Cut(pair, "="); has && value != "" && m.refusesName(name) {
			return true
		}
	}
	return false
}

const quotesAndBlanks = blanks + "\"'<>`"

// maskUser masks user information before the @ of an authority.
func maskUser(s string) string {
	if !strings.Contains(s, "//") || strings.IndexByte(s, '@') < 0 {
		return s
	}
	var out strings.Builder
	for {
		i := strings.Index(s, "//")
		if i < 0 {
			out.WriteString(s)
			return out.String()
		}
		start := i + len("//")
		end := len(s)
		if n := strings.IndexAny(s[start:], "/?#"+quotesAndBlanks); n >= 0 {
			end = start + n
		}
		out.WriteString(s[:start])
		if at := strings.LastIndexByte(s[start:end], '@'); at > 0 {
			out.WriteString(Mark)
			start += at
		}
		out.WriteString(s[start:end])
		s = s[end:]
	}
}
