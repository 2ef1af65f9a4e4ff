package manage

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/google/uuid"

	"github.com/caddy-auth/caddy-auth/internal/auth"
	"github.com/caddy-auth/caddy-auth/internal/jwt"
	"github.com/caddy-auth/caddy-auth/internal/secret"
	"github.com/caddy-auth/caddy-auth/internal/store"
	"github.com/caddy-auth/caddy-auth/internal/strictjson"
)

const (
	maxJWKS          = 8 << 10
	maxClientKeys    = 8
	maxClientSecrets = 5
	leastLifetime    = 10 * time.Second
)

// ClientSpec describes an OAuth client.
type ClientSpec struct {
	Owner         string
	Name          string
	Environment   string // default live
	Scopes        []string
	Networks      []string
	Meta          map[string]string
	TokenLifetime time.Duration // 0: the gateway's default
	JWKS          string        // public keys; with some the client has no secret unless one is made
}

// MadeClient is a client with a secret that is nowhere else.
type MadeClient struct {
	Client   *auth.Client
	Secret   auth.Secret // empty: it has keys instead
	NewOwner bool
	OldEnds  int64 // when its other secrets stop working, unix milliseconds; 0: it had none
}

// SpecOfClient describes a client as it is.
func SpecOfClient(c *auth.Client) ClientSpec {
	return ClientSpec{
		Owner: c.Owner, Name: c.Name, Environment: c.Environment, Scopes: c.Scopes, Networks: c.Networks, Meta: c.Meta,
		TokenLifetime: c.TokenLifetime, JWKS: c.JWKS,
	}
}

func (s *ClientSpec) normalize() error {
	key := KeySpec{Owner: s.Owner, Name: s.Name, Environment: s.Environment, Scopes: s.Scopes, Networks: s.Networks, Meta: s.Meta}
	err := key.normalize(time.UnixMilli(0))
	s.Environment, s.Scopes, s.Networks = key.Environment, key.Scopes, key.Networks
	if s.Meta == nil {
		s.Meta = map[string]string{}
	}
	if s.TokenLifetime != 0 && (s.TokenLifetime < leastLifetime || s.TokenLifetime > auth.MostOwnTokenLifetime) {
		err = errors.Join(err, auth.Invalidf("token lifetime %s: want %s to %s", s.TokenLifetime, leastLifetime, auth.MostOwnTokenLifetime))
	}
	if s.JWKS != "" {
		var bad error
		s.JWKS, bad = normalizeJWKS(s.JWKS)
		err = errors.Join(err, bad)
	}
	return err
}

// normalizeJWKS checks a set of public keys. The text it returns has no control
// characters.
func normalizeJWKS(text string) (string, error) {
	if len(text) > maxJWKS {
		return "", auth.Invalidf("a key set of %d bytes, at most %d", len(text), maxJWKS)
	}
	set, err := strictjson.Decode([]byte(text))
	if err != nil {
		return "", auth.Invalidf("the key set is no JSON object")
	}
	keys, _ := set["keys"].([]any)
	if len(keys) == 0 || len(keys) > maxClientKeys {
		return "", auth.WithHint(auth.Invalidf("a key set of %d keys, want 1 to %d", len(keys), maxClientKeys), `want a JWK set: {"keys":[{"kty":...}]}`)
	}
	for i, one := range keys {
		o, ok := one.(strictjson.Object)
		if !ok {
			return "", auth.Invalidf("key %d of the set is no object", i+1)
		}
		if _, private := o["d"]; private {
			return "", auth.WithHint(auth.Invalidf("key %d of the set has a private part", i+1), "only public keys belong here; whoever could read that file has the private one")
		}
		if _, err := jwt.ParseKey(o); err != nil {
			return "", auth.Invalidf("key %d of the set: %v", i+1, err)
		}
	}
	var out bytes.Buffer
	if err := json.Compact(&out, []byte(text)); err != nil {
		return "", auth.Invalidf("the key set is no JSON object")
	}
	return out.String(), nil
}

