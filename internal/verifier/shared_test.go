package verifier_test

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/caddy-auth/caddy-auth/internal/auth"
	"github.com/caddy-auth/caddy-auth/internal/cache"
	"github.com/caddy-auth/caddy-auth/internal/manage"
	"github.com/caddy-auth/caddy-auth/internal/secret"
	"github.com/caddy-auth/caddy-auth/internal/verifier"
)

// remote is a Redis that anybody can read and write, in this process.
type remote struct {
	mu   sync.Mutex
	data map[string][]byte
	gets atomic.Int64
	away atomic.Bool

	readOnly atomic.Bool
	written  chan struct{} // something was, since it was read last
}

func newRemote() *remote { return &remote{data: map[string][]byte{}, written: make(chan struct{}, 1)} }

func (r *remote) Get(_ context.Context, name string) ([]byte, error) {
	r.gets.Add(1)
	if r.away.Load() {
		return nil, auth.ErrUnavailable
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	v, ok := r.data[name]
	if !ok {
		return nil, auth.ErrNotFound
	}
	return slices.Clone(v), nil
}

func (r *remote) Set(_ context.Context, name string, value []byte, _ time.Duration) error {
	if r.away.Load() || r.readOnly.Load() {
		return auth.ErrUnavailable
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.data[name] = value
	select {
	case r.written <- struct{}{}:
	default:
	}
	return nil
}

func (r *remote) snapshot() map[string][]byte {
	r.mu.Lock()
	defer r.mu.Unlock()
	return maps.Clone(r.data)
}

func (r *remote) replay(old map[string][]byte) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.data = maps.Clone(old)
}

// eventuallyHas waits for the write that follows an answer.
func (r *remote) eventuallyHas(t *testing.T, n int) {
	t.Helper()
	deadline := time.After(5 * time.Second)
	for len(r.snapshot()) != n {
		select {
		case <-r.written:
		case <-deadline:
			t.Fatalf("%d records, want %d", len(r.snapshot()), n)
		}
	}
}

// share puts remote behind the node's memory tier.
func (n *node) share(r *remote) *cache.Shared {
	n.t.Helper()
	e, err := n.db.Envelope(n.t.Context(), n.ring)
	n.must(err)
	s := cache.NewShared(r, e, "p:", 10*time.Minute)
	n.verifier.SetShared(s)
	return s
}

// rebuild gives the node a verifier with a meter and hooks of the test's own.
func (n *node) rebuild(m verifier.Meter, h verifier.Hooks) {
	n.t.Helper()
	n.verifier = verifier.New(n.memory, n.follower, n, m, h)
	minter, err := n.db.Minter(n.t.Context(), n.ring)
	n.must(err)
	n.verifier.SetMinter(minter)
}

// beside returns another gateway on the same store, with cold caches.
func (n *node) beside(r *remote) *node {
	n.t.Helper()
	m := openNode(n.t, n.path)
	m.share(r)
	return m
}

func TestShared_SecondGatewayNeedsNoStore(t *testing.T) {
	r := newRemote()
	a := newNode(t)
	a.share(r)
	k := a.create("acme")
	a.look()
	a.want(k, auth.Allow, auth.ReasonNone)
	r.eventuallyHas(t, 1)
	b := a.beside(r)
	v := b.verify(k)
	if v.Outcome != auth.Allow || v.Identity.Subject != "acme" || v.Identity.CredentialID != k.Key.ID || b.loads.Load() != 0 {
		t.Fatalf("verdict %+v after %d loads", v, b.loads.Load())
	}
	// The store goes away: the record still does, an unknown key is undecided.
	c := a.beside(r)
	c.away.Store(true)
	c.want(k, auth.Allow, auth.ReasonNone)
	c.want(a.create("other"), auth.CannotDecide, auth.ReasonNone)
}

func TestShared_DenialsAreNotShared(t *testing.T) {
	r := newRemote()
	n := newNode(t)
	s := n.share(r)
	k := n.create("acme")
	n.revoke(k)
	n.look()
	n.want(k, auth.Deny, auth.ReasonRevoked)
	if err := s.Put(t.Context(), cache.About{}, auth.FingerprintOf("x"), cache.Record{Verdict: auth.Denied(auth.ReasonUnknown)}); !errors.Is(err, auth.ErrInvalid) {
		t.Errorf("a denial was shared: %v", err)
	}
	if len(r.snapshot()) != 0 {
		t.Error("something was written")
	}
}

// TestTrace_SharedRecordRevokedMeanwhile: a record written before a revoke is
// a miss for a gateway that has applied it, also one that starts later, and
// costs no run.
func TestTrace_SharedRecordRevokedMeanwhile(t *testing.T) {
	r := newRemote()
	a := newNode(t)
	a.share(r)
	k, other := a.create("acme"), a.create("acme")
	a.look()
	a.want(k, auth.Allow, auth.ReasonNone)
	a.want(other, auth.Allow, auth.ReasonNone)
	r.eventuallyHas(t, 2)
	before := r.snapshot()
	b := a.beside(r)
	a.revoke(k)
	b.look()
	b.want(k, auth.Deny, auth.ReasonRevoked)
	r.replay(before)
	late := a.beside(r) // it learns the change from the journal's tail
	late.want(k, auth.Deny, auth.ReasonRevoked)
	late.want(other, auth.Allow, auth.ReasonNone)
	if late.loads.Load() != 1 {
		t.Errorf("%d loads: the other key's record was good", late.loads.Load())
	}
	_, err := a.manage.SetOwnerDisabled(t.Context(), "acme", true, "")
	a.must(err)
	for _, n := range []*node{b, late, a.beside(r)} {
		n.look()
		r.replay(before)
		n.want(other, auth.Deny, auth.ReasonOwnerDisabled)
	}
}

// TestTrace_RevokeBetweenSharedReadAndInsert applies a revoke while a record
// is on its way.
func TestTrace_RevokeBetweenSharedReadAndInsert(t *testing.T) {
	r := newRemote()
	a := newNode(t)
	a.share(r)
	k := a.create("acme")
	a.look()
	a.want(k, auth.Allow, auth.ReasonNone)
	r.eventuallyHas(t, 1)
	b := openNode(t, a.path)
	b.rebuild(nil, verifier.Hooks{AfterShared: func(cache.Record) {
		a.revoke(k)
		b.look()
	}})
	b.share(r)
	b.want(k, auth.Deny, auth.ReasonRevoked)
}

// TestTrace_SharedRecordAheadOfTheCursor: a gateway that has not read as far
// as the record's writer asks the store.
func TestTrace_SharedRecordAheadOfTheCursor(t *testing.T) {
	r := newRemote()
	a := newNode(t)
	a.share(r)
	b := a.beside(r)
	k := a.create("acme")
	a.look()
	a.want(k, auth.Allow, auth.ReasonNone)
	r.eventuallyHas(t, 1)
	b.want(k, auth.Allow, auth.ReasonNone)
	if b.loads.Load() != 1 {
		t.Errorf("%d loads", b.loads.Load())
	}
}

// TestTrace_SharedRecordOfAnUndoneHistory: gateways stopped, a backup
// restored, gateways started; what Redis kept of a key that the store no
// longer holds is worth nothing, even when the journal has grown past it.
func TestTrace_SharedRecordOfAnUndoneHistory(t *testing.T) {
	r := newRemote()
	a := newNode(t)
	a.share(r)
	a.create("someone")
	backup := copyDB(t, a)
	k := a.create("acme")
	a.look()
	a.want(k, auth.Allow, auth.ReasonNone)
	r.eventuallyHas(t, 1)
	old := r.snapshot()
	a.must(a.db.Close())
	restored := filepath.Join(t.TempDir(), "auth.db")
	a.must(os.Rename(backup, restored))
	b := openNode(t, restored)
	b.share(r)
	for range 3 { // the journal passes the record's sequence
		b.look()
		r.replay(old)
		b.want(k, auth.Deny, auth.ReasonUnknown)
		b.create("somebody.else")
		b.memory.Clear()
	}
}

// TestShared_OldRecordsServeOnlyWhenTheStoreIsAway: what is older than memory
// keeps things is asked for anew, unless nobody can be asked.
func TestShared_OldRecordsServeOnlyWhenTheStoreIsAway(t *testing.T) {
	r := newRemote()
	n := newNode(t)
	s := n.share(r)
	k := n.create("acme")
	n.look()
	loaded, err := n.db.LookupKey(t.Context(), auth.FingerprintOf(k.Text.Reveal()))
	n.must(err)
	n.want(k, auth.Allow, auth.ReasonNone)
	r.eventuallyHas(t, 1)
	v := n.verify(k)
	n.must(s.Put(t.Context(), cache.About{}, auth.FingerprintOf(k.Text.Reveal()), cache.Record{Verdict: v, Point: loaded.Point, Checked: time.Now().Add(-n.memory.TTL())}))
	n.memory.Clear()
	n.away.Store(true)
	n.want(k, auth.Allow, auth.ReasonNone)
	n.away.Store(false)
	n.memory.Clear() // it keeps such a record for a moment only
	loads := n.loads.Load()
	n.want(k, auth.Allow, auth.ReasonNone)
	if n.loads.Load() != loads+1 {
		t.Error("the old record was kept")
	}
}

// TestShared_OldRecordsWhenTheStoreHangs: a store that does not answer costs a
// moment, once, and full slots cost nothing where an older record would do.
func TestShared_OldRecordsWhenTheStoreHangs(t *testing.T) {
	r := newRemote()
	n := newNode(t)
	s := n.share(r)
	keys := make([]manage.Made, 80)
	for i := range keys {
		keys[i] = n.create("acme")
	}
	n.look()
	for i, k := range keys {
		fp := auth.FingerprintOf(k.Text.Reveal())
		loaded, err := n.db.LookupKey(t.Context(), fp)
		n.must(err)
		n.want(k, auth.Allow, auth.ReasonNone)
		r.eventuallyHas(t, i+1)
		n.must(s.Put(t.Context(), cache.About{}, fp, cache.Record{Verdict: n.verify(k), Point: loaded.Point, Checked: time.Now().Add(-n.memory.TTL())}))
	}
	n.memory.Clear()
	n.hanging.Store(true)
	for range 2 {
		began := time.Now()
		var wg sync.WaitGroup
		for _, k := range keys {
			wg.Go(func() { n.want(k, auth.Allow, auth.ReasonNone) })
		}
		wg.Wait()
		if took := time.Since(began); took > 2*time.Second {
			t.Errorf("80 requests took %s", took)
		}
	}
	began := time.Now()
	for _, k := range keys {
		n.want(k, auth.Allow, auth.ReasonNone)
	}
	if took := time.Since(began); took > 200*time.Millisecond {
		t.Errorf("asking again took %s: the old records are not kept for a while", took)
	}
	// Kept or not, a change reaches them.
	n.hanging.Store(false)
	n.revoke(keys[0])
	n.look()
	n.want(keys[0], auth.Deny, auth.ReasonRevoked)
}

// counts is a meter.
type counts struct {
	mu sync.Mutex
	n  map[string]int
}

func (c *counts) Lookup(t verifier.Tier, r verifier.Result) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.n == nil {
		c.n = map[string]int{}
	}
	c.n[t.String()+" "+r.String()]++
}
func (c *counts) Took(verifier.Tier, time.Duration)        {}
func (c *counts) Wait(context.Context) func(*auth.Verdict) { return func(*auth.Verdict) {} }
func (c *counts) get(what string) int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.n[what]
}

