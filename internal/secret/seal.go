package secret

import (
	"bytes"
	"crypto/aes"
	"crypto/cipher"
	"crypto/hkdf"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"strings"

	"github.com/caddy-auth/caddy-auth/internal/auth"
)

// MasterKeyLen is the length of a master key in bytes.
const MasterKeyLen = 32

const kidLen = 8

// ErrWrongKey: the text was sealed under a key that the ring does not hold.
var ErrWrongKey = errors.New("sealed under another key")

// Ring seals under its first key and opens under any. It is immutable.
type Ring struct{ keys []ringKey }

type ringKey struct {
	kid  [kidLen]byte
	aead cipher.AEAD
}

// NewMasterKey returns a random master key in the form people store: base64.
func NewMasterKey() (auth.Secret, error) {
	var b [MasterKeyLen]byte
	if _, err := rand.Read(b[:]); err != nil {
		return auth.Secret{}, fmt.Errorf("reading random bytes: %w", err)
	}
	return auth.NewSecret(base64.StdEncoding.EncodeToString(b[:])), nil
}

// ParseMasterKey decodes a master key: 32 bytes in base64 (either alphabet,
// padded or not) or hex. Surrounding white space is ignored.
func ParseMasterKey(s auth.Secret) ([]byte, error) {
	text := strings.TrimSpace(s.Reveal())
	if len(text) == 2*MasterKeyLen {
		if b, err := hex.DecodeString(text); err == nil {
			return b, nil
		}
	}
	std := strings.NewReplacer("-", "+", "_", "/").Replace(strings.TrimRight(text, "="))
	b, err := base64.RawStdEncoding.Strict().DecodeString(std)
	if err != nil || len(b) != MasterKeyLen {
		return nil, auth.WithHint(
			auth.Invalidf("master key: want 32 bytes in base64 or hex"),
			"make one with: openssl rand -base64 32")
	}
	return b, nil
}

// NewRing returns a ring over master keys, newest first. purpose separates
// the keys of different uses.
func NewRing(purpose string, masters ...[]byte) (*Ring, error) {
	r := &Ring{}
	for _, m := range masters {
		sealing, err := hkdf.Key(sha256.New, m, nil, "caddy-auth "+purpose+" seal", 32)
		if err != nil {
			return nil, fmt.Errorf("deriving a sealing key: %w", err)
		}
		kid, err := hkdf.Key(sha256.New, m, nil, "caddy-auth "+purpose+" kid", kidLen)
		if err != nil {
			return nil, fmt.Errorf("deriving a key id: %w", err)
		}
		block, err := aes.NewCipher(sealing)
		if err != nil {
			return nil, fmt.Errorf("making a cipher: %w", err)
		}
		aead, err := cipher.NewGCMWithRandomNonce(block)
		if err != nil {
			return nil, fmt.Errorf("making a cipher: %w", err)
		}
		r.keys = append(r.keys, ringKey{[kidLen]byte(kid), aead})
	}
	if len(r.keys) == 0 {
		return nil, auth.Invalidf("no master key")
	}
	return r, nil
}

// Seal encrypts plain (AES-256-GCM, random nonce) and binds it to name.
func (r *Ring) Seal(name string, plain []byte) []byte {
	k := r.keys[0]
	return k.aead.Seal(bytes.Clone(k.kid[:]), nil, plain, []byte(name))
}

// Open decrypts what Seal made for the same name. It returns ErrWrongKey if
// the ring lacks the key, auth.ErrCorrupt if the text was changed or moved.
func (r *Ring) Open(name string, sealed []byte) ([]byte, error) {
	if len(sealed) < kidLen {
		return nil, fmt.Errorf("sealed text of %d bytes: %w", len(sealed), auth.ErrCorrupt)
	}
	for _, k := range r.keys {
		if !bytes.Equal(k.kid[:], sealed[:kidLen]) {
			continue
		}
		plain, err := k.aead.Open(nil, nil, sealed[kidLen:], []byte(name))
		if err != nil {
			return nil, fmt.Errorf("opening a sealed text: %w", auth.ErrCorrupt)
		}
		return plain, nil
	}
	return nil, ErrWrongKey
}
