package oauth

import (
	"context"
	"net/netip"
	"net/url"
	"strings"
	"time"

	"github.com/caddy-auth/caddy-auth/internal/auth"
	"github.com/caddy-auth/caddy-auth/internal/limit"
	"github.com/caddy-auth/caddy-auth/internal/secret"
)

// Credentials verifies what requests come with.
type Credentials interface {
	// VerifyKey verifies a key, or a token of our own.
	VerifyKey(ctx context.Context, text string, now time.Time) auth.Verdict
	// VerifySecret verifies a client's secret.
	VerifySecret(ctx context.Context, text string, now time.Time) auth.Verdict
	// FindClient returns the verdict on a client that has not proved to be it.
	FindClient(ctx context.Context, id string, now time.Time) auth.Verdict
	// Minter is nil until the store's secrets are known.
	Minter() *secret.Minter
}

// Tokens writes and ends tokens.
type Tokens interface {
	Issue(ctx context.Context, i *Issue) error
	// UseAssertion marks a client assertion as used: auth.ErrConflict, if it was.
	UseAssertion(ctx context.Context, i *Issue) error
	// Find returns a token, or nil if it is not there.
	Find(ctx context.Context, fp auth.Fingerprint) (*auth.AccessToken, error)
	// Revoke ends a token. When it returns nil, this gateway takes it no more.
	Revoke(ctx context.Context, fp auth.Fingerprint, id, client string) error
}

// Config is what an operator chooses.
type Config struct {
	Issuer           string        // RFC 8414, 2; empty: no private_key_jwt and no metadata
	Lifetime         time.Duration // of tokens, default auth.DefaultTokenLifetime
	Exchange         bool          // take keys for tokens
	ExchangeLifetime time.Duration // default DefaultExchangeLifetime
	Prefix           string        // of tokens
	// MaxTokens is how many living tokens a client, or a key that tokens are
	// exchanged for, may have. Default DefaultMaxTokens.
	MaxTokens int
}

// DefaultMaxTokens lets a client that fetches a token for every call find out, and
// leaves one that keeps its tokens alone.
const DefaultMaxTokens = 1000

// DefaultExchangeLifetime is how long tokens live that keys were exchanged for.
const DefaultExchangeLifetime = 5 * time.Minute

// Failed attempts to be a client are counted for an address with a client, who
// is there or not. Beyond the rate the answer is to wait. What may still be good
// is looked at all the same: who is at a client's address can't shut it out.
var pairRate = limit.Rate{Every: time.Second, Burst: 60}

// gateTime is how long an assertion of who failed too often waits for the one
// signature that is checked at a time then.
const gateTime = time.Second

const mostThrottled = 20_000

// Failures counts failed attempts. It survives configurations.
type Failures struct {
	pairs *limit.Local[pair]
	gate  chan struct{}
	full  fullHolders
}

type pair struct {
	address netip.Addr
	client  [16]byte
}

// NewFailures returns an empty count.
func NewFailures() *Failures {
	return &Failures{pairs: limit.NewLocal[pair](pairRate, mostThrottled), gate: make(chan struct{}, 1)}
}

// Server answers the requests of one configuration. It is safe for concurrent
// use.
type Server struct {
	cfg         Config
	credentials Credentials
	tokens      Tokens
	failures    *Failures
	now         func() time.Time
	checked     func() // a signature was; for tests
}

// New returns a server. A nil now is time.Now.
func New(cfg Config, credentials Credentials, tokens Tokens, failures *Failures, now func() time.Time) *Server {
	if cfg.Lifetime == 0 {
		cfg.Lifetime = auth.DefaultTokenLifetime
	}
	if cfg.ExchangeLifetime == 0 {
		cfg.ExchangeLifetime = DefaultExchangeLifetime
	}
	if cfg.MaxTokens == 0 {
		cfg.MaxTokens = DefaultMaxTokens
	}
	if now == nil {
		now = time.Now
	}
	return &Server{cfg: cfg, credentials: credentials, tokens: tokens, failures: failures, now: now, checked: func() {}}
}

// Caller is what is known of who sent a request.
type Caller struct {
	Address netip.Addr // invalid: not known
	// URLs of the endpoint that was asked and of the token endpoint, as metadata
	// says them: what assertions may be for, beside the issuer.
	Endpoints []string
	// Resources are what tokens of this gateway are for, as clients call it.
	Resources []string
}

// throttle is one address, and who it says it is.
type throttle struct {
	s    *Server
	pair pair
}

func (s *Server) throttleOf(c Caller, clientID string) throttle {
	fp := auth.FingerprintOf(clientID)
	return throttle{s, pair{auth.ClientPrefix(c.Address), [16]byte(fp[:16])}}
}

// failure is the answer to who failed: to wait, if that was too often.
func (t throttle) failure(f *Failure, now time.Time) *Failure {
	if wait := t.s.failures.pairs.Left(t.pair, now); wait > 0 {
		return tooMany(wait)
	}
	t.s.failures.pairs.Add(t.pair, now)
	return f
}

// enter lets one request at a time through of those that failed too often, each
// for a while. leave is nil if it is not its turn.
func (t throttle) enter(ctx context.Context, now time.Time) (leave func(), failure *Failure) {
	wait := t.s.failures.pairs.Left(t.pair, now)
	if wait == 0 {
		return func() {}, nil
	}
	timer := time.NewTimer(gateTime)
	defer timer.Stop()
	select {
	case t.s.failures.gate <- struct{}{}:
		return func() { <-t.s.failures.gate }, nil
	case <-timer.C:
	case <-ctx.Done():
	}
	return nil, tooMany(wait)
}

// CheckIssuer says what is wrong with an issuer (RFC 8414, 2): https, or http on
// loopback, without query and fragment.
func CheckIssuer(issuer string) error {
	u, err := url.Parse(issuer)
	switch {
	case err != nil || u.Host == "" || u.Scheme != "https" && u.Scheme != "http" || u.Opaque != "":
		return auth.Invalidf("issuer %q: want an https URL", issuer)
	case u.User != nil || u.RawQuery != "" || u.ForceQuery || u.Fragment != "" || strings.Contains(issuer, "#"):
		return auth.Invalidf("issuer: a URL without user, query and fragment")
	case strings.HasSuffix(u.Path, "/"):
		return auth.Invalidf("issuer %s: a URL that does not end in a slash: clients compare it byte for byte", issuer)
	case u.Scheme == "http" && !loopback(u.Hostname()):
		return auth.Invalidf("issuer %s: want https: clients send their secrets there", issuer)
	}
	return nil
}

func loopback(host string) bool {
	if host == "localhost" {
		return true
	}
	a, err := netip.ParseAddr(host)
	return err == nil && a.IsLoopback()
}
