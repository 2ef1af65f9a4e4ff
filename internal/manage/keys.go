package manage

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/google/uuid"

	"github.com/caddy-auth/caddy-auth/internal/auth"
	"github.com/caddy-auth/caddy-auth/internal/secret"
	"github.com/caddy-auth/caddy-auth/internal/store"
)

// DefaultOverlap is how long a replaced key goes on working.
const DefaultOverlap = 24 * time.Hour

// Manager carries out operators' changes on one store. It is safe for
// concurrent use.
type Manager struct {
	db     *store.DB
	actor  string
	prefix string
	minter func(context.Context) (*secret.Minter, error)
	bell   Bell // may be nil

	mu      sync.Mutex // guards what follows
	wrote   auth.Point // the newest row it wrote
	unheard error      // why the bell was not heard
}

// New returns a Manager that acts as actor. minter is called only by what
// makes keys: everything else works without the master key. prefix begins new
// keys.
func New(db *store.DB, actor, prefix string, minter func(context.Context) (*secret.Minter, error)) *Manager {
	return &Manager{db: db, actor: actor, prefix: prefix, minter: minter}
}

// SetBell sets what is rung after each change. Call it before the first.
func (m *Manager) SetBell(b Bell) { m.bell = b }

// KeySpec describes a new key.
type KeySpec struct {
	Owner       string
	Name        string
	Environment string // default live
	Scopes      []string
	Networks    []string
	Meta        map[string]string
	ExpiresAt   int64 // unix milliseconds, 0: never
}

// Made is a new key: its row and its text, which is nowhere else.
type Made struct {
	Key      *auth.Key
	Text     auth.Secret
	NewOwner bool
	Replaces string // the id of the key it replaces
	OldEnds  int64  // when that one stops working, unix milliseconds
}

// normalize validates a spec and puts it into the form the store keeps.
func (s *KeySpec) normalize(now time.Time) error {
	if s.Environment == "" {
		s.Environment = auth.EnvironmentLive
	}
	var errs [6]error
	errs[0] = CheckOwner(s.Owner)
	errs[1] = secret.CheckEnvironment(s.Environment)
	errs[2] = checkText("name", s.Name, 128)
	s.Scopes, errs[3] = normalizeScopes(s.Scopes)
	s.Networks, errs[4] = normalizeNetworks(s.Networks)
	errs[5] = checkMeta(s.Meta)
	err := errors.Join(errs[:]...)
	if s.ExpiresAt != 0 && s.ExpiresAt <= now.UnixMilli() {
		err = errors.Join(err, auth.Invalidf("the key would have expired at %s", time.UnixMilli(s.ExpiresAt).UTC().Format(time.RFC3339)))
	}
	return err
}

// Create makes a key.
func (m *Manager) Create(ctx context.Context, spec KeySpec) (Made, error) {
	if err := spec.normalize(time.Now()); err != nil {
		return Made{}, err
	}
	minted, err := m.mint(ctx, spec.Environment)
	if err != nil {
		return Made{}, err
	}
	made := Made{Text: minted}
	err = m.change(ctx, func(tx *store.Tx) error {
		owner, err := tx.EnsureOwner(ctx, spec.Owner)
		if err != nil {
			return err
		}
		made.NewOwner = owner
		made.Key, err = m.insert(ctx, tx, spec, minted)
		if err != nil {
			return err
		}
		if err := tx.Journal(ctx, store.ChangeKeyCreate, []auth.Fingerprint{made.Key.Fingerprint}, auth.Parent{}); err != nil {
			return err
		}
		return tx.Audit(ctx, "key.create", made.Key.ID, specDetail(spec, made.Key.Hint))
	})
	if err != nil {
		return Made{}, fmt.Errorf("creating a key: %w", err)
	}
	return made, nil
}

func (m *Manager) mint(ctx context.Context, environment string) (auth.Secret, error) {
	minter, err := m.knowing(ctx)
	if err != nil {
		return auth.Secret{}, err
	}
	return minter.Mint(m.prefix, environment)
}