func clientDetail(s ClientSpec) map[string]any {
	return map[string]any{
		"owner": s.Owner, "name": s.Name, "env": s.Environment, "scopes": s.Scopes, "allow_ip": s.Networks, "meta": s.Meta,
		"token_lifetime": s.TokenLifetime.String(), "has_keys": s.JWKS != "",
	}
}

func clientParent(id string) auth.Parent { return auth.Parent{Kind: auth.ParentClient, Name: id} }

// CreateClient makes a client, with a secret unless it has public keys.
func (m *Manager) CreateClient(ctx context.Context, spec ClientSpec) (MadeClient, error) {
	if err := spec.normalize(); err != nil {
		return MadeClient{}, err
	}
	id, err := uuid.NewV7()
	if err != nil {
		return MadeClient{}, fmt.Errorf("making an id: %w", err)
	}
	minter, err := m.knowing(ctx)
	if err != nil {
		return MadeClient{}, err
	}
	var made MadeClient
	if spec.JWKS == "" {
		if made.Secret, err = minter.MintKind(m.prefix, secret.ClientSecret); err != nil {
			return MadeClient{}, err
		}
	}
	made.Client = &auth.Client{
		ID: minter.Tagged("client_" + id.String()), Owner: spec.Owner, Name: spec.Name, Environment: spec.Environment, Scopes: spec.Scopes, Networks: spec.Networks,
		Meta: spec.Meta, TokenLifetime: spec.TokenLifetime, JWKS: spec.JWKS,
	}
	err = m.change(ctx, func(tx *store.Tx) error {
		var err error
		if made.NewOwner, err = tx.EnsureOwner(ctx, spec.Owner); err != nil {
			return err
		}
		made.Client.CreatedAt, made.Client.Secrets = tx.Now(), nil
		if err := tx.InsertClient(ctx, made.Client); err != nil {
			return err
		}
		detail := clientDetail(spec)
		if err := insertSecret(ctx, tx, made.Client, made.Secret, detail); err != nil {
			return err
		}
		return errors.Join(tx.Journal(ctx, store.ChangeClientCreate, nil, clientParent(made.Client.ID)), tx.Audit(ctx, "client.create", made.Client.ID, detail))
	})
	if err != nil {
		return MadeClient{}, fmt.Errorf("creating a client: %w", err)
	}
	return made, nil
}

// insertSecret adds a secret, if there is one, to a client and its hint to detail.
func insertSecret(ctx context.Context, tx *store.Tx, c *auth.Client, text auth.Secret, detail map[string]any) error {
	if text.Empty() {
		return nil
	}
	s := auth.ClientSecret{Fingerprint: auth.FingerprintOf(text.Reveal()), Hint: secret.Hint(text.Reveal()), CreatedAt: tx.Now()}
	detail["hint"] = s.Hint
	c.Secrets = append(c.Secrets, s)
	return tx.InsertClientSecret(ctx, c.ID, s)
}

// RotateClient gives a client a new secret and lets its others work for overlap
// more.
func (m *Manager) RotateClient(ctx context.Context, id string, overlap time.Duration) (MadeClient, error) {
	if overlap < 0 {
		return MadeClient{}, auth.Invalidf("overlap %s is negative", overlap)
	}
	if c, err := m.db.Client(ctx, id); err != nil {
		return MadeClient{}, err
	} else if err := secretable(c, time.Now().UnixMilli(), overlap); err != nil {
		return MadeClient{}, err
	}
	minter, err := m.knowing(ctx)
	if err != nil {
		return MadeClient{}, err
	}
	text, err := minter.MintKind(m.prefix, secret.ClientSecret)
	if err != nil {
		return MadeClient{}, err
	}
	made := MadeClient{Secret: text}
	err = m.change(ctx, func(tx *store.Tx) error {
		c, err := tx.Client(ctx, id)
		if err != nil {
			return err
		}
		if err := secretable(c, tx.Now(), overlap); err != nil {
			return err
		}
		made.Client, made.OldEnds = c, 0
		until := tx.Now() + overlap.Milliseconds()
		if len(c.Secrets) > 0 {
			made.OldEnds = until
		}
		if err := tx.EndClientSecrets(ctx, id, until); err != nil {
			return err
		}
		detail := map[string]any{"others_work_until": until}
		if err := insertSecret(ctx, tx, c, text, detail); err != nil {
			return err
		}
		return errors.Join(tx.Journal(ctx, store.ChangeClientRotate, nil, clientParent(id)), tx.Audit(ctx, "client.rotate", id, detail))
	})
	if err != nil {
		return MadeClient{}, fmt.Errorf("rotating %s: %w", id, err)
	}
	return made, nil
}

