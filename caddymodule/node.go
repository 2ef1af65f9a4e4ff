package caddymodule

import (
	"context"
	"errors"
	"fmt"
	"os"
	"runtime/debug"
	"slices"
	"strings"
	"sync"

	"github.com/caddyserver/caddy/v2"
	"github.com/google/uuid"
	"go.uber.org/zap"

	"github.com/caddy-auth/caddy-auth/internal/auth"
	"github.com/caddy-auth/caddy-auth/internal/store"
)

// newNode names this process, and each runtime in it, for those who wait for
// gateways.
func newNode() auth.Node {
	host, err := os.Hostname()
	if err != nil {
		host = "unknown"
	}
	return auth.Node{ID: "node_" + uuid.NewString(), Name: fmt.Sprintf("%s:%d", host, os.Getpid()), Version: moduleVersion()}
}

// moduleVersion is the version of this module in whatever binary it is in.
func moduleVersion() string {
	const path = "github.com/caddy-auth/caddy-auth"
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return "unknown"
	}
	found := info.Main.Version
	if info.Main.Path != path {
		for _, d := range info.Deps {
			if d.Path == path {
				found = d.Version
			}
		}
	}
	if found == "" || found == "(devel)" {
		return "devel"
	}
	return strings.TrimPrefix(found, "v")
}

// draining are the runtimes that no configuration uses any more and some
// request may. They are ended when the process exits.
var draining struct {
	mu  sync.Mutex
	all map[*runtime]bool
}

func init() {
	caddy.OnExit(func(context.Context) {
		draining.mu.Lock()
		var left []*runtime
		for rt := range draining.all {
			left = append(left, rt)
		}
		draining.mu.Unlock()
		for _, rt := range left {
			if err := rt.end(); err != nil {
				caddy.Log().Named("auth").Warn("closing a store that a reload replaced", zap.Error(err))
			}
		}
	})
}

func (rt *runtime) drains(yes bool) {
	draining.mu.Lock()
	defer draining.mu.Unlock()
	if draining.all == nil {
		draining.all = map[*runtime]bool{}
	}
	if yes {
		draining.all[rt] = true
	} else {
		delete(draining.all, rt)
	}
}

// deregister tells the store that this gateway is gone. Nothing it let in is under
// way any more, and it lets nobody in.
func (rt *runtime) deregister(db *store.DB) {
	ctx, cancel := context.WithTimeout(context.Background(), leaveTimeout)
	defer cancel()
	err := db.Leave(ctx, rt.follower.Node().ID)
	if errors.Is(err, auth.ErrMoved) { // where the store is now this gateway is known too
		err = leaveElsewhere(ctx, rt)
	}
	if err != nil {
		rt.logger().Warn("the store could not be told that this gateway ends; whoever waits for it waits until max_staleness has passed", zap.Error(err))
	}
}

// leaveElsewhere deregisters a gateway of a store that was moved at the stores
// that the process follows now.
func leaveElsewhere(ctx context.Context, rt *runtime) error {
	adoptionsMu.Lock()
	all := slices.Clone(adoptions)
	adoptionsMu.Unlock()
	var errs []error
	for _, a := range all {
		if db := a.rt.db.Load(); db != nil && a.rt != rt {
			errs = append(errs, db.Leave(ctx, rt.follower.Node().ID))
		}
	}
	return errors.Join(errs...)
}

// doorbell is a subscription in force.
type doorbell struct {
	client  any // whose it is
	channel string
	stop    func()
}

// linkBell listens where changes are rung. The caller holds linkMu.
func (rt *runtime) linkBell(s *settings) {
	var want doorbell
	if e := rt.envelope.Load(); s.redis != nil && e != nil {
		want = doorbell{client: s.redis, channel: s.redisPrefix + e.Channel(bellKind)}
	}
	if rt.bell.client == want.client && rt.bell.channel == want.channel {
		return
	}
	if rt.bell.stop != nil {
		rt.bell.stop()
	}
	if want.client != nil {
		want.stop = s.redis.Subscribe(want.channel, rt.follower.Ring, func(err error) {
			if lately(&rt.lastBell) {
				s.log.Warn("redis does not pass doorbells on; changes are seen at every poll_interval", zap.String("redis", s.redis.Describe()), zap.Error(err))
			}
		})
	}
	rt.bell = want
}

// bellKind is the kind of channel that changes are rung on.
const bellKind = "doorbell"

// Ring implements manage.Bell for changes that the gateway makes itself.
func (rt *runtime) Ring(ctx context.Context) error {
	rt.follower.Ring()
	s, e := rt.now.Load(), rt.envelope.Load()
	if s.redis == nil || e == nil {
		return nil
	}
	return s.redis.Publish(ctx, s.redisPrefix+e.Channel(bellKind))
}
