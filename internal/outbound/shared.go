package outbound

import (
	"context"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"time"

	"github.com/caddy-auth/caddy-auth/internal/auth"
	"github.com/caddy-auth/caddy-auth/internal/grant"
)

const (
	// lockTTL is how long the fleet waits for a gateway that died while it was
	// fetching; one that lives says so every lockBeat.
	lockTTL  = time.Second
	lockBeat = 300 * time.Millisecond
	// lockPoll is how often a gateway looks whether another has fetched a token;
	// half of it is random.
	lockPoll = 60 * time.Millisecond
)

// Shared is where gateways of a fleet meet: one record and one lock. What it
// gives was put there by a gateway of this store. It may fail or be slow only
// within a short deadline of its own; then a gateway goes on alone.
type Shared interface {
	// Get returns the record; auth.ErrNotFound without one.
	Get(ctx context.Context) ([]byte, error)
	Put(ctx context.Context, record []byte, ttl time.Duration) error
	// Lock reports whether the lock is ours now.
	Lock(ctx context.Context, ttl time.Duration) (ours bool, err error)
	// Keep makes a lock that is ours last for ttl from now; next to nothing
	// gives it back.
	Keep(ctx context.Context, ttl time.Duration) error
}

// obtain gets a token from the fleet, or from the endpoint: one gateway of the
// fleet asks, the others wait for what it gets. Whatever fails about that, a
// gateway asks by itself.
func (t *Tokens) obtain(ctx context.Context, goal goal) (grant.Grant, Origin, error) {
	p := t.shared.Load()
	if p == nil {
		g, err := t.ask.Ask(ctx)
		return g, FromEndpoint, err
	}
	shared := *p
	// Nobody who holds the lock for longer is a gateway that asks.
	most := time.Now().Add(t.ask.Timeout() + lockTTL)
	for {
		if g, ok, err := t.fromFleet(ctx, shared, goal); err != nil {
			break
		} else if ok {
			return g, FromFleet, nil
		}
		ours, err := shared.Lock(ctx, lockTTL)
		if err != nil || !ours && time.Now().After(most) {
			break
		}
		if ours {
			return t.leads(ctx, shared, goal)
		}
		select {
		case <-ctx.Done():
			return grant.Grant{}, FromFleet, grant.Unavailable("waiting for another gateway", ctx.Err())
		case <-time.After(lockPoll/2 + rand.N(lockPoll/2)):
		}
	}
	g, err := t.ask.Ask(ctx)
	if err == nil {
		t.putFleet(ctx, shared, g) // it may be up again
	}
	return g, FromEndpoint, err
}

// leads asks for the fleet, with the lock.
func (t *Tokens) leads(ctx context.Context, shared Shared, goal goal) (grant.Grant, Origin, error) {
	stop, stopped := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(stopped)
		beat := time.NewTicker(lockBeat)
		defer beat.Stop()
		for {
			select {
			case <-stop:
				return
			case <-beat.C:
				_ = shared.Keep(ctx, lockTTL) // without it another may ask too
			}
		}
	}()
	defer func() {
		close(stop)
		<-stopped
		_ = shared.Keep(context.WithoutCancel(ctx), time.Millisecond) // else it ends by itself soon
	}()
	if g, ok, _ := t.fromFleet(ctx, shared, goal); ok { // between the look and the lock
		return g, FromFleet, nil
	}
	g, err := t.ask.Ask(ctx)
	if err == nil {
		t.putFleet(ctx, shared, g)
	}
	return g, FromEndpoint, err
}

// fleetRecord is a token as gateways share it. Times are milliseconds since
// 1970, by the clock of who fetched it.
type fleetRecord struct {
	Version int      `json:"v"`
	Token   string   `json:"token"`
	Issued  int64    `json:"issued"`
	Expires int64    `json:"expires"`
	Told    bool     `json:"told"`
	Scopes  []string `json:"scopes"`
	By      string   `json:"by"`
}

const fleetVersion = 1

func (t *Tokens) putFleet(ctx context.Context, shared Shared, g grant.Grant) {
	text, err := json.Marshal(fleetRecord{
		fleetVersion, g.Token.Reveal(), g.Issued.UnixMilli(), g.Expires.UnixMilli(), g.Told, g.Scopes, hex.EncodeToString(g.By[:]),
	})
	if ttl := time.Until(g.Expires); err == nil && ttl > time.Millisecond {
		_ = shared.Put(ctx, text, ttl) // then the others ask by themselves
	}
}

// fromFleet returns the fleet's token if it is what a flight is for. An error
// says that the fleet can't be asked.
func (t *Tokens) fromFleet(ctx context.Context, shared Shared, goal goal) (g grant.Grant, ok bool, err error) {
	text, err := shared.Get(ctx)
	switch {
	case errors.Is(err, auth.ErrNotFound), errors.Is(err, auth.ErrCorrupt): // one that nobody can use is written over
		return g, false, nil
	case err != nil:
		return g, false, fmt.Errorf("asking the fleet: %w", err)
	}
	var r fleetRecord
	if json.Unmarshal(text, &r) != nil || r.Version != fleetVersion || grant.CheckValue(r.Token) != nil {
		return g, false, nil
	}
	g = grant.Grant{Token: auth.NewSecret(r.Token), Issued: time.UnixMilli(r.Issued), Expires: time.UnixMilli(r.Expires), Told: r.Told, Scopes: r.Scopes}
	if by, err := hex.DecodeString(r.By); err == nil && len(by) == len(g.By) {
		g.By = auth.Fingerprint(by)
	}
	return g, t.serves(g, goal, time.Now()), nil
}

// serves reports whether a token of the fleet is what a flight is for: another
// than the present one, that was not refused and is not due itself.
func (t *Tokens) serves(g grant.Grant, goal goal, now time.Time) bool {
	refresh, _ := t.times(g, 0)
	// By a clock that is ahead, it would seem to live longer than it does.
	if !now.Before(refresh) || g.Issued.Sub(now) > expiryMargin || g.Expires.Sub(g.Issued) > grant.MostLifetime {
		return false
	}
	if goal.by != (auth.Fingerprint{}) && g.By != goal.by {
		return false
	}
	if goal.notThis != nil && goal.notThis.Token.Equal(g.Token) {
		return false
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	return !slices.Contains(t.refused, auth.FingerprintOf(g.Token.Reveal()))
}
