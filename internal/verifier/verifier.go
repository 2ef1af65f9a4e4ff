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

// Keys is where keys, tokens and clients of our own are looked up. Each MUST
// read what it answers and the point in one snapshot and honour the context's
// deadline.
type Keys interface {
	LookupKey(ctx context.Context, fp auth.Fingerprint) (store.Loaded, error)
	LookupToken(ctx context.Context, fp auth.Fingerprint) (store.LoadedToken, error)
	LookupSecret(ctx context.Context, fp auth.Fingerprint) (store.LoadedClient, error)
	LookupClient(ctx context.Context, id string) (store.LoadedClient, error)
	LookupSession(ctx context.Context, fp auth.Fingerprint) (store.LoadedSession, error)
}

// Fence says whether caches may be trusted and loads be used.
type Fence interface {
	Trusted(now time.Time) bool
	Fence(p auth.Point, fp auth.Fingerprint, parents auth.Parents) feed.Fencing
	// Point is where what is known from memory stands.
	Point() (p auth.Point, ok bool)
	LookSoon(ctx context.Context) error
}

// Shared is the tier that gateways share. Errors of Get: auth.ErrNotFound,
// auth.ErrCorrupt, auth.ErrUnavailable. Both MUST return within a short
// deadline of their own.
type Shared interface {
	Get(ctx context.Context, about cache.About, fp auth.Fingerprint) (cache.Record, error)
	Put(ctx context.Context, about cache.About, fp auth.Fingerprint, r cache.Record) error
}

// Hooks let tests stop a load at the places where the protocol could break.
type Hooks struct {
	BeforeLoad func(run int) // before the store is read
	AfterLoad  func(run int) // between the store's answer and the fence
	AfterFence func()        // between a passed fence and the insert, under the key's lock
	AfterJoin  func()        // a request has joined a flight

	AfterShared func(cache.Record) // between the shared tier's answer and the fence

	Now func() time.Time // this machine's clock; nil: time.Now
}

// Verifier verifies API keys, tokens, and the clients that ask for tokens.
type Verifier struct {
	memory *cache.Memory
	fence  Fence
	keys   Keys
	minter atomic.Pointer[secret.Minter]

	imported atomic.Pointer[auth.Imported]
	cutOffs  atomic.Pointer[CutOffs]
	moved    atomic.Bool
	shared   atomic.Pointer[Shared]
	hooks    Hooks
	meter    Meter

	slots  chan struct{} // lookups under way toward the store
	reads  chan struct{} // toward the shared tier
	writes chan struct{}
}

// New returns a verifier. Until SetMinter is called it can decide nothing. A
// nil meter counts nothing.
func New(memory *cache.Memory, fence Fence, keys Keys, meter Meter, hooks Hooks) *Verifier {
	if meter == nil {
		meter = noMeter{}
	}
	if hooks.Now == nil {
		hooks.Now = time.Now
	}
	return &Verifier{
		memory: memory, fence: fence, keys: keys, meter: meter, hooks: hooks,
		slots: make(chan struct{}, MaxLoads), reads: make(chan struct{}, MaxSharedReads), writes: make(chan struct{}, maxSharedWrites),
	}
}

// Trusted reports whether verdicts given before still count.
func (v *Verifier) Trusted(now time.Time) bool { return v.fence.Trusted(now) }

// SetShared sets the tier that gateways share; nil is none.
func (v *Verifier) SetShared(s Shared) {
	if s == nil {
		v.shared.Store(nil)
		return
	}
	v.shared.Store(&s)
}

// SetMinter gives the verifier the secrets and prefixes it recognizes keys by.
func (v *Verifier) SetMinter(m *secret.Minter) { v.minter.Store(m) }

// SetImported gives the verifier the imported keys, which bear no tag of ours.
func (v *Verifier) SetImported(m *auth.Imported) { v.imported.Store(m) }

// SetMoved says whether the store was moved: then keys may be made where this
// node does not look.
func (v *Verifier) SetMoved(moved bool) { v.moved.Store(moved) }

// Imported returns what SetImported set.
func (v *Verifier) Imported() *auth.Imported { return v.imported.Load() }

// Minter returns what SetMinter set, or nil.
func (v *Verifier) Minter() *secret.Minter { return v.minter.Load() }

// VerifyKey verifies an API key. A cached identity costs one allocation and
// no I/O; a forged key is refused without I/O. Expiry is judged at now.
func (v *Verifier) VerifyKey(ctx context.Context, key string, now time.Time) auth.Verdict {
	return v.Verify(ctx, auth.FingerprintOf(key), key, now)
}

