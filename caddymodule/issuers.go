package caddymodule

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/caddyserver/caddy/v2"
	"go.uber.org/zap"

	"github.com/caddy-auth/caddy-auth/internal/auth"
	"github.com/caddy-auth/caddy-auth/internal/fetch"
	"github.com/caddy-auth/caddy-auth/internal/introspect"
	"github.com/caddy-auth/caddy-auth/internal/jwks"
	"github.com/caddy-auth/caddy-auth/internal/verifier"
)

// IssuerConfig says which JWTs of another issuer are taken. A token must be
// signed with a key that the issuer publishes, be for one of the audiences, and
// say when it was issued and when it expires.
type IssuerConfig struct {
	// The issuer, exactly as tokens have it in iss. Its keys are found by
	// OpenID Connect Discovery or RFC 8414, unless jwks is given.
	URL string `json:"url,omitempty"`
	// Where the issuer's keys are. Without url, the iss of tokens must be a
	// parent of this URL, such as its host.
	JWKS string `json:"jwks,omitempty"`
	// Values of aud, one of which a token must have. Required.
	Audiences []string `json:"audiences,omitempty"`
	// The claim that says whom a token is for, where it is not aud.
	AudienceClaim string `json:"audience_claim,omitempty"`
	// Signature algorithms. Default: RS256 PS256 ES256 ES384 EdDSA.
	Algorithms []string `json:"algorithms,omitempty"`
	// The typ that tokens must have, such as at+jwt (RFC 9068). Default: none,
	// JWT or at+jwt.
	TokenType string `json:"token_type,omitempty"`
	// How far the issuer's clock may be off. Default: 1m, at most 5m.
	Leeway caddy.Duration `json:"leeway,omitempty"`
	// Tokens that live longer are refused. Default: 24h, at most 720h.
	MaxTokenLifetime caddy.Duration `json:"max_token_lifetime,omitempty"`
	// How long the last keys are used while the issuer can't be asked.
	// Default: 24h.
	KeysKept caddy.Duration `json:"keys_kept,omitempty"`

	ClaimConfig
}

// IntrospectionConfig says which server is asked about tokens that are neither
// ours nor JWTs of an issuer (RFC 7662).
type IntrospectionConfig struct {
	// The server's introspection endpoint. Required.
	URL string `json:"url,omitempty"`
	// As whom to ask. Use a placeholder such as {env.X} or {file.X} for the
	// secret: what stands here is shown by the admin API.
	ClientID     string `json:"client_id,omitempty"`
	ClientSecret string `json:"client_secret,omitempty"`
	// How to say so: "basic" (the default) or "post".
	ClientAuth string `json:"client_auth,omitempty"`
	// Values of aud, one of which an answer must have. Default: any.
	Audiences []string `json:"audiences,omitempty"`
	// How long an answer is kept, which is how late the end of a token may be
	// noticed. Default: 1m, at most 1h.
	TTL caddy.Duration `json:"ttl,omitempty"`
	// How often the server is asked in a second at most. Default: 50.
	Rate int `json:"rate,omitempty"`
	// How long it may take to answer. Default: 2s.
	Timeout caddy.Duration `json:"timeout,omitempty"`

	ClaimConfig
}

// ClaimConfig says how what a token or an answer claims becomes an identity.
type ClaimConfig struct {
	// The claim that names the subject. Default: sub. A path through objects is
	// written with dots.
	SubjectClaim string `json:"subject_claim,omitempty"`
	// "prefixed" (the default): subjects have the issuer's name and a colon in
	// front. "raw": they have not; then two issuers may name two people alike.
	SubjectFormat string `json:"subject_format,omitempty"`
	// The claim that has the scopes, as a string or an array. Default: scope,
	// else scp.
	ScopeClaim string `json:"scope_claim,omitempty"`
	// The environment of the identities. Default: live.
	Environment string `json:"environment,omitempty"`
	// Claims that must be there, with one of the values if there are any.
	RequiredClaims map[string][]string `json:"required_claims,omitempty"`
	// Claims that are kept as metadata, for identity_headers' map and
	// auth_require meta.
	MetaClaims []string `json:"meta_claims,omitempty"`
}