// knowing returns the minter, once every gateway can know the prefix.
func (m *Manager) knowing(ctx context.Context) (*secret.Minter, error) {
	minter, err := m.minter(ctx)
	if err != nil || slices.Contains(minter.Prefixes(), m.prefix) {
		return minter, err
	}
	return minter, m.db.EnsurePrefix(ctx, m.actor, m.prefix)
}

func (m *Manager) insert(ctx context.Context, tx *store.Tx, spec KeySpec, text auth.Secret) (*auth.Key, error) {
	id, err := uuid.NewV7()
	if err != nil {
		return nil, fmt.Errorf("making an id: %w", err)
	}
	if spec.Meta == nil {
		spec.Meta = map[string]string{}
	}
	k := &auth.Key{
		ID: "key_" + id.String(), Fingerprint: auth.FingerprintOf(text.Reveal()), Hint: secret.Hint(text.Reveal()),
		Owner: spec.Owner, Name: spec.Name, Environment: spec.Environment,
		Scopes: spec.Scopes, Networks: spec.Networks, Meta: spec.Meta, CreatedAt: tx.Now(), ExpiresAt: spec.ExpiresAt,
	}
	return k, tx.InsertKey(ctx, k)
}

func specDetail(s KeySpec, hint string) map[string]any {
	return map[string]any{
		"owner": s.Owner, "name": s.Name, "hint": hint, "env": s.Environment, "scopes": s.Scopes,
		"allow_ip": s.Networks, "meta": s.Meta, "expires_at": s.ExpiresAt,
	}
}

// SpecOf describes a key as it is, for another like it.
func SpecOf(k *auth.Key) KeySpec {
	return KeySpec{Owner: k.Owner, Name: k.Name, Environment: k.Environment, Scopes: k.Scopes, Networks: k.Networks, Meta: k.Meta, ExpiresAt: k.ExpiresAt}
}

// Rotate makes a key like another, changed by alter (nil: not at all), and
// lets the old one work for overlap more. A key that was replaced already,
// revoked, expired or disabled is refused.
func (m *Manager) Rotate(ctx context.Context, id string, overlap time.Duration, alter func(*KeySpec)) (Made, error) {
	if overlap < 0 {
		return Made{}, auth.Invalidf("overlap %s is negative", overlap)
	}
	if alter == nil {
		alter = func(*KeySpec) {}
	}
	if err := m.CheckRotate(ctx, []string{id}, alter); err != nil {
		return Made{}, err
	}
	old, err := m.db.KeyByID(ctx, id)
	if err != nil {
		return Made{}, err
	}
	text, err := m.mint(ctx, old.Environment) // which never changes
	if err != nil {
		return Made{}, err
	}
	made := Made{Text: text, Replaces: id}
	err = m.change(ctx, func(tx *store.Tx) error {
		old, err := tx.Key(ctx, id) // as it is under the writer's lock
		if err != nil {
			return err
		}
		if err := rotatable(old); err != nil {
			return err
		}
		spec := SpecOf(old)
		alter(&spec)
		if spec.Environment != old.Environment {
			return auth.Invalidf("a key's environment is part of it and can't be changed by rotating")
		}
		if err := spec.normalize(time.Now()); err != nil {
			return err
		}
		if made.Key, err = m.insert(ctx, tx, spec, text); err != nil {
			return err
		}
		old.ReplacedBy, old.ReplacedAt, old.OverlapUntil = made.Key.ID, tx.Now(), tx.Now()+overlap.Milliseconds()
		made.OldEnds = old.NotAfter()
		if err := tx.UpdateKey(ctx, old); err != nil {
			return err
		}
		if err := journalExchanged(ctx, tx, store.ChangeKeyRotate, id); err != nil {
			return err
		}
		if err := tx.Journal(ctx, store.ChangeKeyRotate, []auth.Fingerprint{old.Fingerprint, made.Key.Fingerprint}, auth.Parent{}); err != nil {
			return err
		}
		if err := tx.Audit(ctx, "key.rotate", id, map[string]any{"replaced_by": made.Key.ID, "works_until": old.NotAfter()}); err != nil {
			return err
		}
		detail := specDetail(spec, made.Key.Hint)
		detail["replaces"] = id
		return tx.Audit(ctx, "key.create", made.Key.ID, detail)
	})
	if err != nil {
		return Made{}, fmt.Errorf("rotating %s: %w", id, err)
	}
	return made, nil
}

