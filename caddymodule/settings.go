package caddymodule

import (
	"context"
	"errors"
	"slices"
	"time"

	"go.uber.org/zap"

	"github.com/caddy-auth/caddy-auth/internal/auth"
	"github.com/caddy-auth/caddy-auth/internal/cache"
	"github.com/caddy-auth/caddy-auth/internal/feed"
	"github.com/caddy-auth/caddy-auth/internal/redisx"
	"github.com/caddy-auth/caddy-auth/internal/secret"
	"github.com/caddy-auth/caddy-auth/internal/store"
)

// settings are what a configuration may change without a new runtime, and so
// without cold caches. They are immutable.
type settings struct {
	log         *zap.Logger
	prefix      string
	limits      cache.Limits
	following   feed.Config
	redis       *redisx.Client // nil: none
	redisPrefix string
	redisTTL    time.Duration
}

// adopt puts the settings of a configuration that starts in force.
func (rt *runtime) adopt(s *settings) {
	rt.adoptMu.Lock()
	defer rt.adoptMu.Unlock()
	rt.adopted = append(rt.adopted, s)
	rt.apply(s)
}

// abandon forgets the settings of a configuration that ends. If it was the
// newest, because it failed to load, those before it are in force again.
func (rt *runtime) abandon(s *settings) {
	rt.adoptMu.Lock()
	defer rt.adoptMu.Unlock()
	i := slices.Index(rt.adopted, s)
	if i < 0 {
		return
	}
	newest := i == len(rt.adopted)-1
	rt.adopted = slices.Delete(rt.adopted, i, i+1)
	if n := len(rt.adopted); newest && n > 0 {
		rt.apply(rt.adopted[n-1])
	}
}

func (rt *runtime) apply(s *settings) {
	current.Store(rt)
	old := rt.now.Swap(s)
	rt.memory.SetLimits(s.limits)
	rt.follower.Tune(s.following)
	if s.prefix != old.prefix {
		rt.learn(s.prefix)
		ctx, cancel := context.WithTimeout(context.Background(), openTimeout)
		defer cancel()
		rt.ensurePrefix(ctx, s.prefix)
	}
	rt.linkShared()
	if s.redis != nil {
		s.redis.SetEvents(rt.redisEvents(s))
		s.redis.Start()
	}
}

// linkShared gives the verifier the tier over the present Redis and secrets.
func (rt *runtime) linkShared() {
	rt.linkMu.Lock()
	defer rt.linkMu.Unlock()
	s, e := rt.now.Load(), rt.envelope.Load()
	if s.redis == nil || e == nil {
		rt.verifier.SetShared(nil)
		return
	}
	rt.verifier.SetShared(cache.NewShared(s.redis, e, s.redisPrefix, s.redisTTL))
}

func (rt *runtime) redisEvents(s *settings) redisx.Events {
	name := zap.String("redis", s.redis.Describe())
	return redisx.Events{
		Down: func(err error) {
			if lately(&rt.lastRedis) {
				s.log.Warn("redis can't be used; keys are verified without it", name, zap.Error(err))
			}
		},
		Up: func() { s.log.Info("redis answers again", name) },
		ReadOnly: func(err error) {
			if lately(&rt.lastRedis) {
				s.log.Warn("redis takes no records; keys are verified without new ones there", name, zap.Error(err))
			}
		},
	}
}

// ensurePrefix makes keys with prefix valid in the store, if it is open.
func (rt *runtime) ensurePrefix(ctx context.Context, prefix string) {
	db := rt.db.Load()
	if db == nil {
		return
	}
	if err := db.EnsurePrefix(ctx, "gateway", prefix); err != nil {
		rt.logger().Warn("the new key prefix could not be written; keys with it can't be issued", zap.Error(err))
	}
}

// setMinter gives the verifier its secrets; the prefixes stay known when the
// secrets don't, so that keys in URLs are recognized in an outage too.
func (rt *runtime) setMinter(m *secret.Minter) {
	if m != nil {
		rt.learn(m.Prefixes()...)
	}
	rt.verifier.SetMinter(m)
}

// learn adds prefixes that keys can have. None is ever forgotten.
func (rt *runtime) learn(prefixes ...string) {
	for {
		old := rt.known.Load()
		known := slices.Clone(*old)
		for _, p := range prefixes {
			if !slices.Contains(known, p) {
				known = append(known, p)
			}
		}
		if len(known) == len(*old) || rt.known.CompareAndSwap(old, &known) {
			return
		}
	}
}

// setEnvelope reads the secret for shared records. Without one Redis is not
// used.
func (rt *runtime) setEnvelope(ctx context.Context, db *store.DB, ring *secret.Ring) {
	e, err := db.Envelope(ctx, ring)
	if err != nil && !errors.Is(err, auth.ErrNotFound) {
		rt.logger().Warn("reading the secret for shared records; redis is not used", zap.Error(err))
	}
	rt.envelope.Store(e)
	rt.linkShared()
}
