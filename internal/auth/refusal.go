package auth

import "time"

// Code is the machine-readable name of a refusal, as clients see it.
type Code string

// The codes of design section 3.4.
const (
	CodeCredentialInQuery Code = "credential_in_query"
	CodeInvalidRequest    Code = "invalid_request"
	CodeMissingCredential Code = "missing_credential"
	CodeInvalidCredential Code = "invalid_credential"
	CodeWrongEnvironment  Code = "wrong_environment"
	CodeInsufficientScope Code = "insufficient_scope"
	CodeNetworkNotAllowed Code = "network_not_allowed"
	CodeNotAllowed        Code = "not_allowed"
	CodeTooEarly          Code = "too_early"
	CodeUnavailable       Code = "verification_unavailable"

	// CodeUpstreamUnavailable and CodeUpstreamRefused: the caller may pass, but
	// the gateway has no credential of its own for the upstream: it can't be got
	// now, or is refused to it.
	CodeUpstreamUnavailable Code = "upstream_credential_unavailable"
	CodeUpstreamRefused     Code = "upstream_credential_refused"
)

// Refusal is an answer to a client other than letting it through. Detail is
// shown to the client, Reason only to the decision log; neither ever contains
// a credential.
type Refusal struct {
	Code   Code
	Detail string
	Reason string
	Scopes string // the scopes that would do, for insufficient_scope

	// RetryAfter is when it may be worth while to try again, where nothing could
	// be decided. 0: soon.
	RetryAfter time.Duration
	// Overloaded says that too many ask, which anybody can cause.
	Overloaded bool
}

// Error makes a Refusal usable where Caddy wants an error. It contains no
// input.
func (r *Refusal) Error() string { return string(r.Code) }
