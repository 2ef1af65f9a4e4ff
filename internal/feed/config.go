package feed

import (
	"context"
	"time"

	"github.com/caddy-auth/caddy-auth/internal/auth"
)

// Look is one look at the journal, read in one snapshot.
type Look struct {
	Epoch      auth.Epoch
	First      int64 // the oldest row's sequence
	Head       int64 // the newest row's
	AtCursor   auth.RowID
	AtCursorOK bool
	Rows       []auth.Change
	More       bool // rows were left out; look again
}

// Journal is where changes are read. Implementations MUST read each Look and
// each Tail in one snapshot and honour the context.
type Journal interface {
	Look(ctx context.Context, cursor int64) (Look, error)
	// Tail returns the rows written at or after since (unix milliseconds), the
	// newest in any case, oldest first.
	Tail(ctx context.Context, since int64) (auth.Epoch, []auth.Change, error)
	// NewEpoch replaces old by next, unless someone did already.
	NewEpoch(ctx context.Context, old, next auth.Epoch) error
	// Reopen drops what an exchanged database left open.
	Reopen(ctx context.Context) error
	// Beat tells the store that the node is there and what it has applied. It
	// returns once that is written where everybody who changes the store reads
	// it. auth.ErrNotWritable: it could not be written, but whoever looks at
	// this journal sees the newest there is.
	Beat(ctx context.Context, n auth.Node) error
}

// Tier is a cache that changes are dropped from. Drop and Sweep MUST take the
// lock under which Fence is asked and its answer acted on.
type Tier interface {
	Drop(fp auth.Fingerprint)
	Sweep(parent auth.Parent)
	Clear()
}

// Events are told what happened. Fields may be nil. They are called by the
// goroutine that looks and must not block.
type Events struct {
	Applied     func(auth.Change)               // a change was applied
	Booted      func(ctx context.Context) error // before the journal is trusted, at start and after a lost history
	LostHistory func(why string)                // the store went back in time or was replaced
	Emptied     func()                          // the caches were emptied and are in use again: nobody knows what changed meanwhile
	Looked      func()                          // a look was good
	LookFailed  func(error)
	BeatFailed  func(error)       // a heartbeat was not confirmed
	Rung        func(news bool)   // the doorbell led to a look, which found something or not
	Learning    func(auth.Change) // before a change is applied: what is known of it besides must be known before anything read after it is used
	Remembered  func(auth.Change) // for tests: between remember and drop
}

// Config sets a follower's times. Zero means the default.
type Config struct {
	PollInterval time.Duration // default 1s
	MaxStaleness time.Duration // default 2m
	Memory       time.Duration // how long changes are remembered, default 10m
	LookTimeout  time.Duration // of the first look, default 5s; heartbeats and later looks take 2s at most

	Now func() time.Time // this machine's clock; default time.Now
}

// WithDefaults returns c with every zero field set to its default.
func (c Config) WithDefaults() Config {
	def := func(d *time.Duration, v time.Duration) {
		if *d <= 0 {
			*d = v
		}
	}
	def(&c.PollInterval, time.Second)
	def(&c.MaxStaleness, 2*time.Minute)
	def(&c.Memory, 10*time.Minute)
	def(&c.LookTimeout, 5*time.Second)
	if c.Now == nil {
		c.Now = time.Now
	}
	return c
}