// CheckRotate says whether Rotate would refuse any of several keys, before
// the first is changed.
func (m *Manager) CheckRotate(ctx context.Context, ids []string, alter func(*KeySpec)) error {
	for _, id := range ids {
		k, err := m.db.KeyByID(ctx, id)
		if err != nil {
			return err
		}
		spec := SpecOf(k)
		alter(&spec)
		if err := rotatable(k); err != nil {
			return err
		}
		if err := spec.normalize(time.Now()); err != nil {
			return err
		}
	}
	return nil
}

func rotatable(k *auth.Key) error {
	switch k.State(time.Now()) {
	case auth.KeyRevoked:
		return auth.WithHint(fmt.Errorf("key %s is revoked: %w", k.ID, auth.ErrConflict), "make a new one with: caddy-auth key create --like "+k.ID)
	case auth.KeyDisabled:
		return auth.WithHint(fmt.Errorf("key %s is disabled: %w", k.ID, auth.ErrConflict), "enable it first, or: caddy-auth key create --like "+k.ID)
	}
	if k.ReplacedBy != "" {
		return fmt.Errorf("key %s is already replaced by %s, at %s: %w", k.ID, k.ReplacedBy, time.UnixMilli(k.ReplacedAt).UTC().Format(time.RFC3339), auth.ErrConflict)
	}
	if k.State(time.Now()) == auth.KeyExpired {
		return auth.WithHint(fmt.Errorf("key %s has expired: %w", k.ID, auth.ErrConflict), "make a new one with: caddy-auth key create --expires ... --like "+k.ID)
	}
	return nil
}

// alter changes existing keys in one transaction. change says whether it
// changed anything and with which detail; unchanged keys write nothing.
func (m *Manager) alter(ctx context.Context, action string, ids []string, change func(tx *store.Tx, k *auth.Key) (map[string]any, bool, error)) ([]*auth.Key, error) {
	var changed []*auth.Key
	err := m.change(ctx, func(tx *store.Tx) error {
		var fps []auth.Fingerprint
		for _, id := range slices.Compact(slices.Sorted(slices.Values(ids))) {
			k, err := tx.Key(ctx, id)
			if err != nil {
				return err
			}
			detail, did, err := change(tx, k)
			if err != nil {
				return err
			}
			if !did {
				continue
			}
			if err := tx.UpdateKey(ctx, k); err != nil {
				return err
			}
			if err := tx.Audit(ctx, action, id, detail); err != nil {
				return err
			}
			fps, changed = append(fps, k.Fingerprint), append(changed, k)
		}
		if len(fps) == 0 {
			return nil
		}
		for _, k := range changed {
			if err := journalExchanged(ctx, tx, action, k.ID); err != nil {
				return err
			}
		}
		return tx.Journal(ctx, action, fps, auth.Parent{})
	})
	if err != nil {
		return nil, err
	}
	return changed, nil
}

// journalExchanged journals a key's change for the tokens that were exchanged
// for it, if there are any.
func journalExchanged(ctx context.Context, tx *store.Tx, action, keyID string) error {
	some, err := tx.Exchanged(ctx, keyID)
	if err != nil || !some {
		return err
	}
	return tx.Journal(ctx, action, nil, auth.Parent{Kind: auth.ParentKey, Name: keyID})
}

