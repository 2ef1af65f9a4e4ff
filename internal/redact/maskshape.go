package redact

import (
	"bytes"
	"encoding/base64"
	"encoding/hex"
	"strings"

	"github.com/caddy-auth/caddy-auth/internal/auth"
)

// shapes masks what is shaped like a credential. What shows only when it is
// decoded makes all of s go.
func shapes(s string) string {
	var out strings.Builder
	rest := s
	for {
		start, end, ok := findAnyKey(rest)
		if !ok {
			break
		}
		out.WriteString(rest[:start])
		out.WriteString(Mark)
		rest = rest[end:]
	}
	out.WriteString(rest)
	if masked := out.String(); !hidesCredential(masked) {
		return masked
	}
	return Mark
}

// hidesCredential reports whether s holds a text shaped like anybody's key or
// a JWT, in clear, percent-encoded, in base64 or in hex.
func hidesCredential(s string) bool {
	if len(s) < shortestCredential {
		return false
	}
	if _, _, ok := findAnyKey(s); ok { // also where decoding would eat its prefix
		return true
	}
	var buf [512]byte
	b := decode(buf[:0], s)
	if _, _, ok := findAnyKey(string(b)); ok {
		return true
	}
	return hasJWT(b) || hidesEncoded(b)
}

// shortestEncoded is less than the length of any key in base64.
const shortestEncoded = (auth.KeyTailLen + 4) / 3 * 4

// hidesEncoded looks at runs of base64 and hex digits that are long enough to
// be a key. Line ends inside base64 don't end a run.
func hidesEncoded(b []byte) bool {
	if bytes.IndexByte(b, '\n') >= 0 {
		b = bytes.ReplaceAll(bytes.ReplaceAll(b, []byte("\r"), nil), []byte("\n"), nil)
	}
	return longRun(b, isBase64, shortestEncoded, base64HidesKey) || longRun(b, isHex, 2*auth.KeyTailLen, hexHidesKey)
}

// longRun reports whether hides says so of a run of bytes that are in a class.
func longRun(b []byte, in func(byte) bool, least int, hides func(run string) bool) bool {
	for i := 0; i < len(b); {
		if !in(b[i]) {
			i++
			continue
		}
		run := i
		for i < len(b) && in(b[i]) {
			i++
		}
		if i-run >= least && hides(string(b[run:i])) {
			return true
		}
	}
	return false
}

func isBase64(c byte) bool { return isAlnum(c) || c == '+' || c == '/' || c == '-' || c == '_' }

func hexHidesKey(run string) bool {
	for offset := range 2 { // which digit begins a byte is not known
		cut := run[offset:]
		if raw, err := hex.DecodeString(cut[:len(cut)&^1]); err == nil && keyOrJWT(raw) {
			return true
		}
	}
	return false
}

func base64HidesKey(run string) bool {
	std := strings.NewReplacer("-", "+", "_", "/").Replace(run)
	for offset := range 4 { // where a group of four begins is not known
		cut := std[offset:]
		if len(cut)%4 == 1 { // no number of bytes has such a length
			cut = cut[:len(cut)-1]
		}
		if raw, err := base64.RawStdEncoding.DecodeString(cut); err == nil && keyOrJWT(raw) {
			return true
		}
	}
	return false
}

func keyOrJWT(raw []byte) bool {
	_, _, ok := findAnyKey(string(raw))
	return ok || hasJWT(raw)
}

// findAnyKey returns the first text shaped like a key of any prefix.
func findAnyKey(s string) (start, end int, ok bool) {
	for i := 0; i < len(s); {
		if !auth.IsBase62(s[i]) {
			i++
			continue
		}
		run := i
		for i < len(s) && auth.IsBase62(s[i]) {
			i++
		}
		if i-run < auth.KeyTailLen {
			continue
		}
		if at, ok := anyKeyStart(s[:run]); ok {
			return at, i, true
		}
	}
	return 0, 0, false
}

// anyKeyStart returns where a key begins whose tail follows head:
// <letters and digits>_<letters and digits>_.
func anyKeyStart(head string) (int, bool) {
	n := len(head)
	for range 2 {
		if n == 0 || head[n-1] != '_' {
			return 0, false
		}
		n--
		word := n
		for n > 0 && isAlnum(head[n-1]) {
			n--
		}
		if n == word {
			return 0, false
		}
	}
	return n, true
}
