package caddymodule

import (
	"cmp"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/caddyserver/caddy/v2"
	"go.uber.org/zap"

	"github.com/caddy-auth/caddy-auth/internal/auth"
	"github.com/caddy-auth/caddy-auth/internal/cache"
	"github.com/caddy-auth/caddy-auth/internal/feed"
	"github.com/caddy-auth/caddy-auth/internal/redact"
	"github.com/caddy-auth/caddy-auth/internal/redisx"
	"github.com/caddy-auth/caddy-auth/internal/secret"
	"github.com/caddy-auth/caddy-auth/internal/verifier"
)

func init() {
	caddy.RegisterModule(App{})
	caddy.RegisterModule(Handler{})
	caddy.RegisterModule(Require{})
	caddy.RegisterModule(SQLiteStore{})
	caddy.RegisterModule(PostgresStore{})
}

// Defaults of the global block.
const (
	DefaultRefusalRate = 1000

	DefaultKeyPrefix = "ca"
	DefaultKeyHeader = "X-API-Key"
)

// App holds what all sites share: the store, the caches and the defaults of
// the auth handlers. Its resources survive a reload that does not change
// them.
type App struct {
	// The store that is the truth. Default: sqlite in Caddy's data directory.
	StoreRaw json.RawMessage `json:"store,omitempty" caddy:"namespace=auth.stores inline_key=driver"`

	// The key that wraps every secret the store holds: 32 bytes in base64 or
	// hex. Use a placeholder such as {env.X} or {file.X}: what stands here is
	// shown by the admin API. Default for sqlite: a generated file beside the
	// database, mode 0600; for postgres: none, with a warning.
	MasterKey string `json:"master_key,omitempty"`

	// Master keys that what is in the store may still be sealed under, until
	// `caddy-auth store rotate-secrets` has run with the new one.
	OlderMasterKeys []string `json:"older_master_keys,omitempty"`

	// The tier that gateways share. Default: none.
	Redis *RedisConfig `json:"redis,omitempty"`

	// The memory tier.
	Cache *CacheConfig `json:"cache,omitempty"`

	// How often the journal of changes is read. Default: 1s.
	PollInterval caddy.Duration `json:"poll_interval,omitempty"`

	// The longest time cached verdicts are trusted without a successful look
	// at the journal. Default: 2m.
	MaxStaleness caddy.Duration `json:"max_staleness,omitempty"`

	// The first part of keys issued from now on. Every prefix ever issued
	// stays valid. Default: ca.
	KeyPrefix string `json:"key_prefix,omitempty"`

	// The headers that carry an API key. Default: X-API-Key.
	KeyHeaders []string `json:"key_headers,omitempty"`

	// Issuers whose JWTs are taken as bearer tokens, by a name of our own.
	Issuers map[string]*IssuerConfig `json:"issuers,omitempty"`

	// Servers that are asked about bearer tokens which are nothing else, by a
	// name of our own.
	Introspection map[string]*IntrospectionConfig `json:"introspection,omitempty"`

	// The gateway as an authorization server, for auth_token and its siblings.
	TokenEndpoint *TokenEndpoint `json:"token_endpoint,omitempty"`

	// Credentials of the gateway's own toward upstreams, by a name for the
	// transport auth_outbound.
	Outbound map[string]*OutboundConfig `json:"outbound,omitempty"`

	// Where people log in, by a name for auth_login.
	Login map[string]*LoginConfig `json:"login,omitempty"`

	// How many refusals a second are answered at once; more wait for their turn,
	// at most half a second. Default: 1000. Negative: all.
	RefusalRate int `json:"refusal_rate,omitempty"`

	// More query parameter names to refuse, on every site.
	RefuseQuery []string `json:"refuse_query,omitempty"`

	// Query parameter names that are allowed although they look like
	// credentials, on every site.
	AllowQuery []QueryAllowance `json:"allow_query,omitempty"`

	// The identity headers upstreams see, on every site.
	IdentityHeaders *IdentityHeaders `json:"identity_headers,omitempty"`

	// Load although logs would print credentials.
	UnsafeLogs *UnsafeLogs `json:"unsafe_logs,omitempty"`

	// What to do with a live key in a URL beside refusing it: "audit" (the
	// default) writes it down, "revoke" also revokes the key.
	Leaked string `json:"leaked,omitempty"`

	// The beginning of the "type" of every problem answer.
	// Default: urn:caddy-auth:problem:
	ProblemTypes string `json:"problem_types,omitempty"`

	log      *zap.Logger
	rt       *runtime
	settings *settings
	issuers  *issuers
	outbound *ownCredentials
	signIns  *signIns

	authority *authority

	explain  *explanation // set by the command only
	poolKey  runtimeKey
	redisKey redisKey
	held     struct{ runtime, redis, started bool }
	sites    json.RawMessage // the configuration of the app http; nil: not known
	traced   bool            // a site has Caddy's tracing
	spans    *spanMasking    // nil: there are none to mask

	redirects *redirectGuard // nil: no auth was provisioned yet

	allowedInURLs []redact.Allowance // by any site
	allowedJWTs   verifier.Paths     // likewise
}

