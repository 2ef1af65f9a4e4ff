package outbound

import (
	"context"
	"time"

	"github.com/caddy-auth/caddy-auth/internal/auth"
	"github.com/caddy-auth/caddy-auth/internal/grant"
	"github.com/caddy-auth/caddy-auth/internal/limit"
)

// maxRemembered bounds how many refused tokens are remembered.
const maxRemembered = 8

// acceptedLately is how long after the upstream took a token a refusal of it says
// nothing about the token.
const acceptedLately = time.Second

// refusedRate is how often a refusal by the upstream makes a token be fetched
// that was not due: one path that always answers 401 must not make every request
// to it a question to the token endpoint.
var refusedRate = limit.Rate{Every: 10 * time.Second, Burst: 3}

// Renew returns another credential than one that the upstream refused. It is
// ErrKept if there is none to be had, a *Failure if none can be had now.
func (t *Tokens) Renew(ctx context.Context, refused Credential) (Credential, error) {
	now := time.Now()
	t.mu.Lock()
	h := t.current.Load()
	if h.usableAt(now) && !h.credential.Is(refused) && !h.doubted.Load() {
		t.mu.Unlock()
		return h.take(), nil // somebody was faster
	}
	if h != nil && h.credential.Is(refused) && !h.doubted.Load() {
		if t.flight == nil && !t.mayForce(now) {
			left := refusedRate.Left(t.forced, now)
			t.mu.Unlock()
			t.tellRefused(false)
			if last := h.accepted.Load(); last == 0 || now.UnixMilli()-last < acceptedLately.Milliseconds() {
				return Credential{}, ErrKept // this request is what is refused, or every token is
			}
			return Credential{}, &grant.Failure{Cause: grant.CauseUnavailable, Detail: "the upstream refuses the token, and others were asked for too often lately", RetryAfter: left}
		}
		h.doubted.Store(true)
		t.remember(auth.FingerprintOf(h.Token.Reveal()))
		defer t.tellRefused(true)
	}
	f := t.begin(now, goal{notThis: h, forced: true})
	failure := t.failureAt(now)
	t.mu.Unlock()
	if f == nil {
		return Credential{}, failure
	}
	c, err := t.after(ctx, f)
	switch {
	case err != nil:
		return c, err
	case !c.Is(refused):
		c.fresh = c.token.forced
		return c, nil
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.failure != nil { // it is only kept for want of another
		return Credential{}, t.failureAt(time.Now())
	}
	return Credential{}, ErrKept // the server gives out the same one
}

// Accepted implements Source.
func (t *Tokens) Accepted(c Credential) {
	if c.token == nil {
		return
	}
	now := time.Now().UnixMilli()
	if now-c.token.accepted.Load() >= acceptedLately.Milliseconds()/4 { // so that processors don't fight for it
		c.token.accepted.Store(now)
	}
}

func (t *Tokens) tellRefused(renewed bool) {
	if refused := t.events.Load().Refused; refused != nil {
		refused(renewed)
	}
}

// mayForce counts a token that is fetched because the upstream refused one.
// t.mu is held.
func (t *Tokens) mayForce(now time.Time) bool {
	next, within := refusedRate.Next(t.forced, now)
	if within {
		t.forced = next
	}
	return within
}

// remember keeps a refused token from coming back from the fleet. t.mu is held.
func (t *Tokens) remember(fp auth.Fingerprint) {
	if len(t.refused) >= maxRemembered {
		t.refused = t.refused[1:]
	}
	t.refused = append(t.refused, fp)
}

// SecretChanged makes a token be fetched with the new secret: a wrong one is
// noticed while the old token is good.
func (t *Tokens) SecretChanged() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.failures, t.notBefore = 0, time.Time{}
	if t.flight != nil {
		t.again = true
		return
	}
	if h := t.current.Load(); h != nil && !t.closed {
		t.begin(time.Now(), goal{notThis: h, by: t.ask.By()})
	}
}
