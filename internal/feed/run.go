package feed

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/caddy-auth/caddy-auth/internal/auth"
)

const (
	// bellGap is the least time between the looks that the doorbell causes, and
	// maxBellGap the most: it doubles each time the bell led to nothing, so
	// that whoever rings all the time causes few reads.
	bellGap    = 20 * time.Millisecond
	maxBellGap = 320 * time.Millisecond
	// ackGap is the least time between two acknowledgements.
	ackGap = 100 * time.Millisecond
	// beatRetry is how soon a heartbeat that was not confirmed is tried again.
	beatRetry = time.Second
	// steadyTimeout bounds heartbeats, and looks that read only what is new: loads
	// may wait for those, and a connection that hangs is given up for another.
	steadyTimeout = 2 * time.Second
)

// lookCall is a look that several callers wait for.
type lookCall struct {
	done chan struct{}
	err  error
}

// Ring makes the follower look soon. It needs no trust: it says only that a
// look may be worth it. It never blocks.
func (f *Follower) Ring() { poke(f.bell) }

// Start begins to look, at every poll interval and when somebody rings, and to
// tell the store that this node is there. The first look is made at once.
func (f *Follower) Start() {
	ctx, cancel := context.WithCancel(context.Background())
	f.stop = cancel
	f.done.Go(func() { f.runLooks(ctx) })
	f.done.Go(func() { f.runBeats(ctx) })
}

// Stop ends the looking and the heartbeats and waits for them. It may be
// called twice.
func (f *Follower) Stop() {
	if f.stop == nil {
		return
	}
	f.stop()
	f.done.Wait()
}

func (f *Follower) runLooks(ctx context.Context) {
	tick := time.NewTicker(f.Config().PollInterval)
	defer tick.Stop()
	gap, bell := bellGap, f.bell
	var again <-chan time.Time // when the bell may be heard again
	for {
		_ = f.Look(ctx) // reported to Events.LookFailed
	waiting:
		for {
			select {
			case <-ctx.Done():
				return
			case <-f.tuned:
				tick.Reset(f.Config().PollInterval)
				poke(f.behind) // the store is told max_staleness
			case <-tick.C:
				break waiting
			case <-again:
				bell, again = f.bell, nil
			case <-bell:
				news, err := f.lookNow(ctx)
				if err == nil && f.events.Rung != nil {
					f.events.Rung(news)
				}
				if gap = min(2*gap, maxBellGap); news {
					gap = bellGap
				}
				bell, again = nil, time.After(gap)
			}
		}
	}
}

// runBeats writes a heartbeat when one is due, and soon after something was
// applied.
func (f *Follower) runBeats(ctx context.Context) {
	timer := time.NewTimer(auth.HeartbeatEvery(f.Config().MaxStaleness)) // the first one is the first look's
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-f.behind:
		case <-timer.C:
			if due := auth.HeartbeatEvery(f.Config().MaxStaleness) - f.BeatAge(f.now()); due > 0 {
				timer.Reset(due) // another one was made meanwhile
				continue
			}
		}
		wait := ackGap
		if f.Beat(ctx) != nil {
			wait = beatRetry
			poke(f.behind)
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(wait):
		}
		timer.Reset(max(0, auth.HeartbeatEvery(f.Config().MaxStaleness)-wait))
	}
}

// awaitBeat makes a heartbeat if the last one is too old to be trusted.
func (f *Follower) awaitBeat(ctx context.Context) error {
	lapsed := func() bool { return f.BeatAge(f.now()) >= f.Config().MaxStaleness }
	if !lapsed() {
		return nil
	}
	if err := f.beatIf(ctx, lapsed); !f.excused(err) {
		return err
	}
	return nil
}

// excused reports whether a heartbeat that failed is no reason for doubt: the
// store has become full or read-only, and what is read is the newest. A node
// that never could write is not excused: others may be able to.
func (f *Follower) excused(err error) bool {
	return errors.Is(err, auth.ErrNotWritable) && f.trust.everTold()
}

// Beat tells the store what this node has applied. A heartbeat that could not
// be written where every look is current does not end trust: it is returned as
// auth.ErrNotWritable and counts as confirmed.
func (f *Follower) Beat(ctx context.Context) error {
	return f.beatIf(ctx, func() bool { return true })
}

// beatIf makes a heartbeat unless another has made it needless meanwhile. One
// at a time, so that no later acknowledgement is overwritten by an earlier one.
func (f *Follower) beatIf(ctx context.Context, needed func() bool) error {
	cfg := f.Config()
	ctx, cancel := context.WithTimeout(ctx, min(cfg.LookTimeout, steadyTimeout))
	defer cancel()
	select {
	case f.beating <- struct{}{}:
	case <-ctx.Done():
		return ctx.Err()
	}
	defer func() { <-f.beating }()
	if f.trust.isClosed() {
		return fmt.Errorf("this node has ended: %w", auth.ErrUnavailable)
	}
	if !needed() {
		return nil
	}
	node := f.applied()
	node.MaxStaleness = cfg.MaxStaleness
	began := f.now()
	f.trust.tell(cfg.MaxStaleness)
	err := f.journal.Beat(ctx, node)
	if err != nil && f.events.BeatFailed != nil && !errors.Is(err, context.Canceled) {
		f.events.BeatFailed(err)
	}
	if (err == nil || f.excused(err)) && f.trust.confirmed(began, f.now(), cfg.MaxStaleness, err == nil) {
		f.Ring() // only a look from now on counts
	}
	return err
}

// applied is the node with the row it has applied last.
func (f *Follower) applied() auth.Node {
	f.mu.RLock()
	defer f.mu.RUnlock()
	n := f.node
	if row, ok := f.hist.rowAt(f.cursor); ok && f.booted {
		n.Seq, n.Row = f.cursor, row
	}
	return n
}
