package outbound

import (
	"errors"
	"net/http"

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
