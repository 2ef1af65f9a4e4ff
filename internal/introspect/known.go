package introspect

import (
	"sync"
	"time"

	"github.com/caddy-auth/caddy-auth/internal/auth"
)

const (
	// knownFor is how long a token that was active counts as known; twice as long
	// at most.
	knownFor = 10 * time.Minute
	// mostKnown is how many are remembered, twice as many at most.
	mostKnown = 50_000
)

// knownTokens remembers tokens that were active lately, in two generations. It is
// safe for concurrent use.
type knownTokens struct {
	mu          sync.Mutex // guards what follows
	young, old  map[auth.Fingerprint]struct{}
	youngestSet time.Time
}

// note remembers whether a token was active.
func (k *knownTokens) note(fp auth.Fingerprint, active bool, now time.Time) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.turn(now)
	if !active {
		delete(k.young, fp)
		delete(k.old, fp)
		return
	}
	if k.young == nil {
		k.young = map[auth.Fingerprint]struct{}{}
	}
	k.young[fp] = struct{}{}
}

// has reports whether a token was active lately, and whether any was.
func (k *knownTokens) has(fp auth.Fingerprint, now time.Time) (known, any bool) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.turn(now)
	_, young := k.young[fp]
	_, old := k.old[fp]
	return young || old, len(k.young)+len(k.old) > 0
}

// turn forgets the old generation when the young one is old or full. k.mu is held.
func (k *knownTokens) turn(now time.Time) {
	switch age := now.Sub(k.youngestSet); {
	case age >= 2*knownFor:
		k.young, k.old, k.youngestSet = nil, nil, now
	case age >= knownFor || len(k.young) >= mostKnown:
		k.young, k.old, k.youngestSet = nil, k.young, now
	}
}
