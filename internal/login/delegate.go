package login

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/caddy-auth/caddy-auth/internal/auth"
	"github.com/caddy-auth/caddy-auth/internal/grant"
)

const (
	// mostHeld is how many sessions' tokens are held in memory, and heldFor how
	// long those are that nobody uses.
	mostHeld = 10_000
	heldFor  = 10 * time.Minute
	// forcedEvery is how often a refusal by the upstream makes a session's token
	// be refreshed that was not due.
	forcedEvery = 10 * time.Second
)

// Refresher gets and ends tokens; it is a *Client.
type Refresher interface {
	Refresh(ctx context.Context, old Tokens) (Tokens, error)
	RevokeTokens(ctx context.Context, t Tokens) error
}

// DelegateEvents are told what happens. Fields may be nil; they must not block.
type DelegateEvents struct {
	// Working is called when work begins that must not be cut off, and what it
	// returns when that has ended.
	Working func() (done func())
	// Holds is told of every access token that is held from now on.
	Holds     func(token auth.Secret, until time.Time)
	Refreshed func(id string)
	Failed    func(id string, err error)
	Over      func(id string, err error)
}

// Delegate has the access tokens of people, for what is asked in their name.
// Each session's is refreshed once in the fleet, however many ask for it: the
// store says who does. It is safe for concurrent use.
type Delegate struct {
	client Refresher
	keeper Keeper
	events DelegateEvents
	now    func() time.Time
	after  func(time.Duration) <-chan time.Time

	mu      sync.Mutex // guards what follows, and what is in held
	held    map[string]*heldTokens
	busy    int             // refreshes under way, and tokens still to be written
	idle    []chan struct{} // closed when busy is 0
	closing bool            // nothing more is refreshed
	retired time.Time       // when it was replaced; zero: it was not
}

// heldTokens are one session's.
type heldTokens struct {
	tokens  Tokens
	version int64
	read    bool
	used    time.Time
	flight  *refreshing
	forced  time.Time // when the upstream made us refresh last
	failed  error
	retryAt time.Time
	unsaved bool // they are newer than the store's
	over    bool // there are none any more, but the session could not be ended yet
}

// refreshing is work on a session's tokens; there is one at a time.
type refreshing struct {
	done   chan struct{}
	saving bool // it only writes what is there
}

// NewDelegate returns one that holds nothing yet.
func NewDelegate(client Refresher, keeper Keeper, events DelegateEvents) *Delegate {
	return &Delegate{client: client, keeper: keeper, events: events, now: time.Now, after: time.After, held: map[string]*heldTokens{}}
}

// Token returns a session's access token. One that is due is refreshed meanwhile,
// one that has expired before. Errors: ErrOver, a *grant.Failure, the context's.
func (d *Delegate) Token(ctx context.Context, id string) (auth.Secret, error) {
	return d.get(ctx, id, "")
}

// Renew returns another token than one that the upstream refused. Errors: those
// of Token, and ErrKept.
func (d *Delegate) Renew(ctx context.Context, id string, refused auth.Secret) (auth.Secret, error) {
	return d.get(ctx, id, refused.Reveal())
}

// ErrKept says that a token which the upstream refused is not replaced: there is
// no other, or one was got for it just now.
var ErrKept = errors.New("there is no other token")

func (d *Delegate) get(ctx context.Context, id, refused string) (auth.Secret, error) {
	for {
		d.mu.Lock()
		h := d.entry(id)
		text, flight, err := d.step(id, h, refused)
		d.mu.Unlock()
		if flight == nil {
			return auth.NewSecret(text), err
		}
		select {
		case <-flight.done:
		case <-ctx.Done():
			return auth.Secret{}, fmt.Errorf("waiting for a token that another request gets: %w", context.Cause(ctx))
		}
		if flight.saving {
			continue
		}
		d.mu.Lock()
		defer d.mu.Unlock()
		switch {
		case h.failed != nil && (!h.tokens.usable(d.now()) || h.tokens.Access == refused):
			return auth.Secret{}, h.failed
		case h.tokens.Access == refused:
			return auth.Secret{}, ErrKept
		}
		return auth.NewSecret(h.tokens.Access), nil
	}
}

