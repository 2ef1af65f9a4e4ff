package redact

import (
	"bytes"
	"slices"
	"strings"

	"github.com/caddy-auth/caddy-auth/internal/auth"
)

// Names that are refused in a query, alone or as a part of a bracketed or
// dotted name. As compared: lower case, alphanumerics only.
var builtinNames = []string{
	"apikey", "xapikey", "accesstoken", "idtoken", "refreshtoken", "authtoken",
	"bearer", "jwt", "clientsecret", "authorization",
}

// Names that are refused as whole names only.
var wholeNames = []string{"key", "token", "password"}

// Names whose values may be JWTs: OpenID Connect sends requests, responses
// and hints that way.
var jwtNames = []string{"state", "response", "request", "idtokenhint", "logouttoken"}

// Allowance lifts names (and the JWT shape under them) on paths, or
// everywhere if there are none.
type Allowance struct {
	Names []string // as people write them
	Paths PathSet
}

// PathSet matches a path as the client sent it.
type PathSet interface {
	// Empty reports whether the set has no paths at all.
	Empty() bool
	// Match reports whether path is in the set.
	Match(path string) bool
}

// Rules say what a scan refuses beyond and short of the built-in names.
type Rules struct {
	Refuse        []string
	Allow         []Allowance
	AllowJWTPaths PathSet // nil: none
}

// Scanner looks for credentials in request targets. It is immutable but for
// the key prefixes, which the caller passes.
type Scanner struct {
	refused   map[string]bool // normalized; anywhere in a name
	whole     map[string]bool // normalized; as whole names only
	allow     []allowance
	jwtPaths  PathSet
	jwtExempt [][]byte
	last      [256]bool // bytes that a name to refuse can end with, or that need a closer look
}

type allowance struct {
	names [][]byte
	paths PathSet
}

// NewScanner compiles rules.
func NewScanner(r Rules) *Scanner {
	s := &Scanner{
		refused:   setOf(normalizeAll(builtinNames, r.Refuse)),
		whole:     setOf(normalizeAll(wholeNames)),
		jwtExempt: normalizeAll(jwtNames),
		jwtPaths:  r.AllowJWTPaths,
	}
	for c := range s.last {
		s.last[c] = !isAlnum(byte(c))
	}
	for _, names := range []map[string]bool{s.refused, s.whole} {
		for n := range names {
			c := n[len(n)-1]
			s.last[c], s.last[c&^0x20] = true, true
			if c < 'a' {
				s.last[c] = true
			}
		}
	}
	for _, a := range r.Allow {
		s.allow = append(s.allow, allowance{normalizeAll(a.Names), a.Paths})
	}
	return s
}

// What names the kind of a finding.
type What uint8

// Kinds of findings.
const (
	Nothing What = iota
	MalformedTarget
	RefusedName
	KeyShape
	JWTShape
)

// Finding is the first credential found in a target. Name is the parameter's
// name, decoded, cut to 32 printable bytes, and of a name in parts only the part
// that is refused (it is empty where the name itself is shaped like a secret); Keys are the texts shaped like
// our keys, for the caller to burn.
type Finding struct {
	What   What
	Name   string
	InPath bool
	Keys   []string
}

// maxKeys bounds how many leaked keys one request can make us look up.
const maxKeys = 4

// Scan looks through a raw request target (RFC 9112, 3.2: any of its forms).
func (s *Scanner) Scan(target string, prefixes []string) Finding {
	if plain(target) {
		return Finding{}
	}
	t, ok := SplitTarget(target)
	if !ok {
		return Finding{What: MalformedTarget, Keys: collectKeys(target, prefixes)}
	}
	f := s.scanPath(t.Path, prefixes)
	if f.What == Nothing && t.Query != "" {
		f = s.scanQuery(t.Path, t.Query, prefixes)
	}
	if f.What == Nothing && t.Authority != "" && HasKey(t.Authority, prefixes) {
		f = Finding{What: KeyShape, InPath: true}
	}
	if f.What != Nothing {
		f.Keys = collectKeys(target, prefixes)
	}
	return f
}

// shortestCredential is less than the length of any credential: a JWT has at
// least 12 + . + 1 + . characters, and decoding makes nothing longer.
const shortestCredential = 15

// plain reports whether nothing in target needs a closer look: no query, no
// escapes, no authority and too short for any credential.
func plain(target string) bool {
	if target == "" || target[0] != '/' {
		return false
	}
	run := 0
	for i := range len(target) {
		switch c := target[i]; {
		case c == '?' || c == '%' || c == '#' || c == '\\':
			return false
		case c == '/':
			run = 0
		default:
			if run++; run >= shortestCredential {
				return false
			}
		}
	}
	return true
}

func (s *Scanner) scanPath(path string, prefixes []string) Finding {
	if plain(path) {
		return Finding{}
	}
	var buf [512]byte
	b := decode(buf[:0], path)
	// A question mark that only decoding shows starts a query for whoever
	// decodes before splitting.
	if i := bytes.IndexByte(b, '?'); i >= 0 {
		if f := s.scanQuery(path, string(b[i+1:]), prefixes); f.What != Nothing {
			f.InPath = true
			return f
		}
	}
	if HasKey(path, prefixes) {
		return Finding{What: KeyShape, InPath: true}
	}
	if hasJWT(b) && (s.jwtPaths == nil || !s.jwtPaths.Match(path)) {
		return Finding{What: JWTShape, InPath: true}
	}
	return Finding{}
}

