package verifier

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/caddy-auth/caddy-auth/internal/auth"
	"github.com/caddy-auth/caddy-auth/internal/cache"
	"github.com/caddy-auth/caddy-auth/internal/feed"
)

const (
	// MaxLoads is how many lookups may be under way toward the store.
	MaxLoads = 64
	// MaxSharedReads is how many may be under way toward the shared tier; more
	// go to the store at once.
	MaxSharedReads = 64
	// maxSharedWrites is how many writes may be under way; more are left out.
	maxSharedWrites = 16
	// patience is how long the store may take while an older shared record
	// would do, and oldKept how long such a record is kept in memory.
	patience = 250 * time.Millisecond
	oldKept  = 5 * time.Second
	// maxRuns is how often a load that a change overtook runs in all.
	maxRuns = 3
	// loadTimeout bounds one flight, whoever waits for it, lookupTimeout one
	// question to the store: a connection that hangs is given up for another.
	loadTimeout   = 5 * time.Second
	lookupTimeout = 2 * time.Second
)

// question is what a flight finds out.
type question struct {
	fp    auth.Fingerprint // what memory knows the answer by
	about cache.About      // of shared records; zero: of keys
	ask   func(context.Context) (answer, error)
	anew  bool // the store is asked, whatever others know
}

// answer is what the store said, and where in its history.
type answer struct {
	verdict auth.Verdict
	point   auth.Point
	moved   bool // see store.Loaded
}

func (v *Verifier) aboutKey(fp auth.Fingerprint) question {
	return question{fp: fp, ask: func(ctx context.Context) (answer, error) {
		l, err := v.keys.LookupKey(ctx, fp)
		return answer{verdictOfKey(l.Key), l.Point, l.Moved}, err
	}}
}

// lead starts the flight's load, detached from the request that began it.
func (v *Verifier) lead(f *cache.Flight, q question) {
	shared := v.shared.Load()
	if shared != nil && !take(v.reads) {
		shared = nil
	}
	if shared == nil {
		if !v.takeSlot(f) {
			return
		}
		go v.run(f, q, nil)
		return
	}
	go v.run(f, q, *shared)
}

// run looks in the shared tier, whose slot the caller took, then in the store.
func (v *Verifier) run(f *cache.Flight, q question, shared Shared) {
	var old *cache.Record
	if shared != nil && q.anew {
		<-v.reads
		if !take(v.slots) {
			v.overloaded(f)
			return
		}
	} else if shared != nil {
		var landed bool
		landed, old = v.loadShared(context.Background(), f, q, shared) // the tier has a deadline of its own
		<-v.reads
		if landed {
			return
		}
		if !take(v.slots) {
			if old == nil || !v.landShared(f, q.fp, old, v.oldChecked()) {
				v.overloaded(f)
			}
			return
		}
	}
	ctx, cancel := context.WithTimeout(context.Background(), loadTimeout)
	defer cancel()
	record, ok := v.loadStore(ctx, f, q, old)
	<-v.slots
	if ok && shared != nil && record.Verdict.Outcome == auth.Allow && take(v.writes) {
		_ = shared.Put(ctx, q.about, q.fp, record) // the tier reports its own failures; the request has its answer
		<-v.writes
	}
}

func take(slots chan struct{}) bool {
	select {
	case slots <- struct{}{}:
		return true
	default:
		return false
	}
}

// takeSlot takes a slot toward the store, or ends the flight.
func (v *Verifier) takeSlot(f *cache.Flight) bool {
	if take(v.slots) {
		return true
	}
	v.overloaded(f)
	return false
}

func (v *Verifier) overloaded(f *cache.Flight) {
	v.meter.Lookup(TierStore, Overloaded)
	v.memory.Abort(f, auth.Undecided(auth.ErrOverloaded))
}

// oldChecked is a time of the check that keeps a verdict for oldKept.
func (v *Verifier) oldChecked() time.Time {
	ttl := v.memory.TTL()
	return v.hooks.Now().Add(min(oldKept, ttl) - ttl)
}

