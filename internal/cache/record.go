package cache

import (
	"encoding/binary"
	"errors"
	"unsafe"

	"github.com/caddy-auth/caddy-auth/internal/auth"
)

// A record is a verdict as flat bytes: version, outcome, reason, method,
// flags, notAfter (8 bytes, big endian), for tokens when they were issued (4
// bytes) and the source (16), then each string with its length in two bytes; for tokens
// of our own when they were issued (4 bytes) at the end.
const (
	recordVersion = 2
	recordHead    = 5 + 8
	tokenHead     = recordHead + 4 + len(auth.Source{})

	flagReplaced = 1
	flagToken    = 2 // it has a source
	flagIssued   = 4 // of our own: it says when it was issued
)

var errRecord = errors.New("unreadable cache record")

var methods = auth.Methods()

func methodIndex(m auth.Method) byte {
	for i, x := range methods {
		if x == m {
			return byte(i + 1)
		}
	}
	return 0
}

func recordStrings(id *auth.Identity) [8]*string {
	return [8]*string{&id.Subject, &id.CredentialID, &id.Scopes, &id.Environment, &id.Issuer, &id.ClientID, &id.Hint, &id.Networks}
}

// appendRecord appends v's record to dst.
func appendRecord(dst []byte, v *auth.Verdict) []byte {
	var flags byte
	if v.Identity.Replaced {
		flags |= flagReplaced
	}
	if v.Source != (auth.Source{}) {
		flags |= flagToken
	}
	if v.Source == (auth.Source{}) && v.Identity.IssuedAt != 0 {
		flags |= flagIssued
	}
	dst = append(dst, recordVersion, byte(v.Outcome), byte(v.Reason), methodIndex(v.Identity.Method), flags)
	dst = binary.BigEndian.AppendUint64(dst, uint64(v.Identity.NotAfter))
	if flags&flagToken != 0 {
		dst = binary.BigEndian.AppendUint32(dst, v.Identity.IssuedAt)
		dst = append(dst, v.Source[:]...)
	}
	for _, s := range recordStrings(&v.Identity) {
		dst = appendString(dst, *s)
	}
	dst = appendString(dst, v.Identity.Meta)
	if flags&flagIssued != 0 {
		dst = binary.BigEndian.AppendUint32(dst, v.Identity.IssuedAt)
	}
	return dst
}

func appendString(dst []byte, s string) []byte {
	if len(s) > 1<<16-1 {
		s = s[:1<<16-1] // the store's limits are far below
	}
	return append(binary.BigEndian.AppendUint16(dst, uint16(len(s))), s...)
}

// parseRecord reads a record into v. Every string of v is a part of one
// string made of b, so b must not be written to again; that is the one
// allocation of a cache hit, made by the caller.
func parseRecord(v *auth.Verdict, b []byte) error {
	if len(b) < recordHead || b[0] != recordVersion || int(b[3]) > len(methods) {
		return errRecord
	}
	v.Outcome, v.Reason = auth.Outcome(b[1]), auth.Reason(b[2])
	if b[3] > 0 {
		v.Identity.Method = methods[b[3]-1]
	}
	v.Identity.Replaced = b[4]&flagReplaced != 0
	v.Identity.NotAfter = int64(binary.BigEndian.Uint64(b[5:recordHead]))
	text := unsafe.String(unsafe.SliceData(b), len(b))
	at := recordHead
	if b[4]&flagToken != 0 {
		if len(b) < tokenHead {
			return errRecord
		}
		v.Identity.IssuedAt = binary.BigEndian.Uint32(b[at:])
		at += 4 + copy(v.Source[:], b[at+4:tokenHead])
	}
	next := func(s *string) bool {
		if at+2 > len(b) {
			return false
		}
		n := int(binary.BigEndian.Uint16(b[at:]))
		at += 2
		if at+n > len(b) {
			return false
		}
		*s = text[at : at+n]
		at += n
		return true
	}
	for _, s := range recordStrings(&v.Identity) {
		if !next(s) {
			return errRecord
		}
	}
	if !next(&v.Identity.Meta) {
		return errRecord
	}
	if b[4]&flagIssued != 0 {
		if at+4 > len(b) {
			return errRecord
		}
		v.Identity.IssuedAt = binary.BigEndian.Uint32(b[at:])
		at += 4
	}
	if at != len(b) {
		return errRecord
	}
	return nil
}
