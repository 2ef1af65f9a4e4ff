package oauth

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/caddy-auth/caddy-auth/internal/auth"
)

const (
	// maxBatch is how many tokens one transaction writes, maxPending how many may
	// wait for one: more are refused at once.
	maxBatch   = 200
	maxPending = 2000
)

// Batcher writes tokens in as few transactions as it can: what comes while one
// is under way goes with the next. It is safe for concurrent use.
type Batcher struct {
	write func(context.Context, []*Issue) error

	mu      sync.Mutex // guards pending and running
	pending []*waiting
	running bool
}

type waiting struct {
	ctx   context.Context
	issue *Issue
	done  chan error
}

// NewBatcher returns a Batcher over write, which sets Err of each issue.
func NewBatcher(write func(context.Context, []*Issue) error) *Batcher { return &Batcher{write: write} }

// Issue writes a token. It returns when the token is in the store, or when ctx
// ends: then, if its transaction had begun, it may be written all the same, and
// nobody knows its text.
func (b *Batcher) Issue(ctx context.Context, i *Issue) error {
	mine := *i // ctx may end first, and the caller go on
	w := &waiting{ctx, &mine, make(chan error, 1)}
	b.mu.Lock()
	if len(b.pending) >= maxPending {
		b.mu.Unlock()
		return fmt.Errorf("writing a token that was issued: %w", auth.ErrOverloaded)
	}
	b.pending = append(b.pending, w)
	if !b.running {
		b.running = true
		go b.run()
	}
	b.mu.Unlock()
	select {
	case err := <-w.done:
		return err
	case <-ctx.Done():
		return fmt.Errorf("writing a token that was issued: %w", context.Cause(ctx))
	}
}

// run writes until nothing is left.
func (b *Batcher) run() {
	for {
		b.mu.Lock()
		n := min(len(b.pending), maxBatch)
		if n == 0 {
			b.running, b.pending = false, nil
			b.mu.Unlock()
			return
		}
		part := b.pending[:n:n]
		b.pending = b.pending[n:]
		b.mu.Unlock()
		b.one(part)
	}
}

func (b *Batcher) one(part []*waiting) {
	part = slices.DeleteFunc(part, func(w *waiting) bool { return w.ctx.Err() != nil }) // a client assertion must not be spent for nobody
	if len(part) == 0 {
		return
	}
	issues := make([]*Issue, 0, len(part))
	for _, w := range part {
		issues = append(issues, w.issue)
	}
	ctx, cancel := context.WithTimeout(context.Background(), issueTimeout-time.Second)
	defer cancel()
	err := b.write(ctx, issues)
	for _, w := range part {
		if err != nil {
			w.done <- err
		} else {
			w.done <- w.issue.Err
		}
	}
}
