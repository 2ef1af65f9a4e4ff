// Package jwks keeps the public keys of issuers. It fetches them in the
// background, whatever tokens say: a token can cause one fetch in UnknownEvery
// and issuer at most. A Set is safe for concurrent use.
package jwks

import (
	"context"
	"fmt"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"time"

	"github.com/caddy-auth/caddy-auth/internal/auth"
	"github.com/caddy-auth/caddy-auth/internal/fetch"
	"github.com/caddy-auth/caddy-auth/internal/jwt"
)

const (
	// UnknownEvery is the least time between two fetches that unknown key ids
	// cause.
	UnknownEvery = 30 * time.Second
	// DefaultKept is how long the last good set is used while the issuer is away.
	DefaultKept = 24 * time.Hour
	// A set is fetched again after what the issuer's Cache-Control says, within
	// these bounds.
	leastRefresh, usualRefresh, mostRefresh = 5 * time.Minute, 15 * time.Minute, time.Hour
	// After a failure it is tried again soon, then less and less often.
	firstRetry, mostRetry = time.Second, time.Minute
	// rediscover is how often the issuer is asked where its keys are.
	rediscover = time.Hour
	// patience is how long a request waits for a fetch.
	patience = 3 * time.Second
	// fetchTimeout bounds one fetch, discovery included.
	fetchTimeout = 10 * time.Second
)

// Config says whose keys a set has.
type Config struct {
	// Issuer is asked where its keys are (OpenID Connect Discovery 1.0, 4), if
	// there is no KeysURL.
	Issuer string
	// KeysURL is where the keys are.
	KeysURL string
	// Kept is how long keys are used that could not be fetched again. Default:
	// DefaultKept.
	Kept time.Duration
}

// Events are told what happened. Fields may be nil; they must not block.
type Events struct {
	Fetched func(keys int, skipped []string)
	Failed  func(error)
}

// Getter asks for a URL; see fetch.Client.
type Getter interface {
	Get(ctx context.Context, url string) (*fetch.Answer, error)
}

// Set is one issuer's keys.
type Set struct {
	cfg    Config
	client Getter
	events atomic.Pointer[Events]
	now    func() time.Time

	current atomic.Pointer[snapshot]
	first   chan struct{} // closed when the first fetch has ended
	once    sync.Once
	wake    chan struct{} // a fetch was made out of turn

	mu       sync.Mutex // guards what follows
	flight   *flight
	forcedAt time.Time // when a token caused a fetch last
	failedAt time.Time // when the last fetch failed; zero: it did not

	fetching     chan struct{} // a lock that is held while a fetch is made; guards what follows
	keysURL      string        // as discovered
	discoveredAt time.Time

	life context.Context // ends with Stop; set before the first token comes
	stop context.CancelFunc
	done sync.WaitGroup
}

// snapshot is what one fetch brought. It is immutable.
type snapshot struct {
	keys    []*jwt.Key
	fetched time.Time // when the fetch began
	refresh time.Duration
}

type flight struct {
	done chan struct{}
	err  error
}

// New returns a set that has no keys yet; Start fetches them.
func New(cfg Config, client Getter) *Set {
	if cfg.Kept <= 0 {
		cfg.Kept = DefaultKept
	}
	s := &Set{cfg: cfg, client: client, now: time.Now, first: make(chan struct{}), wake: make(chan struct{}, 1), fetching: make(chan struct{}, 1)}
	s.events.Store(&Events{})
	return s
}

// SetEvents sets who is told.
func (s *Set) SetEvents(e Events) { s.events.Store(&e) }

// Start begins to fetch. Called again it does nothing.
func (s *Set) Start() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.stop != nil {
		return
	}
	ctx, cancel := context.WithCancel(context.Background())
	s.life, s.stop = ctx, cancel
	s.done.Go(func() { s.run(ctx) })
}

// Stop ends the fetching and waits for it. It may be called twice.
func (s *Set) Stop() {
	s.mu.Lock()
	if s.stop != nil {
		s.stop() // nothing is begun after it
	}
	s.mu.Unlock()
	s.done.Wait()
}

// Age is how old the keys are; ok is false if there are none.
func (s *Set) Age() (age time.Duration, ok bool) {
	c := s.current.Load()
	if c == nil {
		return 0, false
	}
	return s.now().Sub(c.fetched), true
}

