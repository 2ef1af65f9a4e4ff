package main

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"fmt"
	"net"
	"net/http"
	"slices"
	"strings"
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

// rawCheck is what one signature check takes by itself, in microseconds: the
// median of many.
func (i *issuer) rawCheck() float64 {
	digest := sha256.Sum256([]byte("x"))
	r, s, _ := ecdsa.Sign(rand.Reader, i.key, digest[:])
	var took []float64
	for range 2000 {
		began := time.Now()
		ecdsa.Verify(&i.key.PublicKey, digest[:], r, s)
		took = append(took, float64(time.Since(began).Nanoseconds())/1000)
	}
	slices.Sort(took)
	return took[len(took)/2]
}

func tokenRequests(p *process, tokens []string) [][]byte {
	out := make([][]byte, len(tokens))
	for i, t := range tokens {
		out[i] = []byte("GET /v1/orders?page=2 HTTP/1.1\r\nHost: " + p.addr + "\r\nUser-Agent: load\r\nAccept: */*\r\nAuthorization: Bearer " + t + "\r\n\r\n")
	}
	return out
}

// measureTokens compares JWTs with plain Caddy and with keys. base is plain
// Caddy, gw takes keys.
func (b *bench) measureTokens(ctx context.Context, base, gw *process, upstream string) ([]figure, error) {
	iss, err := startIssuer()
	if err != nil {
		return nil, err
	}
	defer iss.listener.Close()
	tokens, err := iss.tokens(tokenCount)
	if err != nil {
		return nil, err
	}
	block := fmt.Sprintf("issuer corp {\nurl %s\njwks %s/keys\naudience https://api.example.com\n}", iss.url, iss.url)
	cached, err := b.startWith(ctx, "jwt", upstream, "auth", "auth_redact", block)
	if err != nil {
		return nil, err
	}
	defer cached.stop()
	hit := figure{name: "JWT cached / plain", bound: 1.08, told: true}
	if err := b.duet(ctx, &hit, base, cached, tokenRequests(base, tokens), tokenRequests(cached, tokens), 200); err != nil {
		return nil, err
	}
	same := figure{name: "JWT cached / key cached", bound: 1.08, told: true}
	if err := b.duet(ctx, &same, gw, cached, keyRequests(gw, b.keys, ""), tokenRequests(cached, tokens), 200); err != nil {
		return nil, err
	}
	// A memory tier that is too small for them: each token is new every time.
	cold, err := b.startWith(ctx, "jwt-cold", upstream, "auth", "auth_redact", strings.Replace(block, "issuer", "cache {\nsize 64\n}\nissuer", 1))
	if err != nil {
		return nil, err
	}
	defer cold.stop()
	fresh := figure{name: "new JWT (ES256) / plain"}
	if err := b.duet(ctx, &fresh, base, cold, tokenRequests(base, tokens), tokenRequests(cold, tokens), 200); err != nil {
		return nil, err
	}
	raw := iss.rawCheck()
	fresh.note = fmt.Sprintf("a new JWT costs %.0f us more than a cached one; one raw signature check %.0f us: %.0f us above it", middle(fresh.micros)-middle(hit.micros), raw, middle(fresh.micros)-middle(hit.micros)-raw)
	return []figure{hit, same, fresh}, nil
}

func middle(values []float64) float64 {
	sorted := slices.Sorted(slices.Values(values))
	return sorted[len(sorted)/2]
}
