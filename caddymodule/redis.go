package caddymodule

import (
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"hash"
	"io"
	"net"
	"os"
	"strings"
	"time"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/caddyconfig/caddyfile"

	"github.com/caddy-auth/caddy-auth/internal/auth"
	"github.com/caddy-auth/caddy-auth/internal/cache"
	"github.com/caddy-auth/caddy-auth/internal/redisx"
)

// RedisConfig is the tier that gateways share. Redis is not trusted: records
// are sealed under the store's own secret, and a gateway checks each against
// the journal before it uses it.
type RedisConfig struct {
	// redis://[user:password@]host:port/db, rediss:// for TLS or unix:///path.
	// Placeholders such as {env.X} and {file.X} are replaced.
	URL string `json:"url,omitempty"`
	// host:port, or the path of a socket, instead of the URL's. One, or several
	// sentinels, or several nodes of a cluster.
	Addresses []string `json:"addresses,omitempty"`
	// The name of the master whose sentinels the addresses are.
	SentinelMaster string `json:"sentinel_master,omitempty"`
	// User and password toward the sentinels, if they want any. Placeholders
	// are replaced.
	SentinelUsername string `json:"sentinel_username,omitempty"`
	SentinelPassword string `json:"sentinel_password,omitempty"`
	// The addresses are nodes of a Redis Cluster.
	Cluster bool `json:"cluster,omitempty"`
	// The ACL user. Placeholders are replaced.
	Username string `json:"username,omitempty"`
	// Its password: use a placeholder, since what stands here is shown by the
	// admin API.
	Password string `json:"password,omitempty"`
	// TLS toward the server; implied by rediss://.
	TLS *RedisTLS `json:"tls,omitempty"`
	// How long a request may wait for one call. Connections are made beside it, and
	// may take longer. Default: 50ms.
	Timeout caddy.Duration `json:"timeout,omitempty"`
	// How long records are kept there. Default: 10m.
	TTL caddy.Duration `json:"ttl,omitempty"`
	// The beginning of every name. Default: caddy-auth:
	Prefix string `json:"prefix,omitempty"`
}

// RedisTLS says whom to trust and how to show who we are.
type RedisTLS struct {
	// A file of CA certificates (PEM). Default: the system's.
	CA string `json:"ca,omitempty"`
	// Our certificate and key, files (PEM). Default: none.
	Cert string `json:"cert,omitempty"`
	Key  string `json:"key,omitempty"`
	// The name in the server's certificate. Default: the address's host.
	ServerName string `json:"server_name,omitempty"`
}

// redisKey is everything that makes two clients different.
type redisKey [sha256.Size]byte

// redisClients keeps the connections over reloads.
var redisClients = caddy.NewUsagePool()

type pooledRedis struct{ *redisx.Client }

// Destruct implements caddy.Destructor.
func (p pooledRedis) Destruct() error {
	p.Close()
	return nil
}

// options resolves placeholders and reads the certificates. It opens no
// connection.
func (c *RedisConfig) options() (redisx.Options, redisKey, error) {
	sum := sha256.New()
	fail := func(err error) (redisx.Options, redisKey, error) {
		return redisx.Options{}, redisKey{}, fmt.Errorf("redis: %w", err)
	}
	resolved := map[string]string{
		"url": c.URL, "addresses": strings.Join(c.Addresses, " "), "username": c.Username, "password": c.Password,
		"sentinel_username": c.SentinelUsername, "sentinel_password": c.SentinelPassword,
	}
	for name, text := range resolved {
		out, err := caddy.NewReplacer().ReplaceOrErr(text, true, true)
		if err != nil {
			return fail(fmt.Errorf("%s: %w", name, err))
		}
		resolved[name] = out
	}
	var o redisx.Options
	if resolved["url"] != "" {
		var err error
		if o, err = redisx.ParseURL(resolved["url"]); err != nil {
			return fail(err)
		}
	}
	if a := strings.Fields(resolved["addresses"]); len(a) > 0 { // one placeholder may hold several
		o.Network, o.Addresses = "tcp", a
		if a[0][0] == '/' {
			o.Network = "unix"
		}
	}
	o.SentinelMaster, o.Cluster = c.SentinelMaster, c.Cluster
	o.SentinelUsername = resolved["sentinel_username"]
	if p := resolved["sentinel_password"]; p != "" {
		o.SentinelPassword = auth.NewSecret(p)
	}
	if resolved["username"] != "" {
		o.Username = resolved["username"]
	}
	if resolved["password"] != "" {
		o.Password = auth.NewSecret(resolved["password"])
	}
	many := len(o.Addresses) > 1 || c.SentinelMaster != "" || c.Cluster
	if many && o.TLS != nil { // the name in each server's certificate is its own
		o.TLS.ServerName = ""
	}
	o.Timeout = time.Duration(c.Timeout)
	if c.TLS != nil {
		var err error
		if o.TLS, err = c.TLS.load(sum); err != nil {
			return fail(err)
		}
	}
	if err := errors.Join(o.Validate(), c.check()); err != nil {
		return fail(err)
	}
	if host, _, err := net.SplitHostPort(o.Addresses[0]); err == nil && o.TLS != nil && o.TLS.ServerName == "" && !many {
		o.TLS.ServerName = host
	}
	fmt.Fprintf(sum, "%q %q %q %q %d %t %d %q %q %q %t", o.Network, o.Addresses, o.Username, o.Password.Reveal(), o.DB, o.TLS != nil, o.Timeout,
		o.SentinelMaster, o.SentinelUsername, o.SentinelPassword.Reveal(), o.Cluster)
	return o, redisKey(sum.Sum(nil)), nil
}

