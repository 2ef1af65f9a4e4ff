package grant

import (
	"errors"
	"time"

	"github.com/caddy-auth/caddy-auth/internal/auth"
)

// Cause is why there is no credential.
type Cause string

const (
	// CauseUnavailable: the token endpoint can't be asked now.
	CauseUnavailable Cause = "unavailable"
	// CauseRefused: it refuses this gateway.
	CauseRefused Cause = "refused"
	// CauseAnswer: what it answers is no token.
	CauseAnswer Cause = "answer"
)

// Failure says that there is no credential, and why. It holds no secret.
type Failure struct {
	Cause Cause
	// Detail is for the operator.
	Detail string
	// Code is the error of RFC 6749, 5.2, if it gave one that is known.
	Code string
	// Status is what the token endpoint answered with, 0 if it did not.
	Status int
	// RetryAfter is when it may be worth while to ask again. 0: soon.
	RetryAfter time.Duration
	err        error
}

// Error implements error.
func (f *Failure) Error() string {
	if f.err != nil {
		return f.Detail + ": " + f.err.Error()
	}
	return f.Detail
}

// Unwrap gives what happened.
func (f *Failure) Unwrap() error { return f.err }

// Unavailable is the failure of an endpoint that can't be asked.
func Unavailable(detail string, err error) *Failure {
	return &Failure{Cause: CauseUnavailable, Detail: detail, err: err}
}

// FailureOf makes any error a Failure.
func FailureOf(err error) *Failure {
	var f *Failure
	if errors.As(err, &f) {
		return f
	}
	return Unavailable("getting a token", err)
}

// CheckValue says what is wrong with a text as a header's value, without
// repeating it.
func CheckValue(text string) error {
	switch {
	case text == "":
		return auth.Invalidf("it is empty")
	case len(text) > maxToken:
		return auth.Invalidf("it is longer than %d bytes", maxToken)
	}
	for i := range len(text) {
		if c := text[i]; c < 0x20 || c > 0x7e {
			return auth.Invalidf("its byte %d can't be in a header", i+1)
		}
	}
	if text[0] == ' ' || text[len(text)-1] == ' ' {
		return auth.Invalidf("it begins or ends with a blank")
	}
	return nil
}

// maxToken is the longest token or key, in bytes: a header, not a document.
const maxToken = 16 << 10
