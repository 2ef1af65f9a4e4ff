package redisx

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/redis/go-redis/v9"
)

// errConnecting says that no connection was ready in time, to a server that answered
// a moment ago: it is no outage.
var errConnecting = errors.New("no connection was ready in time")

// SlowError says that the server answers, but not within the time a call may take.
type SlowError struct {
	RoundTrip time.Duration // of one question over a connection that was ready
	Timeout   time.Duration
}

// Error implements error.
func (e *SlowError) Error() string {
	return fmt.Sprintf("an answer takes %s, more than the timeout of %s", e.RoundTrip.Round(time.Millisecond/10), e.Timeout)
}

// try makes one call. The caller waits no longer than the timeout. Where a
// connection has to be made first, the call goes on in the background, so that the
// connection is there for the next one: a server that is far away could never be
// used else.
func (c *Client) try(ctx context.Context, do func(context.Context, redis.UniversalClient) ([]byte, error)) ([]byte, error) {
	n := c.underWay.Add(1)
	waiting, cancel := context.WithTimeout(ctx, c.opts.Timeout)
	defer cancel()
	if n <= c.served.Load() {
		defer c.underWay.Add(-1)
		out, err := c.run(waiting, do)
		return out, c.judge(err)
	}
	type result struct {
		out []byte
		err error
	}
	done := make(chan result, 1)
	go func() {
		defer c.underWay.Add(-1)
		going, cancel := context.WithTimeout(context.WithoutCancel(ctx), c.opts.patience())
		defer cancel()
		out, err := c.run(going, do)
		if err == nil || !countsAgainstReads(err) || isReply(err) {
			c.ready(n)
		}
		done <- result{out, err}
	}()
	select {
	case r := <-done:
		return r.out, c.judge(r.err)
	case <-waiting.Done():
	}
	if err := waiting.Err(); errors.Is(err, context.DeadlineExceeded) && time.Since(time.Unix(0, c.lastSuccess.Load())) < alive*c.opts.Retry {
		return nil, fmt.Errorf("%w: %w", errConnecting, err)
	}
	return nil, c.judge(waiting.Err())
}

// probeEnded reports whether the watcher knows of the server. Until one timeout has
// passed since the start a call waits to know, so that a gateway that starts uses
// what others have put there; after that it goes on without.
func (c *Client) probeEnded(ctx context.Context) bool {
	select {
	case <-c.probed:
		return true
	default:
	}
	left := c.opts.Timeout - time.Since(time.Unix(0, c.started.Load()))
	if left <= 0 {
		return false
	}
	timer := time.NewTimer(left)
	defer timer.Stop()
	select {
	case <-c.probed:
		return true
	case <-timer.C:
	case <-ctx.Done():
	}
	return false
}

// ready notes that so many connections can be used at once.
func (c *Client) ready(n int32) {
	for have := c.served.Load(); have < n; have = c.served.Load() {
		if c.served.CompareAndSwap(have, n) {
			return
		}
	}
}

// alive is how many retry times ago a server must have answered to be waited for
// while a connection to it is made. One that hangs since is noticed by calls that
// have a connection.
const alive = 2

// judge notes what a call says of the server, and returns its error.
func (c *Client) judge(err error) error {
	switch {
	case !countsAgainstReads(err) || isReply(err):
		c.lastSuccess.Store(time.Now().UnixNano())
	case !errors.Is(err, context.Canceled):
		c.served.Store(0) // who knows what is left of them
	}
	return err
}

// run makes a call on the library's client.
func (c *Client) run(ctx context.Context, do func(context.Context, redis.UniversalClient) ([]byte, error)) ([]byte, error) {
	rdb, err := c.enter()
	if err != nil {
		return nil, err
	}
	defer c.leave()
	return do(ctx, rdb)
}

// watch asks the server every second whether it is there, and keeps connections
// ready to one that is far away.
func (c *Client) watch(ctx context.Context) {
	tick := time.NewTicker(c.opts.Retry)
	defer tick.Stop()
	for asked := false; ; {
		_, err := c.reads.Execute(func() ([]byte, error) {
			took, err := c.measure(ctx)
			if err != nil {
				c.lastRead.Store(&err)
			}
			if err == nil && took > c.opts.Timeout/farAway {
				c.warm(ctx)
			}
			return nil, err
		})
		_ = err // the breaker reports it
		if !asked {
			close(c.probed)
			asked = true
		}
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}

const (
	// farAway is which part of the timeout an answer may take at most from a server
	// that is near: connections to it are made in time when they are needed.
	farAway = 5
	// readyAhead is how many connections are kept to one that is not.
	readyAhead = 16
)

// warm makes connections until enough are ready.
func (c *Client) warm(ctx context.Context) {
	if c.served.Load() >= readyAhead/2 {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, c.opts.patience())
	defer cancel()
	var all sync.WaitGroup
	var failed atomic.Bool
	for range readyAhead {
		all.Go(func() {
			if _, err := c.run(ctx, ping); err != nil {
				failed.Store(true)
			}
		})
	}
	if all.Wait(); !failed.Load() {
		c.ready(readyAhead / 2) // the others are for batches, which no call counts
	}
}

func ping(ctx context.Context, rdb redis.UniversalClient) ([]byte, error) {
	return nil, rdb.Ping(ctx).Err()
}

// measure asks the server twice, so that the second time a connection is ready, and
// returns how long that took. An answer that takes longer than a call may is a
// *SlowError.
func (c *Client) measure(ctx context.Context) (took time.Duration, err error) {
	ctx, cancel := context.WithTimeout(ctx, c.opts.patience())
	defer cancel()
	if _, err := c.run(ctx, ping); err != nil {
		return 0, err
	}
	began := time.Now()
	if _, err := c.run(ctx, ping); err != nil {
		return 0, err
	}
	took = time.Since(began)
	if took > c.opts.Timeout {
		return took, &SlowError{took, c.opts.Timeout}
	}
	c.lastSuccess.Store(time.Now().UnixNano())
	c.ready(1)
	return took, nil
}

// RoundTrip measures how long the server takes to answer over a connection that is
// ready. An answer that takes longer than a call may is a *SlowError, with the time.
func (c *Client) RoundTrip(ctx context.Context) (time.Duration, error) { return c.measure(ctx) }
