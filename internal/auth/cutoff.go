package auth

import (
	"math"
	"time"
)

const (
	// MostTokenLifetime is the longest that tokens of other issuers may live.
	MostTokenLifetime = 30 * 24 * time.Hour
	// CutOffsKept is how long cut-offs of JWTs are kept: every token that one
	// concerns has expired by then, whatever max_token_lifetime is or becomes.
	CutOffsKept = MostTokenLifetime + 24*time.Hour
)

// CutOff ends tokens of another issuer before they expire: one token by its
// jti, or those of a subject that were issued before a time.
type CutOff struct {
	Issuer       string // its name in the configuration
	JTI          string // either this
	Subject      string // or this, as the token calls it
	IssuedBefore int64  // unix milliseconds; for a jti: any time
	CreatedAt    int64  // unix milliseconds, by the store's clock
	KeptUntil    int64  // unix milliseconds; 0: for ever, since the tokens may live for ever
	Reason       string
}

// AnyTime is the IssuedBefore of a cut-off that concerns a token whenever it
// was issued.
const AnyTime = math.MaxInt64

// Parent names what the cut-off concerns.
func (c *CutOff) Parent() Parent {
	if c.JTI != "" {
		return Parent{ParentToken, PartOf(c.Issuer, c.JTI)}
	}
	return Parent{ParentSubject, PartOf(c.Issuer, c.Subject)}
}