// EndClientSecret ends one secret of a client at once.
func (m *Manager) EndClientSecret(ctx context.Context, id string, fp auth.Fingerprint, reason string) error {
	return m.endSecret(ctx, id, fp, 1, reason)
}

func (m *Manager) endSecret(ctx context.Context, id string, fp auth.Fingerprint, until int64, reason string) error {
	return m.change(ctx, func(tx *store.Tx) error {
		return errors.Join(tx.EndClientSecret(ctx, fp, until), tx.Journal(ctx, store.ChangeClientRotate, nil, clientParent(id)),
			tx.Audit(ctx, "client.end_secret", id, map[string]any{"works_until": until, "reason": reason}))
	})
}

// secretable reports why a client gets no more secrets.
func secretable(c *auth.Client, now int64, overlap time.Duration) error {
	switch c.State() {
	case auth.KeyRevoked:
		return auth.WithHint(fmt.Errorf("client %s is revoked: %w", c.ID, auth.ErrConflict), "make a new one with: caddy-auth client create")
	case auth.KeyDisabled:
		return auth.WithHint(fmt.Errorf("client %s is disabled: %w", c.ID, auth.ErrConflict), "enable it first")
	}
	alive := 0
	for _, s := range c.Secrets {
		if s.EndsAt == 0 || s.EndsAt > now {
			alive++
		}
	}
	if alive >= maxClientSecrets && overlap > 0 {
		return auth.WithHint(fmt.Errorf("client %s has %d secrets that work: %w", c.ID, alive, auth.ErrConflict), "wait until one ends, or end all with: --overlap 0s")
	}
	return nil
}