// Revoke revokes keys for good and returns those that were not revoked yet.
func (m *Manager) Revoke(ctx context.Context, ids []string, reason string) ([]*auth.Key, error) {
	if err := checkText("reason", reason, 256); err != nil {
		return nil, err
	}
	return m.alter(ctx, store.ChangeKeyRevoke, ids, func(tx *store.Tx, k *auth.Key) (map[string]any, bool, error) {
		if k.RevokedAt != 0 {
			return nil, false, nil
		}
		k.RevokedAt, k.RevokedReason = tx.Now(), reason
		return map[string]any{"reason": reason, "owner": k.Owner, "hint": k.Hint}, true, nil
	})
}

// SetDisabled disables or enables keys and returns those it changed.
func (m *Manager) SetDisabled(ctx context.Context, ids []string, disabled bool, reason string) ([]*auth.Key, error) {
	if err := checkText("reason", reason, 256); err != nil {
		return nil, err
	}
	action := store.ChangeKeyEnable
	if disabled {
		action = store.ChangeKeyDisable
	}
	return m.alter(ctx, action, ids, func(tx *store.Tx, k *auth.Key) (map[string]any, bool, error) {
		if k.RevokedAt != 0 {
			return nil, false, fmt.Errorf("key %s is revoked: %w", k.ID, auth.ErrConflict)
		}
		if disabled == (k.DisabledAt != 0) {
			return nil, false, nil
		}
		k.DisabledAt = 0
		if disabled {
			k.DisabledAt = tx.Now()
		}
		return map[string]any{"reason": reason, "owner": k.Owner, "hint": k.Hint}, true, nil
	})
}

// Edit changes a key's name, scopes, networks, metadata or expiry.
func (m *Manager) Edit(ctx context.Context, ids []string, edit func(*KeySpec)) ([]*auth.Key, error) {
	return m.alter(ctx, store.ChangeKeyEdit, ids, func(_ *store.Tx, k *auth.Key) (map[string]any, bool, error) {
		if k.RevokedAt != 0 {
			return nil, false, fmt.Errorf("key %s is revoked: %w", k.ID, auth.ErrConflict)
		}
		before := SpecOf(k)
		spec := before
		edit(&spec)
		if spec.Owner != before.Owner || spec.Environment != before.Environment {
			return nil, false, auth.Invalidf("a key's owner and environment are part of it and can't be edited")
		}
		now := time.Now()
		if spec.ExpiresAt == before.ExpiresAt {
			now = time.UnixMilli(0) // an expired key may still be renamed
		}
		if err := spec.normalize(now); err != nil {
			return nil, false, err
		}
		k.Name, k.Scopes, k.Networks, k.Meta, k.ExpiresAt = spec.Name, spec.Scopes, spec.Networks, spec.Meta, spec.ExpiresAt
		if k.Meta == nil {
			k.Meta = map[string]string{}
		}
		return specDetail(spec, k.Hint), true, nil
	})
}

// Find returns the key with a text. One that is not ours is auth.ErrNotFound;
// no master key is needed.
func (m *Manager) Find(ctx context.Context, text auth.Secret) (*auth.Key, error) {
	trimmed := strings.TrimSpace(text.Reveal())
	loaded, err := m.db.LookupKey(ctx, auth.FingerprintOf(trimmed))
	if err != nil {
		return nil, err
	}
	if loaded.Key == nil {
		err := fmt.Errorf("no key with this text: %w", auth.ErrNotFound)
		switch _, _, ok := secret.Parse(trimmed); {
		case !ok:
			err = auth.WithHint(err, "it does not have the shape of a key; was all of it pasted?")
		case secret.KindOf(trimmed) == secret.AccessToken:
			err = auth.WithHint(err, "it is a token of this gateway: caddy-auth token revoke --stdin")
		case secret.KindOf(trimmed) == secret.ClientSecret:
			err = auth.WithHint(err, "it is a client's secret; find the client, then replace it: caddy-auth client rotate ID --overlap 0s")
		}
		return nil, err
	}
	return loaded.Key, nil
}
