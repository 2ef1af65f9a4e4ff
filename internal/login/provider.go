package login

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/caddy-auth/caddy-auth/internal/auth"
	"github.com/caddy-auth/caddy-auth/internal/fetch"
	"github.com/caddy-auth/caddy-auth/internal/strictjson"
)

const (
	metadataFresh   = time.Hour
	metadataTimeout = 5 * time.Second
	// metadataRetry is how long a provider that could not be asked is left alone.
	metadataRetry = time.Second
)

// Metadata is what a provider says of itself (OpenID Connect Discovery 1.0, 3).
type Metadata struct {
	Authorization string
	Token         string
	Revocation    string // RFC 7009; "": none
	EndSession    string // RP-Initiated Logout; "": none
	SendsIssuer   bool   // RFC 9207, 3
}

// Getter asks over HTTP.
type Getter interface {
	Get(ctx context.Context, target string) (*fetch.Answer, error)
}

// Provider knows one provider's metadata. It is safe for concurrent use.
type Provider struct {
	issuer string
	client Getter
	now    func() time.Time

	mu      sync.Mutex // guards what follows
	have    *Metadata
	at      time.Time // when have was read
	failed  error
	retryAt time.Time
	flight  chan struct{}
}

// NewProvider opens no connection.
func NewProvider(issuer string, client Getter) *Provider {
	return &Provider{issuer: issuer, client: client, now: time.Now}
}

// Metadata returns what the provider says of itself. What it said before is good
// while it can't be asked. Errors are auth.ErrUnavailable.
func (p *Provider) Metadata(ctx context.Context) (*Metadata, error) {
	p.mu.Lock()
	now := p.now()
	if have := p.have; have != nil {
		if now.Sub(p.at) > metadataFresh && now.After(p.retryAt) && p.flight == nil {
			p.begin()
		}
		p.mu.Unlock()
		return have, nil
	}
	if p.flight == nil {
		if now.Before(p.retryAt) {
			defer p.mu.Unlock()
			return nil, p.failed
		}
		p.begin()
	}
	flight := p.flight
	p.mu.Unlock()
	select {
	case <-flight:
	case <-ctx.Done():
		return nil, fmt.Errorf("waiting for the provider's metadata: %w", errors.Join(ctx.Err(), auth.ErrUnavailable))
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.have == nil {
		return nil, p.failed
	}
	return p.have, nil
}

// begin asks, detached from who wants to know. p.mu is held.
func (p *Provider) begin() {
	done := make(chan struct{})
	p.flight = done
	go func() {
		ctx, cancel := context.WithTimeout(context.Background(), metadataTimeout)
		defer cancel()
		m, err := p.fetch(ctx)
		p.mu.Lock()
		defer p.mu.Unlock()
		if p.flight, p.failed = nil, err; err != nil {
			p.retryAt = p.now().Add(metadataRetry)
		} else {
			p.have, p.at = m, p.now()
		}
		close(done)
	}()
}

func (p *Provider) fetch(ctx context.Context) (*Metadata, error) {
	a, err := p.client.Get(ctx, strings.TrimSuffix(p.issuer, "/")+"/.well-known/openid-configuration")
	if err != nil {
		return nil, fmt.Errorf("reading the provider's metadata: %w", err)
	}
	if a.Status != http.StatusOK {
		return nil, fmt.Errorf("reading the provider's metadata: status %d: %w", a.Status, auth.ErrUnavailable)
	}
	m, err := readMetadata(a.Body, p.issuer)
	if err != nil {
		return nil, fmt.Errorf("the provider's metadata: %w: %w", err, auth.ErrUnavailable)
	}
	return m, nil
}

// readMetadata reads what counts here. The issuer in it must be the one that was
// asked, to the last character (OpenID Connect Discovery 1.0, 4.3).
func readMetadata(body []byte, issuer string) (*Metadata, error) {
	o, err := strictjson.Decode(body)
	if err != nil {
		return nil, err
	}
	if said, ok := o.Text("issuer"); !ok || said != issuer {
		return nil, auth.Invalidf("it names another issuer")
	}
	m := new(Metadata)
	for name, into := range map[string]*string{
		"authorization_endpoint": &m.Authorization, "token_endpoint": &m.Token, "revocation_endpoint": &m.Revocation, "end_session_endpoint": &m.EndSession,
	} {
		text, ok := o.Text(name)
		required := name == "authorization_endpoint" || name == "token_endpoint"
		if !ok || text == "" && required {
			return nil, auth.Invalidf("it has no %s", name)
		}
		if text == "" {
			continue
		}
		if err := fetch.CheckURL(text); err != nil {
			return nil, fmt.Errorf("its %s: %w", name, err)
		}
		if strings.HasPrefix(issuer, "https:") && !strings.HasPrefix(text, "https:") {
			return nil, auth.Invalidf("its %s leads to this machine", name)
		}
		*into = text
	}
	m.SendsIssuer, _ = o["authorization_response_iss_parameter_supported"].(bool)
	if methods, ok := o.Words("code_challenge_methods_supported"); ok && len(methods) > 0 && !slices.Contains(methods, "S256") {
		return nil, auth.Invalidf("it does not support PKCE with S256 (RFC 7636)")
	}
	return m, nil
}

// withQuery adds parameters to a URL that may have some.
func withQuery(base string, params url.Values) string {
	sep := "?"
	if strings.Contains(base, "?") {
		sep = "&"
	}
	return base + sep + params.Encode()
}
