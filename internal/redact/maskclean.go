package redact

import (
	"strings"

	"github.com/caddy-auth/caddy-auth/internal/auth"
)

// clean reports whether nothing in s needs a closer look: no user or escape,
// no parameter whose name can be refused, and no run of characters that is
// long enough for a secret.
func (m *Masker) clean(s string) bool {
	lookups := mostLookups
	return m.cleanWithin(s, &lookups)
}

// cleanWithin is clean for texts in which so many names may be looked up.
func (m *Masker) cleanWithin(s string, lookups *int) bool {
	last := &m.known.Load().scanner.last
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
		case charEquals: // or a colon
			if i == 0 && c == '=' {
				return false
			}
			if i > 0 && last[s[i-1]] {
				if *lookups--; !isAlnum(s[i-1]) || *lookups < 0 || m.refusesName(wordBefore(s, i)) {
					return false
				}
			}
			head, part = false, 0
			if run++; c == ':' || !quotedPrintable(s, i) {
				run = 0
			}
		case charEscape:
			run++
			head, part = false, 0
		case charBreak: // base64 may go on
			head, part = false, 0
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

// wordBefore is what ends at i and may be a name.
func wordBefore(s string, i int) string {
	from := i
	for from > 0 && strings.IndexByte(delimiters+quotesAndBlanks+"=:", s[from-1]) < 0 {
		from--
	}
	return s[from:i]
}

// Kinds of characters, as clean tells them apart.
const (
	charOther  = iota
	charWord   // of a key or a JWT
	charDot    // between the parts of a JWT
	charBase64 // of the other base64 alphabet
	charEquals
	charLook
	charBreak  // a line's end
	charEscape // what may begin or end an escape; see unescape
)

// mostLookups is how many names in one text are looked up before it counts as one
// to be looked at closely, blockLookups how many in all headers of a message.
const (
	mostLookups  = 32
	blockLookups = 256
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
		case c == '=' || c == ':':
			kinds[c] = charEquals
		case c == '%' || c == '@':
			kinds[c] = charLook
		case c == '\n' || c == '\r':
			kinds[c] = charBreak
		case c == '\\' || c == '&' || c == '#' || c == ';' || c >= 0x80:
			kinds[c] = charEscape
		}
	}
	return kinds
}()
