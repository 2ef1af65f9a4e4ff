package caddymodule

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net/http"
	"os"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/caddyconfig"
	"github.com/caddyserver/caddy/v2/caddyconfig/caddyfile"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp"
	"github.com/caddyserver/caddy/v2/modules/logging"
	"go.uber.org/zap"
	"go.uber.org/zap/buffer"
	"go.uber.org/zap/zapcore"
	"golang.org/x/term"

	"github.com/caddy-auth/caddy-auth/internal/redact"
)

func init() { caddy.RegisterModule(RedactEncoder{}) }

// masker masks what any log of this process prints. Configurations add the
// names of their key headers.
var masker = redact.NewMasker()

// RedactEncoder masks credentials in everything that is logged: headers,
// queries, Referer, Location, cookies, and whatever is shaped like a key,
// messages and errors included. It wraps another encoder, which decides how
// entries look, and is always the outermost one.
type RedactEncoder struct {
	// The encoder inside. Default: Caddy's own, console on a terminal and JSON
	// elsewhere.
	WrappedRaw json.RawMessage `json:"wrap,omitempty" caddy:"namespace=caddy.logging.encoders inline_key=format"`

	zapcore.Encoder `json:"-"`

	isDefault bool
	ctx       caddy.Context
}

// CaddyModule returns the Caddy module information.
func (RedactEncoder) CaddyModule() caddy.ModuleInfo {
	return caddy.ModuleInfo{ID: "caddy.logging.encoders.auth_redact", New: func() caddy.Module { return new(RedactEncoder) }}
}

// Provision loads the encoder inside.
func (e *RedactEncoder) Provision(ctx caddy.Context) error {
	e.ctx = ctx
	if e.WrappedRaw == nil {
		e.isDefault = true
		return e.use(&logging.JSONEncoder{})
	}
	mod, err := ctx.LoadModule(e, "WrappedRaw")
	if err != nil {
		return fmt.Errorf("loading the encoder inside auth_redact: %w", err)
	}
	inner, ok := mod.(zapcore.Encoder)
	if !ok {
		return fmt.Errorf("loading the encoder inside auth_redact: %T is no encoder", mod)
	}
	e.Encoder = inner
	return nil
}

// use makes a provisioned encoder of Caddy's the one inside.
func (e *RedactEncoder) use(inner interface {
	zapcore.Encoder
	caddy.Provisioner
},
) error {
	if err := inner.Provision(e.ctx); err != nil {
		return fmt.Errorf("provisioning the encoder inside auth_redact: %w", err)
	}
	e.Encoder = inner
	return nil
}

// ConfigureDefaultFormat implements caddy.ConfiguresFormatterDefault.
func (e *RedactEncoder) ConfigureDefaultFormat(w caddy.WriterOpener) error {
	if !e.isDefault {
		if inner, ok := e.Encoder.(caddy.ConfiguresFormatterDefault); ok {
			return inner.ConfigureDefaultFormat(w)
		}
		return nil
	}
	if caddy.IsWriterStandardStream(w) && term.IsTerminal(int(os.Stderr.Fd())) {
		return e.use(&logging.ConsoleEncoder{})
	}
	return nil
}

// UnmarshalCaddyfile sets up the encoder from Caddyfile tokens. Syntax:
//
//	format auth_redact [{
//		wrap <another encoder>
//	}]
func (e *RedactEncoder) UnmarshalCaddyfile(d *caddyfile.Dispenser) error {
	d.Next() // its own name
	if d.NextArg() {
		return d.ArgErr()
	}
	seen := once{}
	for d.NextBlock(0) {
		if d.Val() != "wrap" {
			return d.Errf("unrecognized subdirective of auth_redact: %s", d.Val())
		}
		if err := seen.check(d, "wrap"); err != nil {
			return err
		}
		if !d.NextArg() {
			return d.ArgErr()
		}
		name := d.Val()
		mod, err := caddyfile.UnmarshalModule(d, "caddy.logging.encoders."+name)
		if err != nil {
			return err
		}
		inner, ok := mod.(zapcore.Encoder)
		if !ok {
			return d.Errf("wrap %s: %T is no encoder", name, mod)
		}
		if _, same := mod.(*RedactEncoder); same {
			return d.Err("auth_redact inside auth_redact")
		}
		e.WrappedRaw = caddyconfig.JSONModuleObject(inner, "format", name, nil)
	}
	return nil
}