// TestShared_ForgedRecords: whoever can write to Redis edits, truncates,
// extends, swaps, replays and invents records, ten thousand times. None is
// believed, each is counted, and no good key is refused.
func TestShared_ForgedRecords(t *testing.T) {
	r := newRemote()
	n := newNode(t)
	c := &counts{}
	n.rebuild(c, verifier.Hooks{})
	n.share(r)
	strong, weak := n.create("admin"), n.create("acme")
	revoked := n.create("gone")
	n.look()
	n.want(strong, auth.Allow, auth.ReasonNone)
	n.want(weak, auth.Allow, auth.ReasonNone)
	n.want(revoked, auth.Allow, auth.ReasonNone)
	r.eventuallyHas(t, 3)
	good := r.snapshot()
	names := slices.Sorted(maps.Keys(good))
	other, err := secret.NewEnvelope([]byte("another store"), make([]byte, 32))
	n.must(err)
	n.revoke(revoked)
	n.look()
	r.readOnly.Store(true) // what the test puts there stays
	rnd := rand.New(rand.NewPCG(1, 2))
	rounds := 10_000
	if testing.Short() {
		rounds = 1000
	}
	for i := range rounds {
		forged := map[string][]byte{}
		for j, name := range names {
			b := slices.Clone(good[name])
			switch i % 7 {
			case 0: // edited
				b[rnd.IntN(len(b))] ^= byte(1 + rnd.IntN(255))
			case 1: // truncated
				b = b[:rnd.IntN(len(b))]
			case 2: // longer
				b = append(b, byte(rnd.Int()))
			case 3: // swapped between names
				b = slices.Clone(good[names[(j+1)%len(names)]])
			case 4: // invented
				b = make([]byte, rnd.IntN(400))
				for k := range b {
					b[k] = byte(rnd.Int())
				}
			case 5: // sealed by another store
				b = other.Seal(name, b)
			case 6: // two spliced
				b = append(b[:len(b)/2], good[names[(j+1)%len(names)]][len(b)/2:]...)
			}
			forged[name] = b
		}
		r.replay(forged)
		n.memory.Clear()
		refused := c.get("redis refused") + c.get("redis miss")
		if v := n.verify(weak); v.Outcome != auth.Allow || v.Identity.Subject != "acme" || v.Identity.CredentialID != weak.Key.ID {
			t.Fatalf("round %d: %+v", i, v)
		}
		if v := n.verify(revoked); v.Outcome != auth.Deny {
			t.Fatalf("round %d: a revoked key came back: %+v", i, v)
		}
		if got := c.get("redis refused") + c.get("redis miss") - refused; got != 2 {
			t.Fatalf("round %d (%d): %d of 2 forged records counted: %v", i, i%7, got, c.n)
		}
		if c.get("redis hit") != 0 {
			t.Fatalf("round %d: a forged record was used", i)
		}
	}
	if n := c.get("redis refused"); n < rounds*2*6/7 {
		t.Errorf("only %d refused", n)
	}
	// Replayed whole: genuine, so the fence judges. The revoked one stays out.
	r.replay(good)
	n.memory.Clear()
	n.want(revoked, auth.Deny, auth.ReasonRevoked)
	n.want(weak, auth.Allow, auth.ReasonNone)
}

