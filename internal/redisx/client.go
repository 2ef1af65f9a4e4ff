package redisx

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/redis/go-redis/v9/maintnotifications"
	"github.com/sony/gobreaker/v2"

	"github.com/caddy-auth/caddy-auth/internal/auth"
)

// ErrSkipped says that the server failed a moment ago and was not asked.
var ErrSkipped = errors.New("skipped after a failure")

// errClosed says that the client was closed.
var errClosed = fmt.Errorf("the Redis client is closed: %w", auth.ErrUnavailable)

// The library would print to stderr what it also returns as an error.
func init() { redis.SetLogger(silence{}) }

type silence struct{}

func (silence) Printf(context.Context, string, ...any) {}

// MaxValue is the most that Get reads of a value, in bytes: whoever can write
// to Redis can't make us read more.
const MaxValue = 64 << 10

var noMaintNotifications = &maintnotifications.Config{Mode: maintnotifications.ModeDisabled}

// Events are told when the server stops and starts to answer. Fields may be
// nil. They must not block.
type Events struct {
	Down     func(err error)
	Up       func()
	ReadOnly func(err error) // it answers but refuses writes
}

// Client talks to a server, or to several that act as one. It is safe for concurrent use.
type Client struct {
	opts   Options
	events atomic.Pointer[Events]

	mu      sync.Mutex // guards rdb, calls, closed, stop
	rdb     redis.UniversalClient
	calls   int
	closed  bool
	stop    context.CancelFunc
	watcher sync.WaitGroup
	batches batches

	watching    atomic.Bool   // the breakers are closed by the watcher
	probed      chan struct{} // closed when the watcher has asked once
	started     atomic.Int64  // when it began, in unix nanoseconds
	served      atomic.Int32  // connections that are known to be ready
	underWay    atomic.Int32
	lastSuccess atomic.Int64 // when a call had been answered in time, in unix nanoseconds

	reads, writes *gobreaker.CircuitBreaker[[]byte]
	lastRead      atomic.Pointer[error]
	lastWrite     atomic.Pointer[error]
}

// New returns a client that has opened no connection yet.
func New(o Options) *Client {
	c := &Client{opts: o.withDefaults(), probed: make(chan struct{})}
	c.events.Store(&Events{})
	c.reads = c.breaker("reads", countsAgainstReads, func(open bool) {
		switch e := c.events.Load(); {
		case open && e.Down != nil:
			e.Down(*c.lastRead.Load())
		case !open && e.Up != nil:
			e.Up()
		}
	})
	c.writes = c.breaker("writes", countsAgainstWrites, func(open bool) {
		if e := c.events.Load(); open && e.ReadOnly != nil && isReply(*c.lastWrite.Load()) {
			e.ReadOnly(*c.lastWrite.Load())
		}
	})
	return c
}

// breaker opens at the first failure and lets one call through after the
// retry time.
func (c *Client) breaker(name string, counts func(error) bool, changed func(open bool)) *gobreaker.CircuitBreaker[[]byte] {
	var open atomic.Bool
	return gobreaker.NewCircuitBreaker[[]byte](gobreaker.Settings{
		Name: name, MaxRequests: 1, Timeout: c.opts.Retry,
		ReadyToTrip:  func(n gobreaker.Counts) bool { return n.ConsecutiveFailures >= 1 },
		IsSuccessful: func(err error) bool { return !counts(err) },
		IsExcluded: func(err error) bool {
			return errors.Is(err, context.Canceled) || errors.Is(err, errClosed) || errors.Is(err, redis.ErrPoolTimeout) || errors.Is(err, errConnecting)
		},
		OnStateChange: func(_ string, _, to gobreaker.State) {
			// Half-open is neither: only a change of what people see is told.
			if to == gobreaker.StateHalfOpen || open.Swap(to == gobreaker.StateOpen) == (to == gobreaker.StateOpen) {
				return
			}
			changed(to == gobreaker.StateOpen)
		},
	})
}

// countsAgainstReads: a missing value is an answer, and so is one of another
// type, which anybody who can write to Redis can put there.
func countsAgainstReads(err error) bool {
	return err != nil && !errors.Is(err, redis.Nil) && !strings.HasPrefix(err.Error(), "WRONGTYPE")
}

// isReply reports whether the server itself said no.
func isReply(err error) bool {
	var reply redis.Error
	return errors.As(err, &reply)
}

func countsAgainstWrites(err error) bool { return err != nil }

// SetEvents replaces what is told. Events of a client start empty.
func (c *Client) SetEvents(e Events) { c.events.Store(&e) }

// Describe names the server for people.
func (c *Client) Describe() string { return c.opts.Describe() }

// Up reports whether the server answered when it was last asked.
func (c *Client) Up() bool { return c.reads.State() == gobreaker.StateClosed }

