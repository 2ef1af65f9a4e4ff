// Package ledger sends requests at a fixed rate, whatever the answers, and
// writes down for each one the credential, the answer and the time.
package ledger

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

// Class is what is expected of a credential.
type Class string

// The classes.
const (
	Cached  Class = "cached"  // good, asked for all the time
	Shared  Class = "shared"  // good, asked for once, at another gateway
	Cold    Class = "cold"    // good, never asked for before
	Victim  Class = "victim"  // good until it is revoked
	Revoked Class = "revoked" // from the start
	Forged  Class = "forged"
	Public  Class = "public" // a public path, no credential
)

// good reports whether a credential has to be let in.
func (c *Credential) good() bool {
	return c.Class.good() || c.Class == Victim && c.ending.Load() == 0
}

func (c Class) good() bool { return c == Cached || c == Shared || c == Cold }

// Credential is what a request carries.
type Credential struct {
	Class Class
	Key   string

	ending  atomic.Int64 // unix nanoseconds from which on it may be refused; 0: never
	stopped atomic.Int64 // and must not be let in
}

// Ending says that a credential is being revoked: from now on either answer is
// right.
func (c *Credential) Ending() { c.ending.Store(time.Now().UnixNano()) }

// StopsAt says from when on a credential must not be let in any more.
func (c *Credential) StopsAt(t time.Time) { c.stopped.Store(t.UnixNano()) }

// Entry is one request.
type Entry struct {
	Credential *Credential
	At         time.Time // when it was sent
	Took       time.Duration
	Status     int // 0: there was no answer
}

// Load is a stream of requests.
type Load struct {
	Rate   int             // requests a second
	URLs   func() []string // of gateways, asked for anew for each request
	Client *http.Client
	Pick   func(n int) *Credential // the credential of the nth request

	// Again is how many requests got no answer at first and were sent again, as
	// clients do: a connection made in the moment of a reload may be closed.
	Again atomic.Int64

	mu      sync.Mutex
	entries []Entry
	left    atomic.Int64 // under way
}

// mostUnderWay bounds what waits for answers: beyond it requests are written
// down as not answered.
const mostUnderWay = 4000

// Start sends requests until stop is called, which waits for the last answer.
func (l *Load) Start() (stop func()) {
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		var all sync.WaitGroup
		defer all.Wait()
		began := time.Now()
		tick := time.NewTicker(2 * time.Millisecond)
		defer tick.Stop()
		for n := 0; ; {
			select {
			case <-ctx.Done():
				return
			case <-tick.C:
			}
			for due := int(time.Since(began).Seconds() * float64(l.Rate)); n < due; n++ {
				c := l.Pick(n)
				if c == nil {
					continue
				}
				urls := l.URLs()
				all.Go(func() { l.send(c, urls[n%len(urls)]) })
			}
		}
	}()
	return func() { cancel(); <-done }
}

func (l *Load) send(c *Credential, url string) {
	e := Entry{Credential: c, At: time.Now()}
	if l.left.Add(1) <= mostUnderWay {
		e.Status = l.status(c, url)
	}
	l.left.Add(-1)
	e.Took = time.Since(e.At)
	l.mu.Lock()
	l.entries = append(l.entries, e)
	l.mu.Unlock()
}

func (l *Load) status(c *Credential, url string) int {
	path := "/"
	if c.Class == Public {
		path = "/open"
	}
	req, err := http.NewRequest(http.MethodGet, url+path, nil)
	if err != nil {
		return 0
	}
	if c.Key != "" {
		req.Header.Set("X-Api-Key", c.Key)
	}
	res, err := l.Client.Do(req)
	if err != nil {
		l.Again.Add(1)
		if res, err = l.Client.Do(req); err != nil {
			return 0
		}
	}
	_, _ = io.Copy(io.Discard, res.Body)
	_ = res.Body.Close()
	return res.StatusCode
}

// Take returns and forgets what was written down.
func (l *Load) Take() []Entry {
	l.mu.Lock()
	defer l.mu.Unlock()
	out := l.entries
	l.entries = nil
	return out
}

// Recent counts the answers to good credentials that were sent since then, and
// how many of them were not 200.
func (l *Load) Recent(since time.Time) (good, bad int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, e := range slices.Backward(l.entries) {
		if e.At.Before(since) {
			continue
		}
		if e.Credential.good() {
			good++
			if e.Status != http.StatusOK {
				bad++
			}
		}
	}
	return good, bad
}

// Wrong are the answers that must never be given: 4xx to a good credential, an
// open door to a bad one, and no answer at all.
func Wrong(entries []Entry) []string {
	var out []string
	say := func(e Entry, what string) {
		out = append(out, fmt.Sprintf("%s: %s key answered %d after %s: %s", e.At.Format("15:04:05.000"), e.Credential.Class, e.Status, e.Took.Round(time.Millisecond), what))
	}
	for _, e := range entries {
		class, in := e.Credential.Class, e.Status == http.StatusOK
		ending, stopped := e.Credential.ending.Load(), e.Credential.stopped.Load()
		switch {
		case e.Status == 0:
			say(e, "no answer")
		case class == Public && !in:
			say(e, "a public path was closed")
		case class == Forged && e.Status != http.StatusUnauthorized:
			say(e, "a forged key is refused without asking anybody")
		case class == Revoked && in, class == Victim && in && stopped != 0 && e.At.UnixNano() > stopped:
			say(e, "a revoked key was let in")
		case class == Victim && (ending == 0 || e.At.Add(e.Took).UnixNano() < ending) && !in && e.Status != http.StatusServiceUnavailable:
			say(e, "a key was refused before it was revoked")
		case class.good() && !in && e.Status != http.StatusServiceUnavailable:
			say(e, "a good key was called bad")
		}
	}
	return out
}

// Sum is what a class of requests came to.
type Sum struct {
	Requests, Unavailable int // of them answered 503
	P50, P99, Max         time.Duration
}

// SumOf adds up the entries of the classes, all if none is named.
func SumOf(entries []Entry, classes ...Class) Sum {
	var s Sum
	var took []time.Duration
	for _, e := range entries {
		if len(classes) > 0 && !slices.Contains(classes, e.Credential.Class) {
			continue
		}
		s.Requests++
		if e.Status == http.StatusServiceUnavailable {
			s.Unavailable++
		}
		took = append(took, e.Took)
	}
	if len(took) == 0 {
		return s
	}
	slices.Sort(took)
	s.P50, s.P99, s.Max = took[len(took)/2], took[len(took)*99/100], took[len(took)-1]
	return s
}

// Recovered is how long after healed the last good credential was not let in;
// 0: none was turned away since.
func Recovered(entries []Entry, healed time.Time) time.Duration {
	var last time.Duration
	for _, e := range entries {
		if e.Credential.Class.good() && e.Status != http.StatusOK {
			if end := e.At.Add(e.Took).Sub(healed); end > last {
				last = end
			}
		}
	}
	return last
}
