package caddymodule

import (
	"bytes"
	"fmt"
	"io"
	"net/http"
	"sync"

	"github.com/caddyserver/caddy/v2/modules/caddyhttp"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp/reverseproxy"
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

// checkName is by the address that is dialed: all sockets have one host name.
func checkName(r *http.Request) string {
	name := r.Method + " " + r.URL.Host + r.URL.RequestURI()
	if to, ok := reverseproxy.GetDialInfo(r.Context()); ok {
		name += " " + to.String()
	}
	return name
}

// RoundTrip implements http.RoundTripper.
func (m *checkMemory) RoundTrip(r *http.Request) (*http.Response, error) {
	res, err := m.base.RoundTrip(r)
	if !isHealthCheck(r) || err == nil && (res.StatusCode == http.StatusUnauthorized || res.StatusCode == http.StatusSwitchingProtocols) {
		return res, err // a 401 may be about our credential
	}
	m.forget(checkName(r))
	if err == nil {
		res.Body = &keptBody{ReadCloser: res.Body, m: m, name: checkName(r), answer: keptAnswer{res.StatusCode, res.Header.Clone(), nil}}
	}
	return res, err
}

func (m *checkMemory) forget(name string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	delete(m.known, name)
}

func (m *checkMemory) keep(name string, a keptAnswer) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if len(m.known) < maxChecks {
		m.known[name] = a
	}
}

// keptBody is an answer's body that is kept as far as the check reads it. It is
// read by one goroutine.
type keptBody struct {
	io.ReadCloser
	m      *checkMemory
	name   string
	answer keptAnswer
	bad    bool // it was cut short, or is too long
}

// Read implements io.Reader.
func (b *keptBody) Read(p []byte) (int, error) {
	n, err := b.ReadCloser.Read(p)
	b.answer.body = append(b.answer.body, p[:n]...)
	b.bad = b.bad || len(b.answer.body) > maxCheckBody || err != nil && err != io.EOF
	if b.bad {
		b.answer.body = nil
	}
	return n, err
}

// Close implements io.Closer.
func (b *keptBody) Close() error {
	if !b.bad {
		b.m.keep(b.name, b.answer)
	}
	return b.ReadCloser.Close()
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
