package introspect

import (
	"net/netip"
	"sync"
	"time"
)

const (
	period = time.Second
	// seenFor is how long an address counts among those that ask.
	seenFor = 10 * time.Second
)

// shares says who may have the server asked: at most rate questions in any second
// and MaxInFlight at a time. Nobody has all of it for tokens that were not active
// lately, which anybody can make up: a quarter is kept for those that were, and
// one address has an equal part of the rest while others ask, and never everything.
// It is safe for concurrent use.
type shares struct {
	rate int

	mu     sync.Mutex // guards what follows
	asked  []question // a ring: the last second's
	first  int
	length int
	rated  usage // of asked
	flying usage
	seen   [2]struct { // the addresses that asked last
		address netip.Addr
		at      time.Time
	}
}

// question is one that was asked.
type question struct {
	at      time.Time
	address netip.Addr // invalid: not known
	known   bool       // the token was active lately
}

// usage counts questions.
type usage struct {
	all, strange int // strange: of tokens that are not known
	of           map[netip.Addr]int
}

func (u *usage) add(q question, n int) {
	u.all += n
	if q.known {
		return
	}
	u.strange += n
	if q.address.IsValid() {
		if u.of[q.address] += n; u.of[q.address] == 0 {
			delete(u.of, q.address)
		}
	}
}

// room reports whether one more fits into most. reserved says that some tokens are
// known, contended that other addresses ask too.
func (u *usage) room(q question, most int, reserved, contended bool) bool {
	if u.all >= most {
		return false
	}
	if q.known {
		return true
	}
	strange, one := most, max(1, most*5/8)
	if reserved {
		strange = max(1, most-most/4)
	}
	if contended {
		parts := len(u.of) + 1 // one is left for an address that asks next
		if u.of[q.address] == 0 {
			parts++
		}
		one = max(1, strange/parts)
	}
	return u.strange < strange && (!q.address.IsValid() || u.of[q.address] < min(one, strange))
}

func newShares(rate int) *shares {
	return &shares{rate: rate, asked: make([]question, rate), rated: usage{of: map[netip.Addr]int{}}, flying: usage{of: map[netip.Addr]int{}}}
}

// begin takes a place for a question. done gives back that it is under way; nil:
// there is no place. reserved says that some tokens are known.
func (s *shares) begin(q question, reserved bool) (done func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for s.length > 0 && q.at.Sub(s.asked[s.first].at) >= period {
		s.rated.add(s.asked[s.first], -1)
		s.first, s.length = (s.first+1)%s.rate, s.length-1
	}
	contended := s.contended(q)
	if !s.rated.room(q, s.rate, reserved, contended) || !s.flying.room(q, MaxInFlight, reserved, contended) {
		return nil
	}
	s.asked[(s.first+s.length)%s.rate] = q
	s.length++
	s.rated.add(q, 1)
	s.flying.add(q, 1)
	return func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.flying.add(q, -1)
	}
}

// contended notes who asks and reports whether another address does too.
// s.mu is held.
func (s *shares) contended(q question) bool {
	if q.known || !q.address.IsValid() {
		return false
	}
	if s.seen[0].address != q.address {
		s.seen[1] = s.seen[0]
		s.seen[0].address = q.address
	}
	s.seen[0].at = q.at
	return s.seen[1].address.IsValid() && s.seen[1].address != q.address && q.at.Sub(s.seen[1].at) < seenFor
}
