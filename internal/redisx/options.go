// Package redisx is the Redis client: one short deadline for each call, and a
// breaker that skips a server which just failed. It knows nothing of what is
// stored there.
package redisx

import (
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/url"
	"strings"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/caddy-auth/caddy-auth/internal/auth"
)

// Defaults of Options.
const (
	DefaultTimeout = 50 * time.Millisecond
	// DefaultRetry is how long a server that failed is left alone.
	DefaultRetry = time.Second
	// poolSize is more than the calls a gateway makes at once, so that none
	// waits for a connection of ours and takes that for a slow server.
	poolSize = 96
)

// Options say how to reach a server. The zero value of every field but
// Address is usable.
type Options struct {
	Network  string // "tcp" (the default) or "unix"
	Address  string // host:port, or the socket's path
	Username string
	Password auth.Secret
	DB       int
	TLS      *tls.Config   // nil: none
	Timeout  time.Duration // of a whole call, connecting included; default 50ms
	Retry    time.Duration // how long a server that failed is skipped; default 1s
}

// ParseURL reads redis://, rediss:// (TLS) and unix:// URLs:
// redis://[user[:password]@]host[:port][/db]. Its errors never contain the
// URL, which may hold a password.
func ParseURL(text string) (Options, error) {
	const want = "want redis://[user:password@]host:port/db, rediss:// for TLS, or unix:///path"
	u, err := url.Parse(text)
	if err != nil || u.Fragment != "" {
		return Options{}, auth.Invalidf("not a Redis URL: %s", want)
	}
	switch u.Scheme {
	case "redis", "rediss", "unix":
	default:
		return Options{}, auth.Invalidf("not a Redis URL: unknown scheme: %s", want)
	}
	if u.Opaque != "" {
		return Options{}, auth.Invalidf("not a Redis URL: %s", want)
	}
	if u.RawQuery != "" {
		return Options{}, auth.Invalidf("a Redis URL takes no query here: use the block's subdirectives")
	}
	parsed, err := redis.ParseURL(text)
	if err != nil {
		return Options{}, auth.Invalidf("not a Redis URL: %s", want)
	}
	o := Options{Network: parsed.Network, Address: parsed.Addr, Username: parsed.Username, DB: parsed.DB, TLS: parsed.TLSConfig}
	if parsed.Password != "" {
		o.Password = auth.NewSecret(parsed.Password)
	}
	return o, nil
}

// Describe names the server for people; it contains no password.
func (o Options) Describe() string {
	if o.Network == "unix" {
		return "redis at unix:" + o.Address
	}
	return fmt.Sprintf("redis at %s/%d", o.Address, o.DB)
}

// Local reports whether the server is on this machine.
func (o Options) Local() bool {
	if o.Network == "unix" {
		return true
	}
	host, _, err := net.SplitHostPort(o.Address)
	if err != nil {
		host = o.Address
	}
	ip := net.ParseIP(host)
	return strings.EqualFold(host, "localhost") || ip != nil && ip.IsLoopback()
}

func (o Options) withDefaults() Options {
	if o.Network == "" {
		o.Network = "tcp"
	}
	if o.Timeout <= 0 {
		o.Timeout = DefaultTimeout
	}
	if o.Retry <= 0 {
		o.Retry = DefaultRetry
	}
	return o
}

// Validate says what is wrong with the options.
func (o Options) Validate() error {
	var errs []error
	if o.Address == "" {
		errs = append(errs, auth.Invalidf("no Redis address"))
	}
	if o.DB < 0 {
		errs = append(errs, auth.Invalidf("Redis database %d: want 0 or more", o.DB))
	}
	if o.Timeout < 0 {
		errs = append(errs, auth.Invalidf("the Redis timeout can't be negative"))
	}
	return errors.Join(errs...)
}

// client returns the library's options. Every retry, queue and default
// timeout of it that is longer than ours is turned off.
func (o Options) client() *redis.Options {
	return &redis.Options{
		Network: o.Network, Addr: o.Address, Username: o.Username, Password: o.Password.Reveal(), DB: o.DB, TLSConfig: o.TLS,
		ContextTimeoutEnabled: true,
		DialTimeout:           o.Timeout, ReadTimeout: o.Timeout, WriteTimeout: o.Timeout, PoolTimeout: o.Timeout,
		MaxRetries: -1, DialerRetries: 1,
		PoolSize: poolSize, MaxConcurrentDials: poolSize, PipelinePoolSize: -1,
		DisableIdentity:          true,
		MaintNotificationsConfig: noMaintNotifications,
	}
}
