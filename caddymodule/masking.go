package caddymodule

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net/http"
	"reflect"

	"github.com/caddyserver/caddy/v2/modules/caddyhttp"
	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"

	"github.com/caddy-auth/caddy-auth/internal/redact"
)

// masker masks what any log of this process prints. Configurations add the
// names of their key headers and of what they refuse in URLs.
var masker = redact.NewMasker()

// maskField returns what may be logged of a field.
func maskField(f zapcore.Field) (_ zapcore.Field, changed bool) {
	key, secret := masker.Key(f.Key)
	if len(key) != len(f.Key) || key != f.Key {
		f.Key, changed = key, true
	}
	switch f.Type {
	case zapcore.StringType:
		masked := maskValue(secret, f.String)
		if masked == f.String {
			return f, changed
		}
		return zap.String(f.Key, masked), true
	case zapcore.ByteStringType, zapcore.BinaryType:
		if b, ok := f.Interface.([]byte); ok {
			f.Interface = maskBytes(secret, b)
		}
		return f, true
	case zapcore.ObjectMarshalerType:
		if secret {
			return zap.String(f.Key, redact.Mark), true
		}
		return zap.Object(f.Key, maskObject(f.Interface.(zapcore.ObjectMarshaler))), true
	case zapcore.InlineMarshalerType:
		return zap.Inline(maskObject(f.Interface.(zapcore.ObjectMarshaler))), true
	case zapcore.ArrayMarshalerType:
		return zap.Array(f.Key, maskArray(secret, f.Interface.(zapcore.ArrayMarshaler))), true
	case zapcore.ReflectType:
		f.Interface = maskAny(secret, f.Interface)
		return f, true
	case zapcore.ErrorType, zapcore.StringerType:
		text, dirty := maskText(f)
		if !dirty && !secret {
			return f, changed
		}
		return zap.String(f.Key, maskValue(secret, text)), true
	}
	return f, changed
}

// maskText masks errors and what prints itself. Both may print more than
// their message, so all of it is looked at; what can't be looked at is masked.
func maskText(f zapcore.Field) (text string, dirty bool) {
	defer func() {
		if recover() != nil { // a nil inside, which zap would print as such
			v := reflect.ValueOf(f.Interface)
			text, dirty = redact.Mark, true
			if v.Kind() == reflect.Pointer && v.IsNil() {
				text = "<nil>"
			}
		}
	}()
	var all []string
	switch v := f.Interface.(type) {
	case error:
		all = textsOf(v, nil)
	case fmt.Stringer:
		all = append(all, v.String())
	}
	if s, ok := f.Interface.(fmt.Stringer); ok && f.Type == zapcore.StringerType {
		all = append([]string{s.String()}, all...)
	}
	if len(all) == 0 {
		return redact.Mark, true
	}
	for _, s := range all {
		dirty = dirty || masker.String(s) != s
	}
	return masker.String(all[0]), dirty
}

// textsOf collects what an error and the errors in it print.
func textsOf(err error, all []string) []string {
	all = append(all, err.Error(), fmt.Sprintf("%+v", err))
	if several, ok := err.(interface{ Errors() []error }); ok {
		for _, inner := range several.Errors() {
			all = textsOf(inner, all)
		}
	}
	return all
}

// maskValue masks a value that is a secret by its name, or looks like one.
func maskValue(secret bool, value string) string {
	if secret {
		return redact.Mark
	}
	return masker.String(value)
}

func maskBytes(secret bool, b []byte) []byte {
	if s := maskValue(secret, string(b)); s != string(b) {
		return []byte(s)
	}
	return b
}

// maskObject masks headers as a whole, and anything else while it is encoded.
func maskObject(m zapcore.ObjectMarshaler) zapcore.ObjectMarshaler {
	switch h := m.(type) {
	case caddyhttp.LoggableHTTPHeader:
		return maskedHeader(h.Header)
	case *caddyhttp.LoggableHTTPHeader:
		if h == nil {
			return maskedHeader(nil)
		}
		return maskedHeader(h.Header)
	}
	return maskedObject{m}
}

// maskedHeader is logged as Caddy's LoggableHTTPHeader is, masked.
type maskedHeader http.Header

// MarshalLogObject implements zapcore.ObjectMarshaler.
func (h maskedHeader) MarshalLogObject(enc zapcore.ObjectEncoder) error {
	block := masker.Block()
	for name, values := range h {
		name, values, _ = block.Header(name, values)
		if err := enc.AddArray(name, caddyhttp.LoggableStringArray(values)); err != nil {
			return err
		}
	}
	return nil
}

// maskHeader returns h, or a copy with what must not be logged masked.
func maskHeader(h http.Header) http.Header {
	var out http.Header
	block := masker.Block()
	for name, values := range h {
		safeName, safe, changed := block.Header(name, values)
		if !changed {
			continue
		}
		if out == nil {
			out = make(http.Header, len(h))
			for k, v := range h {
				out[k] = v
			}
		}
		delete(out, name)
		out[safeName] = safe
	}
	if out == nil {
		return h
	}
	return out
}

