package manage

import (
	"context"
	"fmt"

	"github.com/caddy-auth/caddy-auth/internal/secret"
	"github.com/caddy-auth/caddy-auth/internal/store"
)

// RotateSecrets makes the store's secrets anew, sealed under ring's first key.
func (m *Manager) RotateSecrets(ctx context.Context, ring *secret.Ring) error {
	err := m.change(ctx, func(tx *store.Tx) error { return tx.RotateSecrets(ctx, ring) })
	if err != nil {
		return fmt.Errorf("rotating the store's secrets: %w", err)
	}
	return nil
}
