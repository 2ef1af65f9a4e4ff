package feed

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/caddy-auth/caddy-auth/internal/auth"
)

// Follower follows one journal for one tier, as one node. It is safe for
// concurrent use.
type Follower struct {
	journal Journal
	tier    Tier
	node    auth.Node // who it is; what it has applied is filled in
	cfg     atomic.Pointer[Config]
	events  Events
	trust   *trustClock

	tuned  chan struct{} // the times may have changed
	bell   chan struct{} // somebody rang
	behind chan struct{} // something was applied and not acknowledged

	looking   chan struct{} // a lock that is held for the length of a look; guards lost and lostEpoch
	lost      bool          // the history was lost and starting over is not done yet
	lostEpoch auth.Epoch
	beating   chan struct{} // a lock that is held for the length of a heartbeat

	flight   *lookCall // guarded by flightMu
	flightMu sync.Mutex

	mu     sync.RWMutex // guards what follows; never held while the tier is called
	booted bool
	epoch  auth.Epoch
	cursor int64
	hist   *history

	stop context.CancelFunc
	done sync.WaitGroup
}

// New returns a follower that has not looked yet and so trusts nothing. Its
// node needs an id that no other process ever had.
func New(journal Journal, tier Tier, node auth.Node, cfg Config, events Events) *Follower {
	f := &Follower{
		journal: journal, tier: tier, node: node, events: events, hist: newHistory(), trust: newTrustClock(cfg.WithDefaults().Now()),
		tuned: make(chan struct{}, 1), bell: make(chan struct{}, 1), behind: make(chan struct{}, 1),
		looking: make(chan struct{}, 1), beating: make(chan struct{}, 1),
	}
	f.Tune(cfg)
	return f
}

// Tune changes the times. A longer memory begins with what is remembered now.
func (f *Follower) Tune(cfg Config) {
	cfg = cfg.WithDefaults()
	f.cfg.Store(&cfg)
	poke(f.tuned)
}

