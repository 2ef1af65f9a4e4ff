package redact

import (
	"bytes"
	"encoding/hex"
	"strings"

	"github.com/caddy-auth/caddy-auth/internal/auth"
)

// The scan and the mask look at the same readings of a text, so that what one
// refuses in a URL the other does not print: the text percent-decoded, as it is,
// with other escapes undone and whatever stands for an underscore made one, and
// what is in it in base64 or in hex.

// shortestEncoded is less than the length of any key in base64.
const shortestEncoded = (auth.KeyTailLen + 4) / 3 * 4

// longRuns reports whether a text has a run of characters that is long enough for
// a key's tail, or for a key in base64 or hex: nothing else needs a reading.
func longRuns[T string | []byte](b T) bool {
	plain, encoded := 0, 0
	for i := range len(b) {
		c := b[i]
		switch charKinds[c] {
		case charWord:
			encoded++
			if c == '_' || c == '-' {
				plain = 0
			} else if plain++; plain >= auth.KeyTailLen {
				return true
			}
		case charBase64:
			encoded++
			plain = 0
		case charBreak: // base64 may go on
			plain = 0
		default:
			plain, encoded = 0, 0
		}
		if encoded >= shortestEncoded {
			return true
		}
	}
	return false
}

// underscores are what is read as one, beside the underscore and the hyphen:
// entities of HTML, UTF-7, and Unicode's compatibility forms.
var underscores = []string{"&lowbar;", "&UnderBar;", "+AF8-", "\ufe33", "\ufe34", "\ufe4d", "\ufe4e", "\ufe4f"}

// dropped are what many readers drop: soft line breaks of quoted-printable, and
// characters without width.
var dropped = []string{"=\r\n", "=\n", "\u00ad", "\u200b", "\u200c", "\u200d", "\u2060", "\ufeff"}

// escapeAt is what the text at the beginning of b is read as, if that is something
// else: n bytes of it are one byte c, or nothing. n is 0 if it is not.
func escapeAt(b []byte) (c byte, is bool, n int) {
	switch b[0] {
	case '=', '+', '&', '\\':
	default:
		if b[0] < 0x80 {
			return 0, false, 0
		}
	}
	for _, u := range underscores {
		if len(b) >= len(u) && string(b[:len(u)]) == u {
			return '_', true, len(u)
		}
	}
	for _, d := range dropped {
		if len(b) >= len(d) && string(b[:len(d)]) == d {
			return 0, false, len(d)
		}
	}
	switch {
	case b[0] == '=' && len(b) >= 3: // quoted-printable (RFC 2045, 6.7)
		return numberAt(b[1:3], 16, 3)
	case b[0] == '\\' && len(b) >= 4 && b[1] == 'x':
		return numberAt(b[2:4], 16, 4)
	case b[0] == '\\' && len(b) >= 6 && b[1]|0x20 == 'u' && b[2] == '0' && b[3] == '0':
		return numberAt(b[4:6], 16, 6)
	case b[0] == '\\' && len(b) >= 4:
		return numberAt(b[1:4], 8, 4)
	case b[0] == '&' && len(b) >= 4 && b[1] == '#':
		return entityAt(b)
	case b[0]&0xfe == 0xc0 && len(b) >= 2 && b[1]&0xc0 == 0x80: // overlong UTF-8
		return b[0]<<6 | b[1]&0x3f, true, 2
	case b[0] == 0xe0 && len(b) >= 3 && b[1]&0xfe == 0x80 && b[2]&0xc0 == 0x80:
		return b[1]<<6 | b[2]&0x3f, true, 3
	case b[0] == 0xef && len(b) >= 3 && b[1] == 0xbc && b[2] >= 0x81 && b[2] <= 0xbf: // full width
		return b[2] - 0x60, true, 3
	case b[0] == 0xef && len(b) >= 3 && b[1] == 0xbd && b[2] >= 0x80 && b[2] <= 0x9e:
		return b[2] - 0x20, true, 3
	}
	return 0, false, 0
}

// numberAt reads digits as one character of ASCII.
func numberAt(digits []byte, base, length int) (c byte, is bool, n int) {
	v := 0
	for _, d := range digits {
		if !isHex(d) || int(unhex(d)) >= base {
			return 0, false, 0
		}
		v = v*base + int(unhex(d))
	}
	if v == 0 || v >= 0x80 {
		return 0, false, 0
	}
	return byte(v), true, length
}

// entityAt reads a numeric entity of HTML.
func entityAt(b []byte) (c byte, is bool, n int) {
	const longest = 10
	end := bytes.IndexByte(b[:min(len(b), longest)], ';')
	if end < 3 {
		return 0, false, 0
	}
	if b[2]|0x20 == 'x' {
		return numberAt(b[3:end], 16, end+1)
	}
	return numberAt(b[2:end], 10, end+1)
}

// unescape returns b with escapes undone and underscores for hyphens, and whether
// there were any.
func unescape(b []byte) (out []byte, any bool) {
	for i := 0; i < len(b); {
		c, is, n := byte('_'), true, 1
		if b[i] != '-' {
			if c, is, n = escapeAt(b[i:]); n == 0 {
				if any {
					out = append(out, b[i])
				}
				i++
				continue
			}
		}
		if !any {
			out, any = append(make([]byte, 0, len(b)), b[:i]...), true
		}
		if is {
			out = append(out, c)
		}
		i += n
	}
	return out, any
}

// quotedPrintable reports whether the = at i begins an escape of a letter, a digit
// or an underscore, or a soft line break (RFC 2045, 6.7).
func quotedPrintable[T string | []byte](s T, i int) bool {
	if i+1 >= len(s) {
		return false
	}
	next := s[i+1]
	return next == '\n' || next == '\r' || next >= '3' && next <= '7' && i+2 < len(s) && isHex(s[i+2])
}

