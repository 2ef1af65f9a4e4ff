package verifier

import (
	"context"
	"fmt"
	"sync/atomic"
	"time"

	"github.com/caddy-auth/caddy-auth/internal/auth"
	"github.com/caddy-auth/caddy-auth/internal/cache"
	"github.com/caddy-auth/caddy-auth/internal/feed"
	"github.com/caddy-auth/caddy-auth/internal/secret"
	"github.com/caddy-auth/caddy-auth/internal/store"
)

// Keys is where keys are looked up. LookupKey MUST read the key and the point
// in one snapshot and honour the context's deadline.
type Keys interface {
	LookupKey(ctx context.Context, fp auth.Fingerprint) (store.Loaded, error)
}

// Fence says whether caches may be trusted and loads be used.
type Fence interface {
	Trusted(now time.Time) bool
	Fence(p auth.Point, fp auth.Fingerprint, parents auth.Parents) feed.Fencing
	LookSoon(ctx context.Context) error
}

const (
	// MaxLoads is how many lookups may be under way toward the store.
	MaxLoads = 64
	// maxRuns is how often a load that a change overtook runs in all.
	maxRuns = 3
	// loadTimeout bounds one flight, whoever waits for it.
	loadTimeout = 5 * time.Second
)

// Hooks let tests stop a load at the places where the protocol could break.
type Hooks struct {
	BeforeLoad func(run int) // before the store is read
	AfterLoad  func(run int) // between the store's answer and the fence
	AfterFence func()        // between a passed fence and the insert, under the key's lock
	AfterJoin  func()        // a request has joined a flight
}

// Verifier verifies API keys.
type Verifier struct {
	memory *cache.Memory
	fence  Fence
	keys   Keys
	minter atomic.Pointer[secret.Minter]
	slots  chan struct{}
	hooks  Hooks
}

// New returns a verifier. Until SetMinter is called it can decide nothing.
func New(memory *cache.Memory, fence Fence, keys Keys, hooks Hooks) *Verifier {
	return &Verifier{memory: memory, fence: fence, keys: keys, slots: make(chan struct{}, MaxLoads), hooks: hooks}
}

// SetMinter gives the verifier the secrets and prefixes it recognizes keys by.
func (v *Verifier) SetMinter(m *secret.Minter) { v.minter.Store(m) }

// Minter returns what SetMinter set, or nil.
func (v *Verifier) Minter() *secret.Minter { return v.minter.Load() }

// VerifyKey verifies an API key. A cached identity costs one allocation and
// no I/O; a forged key is refused without I/O. Expiry is judged at now.
func (v *Verifier) VerifyKey(ctx context.Context, key string, now time.Time) (verdict auth.Verdict) {
	fp := auth.FingerprintOf(key)
	trusted := v.fence.Trusted(now)
	if trusted && v.memory.Lookup(&verdict, fp, now) {
		judgeExpiry(&verdict, now)
		return verdict
	}
	minter := v.minter.Load()
	if minter == nil {
		return auth.Undecided(fmt.Errorf("the store's secrets were not read yet: %w", auth.ErrUnavailable))
	}
	if r := minter.Check(key); r != auth.ReasonNone {
		return auth.Denied(r)
	}
	if !trusted { // before it may join a flight
		return auth.Undecided(auth.ErrStale)
	}
	hit, flight, lead := v.memory.Join(&verdict, fp, now)
	if hit {
		judgeExpiry(&verdict, now)
		return verdict
	}
	if lead {
		v.lead(flight, fp)
	} else if v.hooks.AfterJoin != nil {
		v.hooks.AfterJoin()
	}
	select {
	case <-flight.Done():
		verdict = flight.Verdict()
		judgeExpiry(&verdict, now)
		return verdict
	case <-ctx.Done():
		return auth.Undecided(fmt.Errorf("waiting for a lookup: %w", context.Cause(ctx)))
	}
}

// lead starts the flight's load, detached from the request that began it.
func (v *Verifier) lead(f *cache.Flight, fp auth.Fingerprint) {
	select {
	case v.slots <- struct{}{}:
	default:
		v.memory.Abort(f, auth.Undecided(auth.ErrOverloaded))
		return
	}
	go func() {
		defer func() { <-v.slots }()
		ctx, cancel := context.WithTimeout(context.Background(), loadTimeout)
		defer cancel()
		v.load(ctx, f, fp)
	}()
}

// load reads the key until no change overtakes the reading, maxRuns times at
// most. A fenced reading is neither kept nor returned (design 4.6, Fence).
func (v *Verifier) load(ctx context.Context, f *cache.Flight, fp auth.Fingerprint) {
	for run := range maxRuns {
		if v.hooks.BeforeLoad != nil {
			v.hooks.BeforeLoad(run)
		}
		checked := time.Now()
		loaded, err := v.keys.LookupKey(ctx, fp)
		if v.hooks.AfterLoad != nil {
			v.hooks.AfterLoad(run)
		}
		if err != nil {
			v.memory.Abort(f, auth.Undecided(err))
			return
		}
		verdict := verdictOfKey(loaded.Key)
		parents := auth.ParentsOf(&verdict.Identity)
		if v.fence.Fence(loaded.Point, fp, parents) == feed.Ahead {
			if err := v.fence.LookSoon(ctx); err != nil {
				v.memory.Abort(f, auth.Undecided(fmt.Errorf("catching up with the journal: %w", err)))
				return
			}
		}
		landed := v.memory.Land(f, verdict, checked, func() bool {
			usable := v.fence.Fence(loaded.Point, fp, parents) == feed.Usable
			if usable && v.hooks.AfterFence != nil {
				v.hooks.AfterFence()
			}
			return usable
		})
		if landed {
			return
		}
	}
	v.memory.Abort(f, auth.Undecided(auth.ErrFenced))
}

// judgeExpiry turns an identity whose credential has expired into a denial.
func judgeExpiry(v *auth.Verdict, now time.Time) {
	if v.Outcome != auth.Allow || !v.Identity.Expired(now) {
		return
	}
	v.Outcome, v.Reason = auth.Deny, auth.ReasonExpired
	if v.Identity.Replaced {
		v.Reason = auth.ReasonReplaced
	}
}