// Clone implements zapcore.Encoder.
func (e *RedactEncoder) Clone() zapcore.Encoder {
	return &RedactEncoder{Encoder: e.Encoder.Clone()}
}

// EncodeEntry implements zapcore.Encoder. Most entries hold nothing to mask;
// then fields are passed on as they are.
func (e *RedactEncoder) EncodeEntry(entry zapcore.Entry, fields []zapcore.Field) (*buffer.Buffer, error) {
	entry.Message = masker.String(entry.Message)
	entry.Stack = masker.String(entry.Stack)
	entry.LoggerName = masker.String(entry.LoggerName)
	safe := fields
	for i := range fields {
		f, changed := maskField(fields[i])
		if !changed {
			continue
		}
		if &safe[0] == &fields[0] {
			safe = append([]zapcore.Field(nil), fields...)
		}
		safe[i] = f
	}
	return e.Encoder.EncodeEntry(entry, safe)
}

// The encoder's own methods are called for the fields of Logger.With.

// AddString implements zapcore.ObjectEncoder.
func (e *RedactEncoder) AddString(key, value string) { e.Encoder.AddString(key, masker.String(value)) }

// AddByteString implements zapcore.ObjectEncoder.
func (e *RedactEncoder) AddByteString(key string, value []byte) {
	e.Encoder.AddByteString(key, maskBytes(value))
}

// AddBinary implements zapcore.ObjectEncoder.
func (e *RedactEncoder) AddBinary(key string, value []byte) {
	e.Encoder.AddBinary(key, maskBytes(value))
}

// AddObject implements zapcore.ObjectEncoder.
func (e *RedactEncoder) AddObject(key string, value zapcore.ObjectMarshaler) error {
	return e.Encoder.AddObject(key, maskObject(value))
}

// AddArray implements zapcore.ObjectEncoder.
func (e *RedactEncoder) AddArray(key string, value zapcore.ArrayMarshaler) error {
	return e.Encoder.AddArray(key, maskedArray{value})
}

// AddReflected implements zapcore.ObjectEncoder.
func (e *RedactEncoder) AddReflected(key string, value any) error {
	return e.Encoder.AddReflected(key, maskAny(value))
}

// maskField returns what may be logged of a field.
func maskField(f zapcore.Field) (zapcore.Field, bool) {
	switch f.Type {
	case zapcore.StringType:
		masked := masker.String(f.String)
		if masked == f.String {
			return f, false
		}
		return zap.String(f.Key, masked), true
	case zapcore.ByteStringType, zapcore.BinaryType:
		if b, ok := f.Interface.([]byte); ok {
			f.Interface = maskBytes(b)
		}
		return f, true
	case zapcore.ObjectMarshalerType:
		return zap.Object(f.Key, maskObject(f.Interface.(zapcore.ObjectMarshaler))), true
	case zapcore.InlineMarshalerType:
		return zap.Inline(maskObject(f.Interface.(zapcore.ObjectMarshaler))), true
	case zapcore.ArrayMarshalerType:
		return zap.Array(f.Key, maskedArray{f.Interface.(zapcore.ArrayMarshaler)}), true
	case zapcore.ReflectType:
		f.Interface = maskAny(f.Interface)
		return f, true
	case zapcore.ErrorType, zapcore.StringerType:
		return maskText(f)
	}
	return f, false
}

// maskText masks errors and what prints itself. An error may print more than
// its message, so all of it is looked at.
func maskText(f zapcore.Field) (_ zapcore.Field, changed bool) {
	defer func() {
		if recover() != nil { // a nil inside; zap says so in its own way
			changed = false
		}
	}()
	short, long := fmt.Sprint(f.Interface), fmt.Sprintf("%+v", f.Interface)
	if masker.String(short) == short && masker.String(long) == long {
		return f, false
	}
	return zap.String(f.Key, masker.String(short)), true
}

func maskBytes(b []byte) []byte {
	if s := masker.String(string(b)); s != string(b) {
		return []byte(s)
	}
	return b
}

