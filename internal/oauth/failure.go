package oauth

import (
	"encoding/json"
	"fmt"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/caddy-auth/caddy-auth/internal/auth"
)

// Error codes (RFC 6749, 5.2; RFC 7009, 2.2.1; RFC 8707, 2). temporarilyUnavailable
// is of RFC 6749, 4.1.2.1, and says here too what it says there.
const (
	invalidRequest         = "invalid_request"
	invalidClient          = "invalid_client"
	unauthorizedClient     = "unauthorized_client"
	unsupportedGrantType   = "unsupported_grant_type"
	invalidScope           = "invalid_scope"
	invalidTarget          = "invalid_target"
	unsupportedTokenType   = "unsupported_token_type"
	temporarilyUnavailable = "temporarily_unavailable"
)

// Failure is why a request was refused. Code and Description go to the client,
// Reason and ClientID to the log; none of them holds a secret.
type Failure struct {
	Status      int
	Code        string
	Description string
	Reason      string
	ClientID    string // what the client calls itself, if it has proved it
	Retry       time.Duration
	Unread      bool  // the request's body was not read
	Cause       error // why it could not be decided
}

// Error implements error.
func (f *Failure) Error() string { return f.Code + ": " + f.Description }

func bad(code, description string) *Failure {
	return &Failure{Status: http.StatusBadRequest, Code: code, Description: description}
}

// noClient is the one answer to a client that did not prove to be one, whatever
// was wrong with it.
func noClient(reason string) *Failure {
	return &Failure{
		Status: http.StatusUnauthorized, Code: invalidClient, Reason: reason,
		Description: "the client is unknown, or did not prove to be who it says",
	}
}

func unavailable(cause error) *Failure {
	return &Failure{
		Status: http.StatusServiceUnavailable, Code: temporarilyUnavailable, Reason: "unavailable", Cause: cause, Retry: time.Second,
		Description: "this can't be decided right now; it says nothing about your credentials, try again",
	}
}

func tooMany(retry time.Duration) *Failure {
	return &Failure{
		Status: http.StatusTooManyRequests, Code: temporarilyUnavailable, Reason: "throttled", Retry: max(retry, time.Second),
		Description: "too many failed attempts; wait as long as Retry-After says",
	}
}

// Write answers with the failure (RFC 6749, 5.2).
func (f *Failure) Write(w http.ResponseWriter, realm string) error {
	h := w.Header()
	switch f.Status {
	case http.StatusUnauthorized:
		h.Set("WWW-Authenticate", `Basic realm="`+realm+`", charset="UTF-8"`)
	case http.StatusMethodNotAllowed:
		h.Set("Allow", http.MethodPost)
	}
	if f.Retry > 0 {
		h.Set("Retry-After", strconv.Itoa(int((f.Retry+time.Second-1)/time.Second)))
	}
	return writeJSON(w, f.Status, struct {
		Error       string `json:"error"`
		Description string `json:"error_description,omitempty"`
	}{f.Code, f.Description})
}

// writeJSON answers with what nobody may keep (RFC 6749, 5.1).
func writeJSON(w http.ResponseWriter, status int, v any) error {
	text, err := json.Marshal(v)
	if err != nil {
		return fmt.Errorf("writing an answer: %w", err)
	}
	h := w.Header()
	h.Set("Content-Type", "application/json")
	h.Set("Cache-Control", "no-store")
	h.Set("Pragma", "no-cache")
	h.Set("Content-Length", strconv.Itoa(len(text)))
	w.WriteHeader(status)
	_, err = w.Write(text)
	return err
}

// InURL is the failure of a request with a credential in its URL (RFC 6749,
// 2.3.1: never there). detail repeats no part of it.
func InURL(detail string) *Failure {
	f := bad(invalidRequest, strings.NewReplacer(`"`, "'", `\`, "/").Replace(detail)) // RFC 6749, 5.2
	f.Reason = string(auth.CodeCredentialInQuery)
	return f
}