// Verify is VerifyKey for who has the key's fingerprint already. A token of our
// own is verified in the same way.
func (v *Verifier) Verify(ctx context.Context, fp auth.Fingerprint, key string, now time.Time) (verdict auth.Verdict) {
	trusted := v.fence.Trusted(now)
	if trusted && v.memory.Lookup(&verdict, fp, now) {
		v.meter.Lookup(TierMemory, hitOf(&verdict))
		judgeExpiry(&verdict, now)
		return verdict
	}
	minter := v.minter.Load()
	if minter == nil {
		return auth.Undecided(fmt.Errorf("the store's secrets were not read yet: %w", auth.ErrUnavailable))
	}
	kind := secret.KindOf(key)
	if kind != secret.AccessToken {
		kind = secret.Key // client secrets and refresh tokens are no credentials here
	}
	if r := minter.CheckKind(kind, key); r != auth.ReasonNone {
		if imported := v.imported.Load(); !imported.Has(fp) {
			return v.refuse(r, key, imported, trusted)
		}
	}
	if !trusted { // before it may join a flight
		return auth.Undecided(auth.ErrStale)
	}
	if kind == secret.AccessToken {
		return v.load(ctx, v.aboutToken(fp), now)
	}
	return v.load(ctx, v.aboutKey(fp), now)
}

// refuse denies a key that bears no tag of ours and was not imported, as far as
// this node knows: where it may not know all, it can't say so. One that has a
// prefix of ours and a wrong tag is forged in an outage too: new secrets mint
// only when every node that is trusted knows them (store.MintingDelay).
func (v *Verifier) refuse(r auth.Reason, key string, imported *auth.Imported, trusted bool) auth.Verdict {
	switch {
	case r != auth.ReasonMalformed:
	case v.moved.Load():
		return auth.Undecided(auth.ErrMoved)
	case !trusted && (imported.Matches(key) || ownForm(key)):
		return auth.Undecided(auth.ErrStale)
	}
	return auth.Denied(r)
}

// ownForm reports whether a key has the form of ours, with whatever prefix.
func ownForm(key string) bool {
	_, _, ok := secret.Parse(key)
	return ok
}

// VerifyAgain returns the present verdict on a credential that was verified
// before, with id as the result. Of a token it tells whether it was cut off: its
// issuer is not asked again.
func (v *Verifier) VerifyAgain(ctx context.Context, fp auth.Fingerprint, id *auth.Identity, now time.Time) auth.Verdict {
	if !v.fence.Trusted(now) {
		return auth.Undecided(auth.ErrStale)
	}
	if id.OfToken() {
		return v.tokenAgain(id, now)
	}
	switch id.Method {
	case auth.MethodAccessToken:
		return v.load(ctx, v.aboutToken(fp), now)
	case auth.MethodSession:
		return v.unlessUsed(ctx, fp, v.load(ctx, v.aboutSession(fp), now), now)
	}
	return v.load(ctx, v.aboutKey(fp), now)
}

// load looks once more in memory and then further.
func (v *Verifier) load(ctx context.Context, q question, now time.Time) auth.Verdict {
	return v.join(ctx, q.fp, now, func(f *cache.Flight) { v.lead(f, q) })
}

// join looks once more in memory and then waits for a flight, which begin begins
// if nobody did.
func (v *Verifier) join(ctx context.Context, fp auth.Fingerprint, now time.Time, begin func(*cache.Flight)) (verdict auth.Verdict) {
	hit, flight, lead := v.memory.Join(&verdict, fp, now)
	if hit {
		v.meter.Lookup(TierMemory, hitOf(&verdict))
		judgeExpiry(&verdict, now)
		return verdict
	}
	v.meter.Lookup(TierMemory, Miss)
	if lead {
		begin(flight)
	} else if v.hooks.AfterJoin != nil {
		v.hooks.AfterJoin()
	}
	return v.wait(ctx, flight, now)
}

// wait waits for a flight that this or another request began.
func (v *Verifier) wait(ctx context.Context, flight *cache.Flight, now time.Time) (verdict auth.Verdict) {
	waited := v.meter.Wait(ctx)
	select {
	case <-flight.Done():
		verdict = flight.Verdict()
		judgeExpiry(&verdict, now)
	case <-ctx.Done():
		verdict = auth.Undecided(fmt.Errorf("waiting for a lookup: %w", context.Cause(ctx)))
	}
	waited(&verdict)
	return verdict
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
