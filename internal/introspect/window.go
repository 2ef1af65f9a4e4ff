package introspect

import (
	"sync"
	"time"
)

// window counts what was done in the last while: at most as many times in any
// period as it has places. It is safe for concurrent use.
type window struct {
	period time.Duration

	mu   sync.Mutex
	at   []time.Time // a ring
	next int         // the oldest place
}

func newWindow(most int, period time.Duration) *window {
	return &window{period: period, at: make([]time.Time, most)}
}

// take takes a place at now, and reports false if none is free.
func (w *window) take(now time.Time) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	if oldest := w.at[w.next]; !oldest.IsZero() && now.Sub(oldest) < w.period {
		return false
	}
	w.at[w.next] = now
	w.next = (w.next + 1) % len(w.at)
	return true
}