func (c *RedisConfig) check() error {
	if c.TTL < 0 {
		return auth.Invalidf("the ttl can't be negative")
	}
	if ttl := time.Duration(c.TTL); ttl > 24*time.Hour {
		return auth.Invalidf("a ttl of %s: want at most 24h, since the journal is kept for twice as long", ttl)
	}
	return nil
}

func (c *RedisConfig) ttl() time.Duration {
	if c == nil || c.TTL == 0 {
		return cache.DefaultSharedTTL
	}
	return time.Duration(c.TTL)
}

func (c *RedisConfig) prefix() string {
	if c.Prefix == "" {
		return cache.DefaultSharedPrefix
	}
	return c.Prefix
}

// load reads the files; what it read goes into sum, so that changed files make
// another client at the next reload.
func (t *RedisTLS) load(sum hash.Hash) (*tls.Config, error) {
	cfg := &tls.Config{MinVersion: tls.VersionTLS12, ServerName: t.ServerName}
	read := func(what, path string) ([]byte, error) {
		b, err := os.ReadFile(path)
		if err != nil {
			return nil, fmt.Errorf("tls: reading the %s: %w", what, err)
		}
		_, _ = sum.Write(b) // it never fails
		return b, nil
	}
	if t.CA != "" {
		pem, err := read("ca", t.CA)
		if err != nil {
			return nil, err
		}
		cfg.RootCAs = x509.NewCertPool()
		if !cfg.RootCAs.AppendCertsFromPEM(pem) {
			return nil, auth.Invalidf("tls: %s holds no certificate", t.CA)
		}
	}
	if t.Cert != "" || t.Key != "" {
		cert, err := read("certificate", t.Cert)
		if err != nil {
			return nil, err
		}
		key, err := read("key", t.Key)
		if err != nil {
			return nil, err
		}
		pair, err := tls.X509KeyPair(cert, key)
		if err != nil {
			return nil, fmt.Errorf("tls: %w", err)
		}
		cfg.Certificates = []tls.Certificate{pair}
	}
	_, _ = io.WriteString(sum, cfg.ServerName)
	return cfg, nil
}

// parseRedis parses the redis subdirective. Syntax:
//
//	redis [<url>] {
//		addresses <host:port...>
//		sentinel_master <name>
//		sentinel_username <name>
//		sentinel_password <password>
//		cluster
//		username <name>
//		password <password>
//		tls {
//			ca <file>
//			cert <file> <key file>
//			server_name <name>
//		}
//		timeout <duration>
//		ttl <duration>
//		prefix <text>
//	}
func (a *App) parseRedis(d *caddyfile.Dispenser) error {
	c := new(RedisConfig)
	a.Redis = c
	if d.NextArg() {
		c.URL = d.Val()
	}
	if d.NextArg() {
		return d.ArgErr()
	}
	err := block(d, "redis", map[string]func(*caddyfile.Dispenser) error{
		"addresses":         words(&c.Addresses),
		"cluster":           flag(&c.Cluster),
		"sentinel_master":   text(&c.SentinelMaster),
		"sentinel_username": text(&c.SentinelUsername),
		"sentinel_password": text(&c.SentinelPassword),
		"username":          text(&c.Username),
		"password":          text(&c.Password),
		"tls":               c.parseTLS,
		"timeout":           duration(&c.Timeout),
		"ttl":               duration(&c.TTL),
		"prefix":            text(&c.Prefix),
	})
	if err == nil && c.URL == "" && len(c.Addresses) == 0 {
		return d.Err("redis: want a URL or addresses")
	}
	return err
}

func (c *RedisConfig) parseTLS(d *caddyfile.Dispenser) error {
	if d.NextArg() {
		return d.ArgErr()
	}
	t := new(RedisTLS)
	c.TLS = t
	return block(d, "tls", map[string]func(*caddyfile.Dispenser) error{
		"ca":          text(&t.CA),
		"server_name": text(&t.ServerName),
		"cert": func(d *caddyfile.Dispenser) error {
			if !d.AllArgs(&t.Cert, &t.Key) {
				return d.ArgErr()
			}
			return nil
		},
	})
}
