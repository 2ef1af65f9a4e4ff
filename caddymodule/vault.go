package caddymodule

import (
	"context"

	"github.com/caddy-auth/caddy-auth/internal/auth"
	"github.com/caddy-auth/caddy-auth/internal/secret"
	"github.com/caddy-auth/caddy-auth/internal/store"
)

// ringPurpose separates what wraps a store's secrets from other uses of a
// master key.
const ringPurpose = "store secrets"

// masterRing returns the ring for a store: of the configured key, or of the
// one that the backend keeps. create may make the latter.
func masterRing(configured auth.Secret, backend Backend, create bool) (*secret.Ring, error) {
	key := configured
	if key.Empty() {
		keeper, ok := backend.(keyKeeper)
		if !ok {
			return nil, auth.WithHint(auth.Invalidf("%s keeps no master key of its own", backend.Describe()), "set master_key, for example to {env.AUTH_MASTER_KEY}")
		}
		var err error
		if create {
			key, err = keeper.CreateMasterKey()
		} else {
			key, err = keeper.MasterKey()
		}
		if err != nil {
			return nil, err
		}
	}
	raw, err := secret.ParseMasterKey(key)
	if err != nil {
		return nil, err
	}
	return secret.NewRing(ringPurpose, raw)
}

// openAndInit opens a store for a gateway or `store init`: it makes, migrates
// and initializes what is missing. It returns whether it initialized.
func openAndInit(ctx context.Context, backend Backend, configured auth.Secret, actor, prefix string) (*store.DB, *secret.Ring, bool, error) {
	db, err := store.Open(ctx, backend, store.Create)
	if err != nil {
		return nil, nil, false, err
	}
	fail := func(err error) (*store.DB, *secret.Ring, bool, error) {
		_ = db.Close() // the first error is the one to report
		return nil, nil, false, err
	}
	done, err := db.Initialized(ctx)
	if err != nil {
		return fail(err)
	}
	ring, err := masterRing(configured, backend, !done)
	if err != nil {
		return fail(err)
	}
	if !done {
		if err := db.Init(ctx, actor, ring, prefix); err != nil {
			return fail(err)
		}
	}
	return db, ring, !done, nil
}