// Start begins to ask the server every second whether it is there, so that an
// outage and its end are noticed without traffic. Called again it does nothing.
func (c *Client) Start() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.stop != nil || c.closed {
		return
	}
	ctx, cancel := context.WithCancel(context.Background())
	c.stop = cancel
	c.started.Store(time.Now().UnixNano())
	c.watching.Store(true)
	c.watcher.Go(func() { c.watch(ctx) })
}

// Close ends the watching and closes the connections when the calls under way
// have ended, which their deadline bounds. It does not wait for them.
// Subscriptions go on until they are stopped.
func (c *Client) Close() {
	c.mu.Lock()
	if c.closed {
		c.mu.Unlock()
		return
	}
	c.closed = true
	stop, idle := c.stop, c.calls == 0
	c.mu.Unlock()
	if stop != nil {
		stop()
		c.watcher.Wait()
	}
	if idle {
		c.closeIdle()
	}
}

func (c *Client) closeIdle() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.rdb != nil && c.calls == 0 {
		_ = c.rdb.Close() // nothing is lost with it
		c.rdb = nil
	}
}

// enter returns the library's client, made at the first call.
func (c *Client) enter() (redis.UniversalClient, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		return nil, errClosed
	}
	if c.rdb == nil {
		c.rdb = c.opts.connect()
	}
	c.calls++
	return c.rdb, nil
}

func (c *Client) leave() {
	c.mu.Lock()
	c.calls--
	last := c.closed && c.calls == 0
	c.mu.Unlock()
	if last {
		c.closeIdle()
	}
}

// call makes one call under the deadline and a breaker.
func (c *Client) call(ctx context.Context, doing string, b *gobreaker.CircuitBreaker[[]byte], last *atomic.Pointer[error],
	do func(ctx context.Context, rdb redis.UniversalClient) ([]byte, error),
) ([]byte, error) {
	one := func() ([]byte, error) {
		out, err := c.try(ctx, do)
		if err != nil {
			last.Store(&err)
		}
		return out, err
	}
	var out []byte
	err := gobreaker.ErrOpenState
	switch state := b.State(); {
	case c.watching.Load() && !c.probeEnded(ctx):
	case state == gobreaker.StateClosed || !c.watching.Load():
		out, err = b.Execute(one)
	case state == gobreaker.StateHalfOpen && b == c.writes: // nobody waits for it
		go func() { _, _ = b.Execute(one) }()
	}
	switch {
	case err == nil:
		return out, nil
	case errors.Is(err, redis.Nil):
		return nil, auth.ErrNotFound
	case errors.Is(err, gobreaker.ErrOpenState), errors.Is(err, gobreaker.ErrTooManyRequests):
		return nil, fmt.Errorf("%s %s: %w: %w", doing, c.Describe(), ErrSkipped, auth.ErrUnavailable)
	case strings.HasPrefix(err.Error(), "WRONGTYPE"):
		return nil, fmt.Errorf("%s %s: a value of another type: %w", doing, c.Describe(), auth.ErrCorrupt)
	}
	return nil, fmt.Errorf("%s %s: %w: %w", doing, c.Describe(), auth.ErrUnavailable, err)
}

// Get returns a value, at most its first MaxValue bytes. A missing or empty
// one is auth.ErrNotFound, one of another type auth.ErrCorrupt, anything else
// auth.ErrUnavailable.
func (c *Client) Get(ctx context.Context, name string) ([]byte, error) {
	out, err := c.call(ctx, "reading from", c.reads, &c.lastRead, func(ctx context.Context, rdb redis.UniversalClient) ([]byte, error) {
		return c.get(ctx, rdb, name)
	})
	if err == nil && len(out) == 0 {
		return nil, auth.ErrNotFound
	}
	return out, err
}

// Set stores a value for ttl.
func (c *Client) Set(ctx context.Context, name string, value []byte, ttl time.Duration) error {
	_, err := c.call(ctx, "writing to", c.writes, &c.lastWrite, func(ctx context.Context, rdb redis.UniversalClient) ([]byte, error) {
		return nil, rdb.Set(ctx, name, value, ttl).Err()
	})
	return err
}

// SetIf stores a value for ttl only if there is one of that name, or only if
// there is none, and reports whether it did.
func (c *Client) SetIf(ctx context.Context, exists bool, name string, value []byte, ttl time.Duration) (bool, error) {
	mode := "NX"
	if exists {
		mode = "XX"
	}
	out, err := c.call(ctx, "writing to", c.writes, &c.lastWrite, func(ctx context.Context, rdb redis.UniversalClient) ([]byte, error) {
		err := rdb.SetArgs(ctx, name, value, redis.SetArgs{Mode: mode, TTL: ttl}).Err()
		if errors.Is(err, redis.Nil) { // an answer
			return nil, nil
		}
		return []byte{1}, err
	})
	return err == nil && out != nil, err
}

// Ping asks whether the server answers in time.
func (c *Client) Ping(ctx context.Context) error {
	_, err := c.call(ctx, "asking", c.reads, &c.lastRead, func(ctx context.Context, rdb redis.UniversalClient) ([]byte, error) {
		return nil, rdb.Ping(ctx).Err()
	})
	return err
}