// loadShared lands the flight with a shared record. A record that is missing,
// unreadable, fenced or ahead of the cursor is a miss; one that is older than
// the memory tier keeps things is returned, for when the store is away.
func (v *Verifier) loadShared(ctx context.Context, f *cache.Flight, q question, shared Shared) (landed bool, old *cache.Record) {
	began := time.Now()
	record, err := shared.Get(ctx, q.about, q.fp)
	v.meter.Took(TierShared, time.Since(began))
	switch {
	case errors.Is(err, auth.ErrNotFound):
		v.meter.Lookup(TierShared, Miss)
		return false, nil
	case errors.Is(err, auth.ErrCorrupt):
		v.meter.Lookup(TierShared, Refused)
		return false, nil
	case err != nil:
		v.meter.Lookup(TierShared, Failed)
		return false, nil
	}
	if v.hooks.AfterShared != nil {
		v.hooks.AfterShared(record)
	}
	if v.hooks.Now().Sub(record.Checked) >= v.memory.TTL() {
		v.meter.Lookup(TierShared, Miss)
		return false, &record
	}
	return v.landShared(f, q.fp, &record, record.Checked), nil
}

// landShared lands the flight with a shared record, if no change overtook it.
func (v *Verifier) landShared(f *cache.Flight, fp auth.Fingerprint, record *cache.Record, checked time.Time) bool {
	parents := auth.ParentsOf(&record.Verdict.Identity)
	if !v.memory.Land(f, record.Verdict, checked, func() bool {
		return v.fence.Fence(record.Point, fp, parents) == feed.Usable
	}) {
		v.meter.Lookup(TierShared, Fenced)
		return false
	}
	v.meter.Lookup(TierShared, Hit)
	return true
}

// loadStore asks the store until no change overtakes the reading, maxRuns times
// at most. A fenced reading is neither kept nor returned (design 4.6, Fence).
// old is used if the store can't be asked.
func (v *Verifier) loadStore(ctx context.Context, f *cache.Flight, q question, old *cache.Record) (record cache.Record, ok bool) {
	for run := range maxRuns {
		if v.hooks.BeforeLoad != nil {
			v.hooks.BeforeLoad(run)
		}
		began, checked := time.Now(), v.hooks.Now()
		loaded, err := v.lookup(ctx, q, old != nil)
		v.meter.Took(TierStore, time.Since(began))
		if v.hooks.AfterLoad != nil {
			v.hooks.AfterLoad(run)
		}
		if err != nil {
			v.meter.Lookup(TierStore, Failed)
			if old == nil || !v.landShared(f, q.fp, old, v.oldChecked()) {
				v.memory.Abort(f, auth.Undecided(err))
			}
			return record, false
		}
		verdict := loaded.verdict
		if loaded.moved && verdict.Outcome == auth.Deny && verdict.Reason != auth.ReasonRevoked {
			v.memory.Abort(f, auth.Undecided(fmt.Errorf("looking up a key: %w", auth.ErrMoved)))
			return record, false
		}
		parents := auth.ParentsOf(&verdict.Identity)
		if v.fence.Fence(loaded.point, q.fp, parents) == feed.Ahead {
			if err := v.fence.LookSoon(ctx); err != nil {
				if old != nil && v.landShared(f, q.fp, old, v.oldChecked()) {
					return record, false
				}
				v.memory.Abort(f, auth.Undecided(fmt.Errorf("catching up with the journal: %w", err)))
				return record, false
			}
		}
		landed := v.memory.Land(f, verdict, checked, func() bool {
			usable := v.fence.Fence(loaded.point, q.fp, parents) == feed.Usable
			if usable && v.hooks.AfterFence != nil {
				v.hooks.AfterFence()
			}
			return usable
		})
		if landed {
			v.meter.Lookup(TierStore, hitOf(&verdict))
			return cache.Record{Verdict: verdict, Point: loaded.point, Checked: checked}, true
		}
		v.meter.Lookup(TierStore, Fenced)
		// Should the store have gone back in time, looking finds it out. A
		// failure to look is no reason to give up: the next run may say why.
		_ = v.fence.LookSoon(ctx)
	}
	v.memory.Abort(f, auth.Undecided(auth.ErrFenced))
	return record, false
}

// lookup asks the store, not for long if something else would do.
func (v *Verifier) lookup(ctx context.Context, q question, hurry bool) (answer, error) {
	most := lookupTimeout
	if hurry {
		most = patience
	}
	ctx, cancel := context.WithTimeout(ctx, most)
	defer cancel()
	return q.ask(ctx)
}
