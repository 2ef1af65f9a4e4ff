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
	// Of tokens of other issuers.
	ReasonHeader    // a header parameter that must not be there, or not so
	ReasonAlgorithm // an algorithm that is not configured, or not the key's
	ReasonIssuer    // nobody whom this gateway knows issued it
	ReasonKeyID     // the issuer has no such key
	ReasonSignature
	ReasonTokenType // a token for another purpose
	ReasonAudience  // it is for others
	ReasonClaims    // a claim is missing, or is not what it should be
	ReasonNotYet    // it begins later, or was issued in the future
	ReasonLifetime  // it lives longer than tokens may here, or does not say since when
	ReasonBound     // it is bound to a key that the client did not prove to have
	ReasonInactive  // its issuer says that it is not active
	// Of tokens of our own, and of who asks for them.
	ReasonClient    // its client was revoked or disabled
	ReasonParentKey // the key that it was exchanged for has ended

	ReasonReconfigured // another configuration judged who signed in
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
	ReasonHeader:        "token_header",
	ReasonAlgorithm:     "algorithm",
	ReasonIssuer:        "unknown_issuer",
	ReasonKeyID:         "unknown_key",
	ReasonSignature:     "signature",
	ReasonTokenType:     "token_type",
	ReasonAudience:      "audience",
	ReasonClaims:        "claims",
	ReasonNotYet:        "not_yet_valid",
	ReasonLifetime:      "lifetime",
	ReasonBound:         "bound_token",
	ReasonInactive:      "inactive",
	ReasonClient:        "client_ended",
	ReasonParentKey:     "key_ended",
	ReasonReconfigured:  "reconfigured",
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
	Source   Source // of a token
	Identity Identity
	Cause    error // why it could not be decided
}

// Source is a digest of the configuration that a token was judged by: whose
// tokens, with which keys, for whom. Keys have the zero Source: they depend on
// their store only.
type Source [16]byte

// Undecided returns a cannot-decide verdict with its cause.
func Undecided(cause error) Verdict { return Verdict{Cause: cause} }

// Denied returns a denial that names no row of the store.
func Denied(r Reason) Verdict { return Verdict{Outcome: Deny, Reason: r} }
