package redisx

import (
	"context"
	"sync"

	"github.com/redis/go-redis/v9"
)

const (
	// batchesAtOnce is how many batches of reads may be under way. One that is
	// alone is sent at once; what comes while this many are under way waits for
	// the first of them to end, and goes together.
	batchesAtOnce = 1
	// batchSize bounds a batch, and with MaxValue what one brings.
	batchSize = 64
)

// batches gather reads that come at the same time, so that many cold keys cost
// few system calls here and at the server.
type batches struct {
	mu       sync.Mutex // guards underWay, queue
	underWay int
	queue    []*read
}

// read is one read in a batch. Its fields are set when done has a value.
type read struct {
	name  string
	value []byte
	err   error
	done  chan struct{}
}

// get reads one value, in a batch with what others want. ctx bounds the wait.
func (c *Client) get(ctx context.Context, rdb redis.UniversalClient, name string) ([]byte, error) {
	r := &read{name: name, done: make(chan struct{}, 1)}
	b := &c.batches
	b.mu.Lock()
	if b.underWay >= batchesAtOnce {
		b.queue = append(b.queue, r)
		b.mu.Unlock()
		select {
		case <-r.done:
			return r.value, r.err
		case <-ctx.Done(): // its batch goes on; nobody wants the answer
			return nil, ctx.Err()
		}
	}
	b.underWay++
	b.mu.Unlock()
	defer c.nextBatch()
	return rdb.GetRange(ctx, name, 0, MaxValue-1).Bytes()
}

// nextBatch is called when one has ended.
func (c *Client) nextBatch() {
	b := &c.batches
	b.mu.Lock()
	defer b.mu.Unlock()
	if len(b.queue) == 0 {
		b.underWay--
		return
	}
	n := min(len(b.queue), batchSize)
	batch := b.queue[:n:n]
	b.queue = b.queue[n:]
	go c.runBatch(batch)
}

func (c *Client) runBatch(batch []*read) {
	defer c.nextBatch()
	ctx, cancel := context.WithTimeout(context.Background(), c.opts.Timeout)
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
		answers[i] = pipe.GetRange(ctx, r.name, 0, MaxValue-1)
	}
	_, _ = pipe.Exec(ctx) // each answer has its own error
	for i, r := range batch {
		r.value, r.err = answers[i].Bytes()
		r.done <- struct{}{}
	}
}
