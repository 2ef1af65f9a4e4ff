package auth

import (
	"crypto/sha256"
	"encoding/hex"
	"iter"
	"strings"
	"time"
	"unsafe"
)

// Fingerprint names a credential without revealing it. For an API key it is
// the SHA-256 of the whole key.
type Fingerprint [32]byte

// FingerprintOf returns the fingerprint of an API key, or of a token. It does
// not allocate: the bytes of the text are read where they are.
func FingerprintOf(text string) Fingerprint {
	return sha256.Sum256(unsafe.Slice(unsafe.StringData(text), len(text)))
}

// String returns the first bytes in hex, enough to tell two apart in a test.
func (f Fingerprint) String() string { return hex.EncodeToString(f[:6]) }

// Method says how an identity was established.
type Method string

// The methods an upstream may see in X-Auth-Method.
const (
	MethodAPIKey        Method = "api_key"
	MethodAccessToken   Method = "access_token"
	MethodJWT           Method = "jwt"
	MethodIntrospection Method = "introspection"
	MethodSession       Method = "session"
)

// Methods lists every method, in the order documentation uses.
func Methods() []Method {
	return []Method{MethodAPIKey, MethodAccessToken, MethodJWT, MethodIntrospection, MethodSession}
}

// EnvironmentLive is the environment of keys that name no other.
const EnvironmentLive = "live"

// Identity is the immutable result of verifying a credential. Its strings
// never alias memory that a cache may reuse.
type Identity struct {
	Subject      string
	Method       Method
	CredentialID string
	Scopes       string // space-separated, sorted
	Environment  string
	Issuer       string
	ClientID     string
	Hint         string // what people see of the key: prefix and last four characters
	Networks     string // space-separated CIDR prefixes, empty: from anywhere
	Meta         string // see EncodeMeta
	NotAfter     int64  // unix milliseconds, 0: never
	IssuedAt     uint32 // unix seconds; 0: not known
	Replaced     bool   // a rotation set NotAfter
}

// OfToken reports whether another issuer's token established the identity.
func (id *Identity) OfToken() bool {
	return id.Method == MethodJWT || id.Method == MethodIntrospection
}

// Expired reports whether the credential's lifetime ended at or before now.
func (id *Identity) Expired(now time.Time) bool {
	return id.NotAfter != 0 && now.UnixMilli() >= id.NotAfter
}

// HasScope reports whether the identity holds scope: one of its scopes is the
// same, or ends in ":*" and scope begins with what stands before the "*" and
// goes on. It does not allocate; an empty scope is never held.
func (id *Identity) HasScope(scope string) bool {
	if scope == "" {
		return false
	}
	rest := id.Scopes
	for rest != "" {
		var word string
		word, rest, _ = strings.Cut(rest, " ")
		if word == scope || grants(word, scope) {
			return true
		}
	}
	return false
}

// grants reports whether a scope that ends in ":*" covers another.
func grants(wildcard, scope string) bool {
	stem, ok := strings.CutSuffix(wildcard, "*")
	return ok && strings.HasSuffix(stem, ":") && len(scope) > len(stem) && strings.HasPrefix(scope, stem)
}

// MetaValue returns the metadata value stored under name, or "". Several values
// are joined by commas.
func (id *Identity) MetaValue(name string) string {
	return strings.ReplaceAll(id.meta(name), metaGroup, ",")
}

// MetaValues returns the metadata values stored under name.
func (id *Identity) MetaValues(name string) []string { return strings.Split(id.meta(name), metaGroup) }

// HasMeta reports whether one of the values stored under name is want, which
// must not be empty.
func (id *Identity) HasMeta(name, want string) bool {
	for one := range strings.SplitSeq(id.meta(name), metaGroup) {
		if one == want && want != "" {
			return true
		}
	}
	return false
}

func (id *Identity) meta(name string) string {
	for k, v := range DecodeMeta(id.Meta) {
		if k == name {
			return v
		}
	}
	return ""
}

// JoinMeta makes one metadata value of several.
func JoinMeta(values []string) string { return strings.Join(values, metaGroup) }

// Metadata is encoded as name, unit separator, value, record separator, which
// neither names nor values may contain.
const (
	metaUnit   = "\x1f"
	metaRecord = "\x1e"
	metaGroup  = "\x1d" // between several values
)

// EncodeMeta packs metadata in the order of names, which the caller sorts.
func EncodeMeta(names []string, values map[string]string) string {
	var b strings.Builder
	for _, n := range names {
		b.WriteString(n + metaUnit + values[n] + metaRecord)
	}
	return b.String()
}

// DecodeMeta yields the names and values EncodeMeta packed.
func DecodeMeta(s string) iter.Seq2[string, string] {
	return func(yield func(string, string) bool) {
		for s != "" {
			var rec string
			rec, s, _ = strings.Cut(s, metaRecord)
			k, v, _ := strings.Cut(rec, metaUnit)
			if !yield(k, v) {
				return
			}
		}
	}
}
