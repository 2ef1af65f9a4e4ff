package caddymodule

import (
	"encoding/json"
	"fmt"
	"os"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/caddyconfig"
	"github.com/caddyserver/caddy/v2/caddyconfig/caddyfile"
	"github.com/caddyserver/caddy/v2/modules/logging"
	"go.uber.org/zap/buffer"
	"go.uber.org/zap/zapcore"
	"golang.org/x/term"
)

func init() { caddy.RegisterModule(RedactEncoder{}) }

// RedactEncoder masks credentials in everything that is logged: headers,
// queries, Referer, Location, cookies, and whatever is shaped like a key,
// messages and errors included. It wraps another encoder, which decides how
// entries look, and is always the outermost one.
type RedactEncoder struct {
	// The encoder inside. Default: Caddy's own, console on a terminal and JSON
	// elsewhere.
	WrappedRaw json.RawMessage `json:"wrap,omitempty" caddy:"namespace=caddy.logging.encoders inline_key=format"`

	inner     zapcore.Encoder
	shared    bool // inner is that of the encoder this is a clone of: not to be added to
	held      heldFields
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
	keepSites(ctx)
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
	e.inner = inner
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
	e.inner = inner
	return nil
}

// ConfigureDefaultFormat implements caddy.ConfiguresFormatterDefault.
func (e *RedactEncoder) ConfigureDefaultFormat(w caddy.WriterOpener) error {
	if !e.isDefault {
		if inner, ok := e.inner.(caddy.ConfiguresFormatterDefault); ok {
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
	return &RedactEncoder{inner: e.inner, shared: true, held: e.held}
}

// EncodeEntry implements zapcore.Encoder. Most entries hold nothing to mask;
// then fields are passed on as they are.
func (e *RedactEncoder) EncodeEntry(entry zapcore.Entry, fields []zapcore.Field) (*buffer.Buffer, error) {
	entry.Message = masker.String(entry.Message)
	entry.Stack = masker.String(entry.Stack)
	entry.LoggerName = masker.String(entry.LoggerName)
	if e.held.n > 0 {
		fields = append(e.held.fields(make([]zapcore.Field, 0, e.held.n+len(fields))), fields...)
	}
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
	return e.inner.EncodeEntry(entry, safe)
}

var (
	_ zapcore.Encoder                  = (*RedactEncoder)(nil)
	_ caddy.Provisioner                = (*RedactEncoder)(nil)
	_ caddy.ConfiguresFormatterDefault = (*RedactEncoder)(nil)
	_ caddyfile.Unmarshaler            = (*RedactEncoder)(nil)
)
