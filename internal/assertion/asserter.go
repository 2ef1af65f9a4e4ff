package assertion

import (
	"crypto/rand"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/caddy-auth/caddy-auth/internal/auth"
)

const (
	// DefaultTTL is how long an assertion is good, MostTTL the longest it may be.
	DefaultTTL = time.Minute
	MostTTL    = 5 * time.Minute
	leastTTL   = 2 * time.Second
	// early is how far before now an assertion begins: clocks differ.
	early = 5 * time.Second
)

// Algorithms are what assertions can be signed with; the first is the default.
func Algorithms() []string { return []string{"EdDSA", "ES256"} }

// Rules say for whom assertions are and how long they are good.
type Rules struct {
	Issuer    string // iss
	Audience  string // aud
	TTL       time.Duration
	Algorithm string
}

// claims are what an assertion says. Its names are those of RFC 7519, RFC 8693
// (client_id, scope) and RFC 9449 (htm); what none of them names is our own.
type claims struct {
	Issuer       string              `json:"iss"`
	Subject      string              `json:"sub"`
	Audience     string              `json:"aud"`
	Expires      int64               `json:"exp"`
	NotBefore    int64               `json:"nbf"`
	IssuedAt     int64               `json:"iat"`
	ID           string              `json:"jti"`
	Method       string              `json:"htm"`
	Path         string              `json:"path"`
	AuthMethod   auth.Method         `json:"auth_method"`
	CredentialID string              `json:"credential_id,omitempty"`
	Scope        string              `json:"scope,omitempty"`
	Environment  string              `json:"environment,omitempty"`
	ClientID     string              `json:"client_id,omitempty"`
	AuthIssuer   string              `json:"auth_issuer,omitempty"`
	Meta         map[string][]string `json:"meta,omitempty"`
}

// Asserter makes the assertions of one configuration. Requests that change
// nothing share one for up to half its life, if they are alike: the same
// credential and identity, method and path. Others get one each, so that an
// upstream can take a jti once. It is safe for concurrent use.
type Asserter struct {
	rules  Rules
	shards [shardCount]shard
}

const (
	shardCount = 64
	// perShard and maxSharedPath bound what is kept: 16384 assertions of some
	// hundred bytes, and their paths.
	perShard      = 256
	maxSharedPath = 512
)

type shard struct {
	mu   sync.Mutex // guards made
	made map[likeness]made
}

// likeness is what requests have in common that share an assertion.
type likeness struct {
	fp           auth.Fingerprint
	method, path string
}

type made struct {
	identity auth.Identity
	key      *key
	text     string
	until    time.Time
}

// NewAsserter compiles rules. All that is wrong with them is in the error.
func NewAsserter(r Rules) (*Asserter, error) {
	if r.TTL == 0 {
		r.TTL = DefaultTTL
	}
	if r.Algorithm == "" {
		r.Algorithm = Algorithms()[0]
	}
	switch {
	case r.Audience == "":
		return nil, auth.WithHint(auth.Invalidf("assertion without an audience"), "name the upstream: audience orders")
	case r.TTL < leastTTL || r.TTL > MostTTL:
		return nil, auth.Invalidf("assertion ttl %s: want %s to %s", r.TTL, leastTTL, MostTTL)
	case !slices.Contains(Algorithms(), r.Algorithm):
		return nil, auth.Invalidf("assertion algorithm %q: want one of %v", r.Algorithm, Algorithms())
	}
	a := &Asserter{rules: r}
	for i := range a.shards {
		a.shards[i].made = map[likeness]made{}
	}
	return a, nil
}

// Algorithm is what the assertions are signed with.
func (a *Asserter) Algorithm() string { return a.rules.Algorithm }

// Audience is whom the assertions are for.
func (a *Asserter) Audience() string { return a.rules.Audience }

// Assert returns an assertion for a request of an identity, whose credential
// has a fingerprint. path is what the upstream sees of the target before "?".
// Without a key to sign with it is auth.ErrUnavailable.
func (a *Asserter) Assert(s *Signer, fp auth.Fingerprint, id *auth.Identity, method, path string, now time.Time) (string, error) {
	var k *key
	if s != nil {
		k = s.current(a.rules.Algorithm, now)
	}
	if k == nil {
		return "", fmt.Errorf("there is no key to sign assertions with: %w", auth.ErrUnavailable)
	}
	shared := (method == http.MethodGet || method == http.MethodHead) && len(path) <= maxSharedPath
	if !shared {
		return a.make(s, k, id, method, path, now)
	}
	like := likeness{fp, method, path}
	sh := &a.shards[fp[0]%shardCount]
	sh.mu.Lock()
	old, ok := sh.made[like]
	sh.mu.Unlock()
	if ok && old.key == k && now.Before(old.until) && now.After(old.until.Add(-a.rules.TTL)) && old.identity == *id {
		return old.text, nil
	}
	text, err := a.make(s, k, id, method, path, now)
	if err != nil {
		return "", err
	}
	sh.mu.Lock()
	defer sh.mu.Unlock()
	if _, ok := sh.made[like]; !ok && len(sh.made) >= perShard {
		sh.makeRoom(now)
	}
	sh.made[like] = made{*id, k, text, now.Add(a.rules.TTL / 2)}
	return text, nil
}

// makeRoom forgets what nobody uses any more; if there is none, any.
func (sh *shard) makeRoom(now time.Time) {
	for like, m := range sh.made {
		if !now.Before(m.until) {
			delete(sh.made, like)
		}
	}
	for like := range sh.made {
		if len(sh.made) < perShard {
			return
		}
		delete(sh.made, like)
	}
}

func (a *Asserter) make(s *Signer, k *key, id *auth.Identity, method, path string, now time.Time) (string, error) {
	var random [16]byte
	if _, err := rand.Read(random[:]); err != nil {
		return "", fmt.Errorf("reading random bytes: %w", err)
	}
	c := claims{
		Issuer: a.rules.Issuer, Subject: id.Subject, Audience: a.rules.Audience,
		Expires: now.Add(a.rules.TTL).Unix(), NotBefore: now.Add(-early).Unix(), IssuedAt: now.Unix(),
		ID: base64.RawURLEncoding.EncodeToString(random[:]), Method: method, Path: path,
		AuthMethod: id.Method, CredentialID: id.CredentialID, Scope: id.Scopes, Environment: id.Environment, ClientID: id.ClientID, AuthIssuer: id.Issuer,
	}
	for name := range auth.DecodeMeta(id.Meta) {
		if strings.HasPrefix(name, ":") { // the gateway's own
			continue
		}
		if c.Meta == nil {
			c.Meta = map[string][]string{}
		}
		c.Meta[name] = id.MetaValues(name)
	}
	text, err := json.Marshal(c)
	if err != nil {
		return "", fmt.Errorf("writing an assertion: %w", err)
	}
	return s.sign(k, text)
}
