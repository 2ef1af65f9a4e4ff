package outbound

import (
	"context"
	"fmt"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"time"

	"github.com/caddy-auth/caddy-auth/internal/auth"
	"github.com/caddy-auth/caddy-auth/internal/grant"
)

const (
	// DefaultRefreshBefore is how long before its end a token is refreshed.
	DefaultRefreshBefore = time.Minute
	// leastBackoff and mostBackoff bound how long a token endpoint is left alone
	// after failures; half of each wait is random.
	leastBackoff = time.Second
	mostBackoff  = 30 * time.Second
	// waitLonger is how much longer than for one question a request waits for a
	// token: another gateway may be asking, or have died while it did.
	waitLonger = 2 * time.Second
	// expiryMargin is how long before its end a token is not used any more.
	expiryMargin = time.Second
)

// Asker gets a token, with a secret that By identifies. Errors are *Failure.
type Asker interface {
	Ask(ctx context.Context) (grant.Grant, error)
	By() auth.Fingerprint
	Timeout() time.Duration // bounds Ask
}

// Origin is where a token came from.
type Origin string

const (
	FromEndpoint Origin = "endpoint"
	FromFleet    Origin = "fleet" // another gateway had fetched it
)

// Events are told what happens to tokens. Fields may be nil; they must not
// block.
type Events struct {
	Got     func(g grant.Grant, from Origin)
	Failed  func(f *grant.Failure, left time.Duration) // how long the present token is good
	Refused func(renewed bool)                         // by the upstream; whether it is replaced
}

// Tokens is a source of tokens for one client. It is safe for concurrent use.
type Tokens struct {
	ask    Asker
	before time.Duration
	events atomic.Pointer[Events]
	shared atomic.Pointer[Shared]

	current atomic.Pointer[held]

	startOnce sync.Once
	started   chan struct{}

	mu        sync.Mutex // guards what follows
	flight    *flight
	again     bool // the secret changed while a flight was under way
	failures  int
	failure   *grant.Failure
	notBefore time.Time
	forced    time.Time // state of refusedRate
	refused   []auth.Fingerprint
	timer     *time.Timer
	closed    bool
}

// held is a token in use.
type held struct {
	grant.Grant
	credential Credential
	refresh    time.Time // when another is fetched
	usable     time.Time // until when it is used
	used       atomic.Bool
	forced     bool         // asked for because the upstream refused another
	doubted    atomic.Bool  // the upstream refused it
	accepted   atomic.Int64 // when the upstream took it last, about; Unix milliseconds
}

func (h *held) usableAt(now time.Time) bool { return h != nil && now.Before(h.usable) }

// take gives the credential to a request.
func (h *held) take() Credential {
	if !h.used.Load() { // written once, so that processors don't fight for it
		h.used.Store(true)
	}
	return h.credential
}

// flight is one attempt to get a token.
type flight struct {
	goal goal
	done chan struct{}
	next *flight // with the new secret, if that has changed; set before done is closed
}

// goal is what a token must be to end a flight.
type goal struct {
	notThis *held            // the token in use when it began
	by      auth.Fingerprint // got with this secret; zero: any
	forced  bool             // it began because notThis was refused
}

// NewTokens returns a source. Nothing is fetched before the first request after
// Start. before is how long before its end a token is refreshed: half of its
// life at most.
func NewTokens(ask Asker, before time.Duration) *Tokens {
	if before <= 0 {
		before = DefaultRefreshBefore
	}
	t := &Tokens{ask: ask, before: before, started: make(chan struct{})}
	t.SetEvents(Events{})
	return t
}

// SetEvents sets who is told.
func (t *Tokens) SetEvents(e Events) { t.events.Store(&e) }

// SetShared sets where gateways of a fleet meet; nil: nowhere.
func (t *Tokens) SetShared(s Shared) {
	if s == nil {
		t.shared.Store(nil)
		return
	}
	t.shared.Store(&s)
}

