package verifier

import (
	"context"
	"time"

	"github.com/caddy-auth/caddy-auth/internal/auth"
)

// Tier is a place where a credential was looked up.
type Tier uint8

// The tiers, nearest first.
const (
	TierMemory Tier = iota
	TierShared
	TierStore
	TierSignature // of a JWT, checked with its issuer's keys
	TierIssuer    // asked whether a token is active
	TierCount
)

// String returns the tier's name, as metrics show it.
func (t Tier) String() string {
	return [...]string{"memory", "redis", "store", "signature", "issuer"}[t]
}

// Result is what a lookup in a tier came to.
type Result uint8

// The results.
const (
	Hit        Result = iota // an identity
	Negative                 // a denial
	Miss                     // nothing
	Fenced                   // overtaken by a change, or ahead of what this gateway read
	Refused                  // a record that was not sealed by this store for this name
	Failed                   // it could not be asked
	Overloaded               // too much was under way
	ResultCount
)

// String returns the result's name, as metrics show it.
func (r Result) String() string {
	return [...]string{"hit", "negative", "miss", "fenced", "refused", "error", "overloaded"}[r]
}

// Meter measures verification. Lookup is called on every request and must be
// cheap; the others only when memory had no answer.
type Meter interface {
	// Lookup counts one lookup.
	Lookup(Tier, Result)
	// Took tells how long asking a tier other than memory took.
	Took(Tier, time.Duration)
	// Wait is called when a request begins to wait for a lookup; what it
	// returns is called with the verdict.
	Wait(ctx context.Context) func(*auth.Verdict)
}

type noMeter struct{}

func (noMeter) Lookup(Tier, Result)                      {}
func (noMeter) Took(Tier, time.Duration)                 {}
func (noMeter) Wait(context.Context) func(*auth.Verdict) { return func(*auth.Verdict) {} }

// resultOf is hitOf for what may also be undecided.
func resultOf(v *auth.Verdict) Result {
	if v.Outcome == auth.CannotDecide {
		return Failed
	}
	return hitOf(v)
}

func hitOf(v *auth.Verdict) Result {
	if v.Outcome == auth.Allow {
		return Hit
	}
	return Negative
}
