package redisx

import (
	"context"
	"errors"
	"fmt"
	"net"
	"sync/atomic"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/caddy-auth/caddy-auth/internal/auth"
)

const (
	// listenPing is how long a subscription may be silent before the server is
	// asked whether it is still there; as long again and it is given up.
	listenPing = 5 * time.Second
	// listenPace is the least time between two messages that are read: whoever
	// floods a channel can't make us busy.
	listenPace = 5 * time.Millisecond
	// maxMessage is the most that is read for one message, in bytes, what is
	// read ahead included.
	maxMessage = 16 << 10
	readAhead  = 4 << 10
)

// Publish sends an empty message to a channel. It takes no part in the
// breakers.
func (c *Client) Publish(ctx context.Context, channel string) error {
	if _, err := c.try(ctx, func(ctx context.Context, rdb redis.UniversalClient) ([]byte, error) {
		return nil, rdb.Publish(ctx, channel, "").Err()
	}); err != nil {
		return fmt.Errorf("publishing to %s: %w: %w", c.Describe(), auth.ErrUnavailable, err)
	}
	return nil
}

// Subscribe calls heard for every message on a channel, whatever it says, and
// whenever messages may have been missed: when it has subscribed, again after
// a lost connection. Messages that follow each other closely may be told as
// one. failed is told why there is no subscription at the moment. Both are
// called by one goroutine. stop ends it and waits.
func (c *Client) Subscribe(channel string, heard func(), failed func(error)) (stop func()) {
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			err := c.listen(ctx, channel, heard)
			if ctx.Err() != nil || errors.Is(err, errClosed) {
				return
			}
			failed(err)
			if !pause(ctx, c.opts.Retry) {
				return
			}
		}
	}()
	return func() { cancel(); <-done }
}

// pause waits, and reports false if ctx ended first.
func pause(ctx context.Context, d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-timer.C:
		return true
	}
}

// listen subscribes and reads messages until something fails.
func (c *Client) listen(ctx context.Context, channel string, heard func()) error {
	if _, err := c.enter(); err != nil { // closed
		return err
	}
	c.leave()
	address, err := c.opts.listenAt(ctx)
	if err != nil {
		return err
	}
	var guard atomic.Int64
	opts := c.opts.single(address)
	dial := redis.NewDialer(opts)
	opts.Dialer = func(ctx context.Context, network, addr string) (net.Conn, error) {
		conn, err := dial(ctx, network, addr)
		if err != nil {
			return nil, err
		}
		guard.Store(maxMessage)
		return &guardedConn{conn, &guard}, nil
	}
	rdb := redis.NewClient(opts)
	defer rdb.Close()
	ps := rdb.Subscribe(ctx)
	defer ps.Close()
	defer context.AfterFunc(ctx, func() { _ = ps.Close() })()
	if err := c.subscribe(ctx, ps, channel); err != nil {
		return err
	}
	asked := false
	for {
		guard.Store(maxMessage)
		msg, err := ps.ReceiveTimeout(ctx, listenPing)
		var timeout net.Error
		switch {
		case errors.As(err, &timeout) && timeout.Timeout() && !asked:
			asked = true
			if err := ps.Ping(ctx); err != nil {
				return fmt.Errorf("asking %s: %w: %w", c.Describe(), auth.ErrUnavailable, err)
			}
			continue
		case err != nil:
			return fmt.Errorf("listening at %s: %w: %w", c.Describe(), auth.ErrUnavailable, err)
		}
		asked = false
		if _, pong := msg.(*redis.Pong); !pong {
			heard()
			if !pause(ctx, listenPace) {
				return ctx.Err()
			}
		}
	}
}

func (c *Client) subscribe(ctx context.Context, ps *redis.PubSub, channel string) error {
	ctx, cancel := context.WithTimeout(ctx, c.opts.patience())
	defer cancel()
	if err := ps.Subscribe(ctx, channel); err != nil {
		return fmt.Errorf("subscribing at %s: %w: %w", c.Describe(), auth.ErrUnavailable, err)
	}
	return nil
}

// guardedConn ends a connection that sends more than is allowed at a time.
type guardedConn struct {
	net.Conn
	left *atomic.Int64
}

var errMuch = errors.New("the server sent more than a doorbell's message")

// Read implements net.Conn.
func (g *guardedConn) Read(b []byte) (int, error) {
	n, err := g.Conn.Read(b[:min(len(b), readAhead)])
	if g.left.Add(-int64(n)) < 0 {
		return 0, errMuch
	}
	return n, err
}