// CacheConfig sizes the memory tier.
type CacheConfig struct {
	// How many identities are kept. Default: 100000.
	Size int `json:"size,omitempty"`
	// How long an identity is kept. Default: 5m.
	TTL caddy.Duration `json:"ttl,omitempty"`
	// How many denials are kept. Default: 20000.
	NegativeSize int `json:"negative_size,omitempty"`
	// How long a denial is kept. Default: 10s.
	NegativeTTL caddy.Duration `json:"negative_ttl,omitempty"`
}

// UnsafeLogs accepts logs that print credentials.
type UnsafeLogs struct {
	// The logs by name, "default" for the global one. None: all.
	Loggers []string `json:"loggers,omitempty"`
}

// QueryAllowance lifts query names, and the JWT shape under them, on paths.
type QueryAllowance struct {
	// The parameter names.
	Names []string `json:"names,omitempty"`
	// Paths as the client sends them, exact or ending in /*. None: all.
	Paths []string `json:"paths,omitempty"`
}

// CaddyModule returns the Caddy module information.
func (App) CaddyModule() caddy.ModuleInfo {
	return caddy.ModuleInfo{ID: "auth", New: func() caddy.Module { return new(App) }}
}

// Provision checks the configuration and takes a reference to its resources.
// It opens no connection and writes no file.
func (a *App) Provision(ctx caddy.Context) error {
	a.log = ctx.Logger()
	if err := expandAll(a); err != nil {
		return err
	}
	if a.KeyPrefix == "" {
		a.KeyPrefix = DefaultKeyPrefix
	}
	if len(a.KeyHeaders) == 0 {
		a.KeyHeaders = []string{DefaultKeyHeader}
	}
	if err := a.check(); err != nil {
		return err
	}
	masker.AddHeaders(a.KeyHeaders...)
	masker.AddParams(a.RefuseQuery...)
	if err := a.checkLogs(ctx); err != nil {
		return hinted(err)
	}
	if a.explain = explaining.Load(); a.explain == nil {
		if err := a.checkSites(ctx); err != nil {
			return err
		}
	}
	if a.traced {
		var err error
		if a.spans, err = maskSpans(ctx); err != nil {
			return err
		}
	}
	if err := metrics.register(ctx.GetMetricsRegistry()); err != nil {
		return fmt.Errorf("registering metrics: %w", err)
	}
	if err := errors.Join(a.provisionIssuers(), a.provisionOutbound()); err != nil {
		return err
	}
	backend, err := a.loadStore(ctx)
	if err != nil {
		return err
	}
	masters, err := a.resolveMasterKeys()
	if err != nil {
		return err
	}
	a.warnOfOpen(backend, masters)
	if err := a.provisionSettings(); err != nil {
		return err
	}
	if a.explain != nil { // one of its own: it shares nothing with gateways
		a.rt = newRuntime(backend, masters)
		a.authority = a.newAuthority()
		return a.provisionLogins(backend, masters)
	}
	a.poolKey = storeKey(backend, masters)
	v, _, err := runtimes.LoadOrNew(a.poolKey, func() (caddy.Destructor, error) {
		return newRuntime(backend, masters), nil
	})
	if err != nil {
		return err
	}
	a.rt, a.held.runtime = v.(*runtime), true
	a.authority = a.newAuthority()
	return a.provisionLogins(backend, masters)
}

// provisionSettings collects what may change without a new runtime.
func (a *App) provisionSettings() error {
	c := a.Cache
	if c == nil {
		c = &CacheConfig{}
	}
	a.settings = &settings{
		log:         a.log,
		prefix:      a.KeyPrefix,
		limits:      cache.Limits{Size: c.Size, TTL: time.Duration(c.TTL), NegativeSize: c.NegativeSize, NegativeTTL: time.Duration(c.NegativeTTL)},
		refusalRate: max(0, cmp.Or(a.RefusalRate, DefaultRefusalRate)),
		following:   feed.Config{PollInterval: time.Duration(a.PollInterval), MaxStaleness: time.Duration(a.MaxStaleness), Memory: a.Redis.ttl()},
	}
	if a.Redis == nil {
		return nil
	}
	opts, key, err := a.Redis.options()
	if err != nil {
		return err
	}
	if opts.TLS == nil && !opts.Local() {
		a.log.Warn("redis is reached without TLS: records are sealed, but its password crosses the network in clear; use rediss://", zap.String("redis", opts.Describe()))
	}
	v, _, err := redisClients.LoadOrNew(key, func() (caddy.Destructor, error) { return pooledRedis{redisx.New(opts)}, nil })
	if err != nil {
		return err
	}
	a.redisKey, a.held.redis = key, true
	a.settings.redis = v.(pooledRedis).Client
	a.settings.redisPrefix, a.settings.redisTTL = a.Redis.prefix(), a.Redis.ttl()
	return nil
}

