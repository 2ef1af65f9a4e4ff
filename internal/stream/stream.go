// Package stream knows the requests that are under way with a credential, and
// ends them when the credential ends: websockets, server-sent events and long
// downloads live much longer than a verdict. Adding and removing one costs two
// short locks and no memory.
package stream

import (
	"context"
	"math"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/caddy-auth/caddy-auth/internal/auth"
)

// Reasons for ending a stream that are not a credential's.
const (
	// ReasonStale: the gateway can't tell any more whether the credential holds.
	ReasonStale = "stale"
	// ReasonStopped: the gateway no longer follows the credential's store.
	ReasonStopped = "stopped"
)

// Request is what is under way.
type Request interface {
	// Identity is what it was let in with. It must not change any more.
	Identity() *auth.Identity
	// End ends it. It is called at most once, perhaps after Remove: then it must
	// do nothing.
	End(reason string)
}

// Stream is a request's place in a registry; embed it in what belongs to the
// request. It is small, since every request has one. The zero value is not
// under way.
type Stream struct {
	fp       auth.Fingerprint
	notAfter int64 // when the credential expires, as far as known
	began    int64 // on the registry's clock, milliseconds; 0: it is a stream from its beginning
	// All that follows is guarded by the shard's lock.
	place   int32 // in the shard's list, + 1; 0: not there
	ended   bool
	doubted bool // a change named it: its credential must be verified again
}

// Unseen is what to give to Add if nobody knows which changes were applied
// before the credential was verified: it is verified again.
const Unseen = math.MaxUint64

// Name keeps a credential's fingerprint for a later Add; Named returns it.
func (s *Stream) Name(fp auth.Fingerprint) { s.fp = fp }
func (s *Stream) Named() auth.Fingerprint  { return s.fp }

// Verifier verifies a credential again.
type Verifier interface {
	// VerifyAgain returns the present verdict on the credential with a
	// fingerprint, which established id.
	VerifyAgain(ctx context.Context, fp auth.Fingerprint, id *auth.Identity, now time.Time) auth.Verdict
	// Trusted reports whether a verdict given before still counts.
	Trusted(now time.Time) bool
}

const (
	shardCount = 64
	// sweepEvery is how often expiry, trust and doubts are looked at.
	sweepEvery = 500 * time.Millisecond
	// staleFor is how long trust must be missing before it ends requests.
	staleFor = 500 * time.Millisecond
	// checkers bounds how many credentials are verified again at a time.
	checkers     = 16
	checkTimeout = time.Second
	// againAfter is how soon a request is looked at again that still has grace.
	againAfter = 100 * time.Millisecond
	// Grace is how long a request may take that is let in before its credential
	// ends: most are answered by then and are no streams.
	Grace = 500 * time.Millisecond
)

// Registry holds the requests under way. It is safe for concurrent use.
type Registry struct {
	verifier Verifier
	start    time.Time // its clock's zero; no change of the wall clock moves it
	checking atomic.Bool
	// staleSince is since when trust is missing, on the registry's clock; 0: it
	// is not. Only the sweeper uses it.
	staleSince int64
	shards     [shardCount]shard
	changes    atomic.Uint64 // counts the changes that were applied
	count      atomic.Int64
	doubts     chan struct{}

	stop context.CancelFunc
	done sync.WaitGroup
}

type shard struct {
	mu   sync.Mutex
	list []underWay
	_    [64]byte // keeps neighbours off one cache line
}

type underWay struct {
	*Stream
	request Request
}

// NewRegistry returns an empty registry.
func NewRegistry(v Verifier) *Registry {
	return &Registry{verifier: v, start: time.Now(), doubts: make(chan struct{}, 1)}
}

// Changes is to be read before a credential is verified and given to Add: a
// change in between makes the stream doubted.
func (r *Registry) Changes() uint64 { return r.changes.Load() }

// Add puts a request under way that began and was let in after Changes
// returned seen. A zero time gives it no grace.
func (r *Registry) Add(s *Stream, q Request, fp auth.Fingerprint, began time.Time, seen uint64) {
	s.fp, s.notAfter = fp, q.Identity().NotAfter
	if !began.IsZero() {
		s.began = r.clock(began)
	}
	sh := r.shard(fp)
	sh.mu.Lock()
	sh.list = append(sh.list, underWay{s, q})
	s.place = int32(len(sh.list))
	s.doubted = r.changes.Load() != seen
	doubted := s.doubted
	sh.mu.Unlock()
	r.count.Add(1)
	if doubted {
		r.poke()
	}
}

// Remove takes a request off that has ended.
func (r *Registry) Remove(s *Stream) {
	sh := r.shard(s.fp)
	sh.mu.Lock()
	defer sh.mu.Unlock()
	if s.place == 0 {
		return
	}
	last := len(sh.list) - 1
	moved := sh.list[last]
	sh.list[s.place-1], moved.place = moved, s.place
	sh.list[last] = underWay{}
	sh.list, s.place = sh.list[:last], 0
	r.count.Add(-1)
}

// clock is a time on the registry's own clock, never 0.
func (r *Registry) clock(t time.Time) int64 { return max(1, t.Sub(r.start).Milliseconds()) }

// Len returns how many requests are under way.
func (r *Registry) Len() int { return int(r.count.Load()) }

func (r *Registry) shard(fp auth.Fingerprint) *shard { return &r.shards[fp[len(fp)-1]%shardCount] }

func (r *Registry) poke() {
	select {
	case r.doubts <- struct{}{}:
	default:
	}
}

// Applied doubts the requests whose credential a change names. It is called
// after the change was applied to the caches, and before the next one is.
func (r *Registry) Applied(c auth.Change) {
	r.changes.Add(1) // before looking: whoever is added from now on sees it
	found := false
	for _, fp := range c.Fingerprints {
		found = r.doubt(r.shard(fp), func(u underWay) bool { return u.fp == fp }) || found
	}
	if c.Parent != (auth.Parent{}) {
		for i := range r.shards {
			found = r.doubt(&r.shards[i], func(u underWay) bool { return u.dependsOn(c.Parent) }) || found
		}
	}
	if found {
		r.poke()
	}
}

func (u underWay) dependsOn(p auth.Parent) bool {
	parents := auth.ParentsOf(u.request.Identity())
	return slices.Contains(parents[:], p)
}

// DoubtAll doubts every request: nobody knows what changed.
func (r *Registry) DoubtAll() {
	r.changes.Add(1)
	for i := range r.shards {
		r.doubt(&r.shards[i], func(underWay) bool { return true })
	}
	r.poke()
}

func (r *Registry) doubt(sh *shard, concerned func(underWay) bool) bool {
	sh.mu.Lock()
	defer sh.mu.Unlock()
	found := false
	for _, u := range sh.list {
		if concerned(u) {
			u.doubted, found = true, true
		}
	}
	return found
}

// EndAll ends every request that is under way.
func (r *Registry) EndAll(reason string) {
	for i := range r.shards {
		r.shards[i].end(reason, func(underWay) bool { return true })
	}
}

// end ends the requests that which selects, without holding the lock.
func (sh *shard) end(reason string, which func(underWay) bool) {
	var doomed []Request
	sh.mu.Lock()
	for _, u := range sh.list {
		if !u.ended && which(u) {
			u.ended = true
			doomed = append(doomed, u.request)
		}
	}
	sh.mu.Unlock()
	for _, q := range doomed {
		q.End(reason)
	}
}

// old reports whether a request has used up its grace at a time of the
// registry's clock.
func (u underWay) old(clock int64) bool {
	return u.began == 0 || clock-u.began >= Grace.Milliseconds()
}
