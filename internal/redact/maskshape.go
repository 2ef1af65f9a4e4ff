package redact

import (
	"strings"

	"github.com/caddy-auth/caddy-auth/internal/auth"
)

// shapes masks what is shaped like a credential. What shows only in another
// reading makes all of s go.
func shapes(s string) string {
	if !worthReading(s) {
		if holdsJWT(s) {
			return Mark
		}
		return s
	}
	if encodedRuns(decode(make([]byte, 0, len(s)), s), secretShape) { // before a part of it is masked
		return Mark
	}
	var out strings.Builder
	rest := s
	for {
		start, end, ok := findSecret(rest)
		if !ok {
			break
		}
		out.WriteString(rest[:start])
		out.WriteString(Mark)
		rest = rest[end:]
	}
	masked := s
	if len(rest) != len(s) {
		out.WriteString(rest)
		masked = out.String()
	}
	if hidesCredential(masked) {
		return Mark
	}
	return masked
}

// hidesCredential reports whether a reading of s holds a text shaped like
// anybody's key, a key's secret part, a session's cookie or a JWT.
func hidesCredential(s string) bool {
	if len(s) < shortestCredential {
		return false
	}
	return readings(s, secretShape, secretRun) || holdsJWT(s)
}

// secretRun is secretShape for a reading in which other characters became
// underscores.
func secretRun(b []byte) bool {
	return longRun(b, classBase62, auth.KeyTailLen, func(run []byte) bool { return random(run) })
}

func secretShape(b []byte) bool {
	_, _, ok := findSecret(b)
	return ok || hasJWT(b)
}

// holdsJWT looks at a text decoded.
func holdsJWT(s string) bool {
	if strings.IndexByte(s, '.') < 0 && strings.IndexByte(s, '%') < 0 {
		return false
	}
	var buf [512]byte
	return hasJWT(decode(buf[:0], s))
}

// findSecret returns the first text shaped like a key of any prefix, or like the
// secret part of one alone, or of a session's cookie: a run of letters and digits
// that is as long, and no digest in hex.
func findSecret[T string | []byte](s T) (start, end int, ok bool) {
	for i := 0; i < len(s); {
		if classes[s[i]]&classBase62 == 0 {
			i++
			continue
		}
		run := i
		for i < len(s) && classes[s[i]]&classBase62 != 0 {
			i++
		}
		if i-run < auth.KeyTailLen {
			continue
		}
		if at, ok := anyKeyStart(s[:run]); ok {
			return at, i, true
		}
		if random(s[run:i]) {
			return run, i, true
		}
	}
	return 0, 0, false
}

// random reports whether a long run of letters and digits can be a secret: it has
// digits or letters of both cases, and is not a number in hex.
func random[T string | []byte](run T) bool {
	digits, lower, upper, hexOnly := false, false, false, true
	for i := range len(run) {
		switch c := run[i]; {
		case c >= '0' && c <= '9':
			digits = true
		case c >= 'a':
			lower, hexOnly = true, hexOnly && c <= 'f'
		default:
			upper, hexOnly = true, hexOnly && c <= 'F'
		}
	}
	return !(hexOnly && !(lower && upper)) && (lower && upper || digits && (lower || upper))
}

// anyKeyStart returns where a key begins whose tail follows head:
// <letters and digits>_<letters and digits>_.
func anyKeyStart[T string | []byte](head T) (int, bool) {
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
