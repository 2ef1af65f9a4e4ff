package login

import (
	"context"
	"errors"
	"net/netip"
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
	// mostSenders is how many senders are remembered.
	mostSenders = 20_000
)

// attemptRate is how many codes of one sender may fail.
var attemptRate = limit.Rate{Every: time.Second, Burst: 60}

// Sender is whose answer of a provider is looked at: an address, as AddressSender
// makes it, or a browser that signed in before. Zero: it is not known.
type Sender struct{ key string }

// AddressSender is who sends from an address that can be believed; of IPv6
// everybody has a /64. An invalid one is nobody in particular.
func AddressSender(a netip.Addr) Sender {
	if !a.IsValid() {
		return Sender{}
	}
	return Sender{"address " + auth.ClientPrefix(a).String()}
}

// KnownSender is a browser that has signed in here before: what others at its
// address get wrong is not held against it.
func KnownSender(session auth.Fingerprint) Sender { return Sender{"session " + string(session[:])} }

// Attempts counts the codes that were no good, by sender, so that nobody can have
// a provider asked about guesses for ever. It survives configurations and is safe
// for concurrent use.
type Attempts struct{ failed *limit.Local[Sender] }

// NewAttempts returns an empty count.
func NewAttempts() *Attempts {
	return &Attempts{limit.NewLocal[Sender](attemptRate, mostSenders)}
}

// begin counts an attempt, before anything is asked or written for it. done must
// be called with how it ended: what is no failure does not count. An attempt too
// many is an *Error of CauseTooMany.
func (a *Attempts) begin(by Sender, now func() time.Time) (done func(*Error), failed *Error) {
	if by == (Sender{}) {
		return func(*Error) {}, nil
	}
	if at := now(); !a.failed.Add(by, at) {
		return nil, &Error{Cause: CauseTooMany, Detail: "too many codes from there were no good", RetryAfter: a.failed.Left(by, at)}
	}
	return func(e *Error) {
		if e == nil || !sendersFault(e) {
			a.failed.Return(by, now())
		}
	}, nil
}

// sendersFault reports whether a failure may be whoever sent the code's doing:
// that nobody could be reached, or that it was not their turn, is not.
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
	release, err := c.slots.Take(ctx, by)
	if err != nil {
		return nil, unavailableError(errors.Join(err, auth.ErrOverloaded, errNotBegun))
	}
	return release, nil
}