// TestShared_NothingReadable: names and values show nothing of key, owner or
// fingerprint, and two stores never meet.
func TestShared_NothingReadable(t *testing.T) {
	r := newRemote()
	a, b := newNode(t), newNode(t)
	a.share(r)
	b.share(r)
	ka, kb := a.create("acme-billing"), b.create("acme-billing")
	a.look()
	b.look()
	a.want(ka, auth.Allow, auth.ReasonNone)
	b.want(kb, auth.Allow, auth.ReasonNone)
	r.eventuallyHas(t, 2)
	fp := auth.FingerprintOf(ka.Text.Reveal())
	for name, value := range r.snapshot() {
		text := name + string(value)
		for _, s := range []string{ka.Text.Reveal(), "acme", ka.Key.ID, string(fp[:8]), fmt.Sprintf("%x", fp[:8]), ka.Key.Hint} {
			if strings.Contains(text, s) {
				t.Errorf("%q shows in %q", s, name)
			}
		}
	}
	b.want(ka, auth.Deny, auth.ReasonForged)
}

func TestShared_HerdMakesOneReadOfEach(t *testing.T) {
	r := newRemote()
	n := newNode(t)
	n.share(r)
	k := n.create("acme")
	n.look()
	var wg sync.WaitGroup
	begin := make(chan struct{})
	var bad atomic.Int64
	for range 10_000 {
		wg.Go(func() {
			<-begin
			if n.verify(k).Outcome != auth.Allow {
				bad.Add(1)
			}
		})
	}
	close(begin)
	wg.Wait()
	if bad.Load() != 0 || r.gets.Load() != 1 || n.loads.Load() != 1 {
		t.Errorf("%d refused, %d Redis reads, %d store reads", bad.Load(), r.gets.Load(), n.loads.Load())
	}
}