// rules are the claims' rules. A raw subject must not look like another
// issuer's.
func (c *ClaimConfig) rules(a *App) (verifier.ClaimRules, error) {
	r := verifier.ClaimRules{
		SubjectClaim: c.SubjectClaim, RawSubject: c.SubjectFormat == "raw", ScopeClaim: c.ScopeClaim,
		Environment: c.Environment, MetaClaims: c.MetaClaims,
	}
	if r.RawSubject {
		r.Reserved = slices.Sorted(maps.Keys(a.Issuers))
		r.Reserved = append(r.Reserved, slices.Sorted(maps.Keys(a.Introspection))...)
		r.Reserved = append(r.Reserved, slices.Sorted(maps.Keys(a.Login))...)
	}
	for _, name := range slices.Sorted(maps.Keys(c.RequiredClaims)) {
		values, err := expandedAll(c.RequiredClaims[name])
		if err != nil {
			return r, wrapIf("required_claims "+name, err)
		}
		r.Required = append(r.Required, verifier.Claim{Name: name, Values: values})
	}
	return r, oneOf("subject_format", c.SubjectFormat, "", "prefixed", "raw")
}

// expanded replaces placeholders; unknown and empty ones are errors.
func expanded(text string) (string, error) { return caddy.NewReplacer().ReplaceOrErr(text, true, true) }

func expandedAll(texts []string) ([]string, error) {
	var out []string
	for _, text := range texts {
		value, err := expanded(text)
		if err != nil {
			return nil, err
		}
		out = append(out, value)
	}
	return out, nil
}

// What survives reloads: key sets by what they are fetched from, introspection
// servers by how they are asked, so that neither keys nor the rate begin anew.
var (
	keySets = caddy.NewUsagePool()
	servers = caddy.NewUsagePool()
)

type pooledKeys struct {
	*jwks.Set
	client *fetch.Client
}

func (p pooledKeys) Destruct() error {
	p.Stop()
	p.client.Close()
	return nil
}

type pooledServer struct{ *introspect.Server }

func (p pooledServer) Destruct() error {
	p.Close()
	return nil
}

// issuers are the app's issuers, compiled, and what they hold in the pools.
type issuers struct {
	jwt     []*verifier.Issuer
	opaque  map[string]*verifier.Introspector
	sets    map[string]pooledKeys
	servers map[string]pooledServer

	started     bool
	heldSets    []jwks.Config
	heldServers []serverKey
}

// serverKey is everything that makes two introspection servers different.
type serverKey struct {
	url, id string
	secret  [32]byte
	post    bool
	rate    int
	timeout time.Duration
}

const (
	keysTimeout = 5 * time.Second
	keysConns   = 2
)

// provisionIssuers compiles the issuers. It opens no connection.
func (a *App) provisionIssuers() error {
	a.issuers = &issuers{opaque: map[string]*verifier.Introspector{}, sets: map[string]pooledKeys{}, servers: map[string]pooledServer{}}
	var errs []error
	for _, name := range slices.Sorted(maps.Keys(a.Issuers)) {
		errs = append(errs, wrapIf("issuer "+name, a.provisionIssuer(name, a.Issuers[name])))
	}
	for _, name := range slices.Sorted(maps.Keys(a.Introspection)) {
		err := a.provisionIntrospection(name, a.Introspection[name])
		if _, twice := a.Issuers[name]; twice {
			err = errors.Join(err, errors.New("an issuer has that name too: subjects could not be told apart"))
		}
		errs = append(errs, wrapIf("introspection "+name, err))
	}
	if err := errors.Join(errs...); err != nil {
		return hinted(err)
	}
	_, err := verifier.NewTokens(a.issuers.jwt, nil)
	return hintedIf(err)
}

func hintedIf(err error) error {
	if err == nil {
		return nil
	}
	return hinted(err)
}

