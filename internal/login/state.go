package login

import (
	"bytes"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"time"

	"github.com/caddy-auth/caddy-auth/internal/auth"
)

const (
	// stateLife is how long a sign-in may take.
	stateLife = 10 * time.Minute
	// maxTabs is how many sign-ins may be under way in one browser: its cookies
	// go with every request.
	maxTabs = 5
	// maxCookie is the longest cookie that browsers keep, in bytes.
	maxCookie = 4096
	maxSealed = 3800 // without its name and attributes
)

// Sealer seals what somebody else keeps; see secret.Envelope.
type Sealer interface {
	Seal(name string, plain []byte) []byte
	Open(name string, sealed []byte) ([]byte, error)
}

// state is a sign-in under way. Its browser keeps it, sealed.
type state struct {
	Login    string `json:"l"`
	JudgedBy string `json:"j"` // the configuration that it began under
	State    string `json:"s"`
	Nonce    string `json:"n"`
	Verifier string `json:"v"` // RFC 7636, 4.1
	Redirect string `json:"u"` // the redirect URI that was sent
	Return   string `json:"r"`
	At       int64  `json:"t"` // unix milliseconds
}

func newState(login, judgedBy, redirect, returnTo string, now time.Time) *state {
	random := func() string {
		var b [32]byte
		_, _ = rand.Read(b[:]) // it never fails
		return base64.RawURLEncoding.EncodeToString(b[:])
	}
	return &state{login, judgedBy, random(), random(), random(), redirect, returnTo, now.UnixMilli()}
}

// challenge is what proves later that we began this (RFC 7636, 4.2: S256).
func (s *state) challenge() string {
	sum := sha256.Sum256([]byte(s.Verifier))
	return base64.RawURLEncoding.EncodeToString(sum[:])
}

func sealedAs(login string) string { return "login state " + login }

func (s *state) seal(sealer Sealer) (string, error) {
	var text bytes.Buffer
	enc := json.NewEncoder(&text)
	enc.SetEscapeHTML(false) // an & is one byte
	if err := enc.Encode(s); err != nil {
		return "", fmt.Errorf("writing a state: %w", err)
	}
	sealed := base64.RawURLEncoding.EncodeToString(sealer.Seal(sealedAs(s.Login), text.Bytes()))
	if len(sealed) > maxSealed && s.Return != "/" {
		s.Return = "/"
		return s.seal(sealer)
	}
	return sealed, nil
}

// openState reads what seal made, if it is not too old, and began under the same
// configuration: another provider must not see the code.
func openState(sealer Sealer, login, judgedBy, text string, now time.Time) (*state, bool) {
	if text == "" || len(text) > maxCookie {
		return nil, false
	}
	sealed, err := base64.RawURLEncoding.Strict().DecodeString(text)
	if err != nil {
		return nil, false
	}
	plain, err := sealer.Open(sealedAs(login), sealed)
	if err != nil {
		return nil, false
	}
	var s state
	if json.Unmarshal(plain, &s) != nil || s.Login != login || s.JudgedBy != judgedBy {
		return nil, false
	}
	age := now.Sub(time.UnixMilli(s.At))
	return &s, age < stateLife && age > -time.Minute
}

// hash names a state where it is marked as used.
func (s *state) hash() []byte {
	fp := auth.FingerprintOf(s.State)
	return fp[:]
}
