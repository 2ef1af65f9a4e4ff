package redact

import "strings"

// longestName is more than the length of any name of a credential. Of a longer
// one the end is looked at, as of every name.
const longestName = 96

// shortestName is the length of the shortest name of a credential.
const shortestName = 3

// named masks values that stand behind the name of a credential and a colon, as in
// headers and in JSON: name: value, "name":"value", \"name\": \"value\".
func (m *Masker) named(s string) string {
	n := m.known.Load()
	var out strings.Builder
	done := 0
	for i := 0; i < len(s); i++ {
		if s[i] != ':' || i < done {
			continue
		}
		name := nameBefore(s[done:i])
		if len(name) < shortestName || !n.scanner.last[name[len(name)-1]] || !n.name(name) {
			continue
		}
		start, end := valueAfter(s, i+1)
		if start == end {
			continue
		}
		out.WriteString(s[done:start])
		out.WriteString(Mark)
		done = end
	}
	if done == 0 {
		return s
	}
	out.WriteString(s[done:])
	return out.String()
}

// nameBefore is the name that a text ends with: before blanks, a quote and what
// escapes it. "": none.
func nameBefore(s string) string {
	end := len(s)
	for end > 0 && (s[end-1] == ' ' || s[end-1] == '\t') {
		end--
	}
	if end > 0 && (s[end-1] == '"' || s[end-1] == '\'') {
		end--
	}
	for end > 0 && s[end-1] == '\\' {
		end--
	}
	start := end
	for start > 0 && end-start < longestName && isNameByte(s[start-1]) {
		start--
	}
	return s[start:end]
}

func isNameByte(c byte) bool { return isAlnum(c) || c == '_' || c == '.' || c == '-' }

// valueAfter is where the value lies that stands behind a colon: behind blanks,
// what escapes a quote, a quote and the name of a scheme.
func valueAfter(s string, i int) (start, end int) {
	skip := func(set string) {
		for i < len(s) && strings.IndexByte(set, s[i]) >= 0 {
			i++
		}
	}
	skip(" \t")
	skip(`\`)
	if i < len(s) && (s[i] == '"' || s[i] == '\'') {
		i++
	}
	start = i
	for _, scheme := range []string{"bearer", "basic", "digest", "dpop", "token"} {
		rest := s[i:]
		if len(rest) > len(scheme) && strings.EqualFold(rest[:len(scheme)], scheme) && (rest[len(scheme)] == ' ' || rest[len(scheme)] == '\t') {
			i += len(scheme)
			skip(" \t")
			break
		}
	}
	for i < len(s) && strings.IndexByte(" \t\r\n\v\f\"'\\,;}])", s[i]) < 0 {
		i++
	}
	return start, i
}