// step says what to do about a request: give it a token or an error, or let it
// wait for a flight. d.mu is held.
func (d *Delegate) step(id string, h *heldTokens, refused string) (text string, wait *refreshing, err error) {
	now := d.now()
	if h.over {
		return "", nil, h.failed
	}
	mayBegin := h.flight == nil && !now.Before(h.retryAt)
	switch {
	case h.read && refused != "" && h.tokens.Access == refused:
		if h.flight != nil {
			return "", h.flight, nil
		}
		if h.tokens.Refresh == "" || now.Sub(h.forced) < forcedEvery {
			return "", nil, ErrKept
		}
		h.forced = now
	case h.read && h.tokens.usable(now):
		if mayBegin && h.tokens.Refresh != "" && h.tokens.due(now) {
			d.begin(id, h, "") // in the background
		}
		return h.tokens.Access, nil, nil
	case h.flight == nil && !mayBegin && h.failed != nil:
		return "", nil, h.failed
	}
	if h.flight == nil {
		d.begin(id, h, refused)
	}
	return "", h.flight, nil
}

// entry returns what is held of a session. d.mu is held.
func (d *Delegate) entry(id string) *heldTokens {
	now := d.now()
	h := d.held[id]
	if h == nil {
		if len(d.held) >= mostHeld {
			d.shrink(now)
		}
		h = new(heldTokens)
		d.held[id] = h
	}
	h.used = now
	return h
}

// shrink forgets what nobody has used for a while, else anything that can be
// read again. d.mu is held.
func (d *Delegate) shrink(now time.Time) {
	for _, kept := range []time.Duration{heldFor, time.Minute, 0} {
		for id, h := range d.held {
			if h.flight == nil && !h.unsaved && now.Sub(h.used) >= kept {
				if delete(d.held, id); kept == 0 && len(d.held) < mostHeld*9/10 {
					return
				}
			}
		}
		if len(d.held) < mostHeld*9/10 {
			return
		}
	}
}

// Forget drops what is held of a session that has ended.
func (d *Delegate) Forget(id string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if h := d.held[id]; h != nil && h.flight == nil && !h.unsaved {
		delete(d.held, id)
	}
}

// begin starts a flight, detached from who asks. d.mu is held.
func (d *Delegate) begin(id string, h *heldTokens, refused string) {
	f := &refreshing{done: make(chan struct{})}
	h.flight = f
	have, version, unsaved := h.tokens, h.version, h.unsaved
	go func() {
		ctx, cancel := context.WithTimeout(context.Background(), refreshTimeout)
		defer cancel()
		var got Tokens
		var at int64
		var saved bool
		var err error
		if unsaved { // what the store has is older, and must not be refreshed
			got, at, saved, err = d.refreshUnsaved(ctx, have, version)
		} else {
			got, at, saved, err = d.obtain(ctx, id, refused)
		}
		d.land(id, h, got, at, saved, err)
		close(f.done)
	}()
}

// errElsewhere: another gateway refreshes tokens that are still good.
var errElsewhere = errors.New("another gateway refreshes them")

// land ends a flight.
func (d *Delegate) land(id string, h *heldTokens, got Tokens, version int64, saved bool, err error) {
	d.mu.Lock()
	h.flight = nil
	if err == nil || errors.Is(err, errElsewhere) {
		h.tokens, h.version, h.read, h.failed, h.retryAt = got, version, true, nil, time.Time{}
		if err != nil {
			h.retryAt = d.now().Add(failedFor)
		}
		if !saved && !h.unsaved {
			h.unsaved = true
			d.saveLater(id, h)
		}
		d.mu.Unlock()
		if d.events.Holds != nil {
			d.events.Holds(auth.NewSecret(got.Access), time.UnixMilli(got.Expires))
		}
		return
	}
	h.failed, h.retryAt = err, d.now().Add(failedFor)
	over := errors.Is(err, ErrOver)
	if over && h.unsaved { // the store can't be told now
		h.over, h.tokens = true, Tokens{}
		d.mu.Unlock()
		return
	}
	if !over && got.Access != "" { // they could not be refreshed; they may be good for a while
		h.tokens, h.version, h.read = got, version, true
	}
	if over {
		h.tokens = Tokens{}
		d.drop(id, h)
	}
	d.mu.Unlock()
	switch {
	case over && d.events.Over != nil:
		d.events.Over(id, err)
	case !over && d.events.Failed != nil:
		d.events.Failed(id, err)
	}
}