// poke leaves word in a channel, unless there is some already.
func poke(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

func (f *Follower) now() time.Time { return f.cfg.Load().Now() }

// Config returns the times in use.
func (f *Follower) Config() Config { return *f.cfg.Load() }

// Node is who the follower says it is.
func (f *Follower) Node() auth.Node { return f.node }

// Trusted reports whether cached verdicts may be used at now.
func (f *Follower) Trusted(now time.Time) bool {
	cfg := f.cfg.Load()
	return f.trust.young(now, cfg.MaxStaleness, 2*cfg.PollInterval+cfg.LookTimeout)
}

// Retire ends trust for good, and with it the heartbeats: once it has returned
// none is written any more.
func (f *Follower) Retire() {
	f.beating <- struct{}{}
	f.trust.close()
	<-f.beating
}

// Age is how long ago the last good look began; very long before the first.
func (f *Follower) Age(now time.Time) time.Duration { return f.trust.look.age(now) }

// BeatAge is how long ago the last confirmed heartbeat began.
func (f *Follower) BeatAge(now time.Time) time.Duration { return f.trust.beat.age(now) }

// Fencing is what a fence says of a load.
type Fencing uint8

// Answers of a fence. The zero value lets nothing through.
const (
	Fenced Fencing = iota // a change overtook it: load again
	Ahead                 // read at a row that is not known here: look, then ask again
	Usable
)

// Fence says whether what was read at p about a credential may be used. It is
// asked under the key's lock, in one step with the insert.
func (f *Follower) Fence(p auth.Point, fp auth.Fingerprint, parents auth.Parents) Fencing {
	f.mu.RLock()
	defer f.mu.RUnlock()
	switch {
	case !f.booted:
		return Fenced
	case p.Epoch != f.epoch || p.Seq > f.cursor:
		return Ahead
	case p.Seq < f.hist.floor():
		return Fenced
	}
	if row, ok := f.hist.rowAt(p.Seq); !ok || row != p.Row {
		return Ahead // of a history that this node has not seen
	}
	if f.hist.changedAbove(p.Seq, fp, parents) {
		return Fenced
	}
	return Usable
}

// Point is the place in the history up to which everything is applied. What is
// read from memory after it was asked for was not read before; ok is false
// before the first look.
func (f *Follower) Point() (p auth.Point, ok bool) {
	f.mu.RLock()
	defer f.mu.RUnlock()
	row, ok := f.hist.rowAt(f.cursor)
	return auth.Point{Epoch: f.epoch, Seq: f.cursor, Row: row}, ok && f.booted
}

// Position returns the sequence applied so far and the floor.
func (f *Follower) Position() (cursor, floor int64) {
	f.mu.RLock()
	defer f.mu.RUnlock()
	return f.cursor, f.hist.floor()
}

// LookSoon makes sure that a look which begins after the call was made, by
// this caller or another, has ended. It is how a load ahead of the cursor
// catches up; callers are coalesced.
func (f *Follower) LookSoon(ctx context.Context) error {
	f.flightMu.Lock()
	c := f.flight
	if c == nil {
		c = &lookCall{done: make(chan struct{})}
		f.flight = c
		go func() {
			f.looking <- struct{}{}
			f.flightMu.Lock()
			f.flight = nil // this look begins now: later callers need another
			f.flightMu.Unlock()
			_, c.err = f.lookLocked(context.Background())
			<-f.looking
			close(c.done)
		}()
	}
	f.flightMu.Unlock()
	select {
	case <-c.done:
		return c.err
	case <-ctx.Done():
		return ctx.Err()
	}
}

// Look reads the journal and applies what is new. If no heartbeat was confirmed
// lately, it makes one first.
func (f *Follower) Look(ctx context.Context) error {
	_, err := f.lookNow(ctx)
	return err
}

func (f *Follower) lookNow(ctx context.Context) (news bool, err error) {
	select {
	case f.looking <- struct{}{}:
	case <-ctx.Done():
		return false, ctx.Err()
	}
	defer func() { <-f.looking }()
	return f.lookLocked(ctx)
}

// maxLooks bounds how often one look begins again because trust lapsed while
// it was under way.
const maxLooks = 3

func (f *Follower) lookLocked(ctx context.Context) (news bool, err error) {
	before, _ := f.Position()
	for range maxLooks {
		if err = f.awaitBeat(ctx); errors.Is(err, auth.ErrReplaced) {
			err = f.reopen(ctx)
		}
		if err != nil {
			f.failed(err)
			return false, err
		}
		began, era := f.now(), f.trust.begin()
		if err = f.lookOnce(ctx); err != nil {
			return false, err
		}
		if f.trust.looked(began, era) {
			break
		}
	}
	if f.events.Looked != nil {
		f.events.Looked()
	}
	now, _ := f.Position()
	if now != before {
		poke(f.behind)
	}
	return now != before, nil
}

func (f *Follower) failed(err error) {
	if f.events.LookFailed != nil && !errors.Is(err, context.Canceled) {
		f.events.LookFailed(err)
	}
}

// reopen is what a heartbeat that found another database leads to: the history
// is lost, and the heartbeat is tried with what is there now.
func (f *Follower) reopen(ctx context.Context) error {
	if !f.lost {
		f.loseHistory("the database was replaced")
	}
	opening, cancel := context.WithTimeout(ctx, f.cfg.Load().LookTimeout)
	defer cancel()
	if err := f.journal.Reopen(opening); err != nil {
		return fmt.Errorf("reopening the store: %w", err)
	}
	return f.awaitBeat(ctx)
}

func (f *Follower) lookOnce(ctx context.Context) error {
	began, most := f.now(), f.cfg.Load().LookTimeout
	if f.isBooted() {
		most = min(most, steadyTimeout)
	}
	ctx, cancel := context.WithTimeout(ctx, most)
	defer cancel()
	if err := f.look(ctx); err != nil {
		f.failed(err)
		return err
	}
	f.mu.Lock()
	f.hist.forget(began.Add(-f.cfg.Load().Memory), f.cursor)
	f.mu.Unlock()
	return nil
}

func (f *Follower) look(ctx context.Context) error {
	if !f.isBooted() {
		if f.lost {
			return f.recover(ctx)
		}
		err := f.boot(ctx)
		if errors.Is(err, auth.ErrReplaced) {
			return f.startOver(ctx, "the database was replaced")
		}
		return err
	}
	for {
		cursor, _ := f.Position()
		l, err := f.journal.Look(ctx, cursor)
		if errors.Is(err, auth.ErrReplaced) {
			return f.startOver(ctx, "the database was replaced")
		}
		if err != nil {
			return fmt.Errorf("looking at the journal: %w", err)
		}
		if why := f.wentBack(&l); why != "" {
			return f.startOver(ctx, why)
		}
		if cursor < l.First { // pruned past us: nothing contradicts, but changes were missed
			f.mu.Lock()
			f.booted = false // should this fail, the next look has a boot's time
			f.mu.Unlock()
			return f.boot(ctx)
		}
		for _, c := range l.Rows {
			f.apply(c)
		}
		if !l.More {
			return nil
		}
	}
}

// wentBack says how a look contradicts what is known, or "".
func (f *Follower) wentBack(l *Look) string {
	f.mu.RLock()
	defer f.mu.RUnlock()
	row, _ := f.hist.rowAt(f.cursor)
	switch {
	case l.Epoch != f.epoch:
		return "the epoch changed"
	case l.Head < f.cursor:
		return "the journal is shorter than what was read of it"
	case f.cursor < l.First:
		return ""
	case !l.AtCursorOK || l.AtCursor != row:
		return "another row stands at the cursor"
	}
	return ""
}

// apply remembers a change, drops what it names, then moves the cursor.
func (f *Follower) apply(c auth.Change) {
	if f.events.Learning != nil {
		f.events.Learning(c)
	}
	f.mu.Lock()
	f.hist.remember(c, f.now())
	f.mu.Unlock()
	if f.events.Remembered != nil {
		f.events.Remembered(c)
	}
	for _, fp := range c.Fingerprints {
		f.tier.Drop(fp)
	}
	if c.Parent != (auth.Parent{}) {
		f.tier.Sweep(c.Parent)
	}
	f.mu.Lock()
	f.cursor = c.Seq
	f.mu.Unlock()
	if f.events.Applied != nil {
		f.events.Applied(c)
	}
}

func (f *Follower) isBooted() bool {
	f.mu.RLock()
	defer f.mu.RUnlock()
	return f.booted
}

// startOver forgets everything and starts as at boot, under a new epoch, so
// that nothing read before is ever used again.
func (f *Follower) startOver(ctx context.Context, why string) error {
	f.loseHistory(why)
	return f.recover(ctx)
}

func (f *Follower) loseHistory(why string) {
	f.mu.Lock()
	f.lost, f.lostEpoch = true, f.epoch
	f.booted, f.cursor, f.hist = false, 0, newHistory()
	f.mu.Unlock()
	f.trust.lapse()
	f.tier.Clear()
	if f.events.LostHistory != nil {
		f.events.LostHistory(why)
	}
}

// recover goes through all of starting over. A step that fails is tried again
// at the next look, from the first on.
func (f *Follower) recover(ctx context.Context) error {
	if err := f.journal.Reopen(ctx); err != nil {
		return fmt.Errorf("reopening the store: %w", err)
	}
	epoch, _, err := f.journal.Tail(ctx, f.now().UnixMilli())
	if err != nil {
		return err
	}
	if epoch == f.lostEpoch {
		var next auth.Epoch
		if _, err := rand.Read(next[:]); err != nil {
			return fmt.Errorf("reading random bytes: %w", err)
		}
		if err := f.journal.NewEpoch(ctx, epoch, next); err != nil {
			return fmt.Errorf("writing a new epoch: %w", err)
		}
	}
	if err := f.boot(ctx); err != nil {
		return err
	}
	f.lost = false
	return nil
}

// boot sets cursor, floor and the remembered changes from the journal's tail.
func (f *Follower) boot(ctx context.Context) error {
	epoch, rows, err := f.journal.Tail(ctx, f.now().Add(-f.cfg.Load().Memory).UnixMilli())
	if err != nil {
		return fmt.Errorf("reading the journal's tail: %w", err)
	}
	if len(rows) == 0 {
		return fmt.Errorf("reading the journal's tail: it is empty: %w", auth.ErrNotInitialized)
	}
	// After the tail was read: what changes from now on comes with the next look.
	if f.events.Booted != nil {
		if err := f.events.Booted(ctx); err != nil {
			return err
		}
	}
	h := newHistory()
	now := f.now()
	for _, c := range rows {
		h.remember(c, now)
	}
	f.mu.Lock()
	f.booted = false // nothing passes the fence until the caches are empty
	f.mu.Unlock()
	f.tier.Clear()
	f.mu.Lock()
	f.epoch, f.hist, f.cursor, f.booted = epoch, h, rows[len(rows)-1].Seq, true
	f.mu.Unlock()
	if f.events.Emptied != nil {
		f.events.Emptied()
	}
	return nil
}
