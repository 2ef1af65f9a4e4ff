package redact

import (
	"bytes"
	"encoding/hex"
	"strings"

	"github.com/caddy-auth/caddy-auth/internal/auth"
)

// The scan and the mask look at the same readings of a text, so that what one
// refuses in a URL the other does not print: the text percent-decoded, as it is,
// with whatever stands for an underscore made one, and what is in it in base64
// or in hex.

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

// separators are what is read as an underscore, beside the underscore and the
// hyphen: quoted-printable, entities of HTML, escapes of JSON, overlong UTF-8 and
// Unicode's compatibility forms.
var separators = [][]byte{
	[]byte("=5F"), []byte("=5f"), []byte("&lowbar;"), []byte("&UnderBar;"), []byte("&#95;"), []byte("&#x5f;"), []byte("&#x5F;"), []byte("&#X5F;"), []byte("&#X5f;"),
	[]byte(`\u005f`), []byte(`\u005F`), []byte(`\x5f`), []byte(`\x5F`),
	{0xc1, 0x9f},
	{0xe0, 0x81, 0x9f},
	[]byte("\uff3f"), []byte("\ufe33"), []byte("\ufe34"), []byte("\ufe4d"), []byte("\ufe4e"), []byte("\ufe4f"),
}

// separatorStarts are the bytes that separators begin with.
var separatorStarts = func() (t [256]bool) {
	for _, s := range separators {
		t[s[0]] = true
	}
	return t
}()

// foldSeparators returns b with underscores for all that stands for one, and
// whether there was any.
func foldSeparators(b []byte) (folded []byte, any bool) {
	first := bytes.IndexFunc(b, func(r rune) bool { return r == '-' || r >= 0x80 || separatorStarts[byte(r)] })
	if first < 0 {
		return nil, false
	}
	folded = append(make([]byte, 0, len(b)), b[:first]...)
	for i := first; i < len(b); {
		n := separatorAt(b[i:])
		if n == 0 {
			folded = append(folded, b[i])
			i++
			continue
		}
		folded, any = append(folded, '_'), true
		i += n
	}
	return folded, any
}

// separatorAt is the length of the separator that b begins with; 0: it begins
// with none.
func separatorAt(b []byte) int {
	if b[0] == '-' {
		return 1
	}
	if !separatorStarts[b[0]] {
		return 0
	}
	for _, s := range separators {
		if bytes.HasPrefix(b, s) {
			return len(s)
		}
	}
	return 0
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
	if strings.IndexByte(s, '%') < 0 {
		return longRuns(s)
	}
	var buf [512]byte
	return longRuns(decode(buf[:0], s)) || longRuns(s)
}

// readings calls look with every reading of s, until it returns true.
func readings(s string, look func(b []byte) bool) bool {
	if !worthReading(s) {
		return false
	}
	b := decode(make([]byte, 0, len(s)), s)
	if look(b) || len(b) != len(s) && look([]byte(s)) { // decoding may eat a prefix: %ac_live_…
		return true
	}
	return encodedReadings(b, look)
}

// encodedReadings are those of a decoded text beyond the text itself.
func encodedReadings(b []byte, look func(b []byte) bool) bool {
	if folded, any := foldSeparators(b); any && look(folded) {
		return true
	}
	return encodedRuns(b, look)
}
