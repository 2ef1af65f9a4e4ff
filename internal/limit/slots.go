package limit

import (
	"context"
	"errors"
	"slices"
	"sync"
)

// ErrFull says that too many wait for a slot, or that one's turn did not come in
// time.
var ErrFull = errors.New("too many wait for their turn")

// Slots lets at most so many through at a time. Those who wait are served by
// key, one of each in turn, so that however many come with one key, another's
// turn comes next. It is safe for concurrent use.
type Slots[K comparable] struct {
	total   int // slots
	share   int // of them for one key
	waiting int // who may wait, of one key

	mu    sync.Mutex // guards what follows
	taken map[K]int
	used  int
	queue map[K][]chan struct{} // closed when it is one's turn
	turns []K                   // keys with a queue, the next one first
}

// mostQueues is how many keys may wait.
const mostQueues = 4096

// NewSlots returns total slots, of which one key may have share, while waiting
// more of it wait.
func NewSlots[K comparable](total, share, waiting int) *Slots[K] {
	return &Slots[K]{total: total, share: share, waiting: waiting, taken: map[K]int{}, queue: map[K][]chan struct{}{}}
}

// Take waits for a slot until ctx ends. The zero key is of those who can't be
// told apart: it may have all slots, so that one of them does not stand in the
// others' way. release gives the slot back; it is nil after an error, ErrFull.
func (s *Slots[K]) Take(ctx context.Context, key K) (release func(), err error) {
	s.mu.Lock()
	if len(s.queue[key]) == 0 && s.free(key) {
		s.enter(key)
		s.mu.Unlock()
		return func() { s.release(key) }, nil
	}
	var zero K
	if len(s.queue[key]) >= s.waiting*s.times(key) || len(s.queue) >= mostQueues && len(s.queue[key]) == 0 && key != zero {
		s.mu.Unlock()
		return nil, ErrFull
	}
	turn := make(chan struct{})
	if s.queue[key] = append(s.queue[key], turn); len(s.queue[key]) == 1 {
		s.turns = append(s.turns, key)
	}
	s.mu.Unlock()
	select {
	case <-turn:
		return func() { s.release(key) }, nil
	case <-ctx.Done():
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if i := slices.Index(s.queue[key], turn); i >= 0 {
		s.forget(key, i)
		return nil, ErrFull
	}
	// Its turn came in the same moment.
	return func() { s.release(key) }, nil
}

// times is how many shares a key has.
func (s *Slots[K]) times(key K) int {
	var zero K
	if key == zero {
		return max(1, s.total/s.share)
	}
	return 1
}

// free reports whether a key may have a slot now. s.mu is held.
func (s *Slots[K]) free(key K) bool { return s.used < s.total && s.taken[key] < s.share*s.times(key) }

// enter takes a slot. s.mu is held.
func (s *Slots[K]) enter(key K) {
	s.used++
	s.taken[key]++
}

// forget takes one who waits off a queue. s.mu is held.
func (s *Slots[K]) forget(key K, i int) {
	if s.queue[key] = slices.Delete(s.queue[key], i, i+1); len(s.queue[key]) == 0 {
		delete(s.queue, key)
		s.turns = slices.DeleteFunc(s.turns, func(k K) bool { return k == key })
	}
}

// release gives a slot back, to whose turn it is.
func (s *Slots[K]) release(key K) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.used--
	if s.taken[key]--; s.taken[key] == 0 {
		delete(s.taken, key)
	}
	for i := 0; i < len(s.turns); {
		next := s.turns[i]
		if !s.free(next) {
			i++ // its share is used up
			continue
		}
		turn := s.queue[next][0]
		s.turns = append(slices.Delete(s.turns, i, i+1), next) // the last of all
		s.forget(next, 0)
		s.enter(next)
		close(turn)
	}
}
