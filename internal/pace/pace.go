// Package pace slows down what comes too fast, without refusing any of it: a
// flood of bad credentials then waits instead of taking the processor from good
// traffic. It does no I/O.
package pace

import (
	"context"
	"sync/atomic"
	"time"
)

const (
	// Longest is the most that one event waits.
	Longest = 500 * time.Millisecond
	// MostWaiting is how many events may wait at once, so that waiting takes a
	// bounded amount of memory.
	MostWaiting = 2048
	// burst is how far events may run ahead of the rate.
	burst = 100 * time.Millisecond
)

// Pacer lets events pass at a rate. One that comes when the rate is used up
// waits for its turn, at most Longest. It is safe for concurrent use.
type Pacer struct {
	began   time.Time    // what turns count from, by the monotonic clock
	rate    atomic.Int64 // events a second; 0: any
	next    atomic.Int64 // the next turn, in nanoseconds since began
	waiting atomic.Int64
}

// New returns a pacer that lets everything pass until it has a rate.
func New() *Pacer { return &Pacer{began: time.Now()} }

// SetRate changes the rate, in events a second; 0 lets everything pass.
func (p *Pacer) SetRate(perSecond int) { p.rate.Store(int64(perSecond)) }

// Turn is how an event got its turn.
type Turn int

// Turns.
const (
	AtOnce Turn = iota
	Waited
	Full // it should have waited, but too many do
)

// Wait returns when it is this event's turn, or when ctx ends.
func (p *Pacer) Wait(ctx context.Context) Turn {
	delay := p.delay(time.Since(p.began).Nanoseconds())
	if delay <= 0 {
		return AtOnce
	}
	if p.waiting.Add(1) > MostWaiting {
		p.waiting.Add(-1)
		return Full
	}
	defer p.waiting.Add(-1)
	turn := time.NewTimer(delay)
	defer turn.Stop()
	select {
	case <-turn.C:
	case <-ctx.Done():
	}
	return Waited
}

// delay takes the next turn and returns how far away it is. Turns that are
// further away than Longest are not given out: their events all wait that long.
func (p *Pacer) delay(now int64) time.Duration {
	rate := p.rate.Load()
	if rate <= 0 {
		return 0
	}
	for {
		next := p.next.Load()
		turn := max(next, now-burst.Nanoseconds())
		if turn-now > Longest.Nanoseconds() {
			return Longest
		}
		if p.next.CompareAndSwap(next, turn+int64(time.Second)/rate) {
			return time.Duration(turn - now)
		}
	}
}
