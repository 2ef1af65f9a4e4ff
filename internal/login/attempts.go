package login

import (
	"context"
	"errors"
	"net/http"
	"net/netip"
	"sync/atomic"
	"time"

	"github.com/caddy-auth/caddy-auth/internal/auth"
	"github.com/caddy-auth/caddy-auth/internal/grant"
	"github.com/caddy-auth/caddy-auth/internal/limit"
)

const (
	// maxRedeeming is how many codes may be redeemed at a time, and shareRedeeming
	// how many of one sender: anybody can send some. waitRedeeming is how many more
	// of a sender may wait for their turn, and turnTime how long.
	maxRedeeming   = 32
	shareRedeeming = 8
	waitRedeeming  = 128
	turnTime       = 10 * time.Second
	// redeemTime bounds what follows, whether the browser waits for it or not.
	redeemTime = 15 * time.Second
	// mostSenders is how many senders are remembered.
	mostSenders = 20_000
	// troubleFor is how long a provider counts as in trouble that answered with an
	// error of its own.
	troubleFor = 5 * time.Second
)

var (
	// attemptRate is how many codes of one address may fail.
	attemptRate = limit.Rate{Every: time.Second, Burst: 60}
	// knownRate is how many more of a browser that signed in before may.
	knownRate = limit.Rate{Every: 10 * time.Second, Burst: 5}
)

// Sender says who sent what a provider sent a browser back with. The zero value is
// nobody in particular, who is never counted.
type Sender struct {
	turn    string // with whom a sender takes turns
	counted string // whose failures they are; "": nobody's
	known   string // a cookie that proves a sign-in here before; "": none
}

// AddressSender is who sends from an address that can be believed: failures are
// counted for it, of IPv6 for its /64, and turns are taken with its /48.
func AddressSender(a netip.Addr) Sender {
	if !a.IsValid() {
		return Sender{}
	}
	turn := a.Unmap().WithZone("")
	if turn.Is6() {
		if p, err := turn.Prefix(48); err == nil {
			turn = p.Addr()
		}
	}
	return Sender{turn: "address " + turn.String(), counted: auth.ClientPrefix(a).String()}
}

// ClaimedSender is who sends from an address that can't be believed: nothing is
// counted for it, since it may be another's, but who claims to be many takes turns
// with those who don't.
func ClaimedSender(address string) Sender { return Sender{turn: "claimed " + address} }

// SignedInBefore returns the sender with a session's cookie that this gateway made,
// which may have ended: then what others at its address get wrong does not shut it
// out.
func (s Sender) SignedInBefore(session auth.Fingerprint) Sender {
	s.known = string(session[:])
	return s
}

// Attempts counts the codes that came to nothing, by sender, so that nobody can
// have a provider asked about guesses for ever. It survives configurations and is
// safe for concurrent use.
type Attempts struct {
	failed, known *limit.Local[string]
	trouble       atomic.Int64 // when a provider answered with an error of its own, unix nanoseconds
}

// NewAttempts returns an empty count.
func NewAttempts() *Attempts {
	return &Attempts{failed: limit.NewLocal[string](attemptRate, mostSenders), known: limit.NewLocal[string](knownRate, mostSenders)}
}

// refusal is the answer to an attempt too many. If it is the provider that is in
// trouble, nobody is blamed.
func (a *Attempts) refusal(by Sender, now time.Time) *Error {
	if now.Sub(time.Unix(0, a.trouble.Load())) < troubleFor {
		return unavailableError(errors.Join(errors.New("the provider is in trouble, and too many codes of this sender came to nothing"), auth.ErrOverloaded, errNotBegun))
	}
	return &Error{Cause: CauseTooMany, Detail: "too many codes of this sender came to nothing", RetryAfter: a.failed.Left(by.counted, now)}
}

// begin counts an attempt whose turn it is, before anything is asked or written for
// it. done must be called with how it ended: what is no failure of the sender's
// does not count. An attempt too many is refused.
func (a *Attempts) begin(by Sender, now func() time.Time) (done func(*Error), failed *Error) {
	counts, who := a.failed, by.counted
	if who == "" {
		return a.note, nil
	}
	if at := now(); !a.failed.Add(who, at) {
		if counts, who = a.known, by.known; who == "" || !a.known.Add(who, at) {
			return nil, a.refusal(by, at)
		}
	}
	return func(e *Error) {
		if a.note(e); e == nil || !sendersFault(e) {
			counts.Return(who, now())
		}
	}, nil
}

// note remembers that a provider is in trouble, or refuses this gateway.
func (a *Attempts) note(e *Error) {
	var f *grant.Failure
	if e == nil || !errors.As(e, &f) {
		return
	}
	if f.Status >= http.StatusInternalServerError || f.Status == http.StatusTooManyRequests || f.Status == http.StatusUnauthorized || f.Code == "invalid_client" || f.Code == "unauthorized_client" {
		a.trouble.Store(time.Now().UnixNano())
	}
}

// sendersFault reports whether a failure may be the doing of whoever sent the
// code: that nobody could be reached is not, nor that it was not their turn.
func sendersFault(e *Error) bool {
	var f *grant.Failure
	switch {
	case errors.Is(e, errNotBegun):
		return false
	case errors.As(e, &f):
		return f.Status != 0
	}
	return e.Cause != CauseUnavailable
}

// turn waits until a sender may have a code redeemed.
func (c *Client) turn(ctx context.Context, by Sender) (release func(), failed *Error) {
	ctx, cancel := context.WithTimeout(ctx, turnTime)
	defer cancel()
	release, err := c.slots.Take(ctx, by.turn)
	if err != nil {
		return nil, unavailableError(errors.Join(err, auth.ErrOverloaded, errNotBegun))
	}
	return release, nil
}
