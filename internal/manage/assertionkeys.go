package manage

import (
	"context"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/base64"
	"errors"
	"fmt"
	"time"

	"github.com/caddy-auth/caddy-auth/internal/auth"
	"github.com/caddy-auth/caddy-auth/internal/secret"
	"github.com/caddy-auth/caddy-auth/internal/store"
)

// AssertionLead is how long a new assertion key is published before it signs:
// upstreams that keep a key set have it by then.
const AssertionLead = 10 * time.Minute

// newAssertionKey makes a key for an algorithm.
func newAssertionKey(algorithm string) (auth.AssertionKey, error) {
	k := auth.AssertionKey{Algorithm: algorithm}
	var id [9]byte
	if _, err := rand.Read(id[:]); err != nil {
		return k, fmt.Errorf("reading random bytes: %w", err)
	}
	k.ID = base64.RawURLEncoding.EncodeToString(id[:])
	var private any
	var err error
	switch algorithm {
	case "EdDSA":
		_, private, err = ed25519.GenerateKey(rand.Reader)
	case "ES256":
		private, err = ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	default:
		return k, auth.Invalidf("no such algorithm: %q", algorithm)
	}
	if err != nil {
		return k, fmt.Errorf("making a key: %w", err)
	}
	if k.Private, err = x509.MarshalPKCS8PrivateKey(private); err != nil {
		return k, fmt.Errorf("making a key: %w", err)
	}
	return k, nil
}

// EnsureAssertionKey makes a key for an algorithm if there is none that is
// published for good.
func (m *Manager) EnsureAssertionKey(ctx context.Context, ring *secret.Ring, algorithm string) error {
	k, err := newAssertionKey(algorithm)
	if err != nil {
		return err
	}
	return m.change(ctx, func(tx *store.Tx) error {
		have, err := tx.AssertionKeys(ctx)
		if err != nil {
			return err
		}
		for _, h := range have {
			if h.Algorithm == algorithm && h.PublishedUntil == 0 {
				return nil
			}
		}
		k.CreatedAt, k.SignsFrom = tx.Now(), tx.Now()
		return m.addAssertionKey(ctx, tx, ring, k)
	})
}

func (m *Manager) addAssertionKey(ctx context.Context, tx *store.Tx, ring *secret.Ring, k auth.AssertionKey) error {
	return errors.Join(tx.InsertAssertionKey(ctx, ring, k), tx.Journal(ctx, store.ChangeAssertionKeys, nil, auth.Parent{}),
		tx.Audit(ctx, "assertion_key.create", "assertion_key:"+k.ID, map[string]any{"algorithm": k.Algorithm, "signs_from": k.SignsFrom}))
}

// RotateAssertionKeys makes a new key for each algorithm that has one, and ends
// those there are. The new one is published at once and signs from half of the
// overlap on, or from AssertionLead on if that is earlier; the old ones are
// published until the overlap ends. Without an overlap what the old keys signed
// is worth nothing as soon as upstreams read the key set again.
func (m *Manager) RotateAssertionKeys(ctx context.Context, ring *secret.Ring, overlap time.Duration) (made []auth.AssertionKey, err error) {
	if overlap < 0 {
		return nil, auth.Invalidf("overlap %s is negative", overlap)
	}
	err = m.change(ctx, func(tx *store.Tx) error {
		made = nil
		have, err := tx.AssertionKeys(ctx)
		if err != nil {
			return err
		}
		done := map[string]bool{}
		until := max(1, tx.Now()+overlap.Milliseconds())
		for _, h := range have {
			if h.PublishedUntil == 0 || h.PublishedUntil > until {
				if err := tx.EndAssertionKey(ctx, h.ID, until); err != nil {
					return err
				}
				if err := tx.Audit(ctx, "assertion_key.end", "assertion_key:"+h.ID, map[string]any{"published_until": until}); err != nil {
					return err
				}
			}
			if done[h.Algorithm] {
				continue
			}
			done[h.Algorithm] = true
			k, err := newAssertionKey(h.Algorithm)
			if err != nil {
				return err
			}
			k.CreatedAt, k.SignsFrom = tx.Now(), tx.Now()+min(overlap/2, AssertionLead).Milliseconds()
			if err := m.addAssertionKey(ctx, tx, ring, k); err != nil {
				return err
			}
			made = append(made, k)
		}
		if len(have) == 0 {
			return auth.WithHint(fmt.Errorf("there are no assertion keys: %w", auth.ErrNotFound), "the gateway makes one when identity_headers has an assertion")
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("rotating the assertion keys: %w", err)
	}
	return made, nil
}

// EndAssertionKey stops a key from being used and published, at once.
func (m *Manager) EndAssertionKey(ctx context.Context, id string) error {
	return m.endAssertionKey(ctx, id, 1)
}

func (m *Manager) endAssertionKey(ctx context.Context, id string, until int64) error {
	return m.change(ctx, func(tx *store.Tx) error {
		return errors.Join(tx.EndAssertionKey(ctx, id, until), tx.Journal(ctx, store.ChangeAssertionKeys, nil, auth.Parent{}),
			tx.Audit(ctx, "assertion_key.end", "assertion_key:"+id, map[string]any{"published_until": until}))
	})
}
