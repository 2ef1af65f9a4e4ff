package jwt

import (
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rsa"
	"errors"
	"fmt"
	"math/big"
	"slices"

	"github.com/caddy-auth/caddy-auth/internal/strictjson"
)

const (
	// minRSABits is RFC 7518, 3.3; maxRSABits bounds what one check costs.
	minRSABits = 2048
	maxRSABits = 8192
)

// Key is a public key that tokens are checked with.
type Key struct {
	ID     string // kid, "" without one
	alg    string // the one algorithm it is for, "" if it does not say
	typ    string
	curve  string
	public any
}

// ErrNotForTokens says that a key is not one to check tokens with: for another
// use, or of a kind that is not supported. It is no fault of the key set.
var ErrNotForTokens = errors.New("not a key to check tokens with")

// ParseKey reads a JWK (RFC 7517). A key for encryption, of an unknown type or
// algorithm, or one with a secret part is ErrNotForTokens; one that is wrong in
// itself, or too weak, another error.
func ParseKey(o strictjson.Object) (*Key, error) {
	k := &Key{}
	var ok [4]bool
	var use string
	k.typ, ok[0] = o.Text("kty")
	k.ID, ok[1] = o.Text("kid")
	k.alg, ok[2] = o.Text("alg")
	use, ok[3] = o.Text("use")
	if ok != [4]bool{true, true, true, true} || len(k.ID) > maxKeyIDLen {
		return nil, errors.New("kty, kid, alg or use is no short text")
	}
	if use != "" && use != "sig" {
		return nil, fmt.Errorf("use: %w", ErrNotForTokens)
	}
	if ops, ok := o.Words("key_ops"); !ok || len(ops) > 0 && !slices.Contains(ops, "verify") {
		return nil, fmt.Errorf("key_ops: %w", ErrNotForTokens)
	}
	for _, secret := range []string{"k", "d", "p", "q"} { // whoever publishes that has no secret any more
		if _, there := o[secret]; there {
			return nil, fmt.Errorf("it has a secret part: %w", ErrNotForTokens)
		}
	}
	k.alg = Canonical(k.alg)
	if _, known := algorithms[k.alg]; k.alg != "" && !known {
		return nil, fmt.Errorf("alg: %w", ErrNotForTokens)
	}
	if err := k.readPublic(o); err != nil {
		return nil, err
	}
	if k.alg != "" && !k.Fits(k.alg) {
		return nil, errors.New("alg does not go with kty and crv")
	}
	return k, nil
}

// Fits reports whether the key may be used with an algorithm: its type, its
// curve, and, if it names one, its algorithm agree.
func (k *Key) Fits(name string) bool {
	a, ok := algorithms[name]
	return ok && a.keyType == k.typ && a.curve == k.curve && (k.alg == "" || k.alg == name)
}

func (k *Key) readPublic(o strictjson.Object) (err error) {
	switch k.typ {
	case "RSA":
		k.public, err = readRSA(o)
	case "EC":
		k.curve, _ = o.Text("crv")
		k.public, err = readEC(o, k.curve)
	case "OKP":
		k.curve, _ = o.Text("crv")
		k.public, err = readOKP(o, k.curve)
	default:
		err = fmt.Errorf("kty: %w", ErrNotForTokens)
	}
	return err
}

// member reads the base64url value called name, at most most bytes.
func member(o strictjson.Object, name string, most int) ([]byte, error) {
	text, ok := o.Text(name)
	if !ok || text == "" || len(text) > most*4/3+4 {
		return nil, fmt.Errorf("%s is missing or too long", name)
	}
	raw, err := canonical.DecodeString(text)
	if err != nil {
		return nil, fmt.Errorf("%s is not base64url", name)
	}
	return raw, nil
}

func readRSA(o strictjson.Object) (*rsa.PublicKey, error) {
	n, err := member(o, "n", maxRSABits/8+1)
	if err != nil {
		return nil, err
	}
	e, err := member(o, "e", 4)
	if err != nil {
		return nil, err
	}
	key := &rsa.PublicKey{N: new(big.Int).SetBytes(n)}
	for _, b := range e {
		key.E = key.E<<8 | int(b)
	}
	if bits := key.N.BitLen(); bits < minRSABits || bits > maxRSABits {
		return nil, fmt.Errorf("an RSA key of %d bits, want %d to %d", bits, minRSABits, maxRSABits)
	}
	if key.E < 3 || key.E&1 == 0 || key.E > 1<<31-1 {
		return nil, errors.New("an RSA exponent that is not safe")
	}
	if key.N.Bit(0) == 0 || isROCA(key.N) {
		return nil, errors.New("an RSA modulus that can be factored")
	}
	return key, nil
}

func readEC(o strictjson.Object, name string) (*ecdsa.PublicKey, error) {
	var curve elliptic.Curve
	switch name {
	case "P-256":
		curve = elliptic.P256()
	case "P-384":
		curve = elliptic.P384()
	case "P-521":
		curve = elliptic.P521()
	default:
		return nil, fmt.Errorf("crv: %w", ErrNotForTokens)
	}
	size := (curve.Params().BitSize + 7) / 8
	point := []byte{4} // uncompressed
	for _, axis := range []string{"x", "y"} {
		raw, err := member(o, axis, size)
		if err != nil {
			return nil, err
		}
		if len(raw) != size { // RFC 7518, 6.2.1.2
			return nil, fmt.Errorf("%s has %d bytes, want %d", axis, len(raw), size)
		}
		point = append(point, raw...)
	}
	key, err := ecdsa.ParseUncompressedPublicKey(curve, point) // refuses points that are not on the curve
	if err != nil {
		return nil, errors.New("a point that is not on the curve")
	}
	return key, nil
}

func readOKP(o strictjson.Object, name string) (ed25519.PublicKey, error) {
	if name != "Ed25519" {
		return nil, fmt.Errorf("crv: %w", ErrNotForTokens)
	}
	raw, err := member(o, "x", ed25519.PublicKeySize)
	if err != nil {
		return nil, err
	}
	if len(raw) != ed25519.PublicKeySize {
		return nil, fmt.Errorf("x has %d bytes, want %d", len(raw), ed25519.PublicKeySize)
	}
	return ed25519.PublicKey(raw), nil
}

// Alike reports whether some algorithm fits both keys.
func (k *Key) Alike(other *Key) bool {
	for name := range algorithms {
		if k.Fits(name) && other.Fits(name) {
			return true
		}
	}
	return false
}
