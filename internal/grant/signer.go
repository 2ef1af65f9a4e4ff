package grant

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"math/big"
	"strings"
	"time"

	"github.com/caddy-auth/caddy-auth/internal/auth"
	"github.com/caddy-auth/caddy-auth/internal/strictjson"
)

// assertionLife is how long a client assertion is good: for one request.
const assertionLife = time.Minute

// KeyConfig says how a private key signs.
type KeyConfig struct {
	// ID is the kid. Default: the JWK's own; none for PEM.
	ID string
	// Algorithm is one of RS256, PS256, ES256, ES384 and EdDSA. Default: the
	// JWK's own, else by the type of key; RS256 for RSA.
	Algorithm string
	// Audience is the aud of assertions. Default: the token URL.
	Audience string
}

// signingKey is a private key and how it signs.
type signingKey struct {
	id, algorithm string
	private       crypto.Signer
}

// assertion proves who we are (RFC 7523, 3).
func (e *Endpoint) assertion(secret auth.Secret, now time.Time) (string, error) {
	k, err := parseSigningKey(secret.Reveal(), e.cfg.Key)
	if err != nil {
		return "", err
	}
	audience := e.cfg.Key.Audience
	if audience == "" {
		audience = e.cfg.TokenURL
	}
	claims, err := json.Marshal(map[string]any{
		"iss": e.cfg.ClientID, "sub": e.cfg.ClientID, "aud": audience, "jti": rand.Text(),
		"iat": now.Unix(), "exp": now.Add(assertionLife).Unix(),
	})
	if err != nil {
		return "", fmt.Errorf("writing an assertion: %w", err)
	}
	header := map[string]string{"alg": k.algorithm, "typ": "JWT"}
	if k.id != "" {
		header["kid"] = k.id
	}
	head, err := json.Marshal(header)
	if err != nil {
		return "", fmt.Errorf("writing an assertion: %w", err)
	}
	b64 := base64.RawURLEncoding.EncodeToString
	text := b64(head) + "." + b64(claims)
	signature, err := k.sign([]byte(text))
	if err != nil {
		return "", fmt.Errorf("signing an assertion: %w", err)
	}
	return text + "." + b64(signature), nil
}

func (k *signingKey) sign(text []byte) ([]byte, error) {
	switch k.algorithm {
	case "EdDSA":
		return k.private.Sign(nil, text, crypto.Hash(0))
	case "RS256":
		return k.private.Sign(rand.Reader, digestOf(crypto.SHA256, text), crypto.SHA256)
	case "PS256": // RFC 7518, 3.5: the salt is as long as the hash
		return k.private.Sign(rand.Reader, digestOf(crypto.SHA256, text), &rsa.PSSOptions{SaltLength: rsa.PSSSaltLengthEqualsHash, Hash: crypto.SHA256})
	}
	hash := crypto.SHA256
	if k.algorithm == "ES384" {
		hash = crypto.SHA384
	}
	private := k.private.(*ecdsa.PrivateKey) // parseSigningKey made sure
	r, s, err := ecdsa.Sign(rand.Reader, private, digestOf(hash, text))
	if err != nil {
		return nil, err
	}
	size := (private.Curve.Params().N.BitLen() + 7) / 8 // RFC 7518, 3.4
	out := make([]byte, 2*size)
	r.FillBytes(out[:size])
	s.FillBytes(out[size:])
	return out, nil
}

func digestOf(h crypto.Hash, text []byte) []byte {
	sum := h.New()
	sum.Write(text)
	return sum.Sum(nil)
}

// parseSigningKey reads a private key: PEM (PKCS #8, PKCS #1, SEC 1) or a JWK.
// Errors repeat nothing of it.
func parseSigningKey(text string, c KeyConfig) (*signingKey, error) {
	k := &signingKey{id: c.ID}
	own := ""
	var err error
	if text = strings.TrimSpace(text); strings.HasPrefix(text, "{") {
		own, err = k.readJWK(text)
	} else {
		err = k.readPEM(text)
	}
	if err != nil {
		return nil, auth.WithHint(err, "make one with: openssl genpkey -algorithm EC -pkeyopt ec_paramgen_curve:P-256")
	}
	fits, err := algorithmsOf(k.private)
	if err != nil {
		return nil, err
	}
	for _, want := range []string{c.Algorithm, own, fits[0]} {
		if want == "" {
			continue
		}
		for _, name := range fits {
			if name == want {
				k.algorithm = name
				return k, nil
			}
		}
		return nil, auth.Invalidf("the private key can't sign with %s, only with %s", want, strings.Join(fits, " or "))
	}
	return k, nil
}

