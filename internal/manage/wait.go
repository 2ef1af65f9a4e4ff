package manage

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/caddy-auth/caddy-auth/internal/auth"
	"github.com/caddy-auth/caddy-auth/internal/store"
)

// Bell tells gateways to look at the journal now. It carries nothing and is
// never relied on: they look at every poll interval too.
type Bell interface {
	Ring(ctx context.Context) error
}

// change commits a change, notes the journal row it wrote, and rings.
func (m *Manager) change(ctx context.Context, do func(*store.Tx) error) error {
	var tx *store.Tx
	if err := m.db.Change(ctx, m.actor, func(t *store.Tx) error { tx = t; return do(t) }); err != nil {
		return err
	}
	p, ok := tx.Written()
	if !ok {
		return nil
	}
	var unheard error
	if m.bell != nil {
		unheard = m.bell.Ring(ctx)
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if p.Epoch != m.wrote.Epoch || p.Seq > m.wrote.Seq {
		m.wrote = p
	}
	m.unheard = unheard
	return nil
}

// Wrote returns the newest journal row that m wrote; false if it wrote none.
func (m *Manager) Wrote() (auth.Point, bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.wrote, m.wrote.Seq != 0
}

// Unheard says why the bell could not be rung after the last change, or nil.
func (m *Manager) Unheard() error {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.unheard
}

const (
	waitFirst = 5 * time.Millisecond
	waitMost  = 100 * time.Millisecond
)

// Acknowledged says who has applied a change.
type Acknowledged struct {
	Nodes   int           // how many had to
	Slowest string        // the name of the one that came last
	Took    time.Duration // until it had
	// GivenUp are the names of those that fell silent meanwhile: they refuse by
	// themselves.
	GivenUp []string
}

// Missing is a gateway that has not applied a change.
type Missing struct {
	ID, Name string
	// RefusesBy is when it stops to let anybody in on what it knew before the
	// change, if it does not learn of it until then: its last good look began
	// before the change. Unix milliseconds by the store's clock.
	RefusesBy int64
}

// MissingError says that some gateways have not applied a change in time.
type MissingError struct {
	Missing []Missing
	Of      int // how many live gateways there are
}

// Error implements error.
func (e *MissingError) Error() string {
	var parts []string
	for _, m := range e.Missing {
		parts = append(parts, fmt.Sprintf("%s (%s) refuses by itself from %s on", m.Name, m.ID, time.UnixMilli(m.RefusesBy).UTC().Format(time.RFC3339)))
	}
	who := fmt.Sprintf("%d of %d gateways have", len(e.Missing), e.Of)
	switch {
	case e.Of == 1:
		who = "the one live gateway has"
	case len(e.Missing) == 1:
		who = fmt.Sprintf("1 of %d gateways has", e.Of)
	}
	return fmt.Sprintf("%s not applied the change: %s", who, strings.Join(parts, ", "))
}

// ErrUndone says that the store went back in time and the change may be lost.
var ErrUndone = errors.New("the store was restored meanwhile: the change may be lost")

// Wait waits until every live gateway has applied the newest change that m
// made, or, if it made none, everything there is now. Of requests that arrive
// after it returned without an error none is let in against the change
// (design 4.6, Acknowledgement). Errors: *MissingError when ctx ends first,
// ErrUndone, or what reading the store failed with. Nodes is 0 if there is no
// live gateway.
func (m *Manager) Wait(ctx context.Context) (Acknowledged, error) {
	began := time.Now()
	w, err := m.waiter(ctx)
	if err != nil {
		return Acknowledged{}, err
	}
	for pause := waitFirst; ; pause = min(2*pause, waitMost) {
		done, err := w.look(ctx)
		if err != nil && w.missing != nil && errors.Is(err, auth.ErrUnavailable) {
			err = nil // it answered before, and may again
		}
		if err != nil || done {
			w.ack.Took = time.Since(began)
			return w.ack, err
		}
		timer := time.NewTimer(pause)
		select {
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
			return w.ack, w.missing
		}
	}
}

// Applied is Wait that does not wait: it looks once.
func (m *Manager) Applied(ctx context.Context) (Acknowledged, error) {
	w, err := m.waiter(ctx)
	if err != nil {
		return Acknowledged{}, err
	}
	if done, err := w.look(ctx); err != nil || done {
		return w.ack, err
	}
	return w.ack, w.missing
}

func (m *Manager) waiter(ctx context.Context) (*waiter, error) {
	mine, wrote := m.Wrote()
	if wrote {
		return &waiter{db: m.db, point: mine}, nil
	}
	f, err := m.db.Fleet(ctx, mine)
	return &waiter{db: m.db, point: f.Head}, err
}

// waiter waits for one journal row.
type waiter struct {
	db      *store.DB
	point   auth.Point
	since   int64 // when it looked first, by the store's clock: after the change
	missing *MissingError
	late    map[string]bool // the gateways that were missing, by id
	ack     Acknowledged
}

// look reports whether all live gateways have applied the row.
func (w *waiter) look(ctx context.Context) (done bool, err error) {
	f, err := w.db.Fleet(ctx, w.point)
	if err != nil {
		return false, err
	}
	if f.Head.Epoch != w.point.Epoch || !f.There {
		return false, ErrUndone
	}
	if w.since == 0 {
		w.since = f.Now
	}
	missing := &MissingError{}
	for i := range f.Members {
		n := &f.Members[i]
		if !n.Live(f.Now) {
			continue
		}
		missing.Of++
		if !n.Applied(w.point.Seq) {
			missing.Missing = append(missing.Missing, Missing{n.ID, n.Name, w.since + n.MaxStaleness.Milliseconds()})
		}
	}
	if len(missing.Missing) > 0 {
		w.noteLate(missing)
		return false, nil
	}
	w.ack.Nodes = missing.Of
	w.finish(&f)
	return true, nil
}

func (w *waiter) noteLate(missing *MissingError) {
	w.missing = missing
	if w.late == nil {
		w.late = map[string]bool{}
	}
	for _, n := range missing.Missing {
		w.late[n.ID] = true
	}
}

// finish says who came last, and who did not come.
func (w *waiter) finish(f *store.Fleet) {
	last := w.missing
	for i := range f.Members {
		n := &f.Members[i]
		switch {
		case n.Live(f.Now) && w.ack.Slowest == "",
			n.Live(f.Now) && last != nil && slices.ContainsFunc(last.Missing, func(m Missing) bool { return m.ID == n.ID }):
			w.ack.Slowest = n.Name
		case w.late[n.ID] && !n.Live(f.Now):
			w.ack.GivenUp = append(w.ack.GivenUp, n.Name)
		}
	}
}