// obtain reads a session's tokens, and refreshes those that are due, or refused:
// once in the fleet.
func (d *Delegate) obtain(ctx context.Context, id, refused string) (t Tokens, version int64, saved bool, err error) {
	by := newLessee()
	for {
		kept, err := d.keeper.Tokens(ctx, id)
		if errors.Is(err, auth.ErrNotFound) || err == nil && kept.Ended {
			return t, 0, true, fmt.Errorf("%w: it has ended", ErrOver)
		}
		if errors.Is(err, auth.ErrCorrupt) {
			return t, 0, true, d.over(ctx, id, "its tokens can't be opened")
		}
		if err != nil {
			return t, 0, true, grant.Unavailable("the session's tokens can't be read", err)
		}
		t, ok := kept.tokens()
		if !ok {
			return t, 0, true, d.over(ctx, id, "it has none")
		}
		now := d.now()
		usable := t.usable(now) && t.Access != refused
		switch {
		case usable && (!t.due(now) || t.Refresh == ""):
			return t, kept.Version, true, nil
		case t.Refresh == "" && t.Access == refused && t.usable(now):
			return t, kept.Version, true, nil // the only one there is
		case t.Refresh == "":
			return t, 0, true, d.over(ctx, id, "the access token has expired and there is no refresh token")
		}
		ours, after, err := d.keeper.Lease(ctx, id, kept.Version, by, leaseTTL)
		if ours && after && !usable { // whoever had it may live, and be about to write
			if err = d.waitFor(ctx, takeoverWait); err == nil {
				if now, readErr := d.keeper.Tokens(ctx, id); readErr == nil && now.Version != kept.Version {
					continue
				}
			}
		}
		switch {
		case err != nil:
			return t, kept.Version, true, grant.Unavailable("nobody can say who refreshes", err)
		case ours:
			return d.refresh(ctx, id, t, kept.Version, by)
		case usable:
			return t, kept.Version, true, errElsewhere
		}
		if err := d.waitFor(ctx, leasePoll); err != nil {
			return t, 0, true, grant.Unavailable("waiting for another gateway", err)
		}
	}
}

func (d *Delegate) waitFor(ctx context.Context, how time.Duration) error {
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-d.after(how):
		return nil
	}
}

// refresh refreshes for the fleet, with the lease.
func (d *Delegate) refresh(ctx context.Context, id string, old Tokens, version int64, by string) (Tokens, int64, bool, error) {
	done, ok := d.works()
	if !ok {
		_ = d.keeper.Release(ctx, id, by)
		return old, version, true, grant.Unavailable("refreshing", errClosing)
	}
	defer done()
	next, err := d.client.Refresh(ctx, old)
	if errors.Is(err, ErrOver) {
		return old, 0, true, d.overFor(ctx, id, err)
	}
	if err != nil {
		_ = d.keeper.Release(ctx, id, by) // else it ends by itself
		return old, version, true, err
	}
	if d.events.Refreshed != nil {
		d.events.Refreshed(id)
	}
	saved := d.put(ctx, id, version, next) == nil
	if saved {
		version++
	}
	return next, version, saved, nil
}

// errLost says that somebody else changed a session's tokens.
var errLost = errors.New("somebody else changed them")

func (d *Delegate) put(ctx context.Context, id string, version int64, t Tokens) error {
	text, err := t.Encode()
	if err != nil {
		return err
	}
	did, err := d.keeper.Put(ctx, id, version, text)
	if err != nil {
		return err
	}
	if did {
		return nil
	}
	// If it has ended meanwhile, nobody else knows of these.
	if kept, err := d.keeper.Tokens(ctx, id); errors.Is(err, auth.ErrNotFound) || err == nil && (kept.Ended || kept.Plain == nil) {
		for range 3 {
			if !Passes(d.client.RevokeTokens(ctx, t)) {
				break
			}
			<-d.after(putRetry)
		}
	}
	return errLost
}

// drop forgets what is held of a session. d.mu is held.
func (d *Delegate) drop(id string, h *heldTokens) {
	if d.held[id] == h {
		delete(d.held, id)
	}
}

// endedReason is why a session ends that has no tokens any more.
const endedReason = "its tokens have ended"

// over ends a session whose tokens have.
func (d *Delegate) over(ctx context.Context, id, why string) error {
	return d.overFor(ctx, id, fmt.Errorf("%w: %s", ErrOver, why))
}

func (d *Delegate) overFor(ctx context.Context, id string, why error) error {
	if err := d.keeper.End(ctx, id, endedReason); err != nil {
		return grant.Unavailable("ending the session", err)
	}
	return why
}
