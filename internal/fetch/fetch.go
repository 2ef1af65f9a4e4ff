// Package fetch asks issuers over HTTP. Every answer is bounded in size and
// time, nothing but HTTPS leaves this machine, and no redirect leads to another
// host. Errors name the host and never a body, a query or a header. A Client is
// safe for concurrent use.
package fetch

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"strings"
	"time"

	"github.com/caddy-auth/caddy-auth/internal/auth"
)

const (
	// MaxBody is the longest answer that is read, in bytes.
	MaxBody = 1 << 20
	// maxRedirects is how often an answer may lead elsewhere on its host.
	maxRedirects = 3
	dialTimeout  = 3 * time.Second
)

// Answer is what a server said.
type Answer struct {
	Status int
	Header http.Header
	Body   []byte
}

// JSON reports whether the answer says that it is JSON.
func (a *Answer) JSON() bool {
	kind, _, _ := strings.Cut(a.Header.Get("Content-Type"), ";")
	kind = strings.ToLower(strings.TrimSpace(kind))
	return strings.HasSuffix(kind, "/json") || strings.HasSuffix(kind, "+json")
}

// Client asks servers.
type Client struct{ http *http.Client }

// New returns a client that keeps at most conns connections to a host, whose
// questions take at most timeout each.
func New(timeout time.Duration, conns int) *Client {
	t := http.DefaultTransport.(*http.Transport).Clone() // proxies by the environment, as everywhere
	t.DialContext = (&net.Dialer{Timeout: dialTimeout}).DialContext
	t.TLSHandshakeTimeout = dialTimeout
	t.MaxConnsPerHost, t.MaxIdleConnsPerHost = conns, conns
	t.MaxResponseHeaderBytes = 64 << 10
	return &Client{&http.Client{Transport: t, Timeout: timeout, CheckRedirect: sameHost}}
}

// Close gives idle connections back.
func (c *Client) Close() { c.http.CloseIdleConnections() }

// sameHost lets redirects of a GET stay on their host.
func sameHost(next *http.Request, before []*http.Request) error {
	first := before[0]
	switch {
	case first.Method != http.MethodGet:
		return http.ErrUseLastResponse // what was posted goes nowhere else
	case len(before) > maxRedirects:
		return errors.New("too many redirects")
	case next.URL.Scheme != first.URL.Scheme || !strings.EqualFold(next.URL.Host, first.URL.Host):
		return errors.New("a redirect to another host is not followed")
	}
	return nil
}

// Get asks for a URL. Whatever came instead of an answer is
// auth.ErrUnavailable.
func (c *Client) Get(ctx context.Context, target string) (*Answer, error) {
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, target, nil)
	if err != nil {
		return nil, auth.Invalidf("the URL can't be asked for")
	}
	return c.do(r)
}

// PostForm posts a form. sign, if not nil, adds how the caller authenticates.
func (c *Client) PostForm(ctx context.Context, target string, form url.Values, sign func(*http.Request)) (*Answer, error) {
	r, err := http.NewRequestWithContext(ctx, http.MethodPost, target, strings.NewReader(form.Encode()))
	if err != nil {
		return nil, auth.Invalidf("the URL can't be asked")
	}
	r.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	if sign != nil {
		sign(r)
	}
	return c.do(r)
}

// Basic signs as a client with a secret (RFC 6749, 2.3.1): both are form-encoded
// before they are joined.
func Basic(id string, secret auth.Secret) func(*http.Request) {
	return func(r *http.Request) { r.SetBasicAuth(url.QueryEscape(id), url.QueryEscape(secret.Reveal())) }
}

func (c *Client) do(r *http.Request) (*Answer, error) {
	r.Header.Set("Accept", "application/json")
	r.Header.Set("User-Agent", "caddy-auth")
	resp, err := c.http.Do(r)
	if err != nil {
		return nil, fmt.Errorf("asking %s: %w: %w", r.URL.Host, bare(err), auth.ErrUnavailable)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(io.LimitReader(resp.Body, MaxBody+1))
	if err != nil {
		return nil, fmt.Errorf("reading what %s answers: %w: %w", r.URL.Host, bare(err), auth.ErrUnavailable)
	}
	if len(body) > MaxBody {
		return nil, fmt.Errorf("%s answers more than %d bytes: %w", r.URL.Host, MaxBody, auth.ErrUnavailable)
	}
	return &Answer{resp.StatusCode, resp.Header, body}, nil
}

// bare takes the URL out of an error: it may hold what should not be logged.
func bare(err error) error {
	var u *url.Error
	if errors.As(err, &u) {
		return u.Err
	}
	return err
}

// CheckURL says what is wrong with a URL that an issuer is asked at. It must be
// https; http will do on this machine.
func CheckURL(text string) error {
	u, err := url.Parse(text)
	switch {
	case err != nil || u.Host == "" || u.Opaque != "":
		return auth.Invalidf("want a URL such as https://idp.example.com")
	case u.User != nil || u.Fragment != "" || strings.Contains(text, "#"):
		return auth.Invalidf("a URL with a user name, a password or a fragment")
	case u.Scheme == "https", u.Scheme == "http" && Loopback(u.Hostname()):
		return nil
	case u.Scheme == "http":
		return auth.Invalidf("http:// beyond this machine: whoever is on the way could answer in the issuer's place, so it must be https://")
	}
	return auth.Invalidf("want https://, not %s://", u.Scheme)
}

// Loopback reports whether a host is this machine: localhost or an address.
func Loopback(host string) bool {
	if strings.EqualFold(host, "localhost") {
		return true
	}
	a, err := netip.ParseAddr(host)
	return err == nil && a.Unmap().IsLoopback()
}
