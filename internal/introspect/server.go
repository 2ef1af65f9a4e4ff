// Package introspect asks authorization servers whether a token is active
// (RFC 7662). However many tokens come, a server is asked at most Rate times a
// second, MaxInFlight at a time, and not at all for a while after it failed
// several times: what was not asked is an error, never "not active". Made-up
// tokens don't take all of that from good ones; see shares. A Server is safe for
// concurrent use.
package introspect

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/netip"
	"net/url"
	"sync/atomic"
	"time"

	"github.com/caddy-auth/caddy-auth/internal/auth"
	"github.com/caddy-auth/caddy-auth/internal/fetch"
	"github.com/caddy-auth/caddy-auth/internal/strictjson"
	"github.com/sony/gobreaker/v2"
)

const (
	// DefaultRate is how often a server is asked in a second.
	DefaultRate = 50
	// MaxRate is how much that may be set to.
	MaxRate = 100_000
	// MaxInFlight is how many questions may be under way to one server.
	MaxInFlight = 16
	// DefaultTimeout bounds one question.
	DefaultTimeout = 2 * time.Second
	// After failuresInARow the server is left alone for openFor.
	failuresInARow = 5
	openFor        = 2 * time.Second
	// maxAnswer is the longest answer, in bytes.
	maxAnswer = 64 << 10
)

// Config says which server is asked and how.
type Config struct {
	URL          string
	ClientID     string
	ClientSecret auth.Secret
	// Post puts client id and secret into the form (client_secret_post) and not
	// into the Authorization header (client_secret_basic).
	Post    bool
	Rate    int           // default DefaultRate
	Timeout time.Duration // default DefaultTimeout
}

// Events are told what happened. Fields may be nil; they must not block.
type Events struct {
	Answered func()
	Failed   func(error)
}

// Server is one authorization server.
type Server struct {
	cfg     Config
	client  *fetch.Client
	shares  *shares
	known   knownTokens
	breaker *gobreaker.CircuitBreaker[strictjson.Object]
	events  atomic.Pointer[Events]
}

// New returns a server. It is not asked before the first token.
func New(cfg Config) *Server {
	if cfg.Rate <= 0 {
		cfg.Rate = DefaultRate
	}
	if cfg.Timeout <= 0 {
		cfg.Timeout = DefaultTimeout
	}
	s := &Server{
		cfg:    cfg,
		client: fetch.New(cfg.Timeout, MaxInFlight),
		shares: newShares(cfg.Rate),
		breaker: gobreaker.NewCircuitBreaker[strictjson.Object](gobreaker.Settings{
			Timeout:     openFor,
			ReadyToTrip: func(c gobreaker.Counts) bool { return c.ConsecutiveFailures >= failuresInARow },
			// What a server says of one token is no failure of the server: clients
			// choose their tokens.
			IsSuccessful: func(err error) bool { return err == nil || errors.Is(err, errThisToken) },
		}),
	}
	s.SetEvents(Events{})
	return s
}

// SetEvents sets who is told.
func (s *Server) SetEvents(e Events) { s.events.Store(&e) }

// errThisToken says that the server could not do with one question.
var errThisToken = errors.New("this question was refused")

// Close gives connections back.
func (s *Server) Close() { s.client.Close() }

// Introspect asks whether a token is active that from sent; an invalid address is
// one that is not known. The answer is an object with a
// member active (RFC 7662, 2.2), whatever it says. Errors: auth.ErrOverloaded,
// when the server may not be asked now; auth.ErrUnavailable, when it gave no
// answer.
func (s *Server) Introspect(ctx context.Context, token string, from netip.Addr) (strictjson.Object, error) {
	if s.breaker.State() == gobreaker.StateOpen { // before it costs a part of the rate
		return nil, fmt.Errorf("the introspection server failed lately: %w", auth.ErrUnavailable)
	}
	fp, now := auth.FingerprintOf(token), time.Now()
	known, any := s.known.has(fp, now)
	done := s.shares.begin(question{now, from, known}, any)
	if done == nil {
		return nil, fmt.Errorf("introspection, %d times a second at most, and a share of it for one address: %w", s.cfg.Rate, auth.ErrOverloaded)
	}
	defer done()
	answer, err := s.breaker.Execute(func() (strictjson.Object, error) { return s.ask(ctx, token) })
	switch events := s.events.Load(); {
	case errors.Is(err, gobreaker.ErrOpenState), errors.Is(err, gobreaker.ErrTooManyRequests):
		return nil, fmt.Errorf("the introspection server failed lately: %w", auth.ErrUnavailable)
	case err != nil && !errors.Is(err, errThisToken) && events.Failed != nil:
		events.Failed(err)
	case err == nil && events.Answered != nil:
		events.Answered()
	}
	if err == nil {
		active, _ := answer["active"].(bool)
		s.known.note(fp, active, now)
	}
	return answer, err
}

func (s *Server) ask(ctx context.Context, token string) (strictjson.Object, error) {
	form := url.Values{"token": {token}, "token_type_hint": {"access_token"}}
	sign := fetch.Basic(s.cfg.ClientID, s.cfg.ClientSecret)
	if s.cfg.Post {
		form.Set("client_id", s.cfg.ClientID)
		form.Set("client_secret", s.cfg.ClientSecret.Reveal())
		sign = nil
	}
	a, err := s.client.PostForm(ctx, s.cfg.URL, form, sign)
	if err != nil {
		return nil, fmt.Errorf("introspection: %w", err)
	}
	switch {
	case a.Status == http.StatusUnauthorized || a.Status == http.StatusForbidden:
		return nil, auth.WithHint(fmt.Errorf("introspection: the server refuses this gateway (status %d): %w", a.Status, auth.ErrUnavailable), "check client_id and client_secret of the introspection block")
	case a.Status >= 400 && a.Status < 500 && a.Status != http.StatusTooManyRequests && a.Status != http.StatusNotFound:
		return nil, fmt.Errorf("introspection: status %d: %w: %w", a.Status, errThisToken, auth.ErrUnavailable)
	case a.Status != http.StatusOK:
		return nil, fmt.Errorf("introspection: status %d: %w", a.Status, auth.ErrUnavailable)
	case !a.JSON() || len(a.Body) > maxAnswer: // some page in between says nothing about a token
		return nil, fmt.Errorf("introspection: an answer that is not short JSON: %w", auth.ErrUnavailable)
	}
	o, err := strictjson.Decode(a.Body)
	if err != nil {
		return nil, fmt.Errorf("introspection: %w: %w", err, auth.ErrUnavailable)
	}
	if _, there := o["active"]; !there {
		return nil, fmt.Errorf("introspection: an answer without active: %w", auth.ErrUnavailable)
	}
	return o, nil
}
