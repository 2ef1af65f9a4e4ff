// Package strictjson reads JSON that others wrote: tokens, key sets, answers
// of issuers. Names are exact, no member comes twice, and size and depth are
// bounded, where encoding/json folds case and keeps the last of two members.
// It does no I/O; its functions are safe for concurrent use.
package strictjson

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
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
	d := json.NewDecoder(bytes.NewReader(text))
	d.UseNumber()
	v, err := value(d, 0)
	if err != nil {
		return nil, err
	}
	o, ok := v.(Object)
	if !ok {
		return nil, wrong("not an object")
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return nil, wrong("more than one value")
	}
	return o, nil
}

// value reads one value that stands depth levels deep.
func value(d *json.Decoder, depth int) (any, error) {
	t, err := d.Token()
	if err != nil {
		return nil, wrong("a syntax error")
	}
	delim, nested := t.(json.Delim)
	if !nested {
		return t, nil
	}
	if depth >= MaxDepth {
		return nil, wrong("nested too deeply")
	}
	if delim == '[' {
		return array(d, depth)
	}
	return object(d, depth)
}

func array(d *json.Decoder, depth int) (any, error) {
	out := []any{}
	for d.More() {
		v, err := value(d, depth+1)
		if err != nil {
			return nil, err
		}
		out = append(out, v)
	}
	if _, err := d.Token(); err != nil {
		return nil, wrong("an array without an end")
	}
	return out, nil
}

func object(d *json.Decoder, depth int) (any, error) {
	out := Object{}
	for d.More() {
		t, err := d.Token()
		name, ok := t.(string)
		if err != nil || !ok {
			return nil, wrong("a syntax error")
		}
		if _, twice := out[name]; twice {
			return nil, wrong("a member that comes twice")
		}
		if out[name], err = value(d, depth+1); err != nil {
			return nil, err
		}
	}
	if _, err := d.Token(); err != nil {
		return nil, wrong("an object without an end")
	}
	return out, nil
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
