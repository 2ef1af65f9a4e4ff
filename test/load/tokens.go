package main

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"fmt"
	"net"
	"net/http"
	"time"
)

// tokenCount is how many tokens are sent in turn.
const tokenCount = 10_000

// issuer signs tokens with one ES256 key and publishes it.
type issuer struct {
	listener net.Listener
	url      string
	key      *ecdsa.PrivateKey
}

func b64(b []byte) string { return base64.RawURLEncoding.EncodeToString(b) }

func startIssuer() (*issuer, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	point, err := key.PublicKey.Bytes()
	if err != nil {
		return nil, err
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	set := fmt.Sprintf(`{"keys":[{"kty":"EC","crv":"P-256","kid":"k","alg":"ES256","use":"sig","x":%q,"y":%q}]}`, b64(point[1:33]), b64(point[33:]))
	go func() {
		_ = http.Serve(l, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Type", "application/json")
			fmt.Fprint(w, set)
		}))
	}()
	return &issuer{l, "http://" + l.Addr().String(), key}, nil
}

// tokens are of the usual length, each of another subject.
func (i *issuer) tokens(n int) ([]string, error) {
	header := b64([]byte(`{"alg":"ES256","kid":"k","typ":"at+jwt"}`))
	now := time.Now().Unix()
	out := make([]string, n)
	for k := range out {
		claims := fmt.Sprintf(`{"iss":%q,"aud":["https://api.example.com","https://other.example.com"],"sub":"auth0|5f7c8ec7c33c6c004bbafe%06d","client_id":"kX9tJ2mQvR7wZ3","jti":"0192a7b0-0000-7000-8000-%012d","iat":%d,"exp":%d,"scope":"orders:read orders:write invoices:read profile email"}`,
			i.url, k, k, now, now+3600)
		signed := header + "." + b64([]byte(claims))
		digest := sha256.Sum256([]byte(signed))
		r, s, err := ecdsa.Sign(rand.Reader, i.key, digest[:])
		if err != nil {
			return nil, err
		}
		out[k] = signed + "." + b64(append(r.FillBytes(make([]byte, 32)), s.FillBytes(make([]byte, 32))...))
	}
	return out, nil
}

// subjectOf is the identity of token k.
func subjectOf(k int) string { return fmt.Sprintf("corp:auth0|5f7c8ec7c33c6c004bbafe%06d", k) }

func tokenRequests(addr string, tokens []string) [][]byte {
	out := make([][]byte, len(tokens))
	for i, t := range tokens {
		out[i] = []byte("GET /v1/orders?page=2 HTTP/1.1\r\nHost: " + addr + "\r\nUser-Agent: load\r\nAccept: */*\r\nAuthorization: Bearer " + t + "\r\n\r\n")
	}
	return out
}

// block configures the issuer.
func (i *issuer) block() string {
	return fmt.Sprintf("issuer corp {\nurl %s\njwks %s/keys\naudience https://api.example.com\n}", i.url, i.url)
}