func (a *App) provisionIssuer(name string, c *IssuerConfig) error {
	if c == nil {
		return errors.New("no configuration")
	}
	claims, err := c.rules(a)
	if err := errors.Join(err, notClient(name)); err != nil {
		return err
	}
	for _, text := range []*string{&c.URL, &c.JWKS} {
		if *text, err = expanded(*text); err != nil {
			return err
		}
	}
	audiences, err := expandedAll(c.Audiences)
	if err != nil {
		return wrapIf("audience", err)
	}
	rules := verifier.IssuerRules{
		Name: name, URL: c.URL, KeysURL: c.JWKS, Audiences: audiences, AudienceClaim: c.AudienceClaim, Algorithms: c.Algorithms, TokenType: c.TokenType,
		Leeway: time.Duration(c.Leeway), MaxTokenLifetime: time.Duration(c.MaxTokenLifetime), Identity: claims,
	}
	if _, err := verifier.NewIssuer(rules, nil); err != nil {
		return err
	}
	key := jwks.Config{Issuer: c.URL, KeysURL: c.JWKS, Kept: time.Duration(c.KeysKept)}
	v, _, err := keySets.LoadOrNew(key, func() (caddy.Destructor, error) {
		client := fetch.New(keysTimeout, keysConns)
		return pooledKeys{jwks.New(key, client), client}, nil
	})
	if err != nil {
		return err
	}
	set := v.(pooledKeys)
	a.issuers.heldSets, a.issuers.sets[name] = append(a.issuers.heldSets, key), set
	compiled, err := verifier.NewIssuer(rules, set)
	a.issuers.jwt = append(a.issuers.jwt, compiled)
	return err
}

func (a *App) provisionIntrospection(name string, c *IntrospectionConfig) error {
	if c == nil {
		return errors.New("no configuration")
	}
	claims, err := c.rules(a)
	if err := errors.Join(err, notClient(name)); err != nil {
		return err
	}
	if len(c.Audiences) == 0 && a.log != nil {
		a.log.Warn("introspection without an audience: tokens that its server made for other services are good here", zap.String("issuer", name))
	}
	texts := [3]string{c.URL, c.ClientID, c.ClientSecret}
	for i := range texts {
		if texts[i], err = expanded(texts[i]); err != nil {
			return err
		}
	}
	audiences, err := expandedAll(c.Audiences)
	if err != nil {
		return wrapIf("audience", err)
	}
	if err := errors.Join(
		wrapIf("url", fetch.CheckURL(texts[0])), oneOf("client_auth", c.ClientAuth, "", "basic", "post"),
	); err != nil {
		return err
	}
	if texts[1] == "" {
		return errors.New("no client_id: servers answer only whom they know")
	}
	if c.Rate < 0 || c.Rate > introspect.MaxRate || c.Timeout < 0 {
		return fmt.Errorf("rate: want 1 to %d; timeout can't be negative", introspect.MaxRate)
	}
	secret := auth.NewSecret(texts[2])
	conf := introspect.Config{URL: texts[0], ClientID: texts[1], ClientSecret: secret, Post: c.ClientAuth == "post", Rate: c.Rate, Timeout: time.Duration(c.Timeout)}
	key := serverKey{conf.URL, conf.ClientID, auth.FingerprintOf(secret.Reveal()), conf.Post, conf.Rate, conf.Timeout}
	v, _, err := servers.LoadOrNew(key, func() (caddy.Destructor, error) {
		return pooledServer{introspect.New(conf)}, nil
	})
	if err != nil {
		return err
	}
	a.issuers.heldServers = append(a.issuers.heldServers, key)
	a.issuers.servers[name] = v.(pooledServer)
	a.issuers.opaque[name], err = verifier.NewIntrospector(verifier.IntrospectionRules{
		Name: name, URL: conf.URL, ClientID: conf.ClientID, Audiences: audiences, TTL: time.Duration(c.TTL), Identity: claims,
	}, v.(pooledServer))
	return err
}