// maskObject masks headers as a whole, and anything else while it is encoded.
func maskObject(m zapcore.ObjectMarshaler) zapcore.ObjectMarshaler {
	if h, ok := m.(caddyhttp.LoggableHTTPHeader); ok {
		h.Header = maskHeader(h.Header)
		return h
	}
	return maskedObject{m}
}

// maskHeader returns h, or a copy with what must not be logged masked.
func maskHeader(h http.Header) http.Header {
	var out http.Header
	for name, values := range h {
		safeName, safe, changed := masker.Header(name, values)
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

// maskAny masks what is logged by reflection: it is looked at as JSON, as
// encoders print it.
func maskAny(v any) any {
	switch v := v.(type) {
	case nil:
		return nil
	case string:
		return masker.String(v)
	case http.Header:
		return maskHeader(v)
	case map[string][]string:
		return map[string][]string(maskHeader(v))
	}
	var text bytes.Buffer
	enc := json.NewEncoder(&text)
	enc.SetEscapeHTML(false) // an escaped & would hide a parameter
	if err := enc.Encode(v); err != nil {
		return redact.Mark // an encoder would print the error, which may quote the value
	}
	s := string(bytes.TrimSpace(text.Bytes()))
	masked := masker.String(s)
	switch {
	case masked == s:
		return v
	case json.Valid([]byte(masked)):
		return json.RawMessage(masked)
	}
	return redact.Mark
}

// maskedObject masks what an object tells its encoder.
type maskedObject struct{ zapcore.ObjectMarshaler }

// MarshalLogObject implements zapcore.ObjectMarshaler.
func (m maskedObject) MarshalLogObject(enc zapcore.ObjectEncoder) error {
	return m.ObjectMarshaler.MarshalLogObject(objectMask{enc})
}

type objectMask struct{ zapcore.ObjectEncoder }

func (e objectMask) AddString(key, value string) {
	e.ObjectEncoder.AddString(key, masker.String(value))
}

func (e objectMask) AddByteString(key string, value []byte) {
	e.ObjectEncoder.AddByteString(key, maskBytes(value))
}

func (e objectMask) AddBinary(key string, value []byte) {
	e.ObjectEncoder.AddBinary(key, maskBytes(value))
}

func (e objectMask) AddObject(key string, value zapcore.ObjectMarshaler) error {
	return e.ObjectEncoder.AddObject(key, maskObject(value))
}

func (e objectMask) AddArray(key string, value zapcore.ArrayMarshaler) error {
	return e.ObjectEncoder.AddArray(key, maskedArray{value})
}

func (e objectMask) AddReflected(key string, value any) error {
	return e.ObjectEncoder.AddReflected(key, maskAny(value))
}

// maskedArray masks what an array tells its encoder.
type maskedArray struct{ zapcore.ArrayMarshaler }

// MarshalLogArray implements zapcore.ArrayMarshaler.
func (m maskedArray) MarshalLogArray(enc zapcore.ArrayEncoder) error {
	return m.ArrayMarshaler.MarshalLogArray(arrayMask{enc})
}

type arrayMask struct{ zapcore.ArrayEncoder }

func (e arrayMask) AppendString(value string) { e.ArrayEncoder.AppendString(masker.String(value)) }

func (e arrayMask) AppendByteString(value []byte) {
	e.ArrayEncoder.AppendByteString(maskBytes(value))
}

func (e arrayMask) AppendObject(value zapcore.ObjectMarshaler) error {
	return e.ArrayEncoder.AppendObject(maskObject(value))
}

func (e arrayMask) AppendArray(value zapcore.ArrayMarshaler) error {
	return e.ArrayEncoder.AppendArray(maskedArray{value})
}

func (e arrayMask) AppendReflected(value any) error {
	return e.ArrayEncoder.AppendReflected(maskAny(value))
}

var (
	_ zapcore.Encoder                  = (*RedactEncoder)(nil)
	_ caddy.Provisioner                = (*RedactEncoder)(nil)
	_ caddy.ConfiguresFormatterDefault = (*RedactEncoder)(nil)
	_ caddyfile.Unmarshaler            = (*RedactEncoder)(nil)
)