func (s *Scanner) scanQuery(path, query string, prefixes []string) Finding {
	if len(query) > auth.KeyTailLen && holdsKey(query, prefixes) {
		return s.shapeFinding(query, prefixes)
	}
	for query != "" {
		var pair string
		var plain bool
		if pair, query, plain = s.cutPair(query); plain {
			continue
		}
		if f := s.scanPair(path, pair); f.What != Nothing {
			return f
		}
	}
	return Finding{}
}

// cutPair takes the first pair off a query. plain says that nothing can be
// wrong with it: its name is of letters, digits, - and _ and does not end as
// a name to refuse does, and its value is too short for a token.
func (s *Scanner) cutPair(query string) (pair, rest string, plain bool) {
	nameEnd := -1
	simple := true
	i := 0
	for ; i < len(query); i++ {
		c := query[i]
		if c == '&' || c == ';' {
			break
		}
		if nameEnd < 0 {
			if c == '=' {
				nameEnd = i
			} else if !isAlnum(c) && c != '_' && c != '-' {
				simple = false
			}
		}
	}
	pair, rest = query[:i], ""
	if i < len(query) {
		rest = query[i+1:]
	}
	if nameEnd < 0 {
		nameEnd = i
	}
	plain = simple && nameEnd > 0 && nameEnd < shortestCredential && !s.last[query[nameEnd-1]] && i-nameEnd <= shortestCredential
	return pair, rest, plain
}

func holdsKey(query string, prefixes []string) bool { return HasKey(query, prefixes) }

// shapeFinding names the parameter that holds a key, if one alone does.
func (s *Scanner) shapeFinding(query string, prefixes []string) Finding {
	var buf [512]byte
	for pair := range strings.FieldsFuncSeq(query, func(r rune) bool { return r == '&' || r == ';' }) {
		if !HasKey(pair, prefixes) {
			continue
		}
		name, _, _ := strings.Cut(pair, "=")
		if HasKey(name, prefixes) {
			break
		}
		return Finding{What: KeyShape, Name: printable(decode(buf[:0], name))}
	}
	return Finding{What: KeyShape}
}

func (s *Scanner) scanPair(path, pair string) Finding {
	rawName, rawValue, _ := strings.Cut(pair, "=")
	var nameBuf, foldBuf [128]byte
	name := decode(nameBuf[:0], rawName)
	whole := normalize(foldBuf[:0], name)
	if part := s.refusedPart(name, whole); part != nil {
		if s.allowed(whole, path) {
			return Finding{}
		}
		return Finding{What: RefusedName, Name: printable(part)}
	}
	if hasJWT(name) {
		return Finding{What: JWTShape}
	}
	if len(rawValue) >= shortestCredential && valueHasJWT(rawValue) && !contains(s.jwtExempt, whole) && !s.allowed(whole, path) {
		return Finding{What: JWTShape, Name: printable(name)}
	}
	return Finding{}
}

func valueHasJWT(value string) bool {
	var buf [512]byte
	return hasJWT(decode(buf[:0], value))
}

// refusedPart looks at the whole name and at each part of a bracketed or
// dotted one, and returns the part to refuse: what stands beside it may be a
// secret. Nil: none.
func (s *Scanner) refusedPart(name, whole []byte) []byte {
	if s.refused[string(whole)] || s.whole[string(whole)] {
		return name
	}
	if !bytes.ContainsAny(name, "[].") {
		return nil
	}
	var buf [128]byte
	start := 0
	for i := 0; i <= len(name); i++ {
		if i < len(name) && name[i] != '[' && name[i] != ']' && name[i] != '.' {
			continue
		}
		if s.refused[string(normalize(buf[:0], name[start:i]))] {
			return name[start:i]
		}
		start = i + 1
	}
	return nil
}

func (s *Scanner) allowed(whole []byte, path string) bool {
	for _, a := range s.allow {
		if contains(a.names, whole) && (a.paths == nil || a.paths.Empty() || a.paths.Match(path)) {
			return true
		}
	}
	return false
}

// collectKeys returns the key-shaped texts of a target, each once.
func collectKeys(target string, prefixes []string) []string {
	var keys []string
	collect := func(find func([]byte, []string) (int, int, bool)) func(b []byte) bool {
		return func(b []byte) bool {
			for len(keys) < maxKeys {
				start, end, ok := find(b, prefixes)
				if !ok {
					break
				}
				if k := string(b[start:end]); !slices.Contains(keys, k) {
					keys = append(keys, k)
				}
				b = b[end:]
			}
			return len(keys) >= maxKeys
		}
	}
	readings(target, collect(findKey), collect(findKeyAlone))
	return keys
}

// normalize appends name in lower case with all but letters and digits left out.
func normalize(dst, name []byte) []byte {
	for _, c := range name {
		if isAlnum(c) {
			dst = append(dst, lower(c))
		}
	}
	return dst
}

func normalizeAll(lists ...[]string) [][]byte {
	var out [][]byte
	for _, l := range lists {
		for _, n := range l {
			if b := normalize(nil, []byte(n)); len(b) > 0 {
				out = append(out, b)
			}
		}
	}
	return out
}

func setOf(names [][]byte) map[string]bool {
	set := make(map[string]bool, len(names))
	for _, n := range names {
		set[string(n)] = true
	}
	return set
}

func contains(list [][]byte, b []byte) bool {
	for _, x := range list {
		if bytes.Equal(x, b) {
			return true
		}
	}
	return false
}

// printable cuts a name to what may be shown in an answer or a log.
func printable(name []byte) string {
	const most = 32
	var b strings.Builder
	for _, c := range name {
		if b.Len() == most {
			break
		}
		if c > 0x20 && c < 0x7f && c != '"' && c != '\\' {
			b.WriteByte(c)
		}
	}
	return b.String()
}
