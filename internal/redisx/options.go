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
	"slices"
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

// Options say how to reach one server, the master that sentinels name, or a
// cluster. The zero value of every field but Addresses is usable.
type Options struct {
	Network   string   // "tcp" (the default) or "unix"
	Addresses []string // host:port, or the socket's path: the server, the sentinels, or nodes of the cluster

	SentinelMaster   string // what sentinels call the master; not empty: Addresses are sentinels
	SentinelUsername string // toward the sentinels
	SentinelPassword auth.Secret
	Cluster          bool // Addresses are some nodes of a cluster, which name the others

	Username string
	Password auth.Secret
	DB       int
	TLS      *tls.Config   // nil: none
	Timeout  time.Duration // of a call; connections are made beside it; default 50ms
	Retry    time.Duration // how long a server that failed is skipped; default 1s
}

// ParseURL reads redis://, rediss:// (TLS) and unix:// URLs:
// redis://[user[:password]@]host[:port][/db]. Its errors never contain the
// URL, which may hold a password.
func ParseURL(text string) (Options, error) {
	const want = "want redis://host:port/db, with user:password and an at sign before the host if it needs them, rediss:// for TLS, or unix:///path"
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
	o := Options{Network: parsed.Network, Addresses: []string{parsed.Addr}, Username: parsed.Username, DB: parsed.DB, TLS: parsed.TLSConfig}
	if parsed.Password != "" {
		o.Password = auth.NewSecret(parsed.Password)
	}
	return o, nil
}

// Describe names the server for people; it contains no password.
func (o Options) Describe() string {
	at := strings.Join(o.Addresses, ",")
	switch {
	case o.Network == "unix":
		return "redis at unix:" + at
	case o.SentinelMaster != "":
		return fmt.Sprintf("redis master %s/%d of the sentinels at %s", o.SentinelMaster, o.DB, at)
	case o.Cluster:
		return "redis cluster at " + at
	}
	return fmt.Sprintf("redis at %s/%d", at, o.DB)
}

// Local reports whether every server named is on this machine.
func (o Options) Local() bool {
	if o.Network == "unix" {
		return true
	}
	for _, a := range o.Addresses {
		host, _, err := net.SplitHostPort(a)
		if err != nil {
			host = a
		}
		if ip := net.ParseIP(host); !strings.EqualFold(host, "localhost") && (ip == nil || !ip.IsLoopback()) {
			return false
		}
	}
	return true
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
	if len(o.Addresses) == 0 || slices.Contains(o.Addresses, "") {
		errs = append(errs, auth.Invalidf("no Redis address"))
	}
	switch {
	case o.SentinelMaster != "" && o.Cluster:
		errs = append(errs, auth.Invalidf("sentinel_master and cluster: one of the two"))
	case len(o.Addresses) > 1 && o.SentinelMaster == "" && !o.Cluster:
		errs = append(errs, auth.Invalidf("several Redis addresses: say sentinel_master <name> if they are sentinels, cluster if they are nodes of one"))
	case o.Network == "unix" && (o.SentinelMaster != "" || o.Cluster):
		errs = append(errs, auth.Invalidf("sentinels and clusters are reached by host:port"))
	}
	if o.SentinelMaster == "" && (o.SentinelUsername != "" || !o.SentinelPassword.Empty()) {
		errs = append(errs, auth.Invalidf("sentinel_username and sentinel_password without sentinel_master"))
	}
	if o.DB < 0 {
		errs = append(errs, auth.Invalidf("Redis database %d: want 0 or more", o.DB))
	}
	if o.DB != 0 && o.Cluster {
		errs = append(errs, auth.Invalidf("a Redis cluster has database 0 only"))
	}
	if o.Timeout < 0 {
		errs = append(errs, auth.Invalidf("the Redis timeout can't be negative"))
	}
	return errors.Join(errs...)
}
