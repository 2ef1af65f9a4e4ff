package login

import (
	"errors"
	"net/netip"
	"testing"
	"time"

	"github.com/caddy-auth/caddy-auth/internal/auth"
	"github.com/caddy-auth/caddy-auth/internal/grant"
)

// TestAttempts: sixty failures at once and one a second after that, by sender;
// what is not the sender's fault does not count.
func TestAttempts(t *testing.T) {
	now := time.Unix(1000, 0)
	clock := func() time.Time { return now }
	a := NewAttempts()
	address := AddressSender(netip.MustParseAddr("192.0.2.1"))
	try := func(by Sender, failed *Error) bool {
		t.Helper()
		done, refused := a.begin(by, clock)
		if refused != nil {
			if refused.Cause != CauseTooMany || refused.RetryAfter < 0 {
				t.Errorf("%+v", refused)
			}
			return false
		}
		done(failed)
		return true
	}
	bad := &Error{Cause: CauseCode, err: &grant.Failure{Code: "invalid_grant", Status: 400}}
	for what, failed := range map[string]*Error{
		"a success": nil, "nobody could be reached": unavailableError(grant.Unavailable("x", errors.New("dial"))), "it was not their turn": unavailableError(errors.Join(auth.ErrOverloaded, errNotBegun)),
	} {
		for range 200 {
			if !try(address, failed) {
				t.Fatalf("%s counts", what)
			}
		}
	}
	for what, failed := range map[string]*Error{
		"a code that is not known": bad, "a refusal of another kind": refusedError("x", &grant.Failure{Status: 400, Code: "invalid_request"}),
		"an ID token": refusedError("the ID token", errToken("x")), "a state that was used": {Cause: CauseState},
	} {
		by := AddressSender(netip.MustParseAddr("192.0.2.7"))
		a = NewAttempts()
		n := 0
		for range 100 {
			if try(by, failed) {
				n++
			}
		}
		if n != attemptRate.Burst {
			t.Errorf("%s: %d of 100", what, n)
		}
		if now = now.Add(time.Second); !try(by, nil) || !try(by, failed) || try(by, failed) {
			t.Errorf("%s: not one more in a second", what)
		}
	}
	if !try(AddressSender(netip.MustParseAddr("192.0.2.8")), bad) {
		t.Error("another sender pays")
	}
	// A browser that signed in before may fail a few times more.
	shut := AddressSender(netip.MustParseAddr("192.0.2.9"))
	for range 100 {
		try(shut, bad)
	}
	known, n := shut.SignedInBefore(auth.FingerprintOf("x")), 0
	for range 100 {
		if try(known, nil) && try(known, bad) {
			n++
		}
	}
	if n != knownRate.Burst {
		t.Errorf("a browser that is known failed %d times", n)
	}
	for _, nobody := range []Sender{{}, AddressSender(netip.Addr{}), ClaimedSender("192.0.2.1")} {
		for range 200 {
			if !try(nobody, bad) {
				t.Fatal("somebody is counted who can't be told apart")
			}
		}
	}
	first, same := AddressSender(netip.MustParseAddr("2001:db8::1")), AddressSender(netip.MustParseAddr("2001:db8::ffff"))
	if other := AddressSender(netip.MustParseAddr("2001:db8:0:1::1")); first != same || first.counted == other.counted || first.turn != other.turn || AddressSender(netip.MustParseAddr("::ffff:192.0.2.1")) != address {
		t.Error("one client has several senders")
	}
	// A provider in trouble is nobody's fault.
	a = NewAttempts()
	now = time.Now()
	for range 100 {
		if done, refused := a.begin(address, clock); refused == nil {
			done(unavailableError(&grant.Failure{Cause: grant.CauseUnavailable, Status: 502}))
		} else if refused.Cause != CauseUnavailable {
			t.Fatalf("%+v", refused)
		}
	}
	now = now.Add(2 * troubleFor)
	for range 100 {
		try(address, bad)
	}
	if _, refused := a.begin(address, clock); refused == nil || refused.Cause != CauseTooMany {
		t.Errorf("%+v", refused)
	}
}
