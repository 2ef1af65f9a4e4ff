package feed

import (
	"math"
	"sync/atomic"
	"time"
)

// trustClock remembers when the last good look began, by the monotonic and by
// the wall clock. Its age is the larger of the two, so that neither a machine
// that slept nor a clock set back makes a verdict younger.
type trustClock struct {
	start time.Time
	mono  atomic.Int64 // nanoseconds since start, +1; 0: never
	wall  atomic.Int64 // unix nanoseconds
}

func (t *trustClock) set(began time.Time) {
	t.wall.Store(began.UnixNano())
	t.mono.Store(int64(began.Sub(t.start)) + 1)
}

func (t *trustClock) lapse() { t.mono.Store(0) }

func (t *trustClock) age(now time.Time) time.Duration {
	mono := t.mono.Load()
	if mono == 0 {
		return math.MaxInt64
	}
	return max(now.Sub(t.start)-time.Duration(mono-1), time.Duration(now.UnixNano()-t.wall.Load()))
}
