package login

import (
	"errors"
	"time"
)

// works counts work that must not be cut off: a refresh token that was used and
// is not replaced ends a session. It is refused where the gateway stops.
func (d *Delegate) works() (done func(), ok bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.worksLocked()
}

func (d *Delegate) worksLocked() (done func(), ok bool) {
	if d.closing {
		return nil, false
	}
	d.busy++
	ended := func() {}
	if d.events.Working != nil {
		ended = d.events.Working()
	}
	return func() {
		d.mu.Lock()
		if d.busy--; d.busy == 0 {
			for _, c := range d.idle {
				close(c)
			}
			d.idle = nil
		}
		d.mu.Unlock()
		ended()
	}, true
}

// Close waits until no tokens are refreshed or still to be written, or for a
// while. Nothing is refreshed after it was called.
func (d *Delegate) Close(most time.Duration) {
	d.mu.Lock()
	d.closing = true
	idle := make(chan struct{})
	if d.busy == 0 {
		close(idle)
	} else {
		d.idle = append(d.idle, idle)
	}
	d.mu.Unlock()
	select {
	case <-idle:
	case <-d.after(most):
	}
}

// Retire says that another Delegate takes its place: what could not be written is
// tried for some minutes only.
func (d *Delegate) Retire() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.retired = d.now()
}

// errClosing: the gateway stops.
var errClosing = errors.New("this gateway is being stopped")
