package feed

import (
	"math"
	"sync"
	"sync/atomic"
	"time"
)

// trustClock remembers when the last good look and the last confirmed
// heartbeat began. Caches are trusted while both are young. After a heartbeat
// that came too late only looks that begin after it count: meanwhile nobody
// may have waited for this gateway (design 4.6, Trust).
type trustClock struct {
	look, beat clock
	written    clock        // the last heartbeat that was written; guarded by mu
	told       atomic.Int64 // the max_staleness that the store was told last, nanoseconds; 0: it never was
	unwritten  atomic.Bool  // the last heartbeat could not be written, which did not end trust

	mu     sync.Mutex // held by whoever writes
	era    uint64     // counts the lapses
	closed bool       // nothing is trusted any more
}

func newTrustClock(now time.Time) *trustClock {
	return &trustClock{look: clock{start: now}, beat: clock{start: now}, written: clock{start: now}}
}

// young reports whether both clocks are younger than most, and than what the
// store was told, which is what others go by. While heartbeats can't be written
// looks must be younger than unwrittenMost. The heartbeat is read first: it is
// set after the look was lapsed.
func (t *trustClock) young(now time.Time, most, unwrittenMost time.Duration) bool {
	most = min(most, time.Duration(t.told.Load()))
	if t.beat.age(now) >= most {
		return false
	}
	if t.unwritten.Load() {
		most = min(most, unwrittenMost)
	}
	return t.look.age(now) < most
}

// begin returns what looked must be given.
func (t *trustClock) begin() uint64 {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.era
}

// looked counts a good look, and reports false if trust lapsed since it began.
func (t *trustClock) looked(began time.Time, era uint64) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	if era != t.era {
		return false
	}
	t.look.set(began)
	return true
}

// tell notes what the store is about to be told, if that is less than before:
// whether the heartbeat is confirmed or not, others may go by it.
func (t *trustClock) tell(most time.Duration) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if told := t.told.Load(); told > int64(most) {
		t.told.Store(int64(most))
	}
}

// confirmed counts a heartbeat that was confirmed at now, or that could not be
// written where that is no reason for doubt. If the one before it was too old
// by then, or one is written for the first time in so long, looks begun so far
// don't count: reports whether that is so.
func (t *trustClock) confirmed(began, now time.Time, most time.Duration, written bool) (lapsed bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.closed {
		return false
	}
	limit := min(most, time.Duration(t.told.Load()))
	if lapsed = t.beat.age(now) >= limit || written && t.written.age(now) >= limit; lapsed {
		t.era++
		t.look.lapse()
	}
	t.unwritten.Store(!written)
	if written {
		t.told.Store(int64(most))
		t.written.set(began)
	}
	t.beat.set(began)
	return lapsed
}

// everTold reports whether the store was ever told that this node is there.
func (t *trustClock) everTold() bool { return t.told.Load() > 0 }

// close ends trust for good.
func (t *trustClock) close() {
	t.mu.Lock()
	t.closed = true
	t.mu.Unlock()
	t.lapse()
}

func (t *trustClock) isClosed() bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.closed
}

// lapse ends trust until a heartbeat and then a look.
func (t *trustClock) lapse() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.era++
	t.beat.lapse()
	t.look.lapse()
}

// clock is a moment. Its age is by the monotonic or by the wall clock,
// whichever is more, so that neither a machine that slept nor a clock set back
// makes anything younger.
type clock struct {
	start time.Time
	mono  atomic.Int64 // nanoseconds since start, +1; 0: never
	wall  atomic.Int64 // unix nanoseconds
}

func (c *clock) set(at time.Time) {
	c.wall.Store(at.UnixNano())
	c.mono.Store(int64(at.Sub(c.start)) + 1)
}

func (c *clock) lapse() { c.mono.Store(0) }

func (c *clock) age(now time.Time) time.Duration {
	mono := c.mono.Load()
	if mono == 0 {
		return math.MaxInt64
	}
	return max(now.Sub(c.start)-time.Duration(mono-1), time.Duration(now.UnixNano()-c.wall.Load()))
}
