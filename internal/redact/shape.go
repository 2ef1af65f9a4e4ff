package redact

import (
	"bytes"
	"encoding/base64"
	"encoding/json"

	"github.com/caddy-auth/caddy-auth/internal/auth"
)

// findKey returns the first text in b that is shaped like a key with one of
// the prefixes: prefix, environment and at least auth.KeyTailLen base62
// characters. Prefix and environment match in any case, and more characters
// may surround the text, so that a key glued to something is found too.
func findKey(b []byte, prefixes []string) (start, end int, ok bool) {
	for i := 0; i < len(b); {
		if classes[b[i]]&classBase62 == 0 {
			i++
			continue
		}
		run := i
		for i < len(b) && classes[b[i]]&classBase62 != 0 {
			i++
		}
		if i-run < auth.KeyTailLen {
			continue
		}
		if at, ok := keyStart(b[:run], prefixes); ok {
			return at, i, true
		}
	}
	return 0, 0, false
}

// keyStart returns where a key begins whose tail follows head.
func keyStart(head []byte, prefixes []string) (int, bool) {
	n := len(head)
	if n == 0 || head[n-1] != '_' {
		return 0, false
	}
	env := n - 1
	for env > 0 && isAlnum(head[env-1]) {
		env--
	}
	if env == n-1 || env == 0 || head[env-1] != '_' || n-1-env > 16 {
		return 0, false
	}
	before := head[:env-1]
	for _, p := range prefixes {
		if len(before) >= len(p) && bytes.EqualFold(before[len(before)-len(p):], []byte(p)) {
			return len(before) - len(p), true
		}
	}
	return 0, false
}

// hasJWT reports whether b contains three base64url parts joined by dots, the
// first of them a JSON object with "alg" (RFC 7515, 3.1 and 4.1.1). Every
// part is decoded at most once.
func hasJWT(b []byte) bool {
	headers := mostHeaders
	for i := 0; i < len(b); {
		if classes[b[i]]&classToken == 0 {
			i++
			continue
		}
		run := i
		for i < len(b) && classes[b[i]]&classToken != 0 {
			i++
		}
		if i-run >= shortestHeader && runHasJWT(b[run:i], &headers) {
			return true
		}
	}
	return false
}

// mostHeaders is how many JSON objects are looked at for one that is a JOSE header:
// no honest text has more, so one that does counts as a JWT.
const mostHeaders = 16

func runHasJWT(run []byte, headers *int) bool {
	for {
		first, rest, ok := bytes.Cut(run, []byte("."))
		if !ok {
			return false
		}
		second, _, ok := bytes.Cut(rest, []byte("."))
		if !ok {
			return false
		}
		if len(second) > 0 && isJOSEHeader(first, headers) {
			return true
		}
		run = rest
	}
}

// shortestHeader is the length of {"alg":""} in base64url.
const shortestHeader = 12

func isJOSEHeader(part []byte, headers *int) bool {
	if len(part) < shortestHeader {
		return false
	}
	var buf [256]byte
	raw := buf[:]
	if need := base64.RawURLEncoding.DecodedLen(len(part)); need > len(raw) {
		raw = make([]byte, need)
	}
	n, err := base64.RawURLEncoding.Decode(raw, part)
	if err != nil {
		return false
	}
	raw = bytes.TrimLeft(raw[:n], " \t\r\n")
	if len(raw) == 0 || raw[0] != '{' || !bytes.Contains(raw, []byte("alg")) && !bytes.Contains(raw, []byte(`\u`)) {
		return false
	}
	if *headers--; *headers < 0 {
		return true
	}
	var members map[string]json.RawMessage
	if json.Unmarshal(raw, &members) != nil {
		return false
	}
	_, ok := members["alg"]
	return ok
}

// HasPlainKey is HasKey for s as it stands, which costs next to nothing.
func HasPlainKey(s string, prefixes []string) bool {
	_, _, ok := findKey([]byte(s), prefixes)
	return ok
}

// HasKey reports whether s contains a text shaped like a key with one of the
// prefixes, in any of its readings.
func HasKey(s string, prefixes []string) bool {
	return readings(s, func(b []byte) bool { _, _, ok := findKey(b, prefixes); return ok }, func(b []byte) bool { _, _, ok := findKeyAlone(b, prefixes); return ok })
}

// findKeyAlone is findKey for a reading in which other characters became
// underscores: there the tail is no number in hex, as in a file's name with a
// digest.
func findKeyAlone(b []byte, prefixes []string) (start, end int, ok bool) {
	for at := 0; ; {
		start, end, ok = findKey(b[at:], prefixes)
		if !ok {
			return 0, 0, false
		}
		start, end = at+start, at+end
		tail := bytes.LastIndexByte(b[start:end], '_') + 1 + start
		if random(b[tail:end]) {
			return start, end, true
		}
		at = end
	}
}
