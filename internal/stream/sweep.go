package stream

import (
	"context"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"time"

	"github.com/caddy-auth/caddy-auth/internal/auth"
)

// Start begins to end requests whose credential has ended.
func (r *Registry) Start() {
	ctx, cancel := context.WithCancel(context.Background())
	r.stop = cancel
	r.done.Go(func() {
		tick := time.NewTicker(sweepEvery)
		defer tick.Stop()
		for {
			select {
			case <-ctx.Done():
				return
			case <-r.doubts:
			case <-tick.C:
			}
			r.sweep(ctx, time.Now())
		}
	})
}

// Stop ends what Start began and waits for it. It may be called twice.
func (r *Registry) Stop() {
	if r.stop == nil {
		return
	}
	r.stop()
	r.done.Wait()
}

// sweep ends what has expired, or everything if nothing can be told any more,
// and verifies again what a change named.
func (r *Registry) sweep(ctx context.Context, now time.Time) {
	unix, clock := now.UnixMilli(), r.clock(now)
	if !r.verifier.Trusted(now) {
		r.sweepStale(clock)
		return
	}
	r.staleSince = 0
	var doubted []doubt
	for i := range r.shards {
		sh := &r.shards[i]
		sh.end(auth.ReasonExpired.String(), func(u underWay) bool {
			if u.notAfter == 0 || unix < u.notAfter || !u.old(clock) {
				return false
			}
			if u.renewed() { // other requests may have kept it
				u.doubted = true
				return false
			}
			return true
		})
		doubted = append(doubted, sh.doubted()...)
	}
	if len(doubted) == 0 || !r.checking.CompareAndSwap(false, true) {
		return // what is doubted now is looked at when this round has ended
	}
	r.done.Go(func() { // a store that hangs must not hold up what expires
		young := r.verifyAgain(ctx, doubted)
		r.checking.Store(false)
		if young {
			time.AfterFunc(againAfter, r.poke)
		}
	})
}

// sweepStale ends everything that has used up its grace, once trust has been
// missing for a while: it also lapses for some milliseconds when a gateway
// starts over.
func (r *Registry) sweepStale(clock int64) {
	if r.staleSince == 0 {
		r.staleSince = clock
	}
	if clock-r.staleSince < staleFor.Milliseconds() {
		return
	}
	for i := range r.shards {
		r.shards[i].end(ReasonStale, func(u underWay) bool { return u.old(clock) })
	}
}

// renewed reports whether the credential's end moves with its use.
func (u underWay) renewed() bool { return u.request.Identity().Method == auth.MethodSession }

// doubt is a credential that must be verified again, and what it established.
type doubt struct {
	fp auth.Fingerprint
	id *auth.Identity
}

// doubted lists each credential once whose requests are doubted. The identities
// are copies: a request may end and take its own along.
func (sh *shard) doubted() []doubt {
	sh.mu.Lock()
	defer sh.mu.Unlock()
	var out []doubt
	var seen map[auth.Fingerprint]bool
	for _, u := range sh.list {
		if !u.doubted || u.ended || seen[u.fp] {
			continue
		}
		if seen == nil {
			seen = map[auth.Fingerprint]bool{}
		}
		seen[u.fp] = true
		id := *u.request.Identity()
		out = append(out, doubt{u.fp, &id})
	}
	return out
}

// verifyAgain verifies credentials, in any order, so that none waits behind the
// same others in each round. It reports whether requests with grace are left.
func (r *Registry) verifyAgain(ctx context.Context, doubted []doubt) bool {
	rand.Shuffle(len(doubted), func(i, j int) { doubted[i], doubted[j] = doubted[j], doubted[i] })
	var young atomic.Bool
	var workers sync.WaitGroup
	work := make(chan doubt)
	for range min(checkers, len(doubted)) {
		workers.Go(func() {
			for d := range work {
				if r.verifyOne(ctx, d.fp, d.id) {
					young.Store(true)
				}
			}
		})
	}
	for _, d := range doubted {
		work <- d
	}
	close(work)
	workers.Wait()
	return young.Load()
}

// verifyOne ends the requests of a credential that does not hold any more. One
// that can't be decided now is tried again at the next sweep, until trust ends.
// It reports whether requests with grace are left to be ended.
func (r *Registry) verifyOne(ctx context.Context, fp auth.Fingerprint, id *auth.Identity) (young bool) {
	ctx, cancel := context.WithTimeout(ctx, checkTimeout)
	defer cancel()
	sh := r.shard(fp)
	// A change that comes while it is verified doubts them anew.
	sh.each(fp, func(s *Stream) { s.doubted = false })
	v := r.verifier.VerifyAgain(ctx, fp, id, time.Now())
	switch v.Outcome {
	case auth.Deny:
		clock := r.clock(time.Now())
		sh.end(v.Reason.String(), func(u underWay) bool {
			if u.fp == fp && !u.old(clock) {
				u.doubted, young = true, true
				return false
			}
			return u.fp == fp
		})
	case auth.Allow:
		sh.each(fp, func(s *Stream) { s.notAfter = v.Identity.NotAfter })
	default:
		sh.each(fp, func(s *Stream) { s.doubted = true })
	}
	return young
}

// each calls visit for the requests of one credential.
func (sh *shard) each(fp auth.Fingerprint, visit func(*Stream)) {
	sh.mu.Lock()
	defer sh.mu.Unlock()
	for _, u := range sh.list {
		if u.fp == fp {
			visit(u.Stream)
		}
	}
}
