package strictjson

import (
	"encoding/json"
	"math"
	"strings"
)

// Text returns the string called name; "" without one. ok is false if there is
// a member of that name that is no string.
func (o Object) Text(name string) (text string, ok bool) {
	v, there := o[name]
	if !there {
		return "", true
	}
	text, ok = v.(string)
	return text, ok
}

// Words returns the strings of the member called name, which is a string or an
// array of strings (as aud in RFC 7519, 4.1.3). ok is false if it is another
// thing.
func (o Object) Words(name string) (words []string, ok bool) {
	v, there := o[name]
	if !there {
		return nil, true
	}
	return Strings(v)
}

// Strings is the value as strings, if it is one or an array of nothing else.
func Strings(v any) (words []string, ok bool) {
	switch v := v.(type) {
	case string:
		return []string{v}, true
	case []any:
		for _, e := range v {
			s, ok := e.(string)
			if !ok {
				return nil, false
			}
			words = append(words, s)
		}
		return words, true
	}
	return nil, false
}

// maxDate is the year 9999: what is above it is no date.
const maxDate = 253402300799

// Date returns the member called name as a NumericDate (RFC 7519, 2) in
// milliseconds; there is false without one. ok is false for anything but a
// number of seconds from 1970 to the year 9999.
func (o Object) Date(name string) (millis int64, there, ok bool) {
	v, there := o[name]
	if !there {
		return 0, false, true
	}
	n, ok := v.(json.Number)
	if !ok || len(n) > 32 {
		return 0, true, false
	}
	f, err := n.Float64()
	if err != nil || math.IsNaN(f) || f < 0 || f > maxDate {
		return 0, true, false
	}
	return int64(f * 1000), true, true
}

// Find returns the member called path, or, if there is none, what path leads
// to from object to object, its names joined by dots.
func (o Object) Find(path string) (v any, there bool) {
	if v, there = o[path]; there {
		return v, true
	}
	head, rest, nested := strings.Cut(path, ".")
	if !nested {
		return nil, false
	}
	inner, ok := o[head].(Object)
	if !ok {
		return nil, false
	}
	return inner.Find(rest)
}