// start begins to fetch keys.
func (s *issuers) start() {
	s.started = true
	issuersUp.add(s.names(), 1)
	for name, server := range s.servers {
		server.SetEvents(introspectionEvents(name))
	}
	for name, set := range s.sets {
		if _, ok := set.Age(); ok {
			metrics.issuerUp.WithLabelValues(name).Set(1)
		}
		set.SetEvents(keyEvents(name))
		set.Start()
	}
}

// release gives back what the pools hold.
func (s *issuers) release() error {
	var errs []error
	if s.started {
		s.started = false
		issuersUp.add(s.names(), -1)
	}
	for _, key := range s.heldSets {
		_, err := keySets.Delete(key)
		errs = append(errs, err)
	}
	for _, key := range s.heldServers {
		_, err := servers.Delete(key)
		errs = append(errs, err)
	}
	s.heldSets, s.heldServers = nil, nil
	return errors.Join(errs...)
}

// tokens are those that a site takes: JWTs of every issuer, since whose may
// pass is judged on the identity, and opaque ones of the introspector that it
// names, or of the only one there is.
func (s *issuers) tokens(names []string) (*verifier.Tokens, error) {
	var mine []string
	for _, name := range names {
		_, isJWT := s.sets[name]
		if _, opaque := s.opaque[name]; opaque {
			mine = append(mine, name)
		} else if !isJWT {
			return nil, fmt.Errorf("%w%s", unknownName("issuer", name, s.names()), lineOf("issuers", name))
		}
	}
	if len(names) == 0 {
		mine = slices.Sorted(maps.Keys(s.opaque))
	}
	if len(mine) > 1 {
		return nil, fmt.Errorf("an opaque token does not say who issued it, and may be of %q: name one of them with issuers", mine)
	}
	var introspector *verifier.Introspector
	if len(mine) == 1 {
		introspector = s.opaque[mine[0]]
	}
	if len(s.jwt) == 0 && introspector == nil {
		return nil, nil
	}
	return verifier.NewTokens(s.jwt, introspector)
}

// names lists every issuer and introspection server.
func (s *issuers) names() []string {
	return slices.Sorted(func(yield func(string) bool) {
		for name := range s.sets {
			if !yield(name) {
				return
			}
		}
		for name := range s.opaque {
			if !yield(name) {
				return
			}
		}
	})
}

// issuersUp counts the configurations that run and have an issuer of a name: a
// gauge goes with the last of them.
var issuersUp = nameCount{n: map[string]int{}}

type nameCount struct {
	mu sync.Mutex
	n  map[string]int
}

func (c *nameCount) add(names []string, by int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, name := range names {
		if c.n[name] += by; c.n[name] <= 0 {
			delete(c.n, name)
			metrics.issuerUp.DeleteLabelValues(name)
		}
	}
}

// keyEvents log where the process logs now: the set may outlive the
// configuration that named it.
func keyEvents(name string) jwks.Events {
	log := func() *zap.Logger { return caddy.Log().Named("auth") }
	return jwks.Events{
		Fetched: func(keys int, skipped []string) {
			metrics.issuerUp.WithLabelValues(name).Set(1)
			if len(skipped) > 0 {
				log().Debug("some keys of an issuer are not used", zap.String("issuer", name), zap.Int("used", keys), zap.Strings("skipped", skipped))
			}
		},
		Failed: func(err error) {
			metrics.issuerUp.WithLabelValues(name).Set(0)
			log().Error("the keys of an issuer can't be fetched; the last ones are used as long as keys_kept says, then its tokens get 503",
				zap.String("issuer", name), zap.Error(err))
		},
	}
}

func introspectionEvents(name string) introspect.Events {
	var last atomic.Int64
	return introspect.Events{
		Answered: func() { metrics.issuerUp.WithLabelValues(name).Set(1) },
		Failed: func(err error) {
			metrics.issuerUp.WithLabelValues(name).Set(0)
			if !lately(&last) {
				return
			}
			caddy.Log().Named("auth").Error("introspection failed; tokens that are not cached get 503", zap.String("issuer", name), zap.Error(hinted(err)))
		},
	}
}
