package manage

import (
	"context"

	"github.com/caddy-auth/caddy-auth/internal/auth"
	"github.com/caddy-auth/caddy-auth/internal/store"
)

// RevokeOwner revokes every key of an owner with one journal row, and returns
// how many there were.
func (m *Manager) RevokeOwner(ctx context.Context, owner, reason string) (int64, error) {
	if err := checkText("reason", reason, 256); err != nil {
		return 0, err
	}
	var n int64
	err := m.change(ctx, func(tx *store.Tx) error {
		if _, err := tx.Owner(ctx, owner); err != nil {
			return err
		}
		var err error
		if n, err = tx.RevokeOwnerKeys(ctx, owner, reason); err != nil || n == 0 {
			return err
		}
		if err := tx.Journal(ctx, store.ChangeKeyRevoke, nil, auth.Parent{Kind: auth.ParentOwner, Name: owner}); err != nil {
			return err
		}
		return tx.Audit(ctx, "owner.revoke_keys", "owner:"+owner, map[string]any{"keys": n, "reason": reason})
	})
	return n, err
}

// SetOwnerDisabled disables or enables an owner, and with it all its keys.
// It reports whether anything changed.
func (m *Manager) SetOwnerDisabled(ctx context.Context, owner string, disabled bool, reason string) (bool, error) {
	if err := checkText("reason", reason, 256); err != nil {
		return false, err
	}
	changed := false
	err := m.change(ctx, func(tx *store.Tx) error {
		o, err := tx.Owner(ctx, owner)
		if err != nil || disabled == (o.DisabledAt != 0) {
			return err
		}
		changed = true
		at, action := int64(0), "owner.enable"
		if disabled {
			at, action = tx.Now(), "owner.disable"
		} else {
			reason = ""
		}
		if err := tx.SetOwnerDisabled(ctx, owner, at, reason); err != nil {
			return err
		}
		if err := tx.Journal(ctx, store.ChangeOwner, nil, auth.Parent{Kind: auth.ParentOwner, Name: owner}); err != nil {
			return err
		}
		return tx.Audit(ctx, action, "owner:"+owner, map[string]any{"reason": reason, "keys": o.Keys})
	})
	return changed, err
}
