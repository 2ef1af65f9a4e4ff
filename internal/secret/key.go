package secret

import (
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/binary"
	"fmt"
	"math/big"
	"slices"
	"strings"

	"github.com/caddy-auth/caddy-auth/internal/auth"
)

// The format of a key: <prefix>_<environment>_ + bodyLen base62 characters of
// 32 random bytes + tagLen characters of tag.
const (
	alphabet = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
	bodyLen  = auth.KeyTailLen - tagLen
	tagLen   = 8
	tailLen  = auth.KeyTailLen
	// MaxKeyLen is the length of the longest key.
	MaxKeyLen  = maxNameLen + 1 + maxNameLen + 1 + tailLen
	maxNameLen = 16

	// MintingSecretLen is the length of a minting secret in bytes.
	MintingSecretLen = 32
)

// Kind is what a text of ours is for. All have the same form; the environment
// tells them apart.
type Kind string

// The kinds. A key has any other environment.
const (
	Key          Kind = ""
	AccessToken  Kind = "at"
	RefreshToken Kind = "rt"
	ClientSecret Kind = "cs"
)

// ReservedEnvironments are used by other kinds of credentials.
var ReservedEnvironments = []string{string(AccessToken), string(RefreshToken), string(ClientSecret)}

// KindOf says what a text with our form claims to be; its tag is not looked at.
func KindOf(text string) Kind {
	if _, env, ok := Parse(text); ok && slices.Contains(ReservedEnvironments, env) {
		return Kind(env)
	}
	return Key
}

var tagModulus = func() uint64 {
	m := uint64(1)
	for range tagLen {
		m *= 62
	}
	return m
}()

// ValidName reports whether s can be a key prefix or an environment:
// [a-z][a-z0-9]{0,15}.
func ValidName(s string) bool {
	if s == "" || len(s) > maxNameLen || s[0] < 'a' || s[0] > 'z' {
		return false
	}
	for i := 1; i < len(s); i++ {
		if c := s[i]; (c < 'a' || c > 'z') && (c < '0' || c > '9') {
			return false
		}
	}
	return true
}

// CheckEnvironment returns an error that says what is wrong with env as the
// environment of a key, or nil.
func CheckEnvironment(env string) error {
	if !ValidName(env) {
		return auth.Invalidf("environment %q: want a lower-case letter, then up to 15 lower-case letters or digits", env)
	}
	if slices.Contains(ReservedEnvironments, env) {
		return auth.Invalidf("environment %q is reserved for other credentials", env)
	}
	return nil
}

// CheckPrefix returns an error that says what is wrong with prefix as the
// first part of keys, or nil.
func CheckPrefix(prefix string) error {
	if !ValidName(prefix) {
		return auth.Invalidf("key prefix %q: want a lower-case letter, then up to 15 lower-case letters or digits", prefix)
	}
	return nil
}

// Minter mints keys and recognizes its own. The first secret mints; all of
// them verify. A Minter is immutable.
type Minter struct {
	secrets  [][]byte
	prefixes []string
}

// NewMinter returns a Minter for minting secrets, newest first, and every
// prefix ever issued.
func NewMinter(secrets [][]byte, prefixes []string) (*Minter, error) {
	if len(secrets) == 0 {
		return nil, auth.Invalidf("no minting secret")
	}
	for _, s := range secrets {
		if len(s) != MintingSecretLen {
			return nil, auth.Invalidf("minting secret of %d bytes, want %d", len(s), MintingSecretLen)
		}
	}
	return &Minter{secrets: secrets, prefixes: prefixes}, nil
}

// Prefixes returns every prefix whose keys are valid. Callers must not change it.
func (m *Minter) Prefixes() []string { return m.prefixes }

// Mint returns a new key for environment.
func (m *Minter) Mint(prefix, environment string) (auth.Secret, error) {
	if err := CheckPrefix(prefix); err != nil {
		return auth.Secret{}, err
	}
	if err := CheckEnvironment(environment); err != nil {
		return auth.Secret{}, err
	}
	return m.mint(prefix, environment)
}

