// Package urlpath says in how many ways the path of a request target can be
// read. Path rules, the gateway and the upstream may each decode, fold and
// normalize a path differently; a path that one of them can take for another is
// ambiguous. It does no I/O and is safe for concurrent use.
package urlpath

import (
	"strings"
	"unicode"
	"unicode/utf8"

	"golang.org/x/text/unicode/norm"
)

// Reading says how many ways there are to read a request's path. A higher one is
// worse.
type Reading uint8

// Readings of a path.
const (
	One        Reading = iota
	Slash              // a plain %2f, %3b, %3f or %23, a harmless escape within an escape, or a character that folds to a question mark and the like: it passes, but is never public
	Parameters         // a semicolon: some take what follows it off
	Ambiguous          // others may see another path
)

// mostDecodings is how often a path is decoded; escapes nested deeper are not
// honest.
const mostDecodings = 8

// Read says how the path of a raw target can be read. Ambiguous are dot segments
// in any encoding and with blanks round them, empty segments, backslashes,
// control bytes, invalid escapes, escapes within escapes that hide a printable
// character, invalid UTF-8, characters that Unicode's compatibility forms (NFKC)
// turn into a dot, a slash or a backslash, or a segment into ASCII, and blanks at a
// segment's end.
func Read(path string) Reading {
	if plain(path) {
		return One
	}
	reading := readRaw(path)
	for depth := 0; reading < Ambiguous; depth++ {
		reading = max(reading, readSegments(path))
		next := Decode(path)
		if next == path {
			return reading
		}
		if depth == mostDecodings {
			return Ambiguous
		}
		path = next
		reading = max(reading, readNested(path))
	}
	return reading
}

// plain reports whether a path has one reading at first sight: ASCII without
// escapes, dots, semicolons, backslashes, blanks and empty segments.
func plain(path string) bool {
	slash := false
	for i := range len(path) {
		c := path[i]
		if c == '/' {
			if slash {
				return false
			}
			slash = true
			continue
		}
		if !ordinary[c] {
			return false
		}
		slash = false
	}
	return true
}

// ordinary are the bytes that need no closer look.
var ordinary = func() (t [256]bool) {
	for c := 0x21; c < 0x7f; c++ {
		t[c] = !strings.ContainsRune(`%\;./`, rune(c))
	}
	return t
}()

// readRaw looks at the bytes of a path as it was sent.
func readRaw(path string) Reading {
	reading := One
	for i := 0; i < len(path); i++ {
		switch c := path[i]; {
		case c == '\\' || c < 0x20 || c == 0x7f || c == '/' && i+1 < len(path) && path[i+1] == '/':
			return Ambiguous
		case c == ';':
			reading = max(reading, Parameters)
		case c == '%':
			b, ok := unescape(path, i)
			if !ok || b == '\\' || b < 0x20 || b == 0x7f {
				return Ambiguous
			}
			if b == '/' || b == ';' || b == '?' || b == '#' {
				reading = max(reading, Slash)
			}
			i += 2
		}
	}
	return reading
}

// readNested looks at the escapes that a decoded path still has. One that hides
// a printable character can't be told from it by whoever decodes once more.
func readNested(path string) Reading {
	reading := One
	for i := 0; i < len(path); i++ {
		if path[i] != '%' {
			continue
		}
		b, ok := unescape(path, i)
		switch {
		case !ok:
			continue
		case b < 0x20 || b > 0x20 && b < 0x80 && b != '%':
			return Ambiguous
		}
		reading = Slash
	}
	return reading
}

// readSegments looks at the segments of a path, decoded so far.
func readSegments(path string) Reading {
	reading := One
	start := 0
	for i := 0; i <= len(path) && reading < Ambiguous; i++ {
		if i < len(path) && path[i] != '/' && path[i] != '\\' {
			continue
		}
		reading = max(reading, readSegment(path[start:i]))
		start = i + 1
	}
	return reading
}