// alterClients changes existing clients in one transaction; see alter.
func (m *Manager) alterClients(ctx context.Context, action string, ids []string, change func(tx *store.Tx, c *auth.Client) (map[string]any, bool, error)) ([]*auth.Client, error) {
	var changed []*auth.Client
	err := m.change(ctx, func(tx *store.Tx) error {
		changed = nil
		for _, id := range slices.Compact(slices.Sorted(slices.Values(ids))) {
			c, err := tx.Client(ctx, id)
			if err != nil {
				return err
			}
			detail, did, err := change(tx, c)
			if err != nil {
				return err
			}
			if !did {
				continue
			}
			if err := errors.Join(tx.UpdateClient(ctx, c), tx.Audit(ctx, action, id, detail), tx.Journal(ctx, action, nil, clientParent(id))); err != nil {
				return err
			}
			changed = append(changed, c)
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	return changed, nil
}

// RevokeClients revokes clients, and with them all their tokens, for good. It
// returns those that were not revoked yet.
func (m *Manager) RevokeClients(ctx context.Context, ids []string, reason string) ([]*auth.Client, error) {
	if err := checkText("reason", reason, 256); err != nil {
		return nil, err
	}
	return m.alterClients(ctx, store.ChangeClientRevoke, ids, func(tx *store.Tx, c *auth.Client) (map[string]any, bool, error) {
		if c.RevokedAt != 0 {
			return nil, false, nil
		}
		c.RevokedAt, c.RevokedReason = tx.Now(), reason
		return map[string]any{"reason": reason, "owner": c.Owner}, true, nil
	})
}

// SetClientsDisabled disables or enables clients, and with them their tokens,
// and returns those it changed.
func (m *Manager) SetClientsDisabled(ctx context.Context, ids []string, disabled bool, reason string) ([]*auth.Client, error) {
	if err := checkText("reason", reason, 256); err != nil {
		return nil, err
	}
	action := store.ChangeClientEnable
	if disabled {
		action = store.ChangeClientDisable
	}
	return m.alterClients(ctx, action, ids, func(tx *store.Tx, c *auth.Client) (map[string]any, bool, error) {
		if c.RevokedAt != 0 {
			return nil, false, fmt.Errorf("client %s is revoked: %w", c.ID, auth.ErrConflict)
		}
		if disabled == (c.DisabledAt != 0) {
			return nil, false, nil
		}
		c.DisabledAt = 0
		if disabled {
			c.DisabledAt = tx.Now()
		}
		return map[string]any{"reason": reason, "owner": c.Owner}, true, nil
	})
}

// EditClients changes clients. Tokens that were issued before lose scopes that
// their client loses; nothing else about them changes but the networks.
func (m *Manager) EditClients(ctx context.Context, ids []string, edit func(*ClientSpec)) ([]*auth.Client, error) {
	return m.alterClients(ctx, store.ChangeClientEdit, ids, func(_ *store.Tx, c *auth.Client) (map[string]any, bool, error) {
		if c.RevokedAt != 0 {
			return nil, false, fmt.Errorf("client %s is revoked: %w", c.ID, auth.ErrConflict)
		}
		spec := SpecOfClient(c)
		edit(&spec)
		if spec.Owner != c.Owner || spec.Environment != c.Environment {
			return nil, false, auth.Invalidf("a client's owner and environment can't be edited")
		}
		if err := spec.normalize(); err != nil {
			return nil, false, err
		}
		if spec.JWKS == "" && len(c.Secrets) == 0 {
			return nil, false, auth.WithHint(auth.Invalidf("client %s would have neither keys nor a secret", c.ID), "give it a secret first: caddy-auth client rotate "+c.ID)
		}
		c.Name, c.Scopes, c.Networks, c.Meta, c.TokenLifetime, c.JWKS = spec.Name, spec.Scopes, spec.Networks, spec.Meta, spec.TokenLifetime, spec.JWKS
		return clientDetail(spec), true, nil
	})
}

// RevokeOwnToken ends a token of our own. It reports whether it had not ended.
func (m *Manager) RevokeOwnToken(ctx context.Context, fp auth.Fingerprint, id, client, reason string) (changed bool, err error) {
	if err := checkText("reason", reason, 256); err != nil {
		return false, err
	}
	err = m.change(ctx, func(tx *store.Tx) error {
		var err error
		if changed, err = tx.RevokeToken(ctx, fp); err != nil || !changed {
			return err
		}
		return errors.Join(tx.Journal(ctx, store.ChangeOwnToken, []auth.Fingerprint{fp}, auth.Parent{}), tx.Audit(ctx, "token.end", id, map[string]any{"client": client, "reason": reason}))
	})
	return changed && err == nil, err
}

// FindClient returns the client that has a secret. One that nobody has is
// auth.ErrNotFound.
func (m *Manager) FindClient(ctx context.Context, text auth.Secret) (*auth.Client, error) {
	l, err := m.db.LookupSecret(ctx, auth.FingerprintOf(text.Reveal()))
	if err != nil {
		return nil, err
	}
	if l.Client == nil {
		return nil, fmt.Errorf("no client with this secret is known: %w", auth.ErrNotFound)
	}
	return m.db.Client(ctx, l.Client.ID)
}

// FindToken returns the token of our own with a text. One that is not there is
// auth.ErrNotFound.
func (m *Manager) FindToken(ctx context.Context, text auth.Secret) (*auth.AccessToken, error) {
	l, err := m.db.LookupToken(ctx, auth.FingerprintOf(text.Reveal()))
	if err == nil && l.Token == nil {
		err = fmt.Errorf("no token with this text: %w", auth.ErrNotFound)
	}
	return l.Token, err
}
