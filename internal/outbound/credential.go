package outbound

import (
	"errors"
	"net/http"
	"time"

	"github.com/caddy-auth/caddy-auth/internal/auth"
)

// Credential is what a request to the upstream carries: one header.
type Credential struct {
	Header string // canonical name
	Value  auth.Secret

	token *held // nil: a key
	fresh bool  // it was asked for after, and because, another was refused
}

// Is reports whether two credentials are the same.
func (c Credential) Is(o Credential) bool { return c.Header == o.Header && c.Value.Equal(o.Value) }

// ErrKept says that a credential which the upstream refused is not replaced:
// there is no other, or one was asked for too often lately.
var ErrKept = errors.New("there is no other credential")

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

func unavailable(detail string, err error) *Failure {
	return &Failure{Cause: CauseUnavailable, Detail: detail, err: err}
}

// failureOf makes any error a Failure.
func failureOf(err error) *Failure {
	var f *Failure
	if errors.As(err, &f) {
		return f
	}
	return unavailable("getting a token", err)
}

// hopHeaders belong to a connection or to the message's form, or are written by
// the proxy; a credential can't be in them.
var hopHeaders = map[string]bool{
	"Connection": true, "Content-Encoding": true, "Content-Length": true, "Content-Type": true, "Cookie": true, "Expect": true, "Host": true, "Keep-Alive": true, "Proxy-Authenticate": true,
	"Proxy-Authorization": true, "Forwarded": true, "Via": true, "X-Forwarded-For": true, "X-Forwarded-Host": true, "X-Forwarded-Proto": true, "Proxy-Connection": true, "Te": true, "Trailer": true, "Transfer-Encoding": true, "Upgrade": true,
}

// CheckHeader says what is wrong with a header that is to carry a credential.
func CheckHeader(name string) error {
	if !auth.FieldName(name) {
		return auth.Invalidf("%q can't be the name of a header", name)
	}
	if hopHeaders[http.CanonicalHeaderKey(name)] {
		return auth.Invalidf("%s can't carry a credential: it belongs to the connection, the message or the proxy", name)
	}
	return nil
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