func (a *App) check() error {
	errs := []error{secret.CheckPrefix(a.KeyPrefix), a.TokenEndpoint.check(), oneOf("leaked", a.Leaked, "", "audit", "revoke")}
	if a.PollInterval < 0 || a.MaxStaleness < 0 {
		errs = append(errs, errors.New("poll_interval and max_staleness can't be negative"))
	}
	following := feed.Config{PollInterval: time.Duration(a.PollInterval), MaxStaleness: time.Duration(a.MaxStaleness)}.WithDefaults()
	if following.MaxStaleness < 2*following.PollInterval {
		errs = append(errs, fmt.Errorf("max_staleness %s is less than two times the poll_interval %s: requests would get 503 between two looks",
			following.MaxStaleness, following.PollInterval))
	}
	if c := a.Cache; c != nil && (c.Size < 0 || c.TTL < 0 || c.NegativeSize < 0 || c.NegativeTTL < 0) {
		errs = append(errs, errors.New("cache: sizes and times can't be negative"))
	}
	return errors.Join(errs...)
}

// resolveMasterKeys returns the configured keys, newest first.
func (a *App) resolveMasterKeys() ([]auth.Secret, error) {
	if a.MasterKey == "" {
		if len(a.OlderMasterKeys) > 0 {
			return nil, errors.New("older_master_keys without master_key")
		}
		return nil, nil
	}
	var keys []auth.Secret
	for _, text := range append([]string{a.MasterKey}, a.OlderMasterKeys...) {
		text, err := caddy.NewReplacer().ReplaceOrErr(text, true, true)
		if err != nil {
			return nil, fmt.Errorf("master_key: %w", err)
		}
		key := auth.NewSecret(text)
		if _, err := secret.ParseMasterKey(key); err != nil {
			return nil, err
		}
		keys = append(keys, key)
	}
	return keys, nil
}

// storeKey is everything that makes two stores different, and the keys that
// open them.
func storeKey(backend Backend, masters []auth.Secret) runtimeKey {
	sum := sha256.New()
	if b, ok := backend.(interface{ Identity() auth.Secret }); ok { // a password that changed makes another
		fmt.Fprintf(sum, "%q", b.Identity().Reveal())
	}
	for _, m := range masters {
		fmt.Fprintf(sum, " %q", m.Reveal())
	}
	return runtimeKey{store: backend.Describe(), secrets: [sha256.Size]byte(sum.Sum(nil))}
}

// warnOfOpen warns of what an operator should know about the store.
func (a *App) warnOfOpen(backend Backend, masters []auth.Secret) {
	if _, ok := backend.(keyKeeper); !ok && len(masters) == 0 {
		a.log.Warn("no master_key: whoever can read the database has the secrets in it, those that seal what is in Redis too; "+
			"set master_key, for example to {env.AUTH_MASTER_KEY}, then run: caddy-auth store rotate-secrets", zap.String("store", backend.Describe()))
	}
	if b, ok := backend.(interface{ Exposed() string }); ok && b.Exposed() != "" {
		a.log.Warn("the store "+b.Exposed()+"; add sslmode=verify-full", zap.String("store", backend.Describe()))
	}
}

// Start opens the store. A store that can't be understood refuses to load; one
// that can't be reached is tried again, and meanwhile requests get 503.
func (a *App) Start() error {
	a.held.started = true
	a.rt.adopt(a.settings)
	a.issuers.start()
	if err := a.rt.start(); err != nil {
		return err
	}
	a.rt.ensureAssertionKeys()
	a.outbound.start()
	a.signIns.start()
	if len(a.settings.assertions) > 0 && !a.authority.documents {
		a.log.Warn("assertions are signed, but no site has auth_wellknown: upstreams can't read the keys from this gateway")
	}
	return nil
}

// Stop does nothing: resources are given back in Cleanup.
func (a *App) Stop() error { return nil }

// Cleanup gives the resources back. Requests may still be using them; each
// ends by itself when the last one has.
func (a *App) Cleanup() error {
	errs := []error{a.spans.release()}
	a.spans = nil
	if a.signIns != nil {
		errs = append(errs, a.signIns.release())
	}
	if a.held.started {
		a.rt.abandon(a.settings)
	}
	if a.held.runtime {
		_, err := runtimes.Delete(a.poolKey)
		errs = append(errs, err)
	}
	if a.issuers != nil {
		errs = append(errs, a.issuers.release())
	}
	if a.outbound != nil {
		errs = append(errs, a.outbound.release())
	}
	if a.held.redis {
		_, err := redisClients.Delete(a.redisKey)
		errs = append(errs, err)
	}
	a.held.runtime, a.held.redis, a.held.started = false, false, false
	return errors.Join(errs...)
}

var (
	_ caddy.App          = (*App)(nil)
	_ caddy.Provisioner  = (*App)(nil)
	_ caddy.CleanerUpper = (*App)(nil)
)
