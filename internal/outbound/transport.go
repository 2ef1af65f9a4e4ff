package outbound

import (
	"bytes"
	"context"
	"errors"
	"io"
	"maps"
	"net/http"
	"strings"
	"time"

	"github.com/caddy-auth/caddy-auth/internal/auth"
	"github.com/caddy-auth/caddy-auth/internal/grant"
)

// DefaultMaxReplay is how much of a request's body is kept to send it again, in
// bytes.
const DefaultMaxReplay = 64 << 10

// How much of an answer that nobody sees is read, and for how long, so that its
// connection can be used again.
const (
	maxDrain  = 4 << 10
	drainTime = 200 * time.Millisecond
)

// Source gives the credential for requests.
type Source interface {
	// Credential returns what is good now.
	Credential(ctx context.Context) (Credential, error)
	// Renew returns another than one that the upstream refused, or ErrKept.
	Renew(ctx context.Context, refused Credential) (Credential, error)
	// Accepted tells that the upstream took one.
	Accepted(c Credential)
}

// Transport sends requests with a credential of ours and without the caller's.
// When the upstream refuses it with 401, it is renewed, and the request sent
// once more if its body can be. It is safe for concurrent use and leaves the
// requests that it is given as they are, so that logs of them hold nothing.
type Transport struct {
	Base   http.RoundTripper
	Source Source
	// MaxReplay is how many bytes of a body are kept. Default: DefaultMaxReplay;
	// negative: none.
	MaxReplay int64
	// Caller tells which headers carried the caller's credential, folded; see
	// auth.AppendFolded. May be nil.
	Caller func(*http.Request) map[string]bool
	// Failed makes the answer where there is no credential.
	Failed func(*http.Request, *grant.Failure) *http.Response

	own ownRefusals
}

// RoundTrip implements http.RoundTripper.
func (t *Transport) RoundTrip(r *http.Request) (*http.Response, error) {
	if leaves(r) {
		out := *r
		out.Header, out.Trailer = t.stripped(r, ""), nil
		return t.Base.RoundTrip(&out)
	}
	c, err := t.Source.Credential(r.Context())
	if err != nil {
		if r.Body != nil {
			_ = r.Body.Close() // nobody reads it
		}
		return t.fail(r, err)
	}
	body := t.keep(r)
	res, err := t.send(r, c, body)
	if err != nil || res.StatusCode != http.StatusUnauthorized {
		body.finish()
		t.tookIt(r, c, res, err)
		return res, err
	}
	if t.own.has(r, time.Now()) { // it refuses whatever it gets
		body.finish()
		return res, nil
	}
	return t.refused(r, res, c, body)
}

// refused does what can be done about a 401: RFC 9110, 15.5.2, says that the
// request was not applied, so any method may be sent again.
func (t *Transport) refused(r *http.Request, res *http.Response, c Credential, body *replay) (*http.Response, error) {
	next, err := t.Source.Renew(r.Context(), c)
	switch {
	case errors.Is(err, ErrKept):
		body.finish()
		return res, nil
	case err != nil: // not the client's fault
		discard(res)
		body.abandon()
		return t.fail(r, err)
	case !body.again(): // the next request is good
		body.finish()
		return res, nil
	}
	discard(res)
	res, err = t.send(r, next, body)
	body.finish()
	if next.fresh && err == nil && res.StatusCode == http.StatusUnauthorized {
		t.own.add(r, time.Now())
	}
	t.tookIt(r, next, res, err)
	return res, err
}

// tookIt tells what the upstream took. A server error says nothing about it.
func (t *Transport) tookIt(r *http.Request, c Credential, res *http.Response, err error) {
	if err != nil || res.StatusCode == http.StatusUnauthorized || res.StatusCode >= http.StatusInternalServerError {
		return
	}
	t.own.remove(r)
	t.Source.Accepted(c)
}

// send sends a copy of a request, without trailers: the caller's could hold
// anything, and nobody looks at them.
func (t *Transport) send(r *http.Request, c Credential, body *replay) (*http.Response, error) {
	out := *r
	out.Header, out.Trailer = t.stripped(r, c.Header), nil
	out.Header[c.Header] = []string{c.Value.Reveal()}
	if body != nil {
		out.Body, out.GetBody = body.reader(), nil
	}
	res, err := t.Base.RoundTrip(&out)
	if res != nil {
		res.Request = r // not the one that holds the credential
	}
	return res, err
}

// stripped returns a request's headers without what carries a credential of the
// caller, in any spelling that an upstream may fold into ours.
func (t *Transport) stripped(r *http.Request, ours string) http.Header {
	var caller map[string]bool
	if t.Caller != nil {
		caller = t.Caller(r)
	}
	var ourFold, fold [64]byte
	mine := auth.AppendFolded(ourFold[:0], ours)
	out := maps.Clone(r.Header) // nobody writes to the values
	for name := range r.Header {
		folded := auth.AppendFolded(fold[:0], name)
		if string(folded) == "authorization" || bytes.Equal(folded, mine) || caller[string(folded)] {
			delete(out, name)
		}
	}
	return out
}

// leaves reports whether a request has followed a redirect to another server,
// where nothing of ours must go, at whichever step.
func leaves(r *http.Request) bool {
	for r.Response != nil && r.Response.Request != nil {
		from := r.Response.Request
		if !strings.EqualFold(from.URL.Host, r.URL.Host) || from.URL.Scheme != r.URL.Scheme {
			return true
		}
		r = from
	}
	return false
}

// keep prepares a request's body to be sent again; nil without one.
func (t *Transport) keep(r *http.Request) *replay {
	if r.Body == nil || r.Body == http.NoBody {
		return nil
	}
	most := t.MaxReplay
	if most == 0 {
		most = DefaultMaxReplay
	}
	if r.ContentLength > most {
		most = -1 // it will not fit
	}
	return newReplay(r.Body, most)
}

// fail is the answer where there is no credential.
func (t *Transport) fail(r *http.Request, err error) (*http.Response, error) {
	var f *grant.Failure
	if !errors.As(err, &f) {
		return nil, err // the client is gone
	}
	return t.Failed(r, f), nil
}

// discard gives an answer's connection back, or closes it if the answer is long
// or slow. It does not wait.
func discard(res *http.Response) {
	go func() {
		late := time.AfterFunc(drainTime, func() { _ = res.Body.Close() })
		defer late.Stop()
		_, _ = io.CopyN(io.Discard, res.Body, maxDrain)
		_ = res.Body.Close()
	}()
}
