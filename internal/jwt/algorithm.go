package jwt

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/rsa"
	_ "crypto/sha256" // the hashes of the algorithms
	_ "crypto/sha512"
	"math/big"
	"slices"

	"github.com/caddy-auth/caddy-auth/internal/auth"
)

// algorithm is one way to sign (RFC 7518, 3.1; RFC 8037, 3.1). There is no
// "none" and none with a shared secret: neither can be named, so neither can be
// asked for by a token.
type algorithm struct {
	keyType string
	curve   string // of EC and OKP keys
	hash    crypto.Hash
	pss     bool
}

var algorithms = map[string]algorithm{
	"RS256": {"RSA", "", crypto.SHA256, false},
	"RS384": {"RSA", "", crypto.SHA384, false},
	"RS512": {"RSA", "", crypto.SHA512, false},
	"PS256": {"RSA", "", crypto.SHA256, true},
	"PS384": {"RSA", "", crypto.SHA384, true},
	"PS512": {"RSA", "", crypto.SHA512, true},
	"ES256": {"EC", "P-256", crypto.SHA256, false},
	"ES384": {"EC", "P-384", crypto.SHA384, false},
	"ES512": {"EC", "P-521", crypto.SHA512, false},
	"EdDSA": {"OKP", "Ed25519", 0, false},
}

// Algorithms lists what tokens can be signed with, in the order documentation
// uses.
func Algorithms() []string {
	return []string{"RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA"}
}

// DefaultAlgorithms are those that are accepted unless others are configured.
func DefaultAlgorithms() []string { return []string{"RS256", "PS256", "ES256", "ES384", "EdDSA"} }

// CheckAlgorithm says what is wrong with a configured algorithm.
func CheckAlgorithm(name string) error {
	if _, ok := algorithms[name]; ok {
		return nil
	}
	const hint = "tokens are signed with the private part of a published key"
	if name == "none" || len(name) == 5 && name[:2] == "HS" {
		return auth.WithHint(auth.Invalidf("algorithm %s: with a set of public keys anybody could make such tokens", name), hint)
	}
	return auth.Invalidf("unknown algorithm %q, want some of %v", name, Algorithms())
}

// Canonical is the name of an algorithm that is also called otherwise: RFC 9864
// calls Ed25519 what RFC 8037 calls EdDSA.
func Canonical(name string) string {
	if name == "Ed25519" {
		return "EdDSA"
	}
	return name
}

// Verify checks the token's signature with a key. Only an algorithm of allowed
// that fits the key is used (RFC 8725, 3.1). Reasons: ReasonAlgorithm,
// ReasonSignature.
func (t *Token) Verify(k *Key, allowed []string) auth.Reason {
	name := Canonical(t.Algorithm)
	a, known := algorithms[name]
	if !known || !slices.Contains(allowed, name) || !k.Fits(name) {
		return auth.ReasonAlgorithm
	}
	if !a.check(k.public, t.signed, t.signature) {
		return auth.ReasonSignature
	}
	return auth.ReasonNone
}

func (a algorithm) check(public any, signed string, signature []byte) bool {
	if key, ok := public.(ed25519.PublicKey); ok {
		return ed25519.Verify(key, []byte(signed), signature)
	}
	h := a.hash.New()
	h.Write([]byte(signed))
	digest := h.Sum(nil)
	switch key := public.(type) {
	case *rsa.PublicKey:
		if a.pss { // RFC 7518, 3.5: the salt is as long as the hash
			return rsa.VerifyPSS(key, a.hash, digest, signature, &rsa.PSSOptions{SaltLength: rsa.PSSSaltLengthEqualsHash}) == nil
		}
		return rsa.VerifyPKCS1v15(key, a.hash, digest, signature) == nil
	case *ecdsa.PublicKey:
		// RFC 7518, 3.4: r and s, each as long as the curve's order.
		size := (key.Curve.Params().N.BitLen() + 7) / 8
		if len(signature) != 2*size {
			return false
		}
		r, s := new(big.Int).SetBytes(signature[:size]), new(big.Int).SetBytes(signature[size:])
		return ecdsa.Verify(key, digest, r, s)
	}
	return false
}
