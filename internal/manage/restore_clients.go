package manage

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/caddy-auth/caddy-auth/internal/auth"
	"github.com/caddy-auth/caddy-auth/internal/store"
)

// LostTokens is what going back to a backup would bring back to life of the
// gateway's own tokens and of who gets them.
type LostTokens struct {
	// Clients are revoked or disabled now and would not be.
	Clients []*auth.Client
	// Secrets were replaced, and would work longer, by their clients.
	Secrets []SecretRevival
	// Tokens were revoked one by one.
	Tokens []auth.AccessToken
	// Edited are clients, as they are now, that had other public keys, more scopes
	// or more networks.
	Edited []*auth.Client
	// AssertionKeys end, or have ended, and would not.
	AssertionKeys []AssertionKeyRevival
}

// AssertionKeyRevival is an assertion key that a backup publishes longer.
type AssertionKeyRevival struct {
	ID             string
	PublishedUntil int64 // now; unix milliseconds, long ago if it is gone
}

// SecretRevival is a client's secret that a backup lets work longer.
type SecretRevival struct {
	ClientID    string
	Fingerprint auth.Fingerprint
	EndsAt      int64 // now; unix milliseconds, long ago if it is gone
}

// TokenCount is how many things there are.
func (l LostTokens) TokenCount() int {
	return len(l.Clients) + len(l.Secrets) + len(l.Tokens) + len(l.Edited) + len(l.AssertionKeys)
}

func (l LostTokens) same(o LostTokens) bool {
	return slices.EqualFunc(l.Clients, o.Clients, func(a, b *auth.Client) bool { return a.ID == b.ID && a.State() == b.State() }) &&
		slices.EqualFunc(l.Edited, o.Edited, func(a, b *auth.Client) bool { return a.ID == b.ID && !hadMore(a, b) && !hadMore(b, a) }) &&
		slices.Equal(l.Secrets, o.Secrets) && slices.Equal(l.Tokens, o.Tokens) && slices.Equal(l.AssertionKeys, o.AssertionKeys)
}

func (l *LostTokens) collect(ctx context.Context, present, backup *store.DB) error {
	at := time.Now().UnixMilli() // what had ended by then stays so
	err := present.Clients(ctx, store.ClientFilter{}, func(c *auth.Client) error {
		now, err := present.Client(ctx, c.ID)
		if err != nil {
			return err
		}
		then, err := backup.Client(ctx, c.ID)
		if errors.Is(err, auth.ErrNotFound) {
			return nil // it is lost, so it stays out
		}
		if err != nil {
			return err
		}
		if now.RevokedAt != 0 && then.RevokedAt == 0 || now.DisabledAt != 0 && then.DisabledAt == 0 && then.RevokedAt == 0 {
			l.Clients = append(l.Clients, now)
		}
		if now.RevokedAt == 0 && hadMore(then, now) {
			l.Edited = append(l.Edited, now)
		}
		for _, s := range then.Secrets {
			end := int64(1)
			if i := slices.IndexFunc(now.Secrets, func(x auth.ClientSecret) bool { return x.Fingerprint == s.Fingerprint }); i >= 0 {
				end = now.Secrets[i].EndsAt
			}
			if end != 0 && later(s.EndsAt, end) && later(s.EndsAt, at) {
				l.Secrets = append(l.Secrets, SecretRevival{c.ID, s.Fingerprint, end})
			}
		}
		return nil
	})
	if err != nil {
		return err
	}
	err = present.RevokedTokens(ctx, at, func(t auth.AccessToken) error {
		then, err := backup.LookupToken(ctx, t.Fingerprint)
		if err == nil && then.Token != nil && then.Token.RevokedAt == 0 {
			l.Tokens = append(l.Tokens, t)
		}
		return err
	})
	if err != nil {
		return err
	}
	return l.assertionKeys(ctx, present, backup, at)
}

// hadMore reports whether a client could do more than it can now.
func hadMore(then, now *auth.Client) bool {
	scopes := strings.Join(then.Scopes, " ")
	return then.JWKS != "" && then.JWKS != now.JWKS || auth.CommonScopes(scopes, strings.Join(now.Scopes, " ")) != scopes ||
		len(now.Networks) > 0 && !slices.Equal(then.Networks, now.Networks)
}

func (l *LostTokens) assertionKeys(ctx context.Context, present, backup *store.DB, at int64) error {
	now, err := present.AssertionKeys(ctx, nil)
	if err != nil {
		return err
	}
	then, err := backup.AssertionKeys(ctx, nil)
	if err != nil {
		return err
	}
	for _, k := range then {
		end := int64(1)
		if i := slices.IndexFunc(now, func(x auth.AssertionKey) bool { return x.ID == k.ID }); i >= 0 {
			end = now[i].PublishedUntil
		}
		if end != 0 && later(k.PublishedUntil, end) && later(k.PublishedUntil, at) {
			l.AssertionKeys = append(l.AssertionKeys, AssertionKeyRevival{k.ID, end})
		}
	}
	return nil
}

// repeatTokens stops again what would come back to life.
func (m *Manager) repeatTokens(ctx context.Context, l LostTokens, reason string) error {
	var errs []error
	add := func(what string, err error) {
		if err != nil {
			errs = append(errs, fmt.Errorf("stopping %s again: %w", what, err))
		}
	}
	for _, c := range l.Clients {
		var err error
		if c.RevokedAt != 0 {
			_, err = m.RevokeClients(ctx, []string{c.ID}, reason)
		} else {
			_, err = m.SetClientsDisabled(ctx, []string{c.ID}, true, reason)
		}
		add(c.ID, err)
	}
	for _, s := range l.Secrets {
		add("a secret of "+s.ClientID, m.endSecret(ctx, s.ClientID, s.Fingerprint, s.EndsAt, reason))
	}
	for _, t := range l.Tokens {
		_, err := m.RevokeOwnToken(ctx, t.Fingerprint, t.ID, t.ClientID, reason)
		add(t.ID, err)
	}
	for _, c := range l.Edited {
		var err error
		if c.JWKS != "" {
			_, err = m.EditClients(ctx, []string{c.ID}, func(s *ClientSpec) { s.JWKS, s.Scopes, s.Networks = c.JWKS, c.Scopes, c.Networks })
		} else if then, found := m.db.Client(ctx, c.ID); found == nil && then.JWKS != "" { // it went over to a secret that the backup may not have
			_, err = m.SetClientsDisabled(ctx, []string{c.ID}, true, reason)
		} else {
			_, err = m.EditClients(ctx, []string{c.ID}, func(s *ClientSpec) { s.Scopes, s.Networks = c.Scopes, c.Networks })
		}
		add("what "+c.ID+" had", err)
	}
	for _, k := range l.AssertionKeys {
		add("assertion key "+k.ID, m.endAssertionKey(ctx, k.ID, k.PublishedUntil))
	}
	return errors.Join(errs...)
}
