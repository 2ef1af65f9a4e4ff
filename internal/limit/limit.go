// Package limit counts events per key and says when there are too many: the
// generic cell rate algorithm, which needs one time for each key. It keeps
// everything in this process and does no I/O.
package limit

import (
	"sync"
	"time"
)

// Rate is one event every Every in the long run, and Burst at once.
type Rate struct {
	Every time.Duration
	Burst int
}

// Next returns the state of a key after one more event at now, and whether it
// was within the rate. state is the theoretical arrival time, zero for a key
// that had no event.
func (r Rate) Next(state, now time.Time) (next time.Time, within bool) {
	if state.Before(now) {
		state = now
	}
	next = state.Add(r.Every)
	return next, !next.After(now.Add(time.Duration(r.Burst) * r.Every))
}

// Left is how long until a key with a state has room for one more event; 0: it
// has.
func (r Rate) Left(state, now time.Time) time.Duration {
	return max(0, state.Add(r.Every).Sub(now.Add(time.Duration(r.Burst)*r.Every)))
}

// Local counts the events of many keys. Its table is bounded: when it is full,
// keys that have drained go first, then any. It is safe for concurrent use.
type Local[K comparable] struct {
	rate Rate
	most int

	mu     sync.Mutex
	states map[K]time.Time
}

// NewLocal returns a counter for at most most keys.
func NewLocal[K comparable](rate Rate, most int) *Local[K] {
	return &Local[K]{rate: rate, most: most, states: map[K]time.Time{}}
}

// Left is how long until key has room for one more event; 0: it has. Asking
// counts nothing.
func (l *Local[K]) Left(key K, now time.Time) time.Duration {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.rate.Left(l.states[key], now)
}

// Add counts one event of key. What is beyond the rate does not count, so that
// a key has room again Every after it was full, however much was tried.
func (l *Local[K]) Add(key K, now time.Time) (within bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	old, known := l.states[key]
	next, within := l.rate.Next(old, now)
	if !within {
		return false
	}
	if !known && len(l.states) >= l.most {
		l.makeRoom(now)
	}
	l.states[key] = next
	return true
}

// makeRoom forgets keys that have drained, of a few that it looks at; if there
// is none, one of them.
func (l *Local[K]) makeRoom(now time.Time) {
	looked, gone := 0, false
	var last K
	for key, state := range l.states { // in no order that anybody could choose
		last = key
		if !state.After(now) {
			delete(l.states, key)
			gone = true
		}
		if looked++; looked >= 16 {
			break
		}
	}
	if !gone {
		delete(l.states, last)
	}
}

// Return takes back one event of key that Add counted, as if it had not been.
func (l *Local[K]) Return(key K, now time.Time) {
	l.mu.Lock()
	defer l.mu.Unlock()
	state, known := l.states[key]
	if !known {
		return
	}
	if state = state.Add(-l.rate.Every); state.After(now) {
		l.states[key] = state
	} else {
		delete(l.states, key)
	}
}