func readSegment(seg string) Reading {
	if seg == "" {
		return One
	}
	if before, _, parameters := strings.Cut(seg, ";"); parameters && Dots(before) {
		return Ambiguous
	}
	if isASCII(seg) {
		if isBlank(rune(seg[len(seg)-1])) || Dots(seg) {
			return Ambiguous
		}
		return One
	}
	return readUnicode(seg)
}

// readUnicode looks at a segment beyond ASCII.
func readUnicode(seg string) Reading {
	spelled := false // a character folds to one of ASCII
	for _, r := range seg {
		if r < 0x80 {
			continue
		}
		if alike(r) { // also what is no UTF-8
			return Ambiguous
		}
		spelled = spelled || foldsToASCII(r)
	}
	folded := norm.NFKC.String(seg)
	if last, _ := utf8.DecodeLastRuneInString(folded); isBlank(last) || Dots(folded) || more(folded, seg, `./\`) {
		return Ambiguous
	}
	if plain := strings.Map(visible, folded); isASCII(plain) && (spelled || len(plain) != len(folded)) {
		return Ambiguous
	}
	if more(folded, seg, "%;?#") {
		return Slash
	}
	return One
}

// more reports whether a folded text has more of some characters than it had.
func more(folded, was, of string) bool {
	for i := range len(of) {
		if strings.Count(folded, of[i:i+1]) > strings.Count(was, of[i:i+1]) {
			return true
		}
	}
	return false
}

// foldsToASCII reports whether a character's compatibility form has something of
// ASCII that is no blank.
func foldsToASCII(r rune) bool {
	for _, f := range norm.NFKC.String(string(r)) {
		if f < 0x80 && f != ' ' {
			return true
		}
	}
	return false
}

// alike reports whether a character can be taken for a separator or an end of
// line, or is what broken encodings become.
func alike(r rune) bool {
	switch r {
	case utf8.RuneError, 0x2028, 0x2029, 0x2044, 0x2215, 0x2216, 0x29f5, 0x29f8, 0x29f9:
		return true
	}
	return unicode.IsControl(r)
}

// visible drops what some readers drop: format characters, joiners, variation
// selectors.
func visible(r rune) rune {
	if unicode.In(r, unicode.Cf, unicode.Variation_Selector) || r == 0x034f {
		return -1
	}
	return r
}

// Dots reports whether a segment is a dot segment for those who drop blanks, round
// the dots or between them.
func Dots(seg string) bool {
	if strings.HasPrefix(seg, "...") {
		return false
	}
	const most = 64 // a longer one is a name
	if seg = strings.TrimFunc(seg, isBlank); len(seg) > most {
		return false
	}
	switch strings.Map(dot, seg) {
	case ".", "..":
		return true
	}
	return false
}

// dot folds what is read as a dot in names of hosts (UTS 46, 4), and drops blanks.
func dot(r rune) rune {
	if isBlank(r) {
		return -1
	}
	switch r {
	case 0x3002, 0xff0e, 0xff61:
		return '.'
	}
	return r
}

func isBlank(r rune) bool { return r <= ' ' || r == 0x7f || unicode.IsSpace(r) }

func isASCII(s string) bool {
	for i := range len(s) {
		if s[i] >= 0x80 {
			return false
		}
	}
	return true
}

// Decode undoes the valid percent escapes of s, once.
func Decode(s string) string {
	if strings.IndexByte(s, '%') < 0 {
		return s
	}
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		if c, ok := unescape(s, i); s[i] == '%' && ok {
			b.WriteByte(c)
			i += 2
			continue
		}
		b.WriteByte(s[i])
	}
	return b.String()
}

func unescape(s string, i int) (byte, bool) {
	if i+2 >= len(s) {
		return 0, false
	}
	hi, ok1 := hexDigit(s[i+1])
	lo, ok2 := hexDigit(s[i+2])
	return hi<<4 | lo, ok1 && ok2
}

func hexDigit(c byte) (byte, bool) {
	switch {
	case c >= '0' && c <= '9':
		return c - '0', true
	case c|0x20 >= 'a' && c|0x20 <= 'f':
		return c | 0x20 - 'a' + 10, true
	}
	return 0, false
}
