package jwks

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/caddy-auth/caddy-auth/internal/auth"
	"github.com/caddy-auth/caddy-auth/internal/fetch"
	"github.com/caddy-auth/caddy-auth/internal/strictjson"
)

// fetch fetches the keys, one fetch at a time. If it fails the last good set
// stays.
func (s *Set) fetch(ctx context.Context) error {
	if err := s.lock(ctx); err != nil {
		return err
	}
	defer func() { <-s.fetching }()
	ctx, cancel := context.WithTimeout(ctx, fetchTimeout)
	defer cancel()
	began := s.now()
	next, skipped, err := s.ask(ctx)
	s.mu.Lock()
	s.failedAt = time.Time{}
	if err != nil {
		s.failedAt = began
	}
	s.mu.Unlock()
	events := s.events.Load()
	if err != nil {
		s.discoveredAt = time.Time{} // the keys may have moved
		if events.Failed != nil && !errors.Is(err, context.Canceled) {
			events.Failed(err)
		}
		return err
	}
	next.fetched = began
	s.current.Store(next)
	if events.Fetched != nil {
		events.Fetched(len(next.keys), skipped)
	}
	return nil
}

// lock waits for the fetch that is under way.
func (s *Set) lock(ctx context.Context) error {
	select {
	case s.fetching <- struct{}{}:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (s *Set) ask(ctx context.Context) (*snapshot, []string, error) {
	where, err := s.where(ctx)
	if err != nil {
		return nil, nil, err
	}
	a, err := s.client.Get(ctx, where)
	if err != nil {
		return nil, nil, fmt.Errorf("fetching keys: %w", err)
	}
	if a.Status != http.StatusOK {
		return nil, nil, fmt.Errorf("fetching keys: status %d: %w", a.Status, auth.ErrUnavailable)
	}
	keys, skipped, err := parse(a.Body)
	if err != nil {
		return nil, skipped, err
	}
	return &snapshot{keys: keys, refresh: refreshAfter(a.Header)}, skipped, nil
}

// where is the URL of the keys.
func (s *Set) where(ctx context.Context) (string, error) {
	if s.cfg.KeysURL != "" {
		return s.cfg.KeysURL, nil
	}
	if s.keysURL != "" && s.now().Sub(s.discoveredAt) < rediscover {
		return s.keysURL, nil
	}
	found, err := discover(ctx, s.client, s.cfg.Issuer)
	if err != nil {
		return "", fmt.Errorf("discovering %s: %w", s.cfg.Issuer, err)
	}
	s.keysURL, s.discoveredAt = found, s.now()
	return found, nil
}

// discover asks an issuer for its metadata and returns where its keys are
// (OpenID Connect Discovery 1.0, 4; RFC 8414, 3).
func discover(ctx context.Context, client Getter, issuer string) (string, error) {
	var last error
	for _, where := range metadataURLs(issuer) {
		a, err := client.Get(ctx, where)
		if err != nil {
			return "", err
		}
		if a.Status == http.StatusOK {
			return keysOf(a.Body, issuer)
		}
		last = fmt.Errorf("status %d: %w", a.Status, auth.ErrUnavailable)
	}
	return "", last
}

// metadataURLs is where an issuer's metadata may be: behind its path, or,
// without OpenID Connect, between host and path.
func metadataURLs(issuer string) []string {
	const oidc, oauth = "/.well-known/openid-configuration", "/.well-known/oauth-authorization-server"
	out := []string{strings.TrimSuffix(issuer, "/") + oidc}
	if u, err := url.Parse(issuer); err == nil {
		path := strings.TrimSuffix(u.EscapedPath(), "/")
		out = append(out, u.Scheme+"://"+u.Host+oauth+path)
	}
	return out
}

// keysOf reads jwks_uri from metadata. The issuer in it must be the one that
// was asked, to the last character (RFC 8414, 3.3).
func keysOf(body []byte, issuer string) (string, error) {
	o, err := strictjson.Decode(body)
	if err != nil {
		return "", fmt.Errorf("%w: %w", err, auth.ErrUnavailable)
	}
	if said, ok := o.Text("issuer"); !ok || said != issuer {
		return "", fmt.Errorf("its metadata names another issuer: %w", auth.ErrUnavailable)
	}
	where, ok := o.Text("jwks_uri")
	if !ok || where == "" {
		return "", fmt.Errorf("its metadata has no jwks_uri: %w", auth.ErrUnavailable)
	}
	if err := fetch.CheckURL(where); err != nil {
		return "", fmt.Errorf("its jwks_uri: %w: %w", err, auth.ErrUnavailable)
	}
	if plain(where) && !plain(issuer) {
		return "", fmt.Errorf("its jwks_uri leads to this machine: %w", auth.ErrUnavailable)
	}
	return where, nil
}

func plain(u string) bool { return strings.HasPrefix(strings.ToLower(u), "http://") }

// refreshAfter is when the keys are fetched again, by the answer's
// Cache-Control (RFC 9111, 5.2.2.1), within bounds.
func refreshAfter(h http.Header) time.Duration {
	after := usualRefresh
	for word := range strings.SplitSeq(h.Get("Cache-Control"), ",") {
		name, value, _ := strings.Cut(strings.TrimSpace(strings.ToLower(word)), "=")
		switch name {
		case "no-store", "no-cache":
			after = leastRefresh
		case "max-age":
			if n, err := strconv.ParseInt(strings.Trim(value, `"`), 10, 64); err == nil && n >= 0 {
				after = time.Duration(min(n, int64(mostRefresh/time.Second))) * time.Second
			}
		}
	}
	return min(max(after, leastRefresh), mostRefresh)
}

// Try fetches the keys for somebody who looks whether that works, and keeps
// nothing.
func (s *Set) Try(ctx context.Context) (keys int, skipped []string, err error) {
	if err := s.lock(ctx); err != nil {
		return 0, nil, err
	}
	defer func() { <-s.fetching }()
	got, skipped, err := s.ask(ctx)
	if err != nil {
		return 0, skipped, err
	}
	return len(got.keys), skipped, nil
}