// maskAny masks what is logged by reflection: it is looked at as the JSON that
// encoders print.
func maskAny(secret bool, v any) any {
	if v == nil {
		return nil
	}
	if secret {
		return redact.Mark
	}
	switch v := v.(type) {
	case string:
		return masker.String(v)
	case http.Header:
		return maskHeader(v)
	case map[string][]string:
		return map[string][]string(maskHeader(v))
	}
	text, err := json.Marshal(v)
	if err != nil {
		return redact.Mark // an encoder would print the error, which may quote the value
	}
	var tree any
	dec := json.NewDecoder(bytes.NewReader(text))
	dec.UseNumber()
	if err := dec.Decode(&tree); err != nil {
		return redact.Mark
	}
	masked, changed := maskTree(tree)
	if _, raw := v.(json.RawMessage); !changed && !raw { // raw JSON may say a name twice
		return v
	}
	return masked
}

// maskTree masks decoded JSON by names and by what it looks like.
func maskTree(n any) (_ any, changed bool) {
	switch n := n.(type) {
	case string:
		masked := masker.String(n)
		return masked, masked != n
	case []any:
		for i := range n {
			v, c := maskTree(n[i])
			n[i], changed = v, changed || c
		}
		return n, changed
	case map[string]any:
		for k, v := range n {
			if masker.Name(k) && v != nil && v != "" {
				n[k], changed = redact.Mark, true
				continue
			}
			masked, c := maskTree(v)
			n[k], changed = masked, changed || c
			if safe := masker.String(k); safe != k {
				delete(n, k)
				n[safe], changed = masked, true
			}
		}
		return n, changed
	}
	return n, false
}

// maskedObject masks what an object tells its encoder.
type maskedObject struct{ zapcore.ObjectMarshaler }

// MarshalLogObject implements zapcore.ObjectMarshaler.
func (m maskedObject) MarshalLogObject(enc zapcore.ObjectEncoder) error {
	return m.ObjectMarshaler.MarshalLogObject(objectMask{enc})
}

type objectMask struct{ zapcore.ObjectEncoder }

func (e objectMask) AddString(key, value string) {
	key, secret := masker.Key(key)
	e.ObjectEncoder.AddString(key, maskValue(secret, value))
}

func (e objectMask) AddByteString(key string, value []byte) {
	key, secret := masker.Key(key)
	e.ObjectEncoder.AddByteString(key, maskBytes(secret, value))
}

func (e objectMask) AddBinary(key string, value []byte) {
	key, secret := masker.Key(key)
	e.ObjectEncoder.AddBinary(key, maskBytes(secret, value))
}

func (e objectMask) AddObject(key string, value zapcore.ObjectMarshaler) error {
	key, secret := masker.Key(key)
	if secret {
		e.ObjectEncoder.AddString(key, redact.Mark)
		return nil
	}
	return e.ObjectEncoder.AddObject(key, maskObject(value))
}

func (e objectMask) AddArray(key string, value zapcore.ArrayMarshaler) error {
	key, secret := masker.Key(key)
	return e.ObjectEncoder.AddArray(key, maskArray(secret, value))
}

func (e objectMask) AddReflected(key string, value any) error {
	key, secret := masker.Key(key)
	return e.ObjectEncoder.AddReflected(key, maskAny(secret, value))
}

func (e objectMask) OpenNamespace(key string) {
	key, _ = masker.Key(key)
	e.ObjectEncoder.OpenNamespace(key)
}

// maskArray masks an array by its name, or what it tells its encoder.
func maskArray(secret bool, m zapcore.ArrayMarshaler) zapcore.ArrayMarshaler {
	if secret {
		return zapcore.ArrayMarshalerFunc(func(enc zapcore.ArrayEncoder) error {
			enc.AppendString(redact.Mark)
			return nil
		})
	}
	return maskedArray{m}
}

type maskedArray struct{ zapcore.ArrayMarshaler }

// MarshalLogArray implements zapcore.ArrayMarshaler.
func (m maskedArray) MarshalLogArray(enc zapcore.ArrayEncoder) error {
	return m.ArrayMarshaler.MarshalLogArray(arrayMask{enc})
}

type arrayMask struct{ zapcore.ArrayEncoder }

func (e arrayMask) AppendString(value string) { e.ArrayEncoder.AppendString(masker.String(value)) }

func (e arrayMask) AppendByteString(value []byte) {
	e.ArrayEncoder.AppendByteString(maskBytes(false, value))
}

func (e arrayMask) AppendObject(value zapcore.ObjectMarshaler) error {
	return e.ArrayEncoder.AppendObject(maskObject(value))
}

func (e arrayMask) AppendArray(value zapcore.ArrayMarshaler) error {
	return e.ArrayEncoder.AppendArray(maskedArray{value})
}

func (e arrayMask) AppendReflected(value any) error {
	return e.ArrayEncoder.AppendReflected(maskAny(false, value))
}
