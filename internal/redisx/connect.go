package redisx

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/caddy-auth/caddy-auth/internal/auth"
)

// maxRedirects is how often one call follows a cluster's redirections, all
// within its deadline.
const maxRedirects = 3

// connect returns the library's client. It opens no connection yet.
func (o Options) connect() redis.UniversalClient {
	switch {
	case o.SentinelMaster != "":
		return redis.NewFailoverClient(o.failover())
	case o.Cluster:
		return redis.NewClusterClient(o.cluster())
	}
	return redis.NewClient(o.single(o.Addresses[0]))
}

// patience is how long it may take to make a connection and get a first answer over
// it: dialling, TLS, HELLO and the call are four round trips and more. Nobody waits
// so long for it: callers have their deadline.
func (o Options) patience() time.Duration { return max(2*time.Second, 10*o.Timeout) }

// single returns the library's options for one server. Every retry, queue and
// default timeout of it that is longer than ours is turned off, here and below.
func (o Options) single(address string) *redis.Options {
	return &redis.Options{
		Network: o.Network, Addr: address, Username: o.Username, Password: o.Password.Reveal(), DB: o.DB, TLSConfig: o.TLS,
		ContextTimeoutEnabled: true,
		DialTimeout:           o.patience(), ReadTimeout: o.patience(), WriteTimeout: o.patience(), PoolTimeout: o.patience(),
		MaxRetries: -1, DialerRetries: 1,
		PoolSize: poolSize, MaxConcurrentDials: poolSize, PipelinePoolSize: -1,
		DisableIdentity:          true,
		MaintNotificationsConfig: noMaintNotifications,
	}
}

func (o Options) failover() *redis.FailoverOptions {
	return &redis.FailoverOptions{
		MasterName: o.SentinelMaster, SentinelAddrs: o.Addresses, SentinelUsername: o.SentinelUsername, SentinelPassword: o.SentinelPassword.Reveal(),
		Username: o.Username, Password: o.Password.Reveal(), DB: o.DB, TLSConfig: o.TLS,
		ContextTimeoutEnabled: true,
		DialTimeout:           o.patience(), ReadTimeout: o.patience(), WriteTimeout: o.patience(), PoolTimeout: o.patience(),
		MaxRetries: -1, DialerRetries: 1,
		PoolSize: poolSize, MaxConcurrentDials: poolSize, PipelinePoolSize: -1,
		DisableIdentity: true,
	}
}

func (o Options) cluster() *redis.ClusterOptions {
	return &redis.ClusterOptions{
		Addrs: o.Addresses, Username: o.Username, Password: o.Password.Reveal(), TLSConfig: o.TLS,
		ContextTimeoutEnabled: true,
		DialTimeout:           o.patience(), ReadTimeout: o.patience(), WriteTimeout: o.patience(), PoolTimeout: o.patience(),
		MaxRedirects: maxRedirects, MaxRetries: -1, DialerRetries: 1,
		PoolSize: poolSize, MaxConcurrentDials: poolSize, PipelinePoolSize: -1,
		DisableIdentity:          true,
		DisableRoutingPolicies:   true, // they would ask the server for all its commands first
		MaintNotificationsConfig: noMaintNotifications,
	}
}

// listenAt returns a server where what is published can be heard: in a cluster
// any node passes on what was published at another.
func (o Options) listenAt(ctx context.Context) (address string, err error) {
	if o.SentinelMaster == "" {
		return o.Addresses[rand.IntN(len(o.Addresses))], nil
	}
	var errs []error
	for _, i := range rand.Perm(len(o.Addresses)) {
		address, err := o.master(ctx, o.Addresses[i])
		if err == nil {
			return address, nil
		}
		errs = append(errs, err)
	}
	return "", fmt.Errorf("asking the sentinels: %w: %w", auth.ErrUnavailable, errors.Join(errs...))
}

// master asks one sentinel for the master's address.
func (o Options) master(ctx context.Context, sentinel string) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, o.patience())
	defer cancel()
	opts := o.single(sentinel)
	opts.Username, opts.Password, opts.DB = o.SentinelUsername, o.SentinelPassword.Reveal(), 0
	c := redis.NewSentinelClient(opts)
	defer c.Close()
	at, err := c.GetMasterAddrByName(ctx, o.SentinelMaster).Result()
	if err != nil {
		return "", err
	}
	if len(at) != 2 {
		return "", fmt.Errorf("a sentinel's answer: %w", auth.ErrCorrupt)
	}
	return net.JoinHostPort(at[0], at[1]), nil
}