// escapes reports whether a text has something that unescape undoes, other than
// hyphens, which part no run.
func escapes[T string | []byte](s T) bool {
	if len(s) < auth.KeyTailLen {
		return false
	}
	for i := range len(s) - 1 {
		switch c := s[i]; {
		case c >= 0xc0:
			return true
		case c == '=' && quotedPrintable(s, i), c == '\\' && (s[i+1]|0x20 == 'x' || s[i+1]|0x20 == 'u' || s[i+1] >= '0' && s[i+1] <= '7'),
			c == '&' && (s[i+1] == '#' || s[i+1]|0x20 == 'l' || s[i+1]|0x20 == 'u'), c == '+' && s[i+1] == 'A':
			return true
		}
	}
	return false
}

// encodedRuns calls look with every decoding of the runs of base64 and hex digits
// in b that are long enough to be a key, until it returns true. Line ends inside
// base64 don't end a run. What look is given is valid until it returns.
func encodedRuns(b []byte, look func(decoded []byte) bool) bool {
	if bytes.IndexByte(b, '\n') >= 0 {
		b = bytes.ReplaceAll(bytes.ReplaceAll(b, []byte("\r"), nil), []byte("\n"), nil)
	}
	var buf []byte
	return longRun(b, classBase64, shortestEncoded, func(run []byte) bool {
		if cap(buf) < len(run) {
			buf = make([]byte, len(run))
		}
		for offset := range 4 { // where a group of four begins is not known
			if n := decodeBase64(buf[:cap(buf)], run[offset:]); longRuns(buf[:n]) && look(buf[:n]) {
				return true
			}
		}
		return false
	}) || longRun(b, classHex, 2*auth.KeyTailLen, func(run []byte) bool {
		if cap(buf) < len(run) {
			buf = make([]byte, len(run))
		}
		for offset := range 2 { // which digit begins a byte is not known
			cut := run[offset:]
			if n, err := hex.Decode(buf[:cap(buf)], cut[:len(cut)&^1]); err == nil && longRuns(buf[:n]) && look(buf[:n]) {
				return true
			}
		}
		return false
	})
}

// longRun reports whether hides says so of a run of bytes that are in a class.
func longRun(b []byte, class uint8, least int, hides func(run []byte) bool) bool {
	for i := 0; i < len(b); {
		if classes[b[i]]&class == 0 {
			i++
			continue
		}
		run := i
		for i < len(b) && classes[b[i]]&class != 0 {
			i++
		}
		if i-run >= least && hides(b[run:i]) {
			return true
		}
	}
	return false
}

// Classes of bytes.
const (
	classBase62 = 1 << iota
	classToken  // of a JWT
	classBase64 // of both alphabets
	classHex
)

var classes = func() (t [256]uint8) {
	for i := range t {
		c := byte(i)
		if isAlnum(c) {
			t[i] |= classBase62
		}
		if isAlnum(c) || c == '-' || c == '_' || c == '.' {
			t[i] |= classToken
		}
		if isBase64(c) {
			t[i] |= classBase64
		}
		if isHex(c) {
			t[i] |= classHex
		}
	}
	return t
}()

func isBase64(c byte) bool { return isAlnum(c) || c == '+' || c == '/' || c == '-' || c == '_' }

// base64Digits are the values of digits in both alphabets.
var base64Digits = func() (t [256]byte) {
	for i, c := range "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/" {
		t[c] = byte(i)
	}
	t['-'], t['_'] = 62, 63
	return t
}()

// decodeBase64 decodes a run of digits, of either alphabet and without padding,
// into dst, and returns how many bytes there are.
func decodeBase64(dst, run []byte) (n int) {
	for len(run) >= 4 {
		v := uint32(base64Digits[run[0]])<<18 | uint32(base64Digits[run[1]])<<12 | uint32(base64Digits[run[2]])<<6 | uint32(base64Digits[run[3]])
		dst[n], dst[n+1], dst[n+2] = byte(v>>16), byte(v>>8), byte(v)
		n += 3
		run = run[4:]
	}
	switch len(run) {
	case 3:
		v := uint32(base64Digits[run[0]])<<18 | uint32(base64Digits[run[1]])<<12 | uint32(base64Digits[run[2]])<<6
		dst[n], dst[n+1] = byte(v>>16), byte(v>>8)
		n += 2
	case 2:
		dst[n] = byte((uint32(base64Digits[run[0]])<<18 | uint32(base64Digits[run[1]])<<12) >> 16)
		n++
	}
	return n
}

// worthReading reports whether any reading of s can hold a key. It does not
// allocate for texts of usual length.
func worthReading(s string) bool {
	if longRuns(s) || escapes(s) {
		return true
	}
	if strings.IndexByte(s, '%') < 0 {
		return false
	}
	var buf [512]byte
	b := decode(buf[:0], s)
	return longRuns(b) || escapes(b)
}

// readings calls look with the text itself, decoded and as it is, and with what is
// in it in base64 and hex, and unescaped with it unescaped, until one returns true.
func readings(s string, look, unescaped func(b []byte) bool) bool {
	if !worthReading(s) {
		return false
	}
	b := decode(make([]byte, 0, len(s)), s)
	texts := [][]byte{b}
	if len(b) != len(s) {
		texts = append(texts, []byte(s)) // decoding may eat a prefix: %ac_live_…
	}
	for _, text := range texts {
		if look(text) {
			return true
		}
		if plain, any := unescape(text); any && longRuns(plain) && unescaped(plain) {
			return true
		}
	}
	return encodedRuns(b, look)
}
