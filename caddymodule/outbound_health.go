package caddymodule

import (
	"bytes"
	"fmt"
	"io"
	"net/http"
	"sync"

	"github.com/caddyserver/caddy/v2/modules/caddyhttp"
)

const (
	// maxChecks bounds how many upstreams are remembered, maxCheckBody how much
	// of an answer is.
	maxChecks    = 1000
	maxCheckBody = 64 << 10
)

// checkMemory sends requests, and keeps what each upstream answered to its last
// health check, so that our having no credential is not taken for its being
// down. It is safe for concurrent use.
type checkMemory struct {
	base http.RoundTripper

	mu    sync.Mutex // guards known
	known map[string]keptAnswer
}

type keptAnswer struct {
	status int
	header http.Header
	body   []byte
}

func newCheckMemory(base http.RoundTripper) *checkMemory {
	return &checkMemory{base: base, known: map[string]keptAnswer{}}
}

// isHealthCheck reports whether a request is of the proxy's own: requests that a
// server serves have variables.
func isHealthCheck(r *http.Request) bool {
	return r.Context().Value(caddyhttp.VarsCtxKey) == nil
}

func checkName(r *http.Request) string { return r.Method + " " + r.URL.Host + r.URL.RequestURI() }

// RoundTrip implements http.RoundTripper.
func (m *checkMemory) RoundTrip(r *http.Request) (*http.Response, error) {
	res, err := m.base.RoundTrip(r)
	if !isHealthCheck(r) {
		return res, err
	}
	m.mu.Lock()
	delete(m.known, checkName(r))
	m.mu.Unlock()
	if err != nil || res.StatusCode == http.StatusUnauthorized { // which may be about our credential
		return res, err
	}
	return res, m.keep(r, res)
}

func (m *checkMemory) keep(r *http.Request, res *http.Response) error {
	start, err := io.ReadAll(io.LimitReader(res.Body, maxCheckBody+1))
	if err != nil {
		_ = res.Body.Close() // the error is what counts
		return fmt.Errorf("reading the answer to a health check: %w", err)
	}
	if len(start) <= maxCheckBody {
		m.mu.Lock()
		if len(m.known) < maxChecks {
			m.known[checkName(r)] = keptAnswer{res.StatusCode, res.Header.Clone(), start}
		}
		m.mu.Unlock()
	}
	res.Body = struct {
		io.Reader
		io.Closer
	}{io.MultiReader(bytes.NewReader(start), res.Body), res.Body}
	return nil
}

// last is what the upstream answered last to a request, or nil.
func (m *checkMemory) last(r *http.Request) *http.Response {
	m.mu.Lock()
	defer m.mu.Unlock()
	k, ok := m.known[checkName(r)]
	if !ok {
		return nil
	}
	return response(r, k.status, k.header.Clone(), k.body)
}

// response is an answer of our own.
func response(r *http.Request, status int, header http.Header, body []byte) *http.Response {
	return &http.Response{
		StatusCode: status, Status: fmt.Sprintf("%d %s", status, http.StatusText(status)), Proto: "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1,
		Header: header, Body: io.NopCloser(bytes.NewReader(body)), ContentLength: int64(len(body)), Request: r,
	}
}