// Start lets requests fetch tokens. Those that came before wait for it.
func (t *Tokens) Start() { t.startOnce.Do(func() { close(t.started) }) }

// Close ends what goes on without a request. Requests that still use the source
// get credentials as before.
func (t *Tokens) Close() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.closed = true
	if t.timer != nil {
		t.timer.Stop()
	}
}

// Status is what is known of the token in use.
type Status struct {
	Issued, Expires time.Time
}

// Status returns it; ok is false without a token that is good.
func (t *Tokens) Status() (s Status, ok bool) {
	h := t.current.Load()
	if !h.usableAt(time.Now()) {
		return Status{}, false
	}
	return Status{h.Issued, h.Expires}, true
}

// Credential returns a token that is good now. One that is about to expire is
// refreshed meanwhile; without one the request waits until there is. Errors are
// *Failure, or the context's.
func (t *Tokens) Credential(ctx context.Context) (Credential, error) {
	if h := t.current.Load(); h != nil && time.Now().Before(h.refresh) && !h.doubted.Load() {
		return h.take(), nil
	}
	if err := t.awaitStart(ctx); err != nil {
		return Credential{}, err
	}
	now := time.Now()
	t.mu.Lock()
	h := t.current.Load()
	f := t.begin(now, goal{notThis: h})
	failure := t.failureAt(now)
	t.mu.Unlock()
	if h.usableAt(now) { // one that was refused too: perhaps not to this request
		return h.take(), nil
	}
	if f == nil {
		return Credential{}, failure
	}
	return t.after(ctx, f)
}

