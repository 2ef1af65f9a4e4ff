// Package strictjson reads JSON that others wrote: tokens, key sets, answers
// of issuers. Names are exact, no member comes twice, and size and depth are
// bounded, where encoding/json folds case and keeps the last of two members.
// It does no I/O; its functions are safe for concurrent use.
package strictjson

import (
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"unicode/utf8"
)

// MaxDepth is how deep objects and arrays may be nested.
const MaxDepth = 16

// Object is a JSON object. Its values are string, bool, json.Number, nil,
// Object or []any.
type Object map[string]any

// ErrSyntax is the error of every text that is not accepted. Messages repeat
// nothing of the text.
var ErrSyntax = errors.New("not acceptable as JSON")

func wrong(what string) error { return fmt.Errorf("%s: %w", what, ErrSyntax) }

// Decode reads one object and nothing after it (RFC 8259). Text that is not
// UTF-8, half a surrogate pair, a name that comes twice in one object and more
// than MaxDepth levels are ErrSyntax. The caller bounds the size.
func Decode(text []byte) (Object, error) {
	if !utf8.Valid(text) {
		return nil, wrong("not UTF-8")
	}
	if !pairedSurrogates(text) {
		return nil, wrong("half a surrogate pair")
	}
	if !json.Valid(text) {
		return nil, wrong("a syntax error")
	}
	r := reader{text: string(text)}
	if r.next() != '{' {
		return nil, wrong("not an object")
	}
	return r.object(0)
}

// reader takes a text apart whose grammar encoding/json has checked. Values
// without escapes are parts of the text.
type reader struct {
	text string
	at   int
}

// next skips what stands between values and returns the byte that follows.
func (r *reader) next() byte {
	for {
		switch c := r.text[r.at]; c {
		case ' ', '\t', '\r', '\n', ',', ':':
			r.at++
		default:
			return c
		}
	}
}

// value reads one value that stands depth levels deep.
func (r *reader) value(depth int) (any, error) {
	switch r.next() {
	case '{':
		return r.object(depth)
	case '[':
		return r.array(depth)
	case '"':
		return r.string()
	case 't':
		r.at += len("true")
		return true, nil
	case 'f':
		r.at += len("false")
		return false, nil
	case 'n':
		r.at += len("null")
		return nil, nil
	}
	n := strings.IndexAny(r.text[r.at:], ",]} \t\r\n") // there is an end: the text is an object
	number := json.Number(r.text[r.at : r.at+n])
	r.at += n
	return number, nil
}

func (r *reader) array(depth int) (any, error) {
	if depth >= MaxDepth {
		return nil, wrong("nested too deeply")
	}
	r.at++
	out := []any{}
	for r.next() != ']' {
		v, err := r.value(depth + 1)
		if err != nil {
			return nil, err
		}
		out = append(out, v)
	}
	r.at++
	return out, nil
}

func (r *reader) object(depth int) (Object, error) {
	if depth >= MaxDepth {
		return nil, wrong("nested too deeply")
	}
	r.at++
	out := Object{}
	for r.next() != '}' {
		name, err := r.string()
		if err != nil {
			return nil, err
		}
		if _, twice := out[name]; twice {
			return nil, wrong("a member that comes twice")
		}
		if out[name], err = r.value(depth + 1); err != nil {
			return nil, err
		}
	}
	r.at++
	return out, nil
}

// string reads the string that begins here.
func (r *reader) string() (string, error) {
	for end := r.at + 1; ; end++ {
		switch r.text[end] {
		case '"':
			text := r.text[r.at+1 : end]
			r.at = end + 1
			return text, nil
		case '\\':
			return r.escaped()
		}
	}
}

// escaped reads a string with escapes in it.
func (r *reader) escaped() (text string, err error) {
	end := r.at + 1
	for r.text[end] != '"' {
		if r.text[end] == '\\' {
			end++
		}
		end++
	}
	if err := json.Unmarshal([]byte(r.text[r.at:end+1]), &text); err != nil {
		return "", wrong("a syntax error")
	}
	r.at = end + 1
	return text, nil
}

// pairedSurrogates reports whether every escaped surrogate is one of a pair:
// encoding/json puts U+FFFD for others, so that two texts would read the same.
func pairedSurrogates(text []byte) bool {
	for i := 0; i < len(text); i++ {
		if text[i] != '\\' {
			continue
		}
		i++
		r, ok := escaped(text, i)
		if !ok {
			continue // another escape
		}
		i += 4
		if r < 0xd800 || r > 0xdfff {
			continue
		}
		if r > 0xdbff || i+1 >= len(text) || text[i+1] != '\\' {
			return false
		}
		low, ok := escaped(text, i+2)
		if !ok || low < 0xdc00 || low > 0xdfff {
			return false
		}
		i += 6
	}
	return true
}

// escaped reads uXXXX at i.
func escaped(text []byte, i int) (r uint32, ok bool) {
	if i+4 >= len(text) || text[i] != 'u' {
		return 0, false
	}
	for _, c := range text[i+1 : i+5] {
		switch {
		case c >= '0' && c <= '9':
			c -= '0'
		case c|0x20 >= 'a' && c|0x20 <= 'f':
			c = c | 0x20 - 'a' + 10
		default:
			return 0, false
		}
		r = r<<4 | uint32(c)
	}
	return r, true
}