func (s *Set) run(ctx context.Context) {
	retry := firstRetry
	for due := true; ; {
		if due {
			if s.fetch(ctx) == nil {
				retry = firstRetry
			} else {
				retry = min(2*retry, mostRetry)
			}
			s.once.Do(func() { close(s.first) })
		}
		wait := s.dueIn(retry)
		timer := time.NewTimer(wait - time.Duration(rand.Int64N(int64(wait/10)+1)))
		select {
		case <-timer.C:
			due = true
		case <-s.wake: // it was fetched just now
			due = false
		case <-ctx.Done():
			timer.Stop()
			return
		}
		timer.Stop()
	}
}

// dueIn is when the keys are to be fetched next: retry from now after a
// failure.
func (s *Set) dueIn(retry time.Duration) time.Duration {
	s.mu.Lock()
	failed := !s.failedAt.IsZero()
	s.mu.Unlock()
	c := s.current.Load()
	if failed || c == nil {
		return retry
	}
	return max(time.Second, min(c.refresh, s.cfg.Kept/2)-s.now().Sub(c.fetched))
}

// Key returns the key that a token is to be checked with which names kid and
// alg and says that it was issued at issued. There is none: auth.ErrNotFound.
// That can't be told, because the issuer can't be asked, or may have made a key
// since it was asked: auth.ErrUnavailable.
func (s *Set) Key(ctx context.Context, kid, alg string, issued time.Time) (*jwt.Key, error) {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	c, err := s.usable(ctx)
	if err != nil {
		return nil, err
	}
	if k, ambiguous := find(c.keys, kid, alg); k != nil || ambiguous {
		return found(k)
	}
	if err := s.fetchFor(ctx); err != nil {
		return nil, err
	}
	if c, err = s.usable(ctx); err != nil {
		return nil, err
	}
	k, _ := find(c.keys, kid, alg)
	if k == nil && issued.After(c.fetched) {
		return nil, fmt.Errorf("a key that may be newer than the set of %s: %w", c.fetched.UTC().Format(time.RFC3339), auth.ErrUnavailable)
	}
	return found(k)
}

func found(k *jwt.Key) (*jwt.Key, error) {
	if k == nil {
		return nil, auth.ErrNotFound
	}
	return k, nil
}

// usable is the present set, once there is one.
func (s *Set) usable(ctx context.Context) (*snapshot, error) {
	c := s.current.Load()
	if c == nil {
		select {
		case <-s.first:
		case <-ctx.Done():
		}
		c = s.current.Load()
	}
	if c == nil {
		return nil, fmt.Errorf("the issuer's keys were not fetched yet: %w", auth.ErrUnavailable)
	}
	if age := s.now().Sub(c.fetched); age > s.cfg.Kept {
		return nil, fmt.Errorf("the issuer's keys were fetched %s ago: %w", age.Round(time.Second), auth.ErrUnavailable)
	}
	return c, nil
}

// fetchFor fetches because of a token, unless that was done lately. Callers are
// coalesced. It returns an error if what there is may not be all.
func (s *Set) fetchFor(ctx context.Context) error {
	s.mu.Lock()
	f := s.flight
	switch {
	case s.life == nil || s.life.Err() != nil:
		s.mu.Unlock()
		return fmt.Errorf("nobody fetches the issuer's keys: %w", auth.ErrUnavailable)
	case f != nil:
	case !s.forcedAt.IsZero() && s.now().Sub(s.forcedAt) < UnknownEvery:
		failed := !s.failedAt.IsZero()
		s.mu.Unlock()
		if failed {
			return fmt.Errorf("the issuer could not be asked for its keys: %w", auth.ErrUnavailable)
		}
		return nil
	default:
		f = &flight{done: make(chan struct{})}
		s.flight, s.forcedAt = f, s.now()
		s.done.Go(func() { // whoever waits may go away
			f.err = s.fetch(s.life)
			s.mu.Lock()
			s.flight = nil
			s.mu.Unlock()
			close(f.done)
			select {
			case s.wake <- struct{}{}:
			default:
			}
		})
	}
	s.mu.Unlock()
	select {
	case <-f.done:
		return f.err
	case <-ctx.Done():
		return fmt.Errorf("waiting for the issuer's keys: %w", auth.ErrUnavailable)
	}
}