// after is the credential when a flight has ended, and the one that began
// because the secret had changed meanwhile.
func (t *Tokens) after(ctx context.Context, f *flight) (Credential, error) {
	for f != nil {
		if err := t.wait(ctx, f); err != nil {
			return Credential{}, err
		}
		if h := t.current.Load(); h.usableAt(time.Now()) && (f.next == nil || !h.doubted.Load()) {
			return h.take(), nil
		}
		f = f.next
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	return Credential{}, t.failureAt(time.Now())
}

// awaitStart waits until Start was called.
func (t *Tokens) awaitStart(ctx context.Context) error {
	select {
	case <-t.started:
		return nil
	default:
	}
	return t.waitFor(ctx, t.started, "the gateway has not started")
}

func (t *Tokens) wait(ctx context.Context, f *flight) error {
	return t.waitFor(ctx, f.done, fmt.Sprintf("no token for %s", t.ask.Timeout()+waitLonger))
}

func (t *Tokens) waitFor(ctx context.Context, done <-chan struct{}, late string) error {
	timer := time.NewTimer(t.ask.Timeout() + waitLonger)
	defer timer.Stop()
	select {
	case <-done:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	case <-timer.C:
		return grant.Unavailable(late, nil)
	}
}

// failureAt is the last failure, as it is to be told at now. t.mu is held.
func (t *Tokens) failureAt(now time.Time) *grant.Failure {
	f := grant.Failure{Cause: grant.CauseUnavailable, Detail: "no token yet"}
	if t.failure != nil {
		f = *t.failure
	}
	f.RetryAfter = max(t.notBefore.Sub(now), time.Second)
	return &f
}

// begin returns the flight under way, or begins one; nil if the last one failed
// too short a while ago. t.mu is held.
func (t *Tokens) begin(now time.Time, g goal) *flight {
	if t.flight != nil {
		return t.flight
	}
	if now.Before(t.notBefore) {
		return nil
	}
	t.flight = &flight{goal: g, done: make(chan struct{})}
	go t.fly(t.flight)
	return t.flight
}

// fly gets a token, whoever waits for it.
func (t *Tokens) fly(f *flight) {
	ctx, cancel := context.WithTimeout(context.Background(), 2*t.ask.Timeout()+waitLonger)
	defer cancel()
	g, from, err := t.obtain(ctx, f.goal)
	now := time.Now()
	worse := false
	if err == nil {
		worse, err = t.worse(g, f.goal, now)
	}
	if got := t.events.Load().Got; err == nil && !worse && got != nil {
		got(g, from) // before anybody uses it
	}
	t.mu.Lock()
	t.flight = nil
	told := func() {}
	switch {
	case err != nil:
		told = t.failed(grant.FailureOf(err), now)
	case worse: // when the present one ends, it will do
		end := f.goal.notThis.usable
		t.notBefore = now.Add(min(mostBackoff, end.Sub(now)))
		t.arm(t.notBefore.Sub(now))
	default:
		t.adopt(g, now, f.goal.forced && from == FromEndpoint)
	}
	if t.again && !t.closed {
		t.again, t.notBefore = false, time.Time{}
		if h := t.current.Load(); err != nil || g.By != t.ask.By() {
			f.next = t.begin(now, goal{notThis: h, by: t.ask.By()})
		}
	}
	t.mu.Unlock()
	told()
	close(f.done)
}

// worse reports whether a token ends before the present one, which goes on then.
// One that is over as it comes is an error.
func (t *Tokens) worse(g grant.Grant, goal goal, now time.Time) (bool, error) {
	_, usable := t.times(g, 0)
	if !now.Before(usable) {
		return false, &grant.Failure{Cause: grant.CauseAnswer, Detail: "the token had expired when it came"}
	}
	h := goal.notThis
	return h.usableAt(now) && usable.Before(h.usable) && !h.doubted.Load() && goal.by == (auth.Fingerprint{}) && !h.Token.Equal(g.Token), nil
}

// adopt puts a token in use. t.mu is held.
func (t *Tokens) adopt(g grant.Grant, now time.Time, forced bool) {
	h := &held{Grant: g, forced: forced}
	h.credential = Credential{Header: "Authorization", Value: auth.NewSecret("Bearer " + g.Token.Reveal()), token: h}
	h.refresh, h.usable = t.times(g, rand.Float64())
	t.current.Store(h)
	t.failures, t.failure, t.notBefore = 0, nil, time.Time{}
	t.arm(h.refresh.Sub(now))
}

// times are when a token is refreshed and until when it is used: as early as
// asked, or half of its life if that is less, and up to a quarter of that
// earlier, so that not all gateways begin at once. random is in [0, 1).
func (t *Tokens) times(g grant.Grant, random float64) (refresh, usable time.Time) {
	life := g.Expires.Sub(g.Issued)
	usable = g.Expires.Add(-min(expiryMargin, life/10))
	early := min(t.before, life/2)
	refresh = g.Expires.Add(-early - time.Duration(random*float64(early)/4))
	if refresh.After(usable) {
		refresh = usable
	}
	return refresh, usable
}

// failed notes a failure and returns what tells of it. t.mu is held.
func (t *Tokens) failed(f *grant.Failure, now time.Time) func() {
	t.failures++
	backoff := min(mostBackoff, leastBackoff<<min(t.failures-1, 10))
	backoff = backoff/2 + rand.N(backoff/2+1)
	t.failure, t.notBefore = f, now.Add(max(backoff, f.RetryAfter))
	left := time.Duration(0)
	if h := t.current.Load(); h.usableAt(now) {
		left = h.usable.Sub(now)
		t.arm(t.notBefore.Sub(now))
	}
	return func() {
		if tell := t.events.Load().Failed; tell != nil {
			tell(f, left)
		}
	}
}

// arm makes a token that is used be refreshed without a request. t.mu is held.
func (t *Tokens) arm(in time.Duration) {
	if t.timer != nil {
		t.timer.Stop()
	}
	if t.closed {
		return
	}
	t.timer = time.AfterFunc(max(in, 0), func() {
		t.mu.Lock()
		defer t.mu.Unlock()
		now := time.Now()
		h := t.current.Load()
		if t.closed || h == nil || !h.used.Load() || now.Before(h.refresh) && !h.doubted.Load() {
			return
		}
		t.begin(now, goal{notThis: h})
	})
}
