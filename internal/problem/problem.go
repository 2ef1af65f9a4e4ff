// Package problem turns refusals into HTTP: problem details (RFC 9457) and
// bearer challenges (RFC 6750). It is the only place that knows which refusal
// has which status. No I/O but the response writer.
package problem

import (
	"bytes"
	"encoding/json"
	"fmt"
	"math"
	"net/http"
	"strconv"
	"strings"

	"github.com/caddy-auth/caddy-auth/internal/auth"
)

// DefaultTypeBase begins the type of every problem.
const DefaultTypeBase = "urn:caddy-auth:problem:"

// retryAfter is what a client is told to wait when nothing could be decided.
const retryAfter = 1

type kind struct {
	status int
	title  string
}

var kinds = map[auth.Code]kind{
	auth.CodeCredentialInQuery: {http.StatusBadRequest, "Credential in the URL"},
	auth.CodeInvalidRequest:    {http.StatusBadRequest, "Invalid request"},
	auth.CodeMissingCredential: {http.StatusUnauthorized, "Missing credential"},
	auth.CodeInvalidCredential: {http.StatusUnauthorized, "Invalid credential"},
	auth.CodeWrongEnvironment:  {http.StatusForbidden, "Wrong environment"},
	auth.CodeInsufficientScope: {http.StatusForbidden, "Insufficient scope"},
	auth.CodeNetworkNotAllowed: {http.StatusForbidden, "Network not allowed"},
	auth.CodeNotAllowed:        {http.StatusForbidden, "Not allowed"},
	auth.CodeTooEarly:          {http.StatusTooEarly, "Too early"},
	auth.CodeUnavailable:       {http.StatusServiceUnavailable, "Verification unavailable"},

	auth.CodeUpstreamUnavailable: {http.StatusServiceUnavailable, "Upstream credential unavailable"},
	auth.CodeUpstreamRefused:     {http.StatusBadGateway, "Upstream credential refused"},
}

// Status returns the status of a refusal; 500 for one nobody knows.
func Status(c auth.Code) int {
	if k, ok := kinds[c]; ok {
		return k.status
	}
	return http.StatusInternalServerError
}

// Writer writes refusals for one site.
type Writer struct {
	realm    string
	typeBase string
	metadata func() string
}

// NewWriter returns a Writer. An empty realm is "api", an empty base
// DefaultTypeBase. metadata returns where the resource's metadata is (RFC 9728,
// 5.1), for challenges, or ""; nil: nowhere.
func NewWriter(realm, typeBase string, metadata func() string) (*Writer, error) {
	if realm == "" {
		realm = "api"
	}
	if typeBase == "" {
		typeBase = DefaultTypeBase
	}
	for i := range len(realm) {
		if c := realm[i]; c < 0x20 || c > 0x7e || c == '"' || c == '\\' {
			return nil, auth.Invalidf("realm %q: want printable ASCII without quotes and backslashes", realm)
		}
	}
	if metadata == nil {
		metadata = func() string { return "" }
	}
	return &Writer{realm, typeBase, metadata}, nil
}

type body struct {
	Type     string `json:"type"`
	Title    string `json:"title"`
	Status   int    `json:"status"`
	Detail   string `json:"detail,omitempty"`
	Instance string `json:"instance,omitempty"`
	Code     string `json:"code,omitempty"`
}

// SetHeaders sets the headers that belong to a refusal whoever writes its
// body, and returns the status.
func (p *Writer) SetHeaders(h http.Header, r *auth.Refusal) int {
	status := Status(r.Code)
	h.Set("Cache-Control", "no-store")
	switch status {
	case http.StatusUnauthorized, http.StatusForbidden:
		h.Set("WWW-Authenticate", p.challenge(r))
	case http.StatusServiceUnavailable:
		h.Set("Retry-After", strconv.Itoa(max(retryAfter, int(math.Ceil(r.RetryAfter.Seconds())))))
	}
	return status
}

// Write answers with a refusal: a problem, or what gRPC understands where the
// request is gRPC. instance is urn:uuid:…, the same as in the decision log.
func (p *Writer) Write(w http.ResponseWriter, req *http.Request, r *auth.Refusal, instance string) error {
	status := p.SetHeaders(w.Header(), r)
	if kind, ok := grpcType(req); ok {
		writeGRPC(w, kind, status, r.Detail)
		return nil
	}
	return write(w, req.Method, body{
		Type: p.typeBase + string(r.Code), Title: kinds[r.Code].title, Status: status,
		Detail: r.Detail, Instance: instance, Code: string(r.Code),
	})
}

// WriteStatus answers with a problem that says no more than the status
// (RFC 9457, 4.2.1), for errors that are not ours.
func WriteStatus(w http.ResponseWriter, req *http.Request, status int) error {
	if status < 400 || http.StatusText(status) == "" {
		status = http.StatusInternalServerError
	}
	w.Header().Set("Cache-Control", "no-store")
	if kind, ok := grpcType(req); ok {
		writeGRPC(w, kind, status, http.StatusText(status))
		return nil
	}
	return write(w, req.Method, body{Type: "about:blank", Title: http.StatusText(status), Status: status})
}

func write(w http.ResponseWriter, method string, b body) error {
	var text bytes.Buffer
	enc := json.NewEncoder(&text)
	enc.SetEscapeHTML(false) // it is no HTML, and people read it
	if err := enc.Encode(b); err != nil {
		return fmt.Errorf("writing a problem: %w", err)
	}
	w.Header().Set("Content-Type", "application/problem+json")
	w.Header().Set("Content-Length", strconv.Itoa(text.Len()))
	w.WriteHeader(b.Status)
	if method == http.MethodHead {
		return nil
	}
	_, err := w.Write(text.Bytes())
	return err
}

// challenge is RFC 6750, 3: no error code without a credential (3.1).
func (p *Writer) challenge(r *auth.Refusal) string {
	var b strings.Builder
	b.WriteString(`Bearer realm="` + p.realm + `"`)
	switch r.Code {
	case auth.CodeInvalidCredential:
		b.WriteString(`, error="invalid_token"`)
	case auth.CodeInsufficientScope:
		b.WriteString(`, error="insufficient_scope"`)
		if r.Scopes != "" && !strings.ContainsAny(r.Scopes, "\"\\") {
			b.WriteString(`, scope="` + r.Scopes + `"`)
		}
	}
	if at := p.metadata(); at != "" {
		b.WriteString(`, resource_metadata="` + at + `"`)
	}
	return b.String()
}
