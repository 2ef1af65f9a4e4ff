package redisx

import (
	"context"
	"sync"
	"sync/atomic"
	"time"

	"github.com/redis/go-redis/v9"
)

const (
	// gather is the longest that a read waits for the batch ahead of it; then
	// those that wait are sent, whatever became of that. It is little of a call's
	// deadline, so that a slow server is not slower for being asked in batches.
	gather = 2 * time.Millisecond
	// batchSize bounds a batch, and with MaxValue what one brings.
	batchSize = 64
)

// batches gather reads that come at the same time, so that many cold keys cost
// few system calls here and at the server. A read is sent at once if nothing is
// under way. Else it goes with the others that came meanwhile, when what is
// under way ends or gather is over.
type batches struct {
	mu       sync.Mutex // guards what follows
	underWay int
	queue    []*read
	timer    *time.Timer // sends the queue after gather
}

// read is one read in a batch. value and err are set when done has a value.
type read struct {
	name  string
	value []byte
	err   error
	done  chan struct{}
	left  atomic.Bool // nobody waits for it
}

// get reads one value, alone or with what others want. ctx bounds the wait. The
// nodes of a cluster would wait for each other in a batch: there each read goes
// alone.
func (c *Client) get(ctx context.Context, rdb redis.UniversalClient, name string) ([]byte, error) {
	if c.opts.Cluster || c.first() {
		if !c.opts.Cluster {
			defer c.ended()
		}
		return rdb.GetRange(ctx, name, 0, MaxValue-1).Bytes()
	}
	r := &read{name: name, done: make(chan struct{}, 1)}
	c.enqueue(r)
	select {
	case <-r.done:
		return r.value, r.err
	case <-ctx.Done():
		r.left.Store(true)
		return nil, ctx.Err()
	}
}

// first reports whether nothing is under way; then the caller is, until ended.
func (c *Client) first() bool {
	b := &c.batches
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.underWay > 0 {
		return false
	}
	b.underWay = 1
	return true
}

func (c *Client) enqueue(r *read) {
	b := &c.batches
	b.mu.Lock()
	defer b.mu.Unlock()
	b.queue = append(b.queue, r)
	switch {
	case b.underWay == 0 || len(b.queue) >= batchSize: // it has ended since
		c.sendLocked()
	case len(b.queue) > 1: // the timer runs
	case b.timer == nil:
		b.timer = time.AfterFunc(gather, c.send)
	default:
		b.timer.Reset(gather)
	}
}

// ended is called when a batch has ended.
func (c *Client) ended() {
	b := &c.batches
	b.mu.Lock()
	defer b.mu.Unlock()
	b.underWay--
	c.sendLocked()
}

// send sends what waits.
func (c *Client) send() {
	b := &c.batches
	b.mu.Lock()
	defer b.mu.Unlock()
	c.sendLocked()
}

func (c *Client) sendLocked() {
	b := &c.batches
	if len(b.queue) == 0 {
		return
	}
	batch := b.queue
	b.queue = nil
	b.underWay++
	go c.runBatch(batch)
}

func (c *Client) runBatch(batch []*read) {
	defer c.ended()
	ctx, cancel := context.WithTimeout(context.Background(), c.opts.patience()) // those who wait have their own
	defer cancel()
	rdb, err := c.enter()
	if err != nil {
		for _, r := range batch {
			r.err = err
			r.done <- struct{}{}
		}
		return
	}
	defer c.leave()
	pipe := rdb.Pipeline()
	answers := make([]*redis.StringCmd, len(batch))
	for i, r := range batch {
		if !r.left.Load() {
			answers[i] = pipe.GetRange(ctx, r.name, 0, MaxValue-1)
		}
	}
	_, _ = pipe.Exec(ctx) // each answer has its own error
	for i, r := range batch {
		if answers[i] != nil {
			r.value, r.err = answers[i].Bytes()
			r.done <- struct{}{}
		}
	}
}
