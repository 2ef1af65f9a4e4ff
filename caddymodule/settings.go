package caddymodule

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
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
// without cold caches. They are immutable once adopted.
type settings struct {
	log         *zap.Logger
	prefix      string
	limits      cache.Limits
	following   feed.Config
	refusalRate int            // a second; 0: any
	assertions  []string       // the algorithms of assertions that sites want
	redis       *redisx.Client // nil: none
	redisPrefix string
	redisTTL    time.Duration

	since time.Time // set when they are adopted
}

// settleAfter is how long a configuration must run before settle.
const settleAfter = time.Second

// adoption is one configuration that runs, on the runtime it uses.
type adoption struct {
	rt *runtime
	s  *settings
}

// adoptions are the configurations that run, the newest last: after a reload
// one, while one is loaded two. A configuration that fails leaves again.
var (
	adoptionsMu sync.Mutex
	adoptions   []adoption
)

// adopt puts the settings of a configuration that starts in force.
func (rt *runtime) adopt(s *settings) {
	adoptionsMu.Lock()
	defer adoptionsMu.Unlock()
	s.since = time.Now()
	adoptions = append(adoptions, adoption{rt, s})
	current.Store(rt)
	rt.apply(s)
}

// abandon forgets the settings of a configuration that ends. If it was the
// newest, because it failed to load, those before it are in force again.
func (rt *runtime) abandon(s *settings) {
	adoptionsMu.Lock()
	defer adoptionsMu.Unlock()
	adoptions = slices.DeleteFunc(adoptions, func(a adoption) bool { return a.s == s })
	var last *runtime
	if n := len(adoptions); n > 0 {
		last = adoptions[n-1].rt
	}
	current.Store(last)
	for _, a := range slices.Backward(adoptions) {
		if a.rt == rt {
			if rt.now.Load() != a.s {
				rt.apply(a.s)
			}
			return
		}
	}
}

// apply puts settings in force that can be taken back without a trace. What
// can't is done by settle.
func (rt *runtime) apply(s *settings) {
	rt.now.Store(s)
	rt.follower.Tune(s.following)
	rt.pacer.SetRate(s.refusalRate)
	rt.learn(s.prefix)
	rt.linkShared()
	if s.redis != nil {
		s.redis.SetEvents(rt.redisEvents(s))
		s.redis.Start()
	}
}

// settle does what a failed load must not have done: it resizes the memory
// tier and writes a new prefix. It is called a while after apply, and again.
func (rt *runtime) settle() {
	s := rt.now.Load()
	if time.Since(s.since) < settleAfter || rt.settled.Load() == s {
		return
	}
	rt.memory.SetLimits(s.limits)
	ctx, cancel := context.WithTimeout(context.Background(), openTimeout)
	defer cancel()
	if rt.ensurePrefix(ctx, s.prefix) {
		rt.settled.Store(s)
	}
}

// linkShared gives the verifier the tier over the present Redis and secrets,
// and listens to the doorbell there.
func (rt *runtime) linkShared() {
	rt.linkMu.Lock()
	defer rt.linkMu.Unlock()
	s, e := rt.now.Load(), rt.envelope.Load()
	rt.linkBell(s)
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
				rt.redisDown.Store(true)
				s.log.Warn("redis can't be used; keys are verified without it", name, zap.Error(hinted(slowHint(err))))
			}
		},
		Up: func() {
			if rt.redisDown.Swap(false) { // where one of several fails, it comes and goes
				s.log.Info("redis answers again", name)
			}
		},
		ReadOnly: func(err error) {
			if lately(&rt.lastWrite) {
				s.log.Warn("redis takes no records; keys are verified without new ones there", name, zap.Error(err))
			}
		},
	}
}

// slowHint says what to set where Redis answers, but later than a call may take.
func slowHint(err error) error {
	var slow *redisx.SlowError
	if !errors.As(err, &slow) {
		return err
	}
	return auth.WithHint(err, fmt.Sprintf("it is far away or busy: put timeout %s into the redis block, which is also how long a request may wait for it; or use one that is nearer", suggestTimeout(slow.RoundTrip)))
}

// suggestTimeout is a timeout that leaves an answer room: three times what it takes
// now, in round numbers.
func suggestTimeout(roundTrip time.Duration) time.Duration {
	const step = 50 * time.Millisecond
	return max(step, (3*roundTrip + step - 1).Truncate(step))
}

// ensurePrefix makes keys with prefix valid in the store, and reports whether
// they are.
func (rt *runtime) ensurePrefix(ctx context.Context, prefix string) bool {
	db := rt.db.Load()
	if db == nil {
		return false
	}
	err := db.EnsurePrefix(ctx, "gateway", prefix)
	if err != nil && lately(&rt.lastPrefix) {
		rt.logger().Warn("the new key prefix could not be written; keys with it can't be issued yet", zap.Error(err))
	}
	return err == nil
}

// setMinter gives the verifier its secrets; the prefixes stay known when the
// secrets don't, so that keys in URLs are recognized in an outage too.
func (rt *runtime) setMinter(m *secret.Minter) {
	if m != nil {
		rt.learn(m.Prefixes()...)
	}
	rt.verifier.SetMinter(m)
}

// setImported gives the verifier, and whoever masks and scans, the imported
// keys.
func (rt *runtime) setImported(m *auth.Imported) {
	rt.verifier.SetImported(m)
	masker.SetImported(rt, m)
}

// learnImported adds keys that were just imported; all are read again if one
// has a pattern that is new.
func (rt *runtime) learnImported(fps []auth.Fingerprint) error {
	db := rt.db.Load()
	if db == nil {
		return fmt.Errorf("the store is not open: %w", auth.ErrUnavailable)
	}
	ctx, cancel := context.WithTimeout(context.Background(), openTimeout)
	defer cancel()
	patterns, err := db.Formats(ctx)
	if err != nil {
		return err
	}
	known := rt.verifier.Imported()
	if known != nil && slices.Equal(known.Patterns(), patterns) {
		rt.setImported(known.With(fps))
		return nil
	}
	return rt.readImported(context.Background(), db)
}

// readImported reads all imported keys, of which there may be millions.
func (rt *runtime) readImported(ctx context.Context, db *store.DB) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), importedTimeout)
	defer cancel()
	all, unread, err := db.Imported(ctx)
	if err != nil {
		return err
	}
	if len(unread) > 0 {
		rt.logger().Error("this release can't read some patterns of imported keys: such keys are verified, but not found in URLs and logs", zap.Strings("patterns", unread))
	}
	rt.setImported(all)
	return nil
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
