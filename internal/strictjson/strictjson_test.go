package strictjson_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"reflect"
	"strings"
	"testing"

	"github.com/caddy-auth/caddy-auth/internal/strictjson"
)

func TestDecode_Refuses(t *testing.T) {
	deep := strings.Repeat(`{"a":`, strictjson.MaxDepth) + `{}` + strings.Repeat(`}`, strictjson.MaxDepth)
	for name, text := range map[string]string{
		"nothing":                "",
		"an array":               `[]`,
		"a string":               `"x"`,
		"null":                   `null`,
		"trailing data":          `{} {}`,
		"trailing comma":         `{"a":1,}`,
		"a comment":              `{/**/}`,
		"single quotes":          `{'a':1}`,
		"twice":                  `{"a":1,"a":1}`,
		"twice, once escaped":    `{"a":1,"\u0061":1}`,
		"twice, deep":            `{"x":[{"a":1,"a":2}]}`,
		"too deep":               deep,
		"too deep in arrays":     `{"a":` + strings.Repeat(`[`, 20) + strings.Repeat(`]`, 20) + `}`,
		"not UTF-8":              "{\"a\":\"\xff\"}",
		"overlong UTF-8":         "{\"a\":\"\xc0\xaf\"}",
		"a lone high surrogate":  `{"a":"\ud800"}`,
		"a lone low surrogate":   `{"a":"\udc00"}`,
		"surrogates turned over": `{"a":"\udc00\ud800"}`,
		"high, then a letter":    `{"a":"\ud800x"}`,
		"high, then an escape":   `{"a":"\ud800\n"}`,
		"in a name":              `{"\ud800":1}`,
		"a raw newline":          "{\"a\":\"\n\"}",
		"NaN":                    `{"a":NaN}`,
		"a leading zero":         `{"a":01}`,
		"a plus":                 `{"a":+1}`,
		"no end":                 `{"a":1`,
		"no end of an array":     `{"a":[1`,
		"a byte order mark":      "\ufeff{}",
		"a missing colon":        `{"a" 1}`,
		"a missing comma":        `{"a":1 "b":2}`,
		"a closing too many":     `{}}`,
		"a bracket for a brace":  `{"a":1]`,
	} {
		if v, err := strictjson.Decode([]byte(text)); !errors.Is(err, strictjson.ErrSyntax) {
			t.Errorf("%s: %v, %v", name, v, err)
		}
	}
}

func TestDecode_ReadsAsEncodingJSONDoes(t *testing.T) {
	for _, text := range []string{
		`{}`, ` {"a" : "b\u0000\ud83d\ude00\\ud800" } `, `{"A":1,"a":2,"\u017f":3}`,
		`{"a":[1,-2.5e3,true,false,null,{"b":[]}]}`, `{"":""}`,
	} {
		got, err := strictjson.Decode([]byte(text))
		if err != nil {
			t.Errorf("%s: %v", text, err)
			continue
		}
		var want map[string]any
		d := json.NewDecoder(strings.NewReader(text))
		d.UseNumber()
		if err := d.Decode(&want); err != nil {
			t.Fatal(err)
		}
		a, _ := json.Marshal(got)
		b, _ := json.Marshal(want)
		if string(a) != string(b) {
			t.Errorf("%s: got %s, want %s", text, a, b)
		}
	}
}

func TestObject(t *testing.T) {
	o, err := strictjson.Decode([]byte(`{"s":"x","n":1,"w":["a","b"],"bad":["a",1],"o":{"p":{"q":"deep"}},"o.p":"exact","d":1.5,"neg":-1,"text":"12","huge":1e300,"far":253402300800}`))
	if err != nil {
		t.Fatal(err)
	}
	if s, ok := o.Text("s"); s != "x" || !ok {
		t.Error("Text of a string")
	}
	if s, ok := o.Text("none"); s != "" || !ok {
		t.Error("Text of nothing")
	}
	if _, ok := o.Text("n"); ok {
		t.Error("Text of a number")
	}
	if w, ok := o.Words("w"); !ok || !reflect.DeepEqual(w, []string{"a", "b"}) {
		t.Error("Words of an array")
	}
	if w, ok := o.Words("s"); !ok || !reflect.DeepEqual(w, []string{"x"}) {
		t.Error("Words of a string")
	}
	for _, name := range []string{"bad", "n", "o"} {
		if _, ok := o.Words(name); ok {
			t.Errorf("Words of %s", name)
		}
	}
	if ms, there, ok := o.Date("d"); ms != 1500 || !there || !ok {
		t.Error("Date of a number")
	}
	for _, name := range []string{"neg", "text", "huge", "far", "o"} {
		if _, there, ok := o.Date(name); !there || ok {
			t.Errorf("Date of %s", name)
		}
	}
	if v, ok := o.Find("o.p"); !ok || v != "exact" {
		t.Error("an exact name comes first")
	}
	if v, ok := o.Find("o.p.q"); !ok || v != "deep" {
		t.Errorf("Find: %v %v", v, ok)
	}
	if _, ok := o.Find("s.x"); ok {
		t.Error("a path through a string")
	}
}

// FuzzDecode holds the reader against encoding/json: what it takes, that takes
// too, and reads the same.
func FuzzDecode(f *testing.F) {
	for _, s := range []string{`{}`, `{"a":[1,{"b":null}]}`, `{"\ud83d\ude00":"\\u0"}`, `{"a":1,"a":2}`, `{"a":"\ud800"}`} {
		f.Add([]byte(s))
	}
	f.Add([]byte(" {\n\"a\\\"\" : [ 1 ,-2.5E+3\t, \"\\\\\" ] , \"\\u00e9\" : { } , \"t\":true,\"f\" :false } "))
	f.Fuzz(func(t *testing.T, text []byte) {
		got, err := strictjson.Decode(text)
		if err != nil {
			if !errors.Is(err, strictjson.ErrSyntax) {
				t.Fatal(err)
			}
			return
		}
		d := json.NewDecoder(bytes.NewReader(text))
		d.UseNumber()
		var same any
		if err := d.Decode(&same); err != nil || !reflect.DeepEqual(plain(got), same) {
			t.Fatalf("read as %v, by encoding/json as %v, %v", got, same, err)
		}
		again, err := json.Marshal(got)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := strictjson.Decode(again); err != nil && !strings.Contains(err.Error(), "deep") {
			t.Fatalf("%q is not taken again: %v", again, err)
		}
	})
}

// plain is a value in encoding/json's types.
func plain(v any) any {
	switch v := v.(type) {
	case strictjson.Object:
		out := map[string]any{}
		for name, member := range v {
			out[name] = plain(member)
		}
		return out
	case []any:
		out := []any{}
		for _, e := range v {
			out = append(out, plain(e))
		}
		return out
	}
	return v
}