// Algorithms lists what assertions can be signed with.
func Algorithms() []string { return []string{"RS256", "PS256", "ES256", "ES384", "EdDSA"} }

// algorithmsOf lists what a key can sign with, the default first.
func algorithmsOf(private crypto.Signer) ([]string, error) {
	switch p := private.(type) {
	case *rsa.PrivateKey:
		if p.N.BitLen() < 2048 { // RFC 7518, 3.3
			return nil, auth.Invalidf("the private key is an RSA key of less than 2048 bits")
		}
		return []string{"RS256", "PS256"}, nil
	case ed25519.PrivateKey:
		return []string{"EdDSA"}, nil
	case *ecdsa.PrivateKey:
		switch p.Curve {
		case elliptic.P256():
			return []string{"ES256"}, nil
		case elliptic.P384():
			return []string{"ES384"}, nil
		}
	}
	return nil, auth.Invalidf("the private key is of no known type: want RSA, EC on P-256 or P-384, or Ed25519")
}

func (k *signingKey) readPEM(text string) error {
	block, _ := pem.Decode([]byte(text))
	for rest := []byte(text); block != nil && block.Type == "EC PARAMETERS"; { // as openssl ecparam writes it
		_, rest = pem.Decode(rest)
		block, _ = pem.Decode(rest)
	}
	if block == nil {
		return auth.Invalidf("want a private key in PEM, or a private JWK")
	}
	var parsed any
	var err error
	switch block.Type {
	case "PRIVATE KEY":
		parsed, err = x509.ParsePKCS8PrivateKey(block.Bytes)
	case "RSA PRIVATE KEY":
		parsed, err = x509.ParsePKCS1PrivateKey(block.Bytes)
	case "EC PRIVATE KEY":
		parsed, err = x509.ParseECPrivateKey(block.Bytes)
	default:
		return auth.Invalidf("a PEM block of another type than PRIVATE KEY; one with a password can't be used")
	}
	private, ok := parsed.(crypto.Signer)
	if err != nil || !ok {
		return auth.Invalidf("the PEM block holds no private key that can be read")
	}
	k.private = private
	return nil
}

// readJWK reads a private JWK (RFC 7517; RFC 7518, 6; RFC 8037, 2) and returns
// the algorithm that it names.
func (k *signingKey) readJWK(text string) (algorithm string, err error) {
	o, err := strictjson.Decode([]byte(text))
	if err != nil {
		return "", auth.Invalidf("the private JWK is not well-formed JSON")
	}
	if kid, ok := o.Text("kid"); ok && k.id == "" {
		k.id = kid
	}
	algorithm, _ = o.Text("alg")
	if algorithm == "Ed25519" { // RFC 9864
		algorithm = "EdDSA"
	}
	bytesOf := func(name string) []byte {
		t, _ := o.Text(name)
		b, err := base64.RawURLEncoding.DecodeString(t)
		if err != nil {
			return nil
		}
		return b
	}
	kind, _ := o.Text("kty")
	curve, _ := o.Text("crv")
	switch kind + " " + curve {
	case "OKP Ed25519":
		if seed := bytesOf("d"); len(seed) == ed25519.SeedSize {
			k.private = ed25519.NewKeyFromSeed(seed)
		}
	case "EC P-256", "EC P-384":
		c := elliptic.P256()
		if curve == "P-384" {
			c = elliptic.P384()
		}
		if private, err := ecdsa.ParseRawPrivateKey(c, bytesOf("d")); err == nil {
			k.private = private
		}
	case "RSA ":
		k.private = rsaOf(bytesOf)
	}
	if k.private == nil {
		return "", auth.Invalidf("the JWK is no private key that can be used: want kty RSA, EC or OKP, and its private parts")
	}
	return algorithm, nil
}

func rsaOf(bytesOf func(string) []byte) crypto.Signer {
	number := func(name string) *big.Int { return new(big.Int).SetBytes(bytesOf(name)) }
	e := number("e")
	if !e.IsInt64() || e.Int64() < 3 || e.Int64() > 1<<31-1 {
		return nil
	}
	p := &rsa.PrivateKey{PublicKey: rsa.PublicKey{N: number("n"), E: int(e.Int64())}, D: number("d"), Primes: []*big.Int{number("p"), number("q")}}
	if p.N.BitLen() > 16384 || p.Validate() != nil {
		return nil
	}
	p.Precompute()
	return p
}
