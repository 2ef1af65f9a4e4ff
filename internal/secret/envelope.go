package secret

import (
	"crypto/hkdf"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"fmt"
	"hash"
	"strconv"
	"sync"

	"github.com/caddy-auth/caddy-auth/internal/auth"
)

// SealingSecretLen is the length of a sealing secret in bytes.
const SealingSecretLen = 32

// Envelope names and seals what is kept where others can read and write, such
// as Redis. Names hide what they stand for, and what is sealed can be opened
// under its own name only. It is safe for concurrent use.
type Envelope struct {
	store string
	ring  *Ring
	macs  sync.Pool // of hash.Hash, under the newest secret's name key
}

// NewEnvelope returns an envelope for one store over its sealing secrets,
// newest first. Names depend on the newest.
func NewEnvelope(storeID []byte, secrets ...[]byte) (*Envelope, error) {
	for _, s := range secrets {
		if len(s) != SealingSecretLen {
			return nil, auth.Invalidf("sealing secret of %d bytes, want %d", len(s), SealingSecretLen)
		}
	}
	ring, err := NewRing("shared records", secrets...)
	if err != nil {
		return nil, err
	}
	nameKey, err := hkdf.Key(sha256.New, secrets[0], nil, "caddy-auth shared names", 32)
	if err != nil {
		return nil, fmt.Errorf("deriving a name key: %w", err)
	}
	e := &Envelope{store: base64.RawURLEncoding.EncodeToString(storeID), ring: ring}
	e.macs.New = func() any { return hmac.New(sha256.New, nameKey) }
	return e, nil
}

// Name returns the name of a record about fp: the store's id and a MAC. kind
// and configuration keep apart what was verified in different ways.
func (e *Envelope) Name(kind string, configuration []byte, fp auth.Fingerprint) string {
	mac := e.macs.Get().(hash.Hash)
	defer e.macs.Put(mac)
	mac.Reset()
	text := append(make([]byte, 0, 128), kind...)
	text = append(text, 0)
	text = append(strconv.AppendInt(text, int64(len(configuration)), 10), 0)
	text = append(append(text, configuration...), fp[:]...)
	mac.Write(text)
	var sum [sha256.Size]byte
	return e.store + ":" + base64.RawURLEncoding.EncodeToString(mac.Sum(sum[:0]))
}

// Channel returns the name of a channel, in the same form.
func (e *Envelope) Channel(kind string) string { return e.Name(kind, nil, auth.Fingerprint{}) }

// Seal encrypts plain and binds it to name.
func (e *Envelope) Seal(name string, plain []byte) []byte { return e.ring.Seal(name, plain) }

// Open decrypts what Seal made for the same name; see Ring.Open.
func (e *Envelope) Open(name string, sealed []byte) ([]byte, error) { return e.ring.Open(name, sealed) }
