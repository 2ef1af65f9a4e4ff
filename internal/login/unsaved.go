package login

import (
	"context"
	"errors"

	"github.com/caddy-auth/caddy-auth/internal/auth"
	"github.com/caddy-auth/caddy-auth/internal/grant"
)

// saveLater begins to save. d.mu is held.
func (d *Delegate) saveLater(id string, h *heldTokens) {
	done, ok := d.worksLocked()
	if !ok {
		done = func() {}
	}
	go func() {
		defer done()
		d.save(id, h)
	}()
}

// save keeps on trying to write what the store does not know: without it the
// session would have a refresh token that is used up. It is the session's flight
// while it does, so nothing else changes the tokens meanwhile.
func (d *Delegate) save(id string, h *heldTokens) {
	for began := d.now(); ; {
		<-d.after(putRetry)
		d.mu.Lock()
		if h.flight != nil {
			d.mu.Unlock()
			continue
		}
		f := &refreshing{done: make(chan struct{}), saving: true}
		h.flight = f
		t, version, over := h.tokens, h.version, h.over
		late := d.now().After(began.Add(putFor)) || !d.retired.IsZero() && d.now().After(d.retired.Add(putRetired))
		d.mu.Unlock()
		ctx, cancel := context.WithTimeout(context.Background(), putTimeout)
		var err error
		if over {
			err = d.keeper.End(ctx, id, endedReason)
		} else {
			err = d.put(ctx, id, version, t)
		}
		cancel()
		d.mu.Lock()
		h.flight = nil
		ended := err == nil || errors.Is(err, errLost) || late
		if ended {
			h.unsaved, h.version = false, version+1
			if err != nil || over { // what the store has counts
				h.read = false
				d.drop(id, h)
			}
		}
		d.mu.Unlock()
		close(f.done)
		if ended {
			return
		}
	}
}

// refreshUnsaved refreshes tokens that the store does not know yet.
func (d *Delegate) refreshUnsaved(ctx context.Context, have Tokens, version int64) (Tokens, int64, bool, error) {
	if have.Refresh == "" {
		return have, version, false, grant.Unavailable("the store is away", auth.ErrUnavailable)
	}
	done, ok := d.works()
	if !ok {
		return have, version, false, grant.Unavailable("refreshing", errClosing)
	}
	defer done()
	next, err := d.client.Refresh(ctx, have)
	return next, version, false, err
}
