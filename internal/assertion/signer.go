package assertion

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"fmt"
	"slices"
	"time"

	"github.com/caddy-auth/caddy-auth/internal/auth"
)

// Type is the typ of assertions: they are nothing else, and nothing else is
// one (RFC 8725, 3.11).
const Type = "caddy-auth-assertion+jwt"

// Signer signs with the keys that a store had when it was read. It is
// immutable and safe for concurrent use.
type Signer struct{ keys []key }

type key struct {
	auth.AssertionKey
	private crypto.Signer
	header  string // of the tokens it signs, in base64url, with the dot
	jwk     map[string]any
}

// NewSigner reads keys, the earliest first.
func NewSigner(keys []auth.AssertionKey) (*Signer, error) {
	s := &Signer{}
	for _, k := range keys {
		one, err := readKey(k)
		if err != nil {
			return nil, fmt.Errorf("reading the assertion key %s: %w", k.ID, err)
		}
		s.keys = append(s.keys, one)
	}
	return s, nil
}

func readKey(k auth.AssertionKey) (key, error) {
	out := key{AssertionKey: k}
	private, err := x509.ParsePKCS8PrivateKey(k.Private)
	if err != nil {
		return out, fmt.Errorf("%w: %w", auth.ErrCorrupt, err)
	}
	out.Private = nil
	b64 := base64.RawURLEncoding.EncodeToString
	switch p := private.(type) {
	case ed25519.PrivateKey:
		out.private = p
		out.jwk = map[string]any{"kty": "OKP", "crv": "Ed25519", "x": b64(p.Public().(ed25519.PublicKey))}
	case *ecdsa.PrivateKey:
		point, err := p.PublicKey.Bytes() // 4, x, y
		if err != nil || len(point) != 65 {
			return out, fmt.Errorf("a curve that is not P-256: %w", auth.ErrCorrupt)
		}
		out.private = p
		out.jwk = map[string]any{"kty": "EC", "crv": "P-256", "x": b64(point[1:33]), "y": b64(point[33:])}
	default:
		return out, fmt.Errorf("a key of the type %T: %w", private, auth.ErrCorrupt)
	}
	out.jwk["kid"], out.jwk["alg"], out.jwk["use"] = k.ID, k.Algorithm, "sig"
	out.header = b64([]byte(`{"alg":"`+k.Algorithm+`","typ":"`+Type+`","kid":"`+k.ID+`"}`)) + "."
	return out, nil
}

// Has reports whether there is a key for an algorithm that is published for
// good.
func (s *Signer) Has(algorithm string) bool {
	return s != nil && slices.ContainsFunc(s.keys, func(k key) bool { return k.Algorithm == algorithm && k.PublishedUntil == 0 })
}

// KeySet is the public keys (RFC 7517, 5) at now: those that will sign, sign,
// or signed what may still be good.
func (s *Signer) KeySet(now time.Time) map[string]any {
	keys := []any{}
	for _, k := range s.keys {
		if k.published(now) {
			keys = append(keys, k.jwk)
		}
	}
	return map[string]any{"keys": keys}
}

func (k *key) published(now time.Time) bool {
	return k.PublishedUntil == 0 || now.UnixMilli() < k.PublishedUntil
}

// current is the key that signs at now: the newest that may, or else the
// earliest that is published.
func (s *Signer) current(algorithm string, now time.Time) *key {
	var found *key
	for i := range s.keys {
		k := &s.keys[i]
		if k.Algorithm != algorithm || !k.published(now) {
			continue
		}
		if found == nil || k.SignsFrom <= now.UnixMilli() {
			found = k
		}
	}
	return found
}

// sign makes a token of claims in JSON. Without a key it is auth.ErrUnavailable.
func (s *Signer) sign(k *key, claims []byte) (string, error) {
	n := base64.RawURLEncoding.EncodedLen(len(claims))
	out := make([]byte, 0, len(k.header)+n+1+86)
	out = base64.RawURLEncoding.AppendEncode(append(out, k.header...), claims)
	signature, err := k.sign(out)
	if err != nil {
		return "", fmt.Errorf("signing an assertion: %w", err)
	}
	return string(base64.RawURLEncoding.AppendEncode(append(out, '.'), signature)), nil
}

func (k *key) sign(text []byte) ([]byte, error) {
	switch p := k.private.(type) {
	case ed25519.PrivateKey:
		return ed25519.Sign(p, text), nil
	case *ecdsa.PrivateKey:
		digest := sha256.Sum256(text)
		r, s, err := ecdsa.Sign(rand.Reader, p, digest[:])
		if err != nil {
			return nil, err
		}
		var out [64]byte // RFC 7518, 3.4
		r.FillBytes(out[:32])
		s.FillBytes(out[32:])
		return out[:], nil
	}
	return nil, auth.ErrCorrupt
}
