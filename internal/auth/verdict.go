package auth

// Outcome is what verification concluded. The zero value is CannotDecide, so
// a verdict nobody filled in lets nobody in and blames no client.
type Outcome uint8

// The three outcomes.
const (
	CannotDecide Outcome = iota
	Deny
	Allow
)

// Reason says why a credential was denied. It goes to the decision log, never
// to the client: all of them are one answer there.
type Reason uint8

// Reasons for a denial.
const (
	ReasonNone Reason = iota
	ReasonMalformed
	ReasonForged
	ReasonUnknown
	ReasonExpired
	ReasonReplaced
	ReasonRevoked
	ReasonDisabled
	ReasonOwnerDisabled
)

var reasonNames = [...]string{
	ReasonNone:          "none",
	ReasonMalformed:     "malformed",
	ReasonForged:        "forged",
	ReasonUnknown:       "unknown",
	ReasonExpired:       "expired",
	ReasonReplaced:      "replaced",
	ReasonRevoked:       "revoked",
	ReasonDisabled:      "disabled",
	ReasonOwnerDisabled: "owner_disabled",
}

// String returns the reason's constant name, as logs show it.
func (r Reason) String() string {
	if int(r) < len(reasonNames) {
		return reasonNames[r]
	}
	return "none"
}

// Verdict is the result of verifying one credential. On a denial about a row
// that exists, Identity carries CredentialID, Hint and Subject for the logs
// only; nothing may be granted on it.
type Verdict struct {
	Outcome  Outcome
	Reason   Reason
	Identity Identity
	Cause    error // why it could not be decided
}

// Undecided returns a cannot-decide verdict with its cause.
func Undecided(cause error) Verdict { return Verdict{Cause: cause} }

// Denied returns a denial that names no row of the store.
func Denied(r Reason) Verdict { return Verdict{Outcome: Deny, Reason: r} }