// MintKind returns a new text of another kind than a key.
func (m *Minter) MintKind(prefix string, kind Kind) (auth.Secret, error) {
	if err := CheckPrefix(prefix); err != nil {
		return auth.Secret{}, err
	}
	if !slices.Contains(ReservedEnvironments, string(kind)) {
		return auth.Secret{}, auth.Invalidf("no such kind: %q", string(kind))
	}
	return m.mint(prefix, string(kind))
}

func (m *Minter) mint(prefix, environment string) (auth.Secret, error) {
	var random [32]byte
	if _, err := rand.Read(random[:]); err != nil {
		return auth.Secret{}, fmt.Errorf("reading random bytes: %w", err)
	}
	head := prefix + "_" + environment + "_" + encodeBody(random)
	return auth.NewSecret(head + tagOf(m.secrets[0], head)), nil
}

// Check says whether key is well-formed and bears one of our tags, without any
// I/O: ReasonNone, ReasonMalformed or ReasonForged.
func (m *Minter) Check(key string) auth.Reason { return m.CheckKind(Key, key) }

// CheckKind is Check for any kind: what is of another one is ReasonMalformed.
func (m *Minter) CheckKind(kind Kind, key string) auth.Reason {
	prefix, env, ok := Parse(key)
	if !ok || !slices.Contains(m.prefixes, prefix) {
		return auth.ReasonMalformed
	}
	if reserved := slices.Contains(ReservedEnvironments, env); reserved != (kind != Key) || reserved && env != string(kind) {
		return auth.ReasonMalformed
	}
	head, tag := key[:len(key)-tagLen], key[len(key)-tagLen:]
	match := 0
	for _, s := range m.secrets {
		match |= subtle.ConstantTimeCompare([]byte(tag), []byte(tagOf(s, head)))
	}
	if match == 0 {
		return auth.ReasonForged
	}
	return auth.ReasonNone
}

// Tagged returns a name that is no secret with a tag of ours behind it, so that
// one that somebody made up is told without I/O.
func (m *Minter) Tagged(name string) string { return name + "-" + tagOf(m.secrets[0], name) }

// CheckTagged reports whether Tagged made a name.
func (m *Minter) CheckTagged(name string) bool {
	i := len(name) - tagLen - 1
	if i <= 0 || name[i] != '-' {
		return false
	}
	match := 0
	for _, s := range m.secrets {
		match |= subtle.ConstantTimeCompare([]byte(name[i+1:]), []byte(tagOf(s, name[:i])))
	}
	return match == 1
}

// Parse splits a key into prefix and environment. It says nothing about the
// tag or whether the prefix is ours.
func Parse(key string) (prefix, environment string, ok bool) {
	if len(key) > MaxKeyLen {
		return "", "", false
	}
	prefix, rest, ok := strings.Cut(key, "_")
	if !ok || !ValidName(prefix) {
		return "", "", false
	}
	environment, tail, ok := strings.Cut(rest, "_")
	if !ok || !ValidName(environment) || len(tail) != tailLen {
		return "", "", false
	}
	for i := range len(tail) {
		if !auth.IsBase62(tail[i]) {
			return "", "", false
		}
	}
	return prefix, environment, true
}

// Hint returns what people may see of a key: its prefix and environment and
// its last four characters.
func Hint(key string) string {
	prefix, env, ok := Parse(key)
	if !ok {
		return ""
	}
	return prefix + "_" + env + "_..." + key[len(key)-4:]
}

func encodeBody(random [32]byte) string {
	n := new(big.Int).SetBytes(random[:])
	base, digit := big.NewInt(62), new(big.Int)
	var out [bodyLen]byte
	for i := bodyLen - 1; i >= 0; i-- {
		n.DivMod(n, base, digit)
		out[i] = alphabet[digit.Int64()]
	}
	return string(out[:])
}

// tagOf is the first 8 bytes of HMAC-SHA256 over head, mod 62^8, zero-padded.
func tagOf(secret []byte, head string) string {
	mac := hmac.New(sha256.New, secret)
	mac.Write([]byte(head))
	n := binary.BigEndian.Uint64(mac.Sum(nil)) % tagModulus
	var out [tagLen]byte
	for i := tagLen - 1; i >= 0; i-- {
		out[i] = alphabet[n%62]
		n /= 62
	}
	return string(out[:])
}
