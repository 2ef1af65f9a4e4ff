package caddymodule

import (
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
)

// The fields of Logger.With come one by one, into a clone. Caddy's proxy makes
// a logger with the whole request for each round trip, for entries that are
// hardly ever written. So what it adds is held, and encoded and masked only for
// an entry that is written. Nothing is added to an encoder after its first Clone:
// zap and Caddy add fields to clones only.

// heldFields are the last fields of Logger.With.
type heldFields struct {
	n   int
	all [3]heldField // as many as the proxy adds
}

// heldField is a string, a duration if request and text are empty, or a
// request.
type heldField struct {
	key, text string
	duration  time.Duration
	request   *heldRequest
	isText    bool
}

// fields appends what is held to dst.
func (h *heldFields) fields(dst []zapcore.Field) []zapcore.Field {
	for _, f := range h.all[:h.n] {
		switch {
		case f.request != nil:
			dst = append(dst, f.request.field(f.key))
		case f.isText:
			dst = append(dst, zap.String(f.key, f.text))
		default:
			dst = append(dst, zap.Duration(f.key, f.duration))
		}
	}
	return dst
}

// hold keeps a field for later.
func (e *RedactEncoder) hold(f heldField) {
	if e.held.n == len(e.held.all) {
		e.own()
	}
	e.held.all[e.held.n] = f
	e.held.n++
}

// own returns what fields are added to at once: an encoder that is nobody
// else's, with what was held before them.
func (e *RedactEncoder) own() objectMask {
	if e.shared {
		e.inner, e.shared = e.inner.Clone(), false
	}
	if e.held.n > 0 {
		held := e.held.fields(nil)
		e.held = heldFields{}
		for _, f := range held {
			f.AddTo(objectMask{e.inner})
		}
	}
	return objectMask{e.inner}
}

// AddString implements zapcore.ObjectEncoder.
func (e *RedactEncoder) AddString(k, v string) { e.hold(heldField{key: k, text: v, isText: true}) }

// AddDuration implements zapcore.ObjectEncoder.
func (e *RedactEncoder) AddDuration(k string, v time.Duration) {
	e.hold(heldField{key: k, duration: v})
}

// AddObject implements zapcore.ObjectEncoder.
func (e *RedactEncoder) AddObject(k string, v zapcore.ObjectMarshaler) error {
	if request := holdRequest(v); request != nil {
		e.hold(heldField{key: k, request: request})
		return nil
	}
	return e.own().AddObject(k, v)
}

// AddArray implements zapcore.ObjectEncoder.
func (e *RedactEncoder) AddArray(k string, v zapcore.ArrayMarshaler) error {
	return e.own().AddArray(k, v)
}

// AddReflected implements zapcore.ObjectEncoder.
func (e *RedactEncoder) AddReflected(k string, v any) error { return e.own().AddReflected(k, v) }

// AddBinary implements zapcore.ObjectEncoder.
func (e *RedactEncoder) AddBinary(k string, v []byte) { e.own().AddBinary(k, v) }

// AddByteString implements zapcore.ObjectEncoder.
func (e *RedactEncoder) AddByteString(k string, v []byte) { e.own().AddByteString(k, v) }

// OpenNamespace implements zapcore.ObjectEncoder.
func (e *RedactEncoder) OpenNamespace(k string) { e.own().OpenNamespace(k) }

// Everything else has nothing to mask.

// AddBool implements zapcore.ObjectEncoder.
func (e *RedactEncoder) AddBool(k string, v bool) { e.own().AddBool(k, v) }

// AddComplex128 implements zapcore.ObjectEncoder.
func (e *RedactEncoder) AddComplex128(k string, v complex128) { e.own().AddComplex128(k, v) }

// AddComplex64 implements zapcore.ObjectEncoder.
func (e *RedactEncoder) AddComplex64(k string, v complex64) { e.own().AddComplex64(k, v) }

// AddFloat64 implements zapcore.ObjectEncoder.
func (e *RedactEncoder) AddFloat64(k string, v float64) { e.own().AddFloat64(k, v) }

// AddFloat32 implements zapcore.ObjectEncoder.
func (e *RedactEncoder) AddFloat32(k string, v float32) { e.own().AddFloat32(k, v) }

// AddInt implements zapcore.ObjectEncoder.
func (e *RedactEncoder) AddInt(k string, v int) { e.own().AddInt(k, v) }

// AddInt64 implements zapcore.ObjectEncoder.
func (e *RedactEncoder) AddInt64(k string, v int64) { e.own().AddInt64(k, v) }

// AddInt32 implements zapcore.ObjectEncoder.
func (e *RedactEncoder) AddInt32(k string, v int32) { e.own().AddInt32(k, v) }

// AddInt16 implements zapcore.ObjectEncoder.
func (e *RedactEncoder) AddInt16(k string, v int16) { e.own().AddInt16(k, v) }

// AddInt8 implements zapcore.ObjectEncoder.
func (e *RedactEncoder) AddInt8(k string, v int8) { e.own().AddInt8(k, v) }

// AddTime implements zapcore.ObjectEncoder.
func (e *RedactEncoder) AddTime(k string, v time.Time) { e.own().AddTime(k, v) }

// AddUint implements zapcore.ObjectEncoder.
func (e *RedactEncoder) AddUint(k string, v uint) { e.own().AddUint(k, v) }

// AddUint64 implements zapcore.ObjectEncoder.
func (e *RedactEncoder) AddUint64(k string, v uint64) { e.own().AddUint64(k, v) }

// AddUint32 implements zapcore.ObjectEncoder.
func (e *RedactEncoder) AddUint32(k string, v uint32) { e.own().AddUint32(k, v) }

// AddUint16 implements zapcore.ObjectEncoder.
func (e *RedactEncoder) AddUint16(k string, v uint16) { e.own().AddUint16(k, v) }

// AddUint8 implements zapcore.ObjectEncoder.
func (e *RedactEncoder) AddUint8(k string, v uint8) { e.own().AddUint8(k, v) }

// AddUintptr implements zapcore.ObjectEncoder.
func (e *RedactEncoder) AddUintptr(k string, v uintptr) { e.own().AddUintptr(k, v) }
