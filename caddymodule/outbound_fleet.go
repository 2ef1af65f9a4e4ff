package caddymodule

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/caddy-auth/caddy-auth/internal/auth"
	"github.com/caddy-auth/caddy-auth/internal/outbound"
	"github.com/caddy-auth/caddy-auth/internal/redisx"
	"github.com/caddy-auth/caddy-auth/internal/secret"
)

// meeting is the Redis tier as outbound.Shared: a sealed record and a lock for
// each kind of token, under names that tell nothing.
type meeting struct{ what auth.Fingerprint }

// newMeeting returns where gateways meet that get the same token.
func newMeeting(s *source) outbound.Shared { return meeting{s.ask.Identity()} }

// errNoFleet says that there is no Redis, or that the store's secret for it is
// not known.
var errNoFleet = fmt.Errorf("no fleet: %w", auth.ErrUnavailable)

// redis is the Redis of the configuration that runs.
func (m meeting) redis() (*redisx.Client, *secret.Envelope, string, error) {
	rt := current.Load()
	if rt == nil {
		return nil, nil, "", errNoFleet
	}
	s, e := rt.now.Load(), rt.envelope.Load()
	if s.redis == nil || e == nil {
		return nil, nil, "", errNoFleet
	}
	return s.redis, e, s.redisPrefix, nil
}

// Get implements outbound.Shared.
func (m meeting) Get(ctx context.Context) ([]byte, error) {
	client, e, prefix, err := m.redis()
	if err != nil {
		return nil, err
	}
	name := prefix + e.Name("outbound token", nil, m.what)
	sealed, err := client.Get(ctx, name)
	if err != nil {
		return nil, err
	}
	plain, err := e.Open(name, sealed)
	if err != nil { // another key is no better than a forgery here
		metrics.refused.Inc()
		return nil, fmt.Errorf("opening what the fleet shares: %w", errors.Join(auth.ErrCorrupt, err))
	}
	return plain, nil
}

// Put implements outbound.Shared.
func (m meeting) Put(ctx context.Context, record []byte, ttl time.Duration) error {
	client, e, prefix, err := m.redis()
	if err != nil {
		return err
	}
	name := prefix + e.Name("outbound token", nil, m.what)
	return client.Set(ctx, name, e.Seal(name, record), ttl)
}

// Lock implements outbound.Shared.
func (m meeting) Lock(ctx context.Context, ttl time.Duration) (bool, error) {
	return m.setLock(ctx, false, ttl)
}

// Keep implements outbound.Shared. A gateway that was stopped for longer than
// its lock lives may touch another's: then two ask, which is all the lock is
// for.
func (m meeting) Keep(ctx context.Context, ttl time.Duration) error {
	_, err := m.setLock(ctx, true, ttl)
	return err
}

func (m meeting) setLock(ctx context.Context, exists bool, ttl time.Duration) (bool, error) {
	client, e, prefix, err := m.redis()
	if err != nil {
		return false, err
	}
	return client.SetIf(ctx, exists, prefix+e.Name("outbound lock", nil, m.what), []byte{1}, ttl)
}
