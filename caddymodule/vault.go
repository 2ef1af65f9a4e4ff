package caddymodule

import (
	"context"
	"crypto/sha256"
	"errors"

	"github.com/caddy-auth/caddy-auth/internal/auth"
	"github.com/caddy-auth/caddy-auth/internal/secret"
	"github.com/caddy-auth/caddy-auth/internal/store"
)

// ringPurpose separates what wraps a store's secrets from other uses of a
// master key.
const ringPurpose = "store secrets"

// openKey seals where there is no master key to seal with, as in a PostgreSQL
// store without master_key: everybody has it, so what it seals is only as
// secret as the database. A load warns of it.
var openKey = sha256.Sum256([]byte("caddy-auth: no master key"))

// masterRing returns the ring for a store: of the configured keys, newest
// first, then of the one that the backend keeps, or of the one that is none.
// create may make the one that a backend keeps.
func masterRing(configured []auth.Secret, backend Backend, create bool) (*secret.Ring, error) {
	var raws [][]byte
	for _, key := range configured {
		raw, err := secret.ParseMasterKey(key)
		if err != nil {
			return nil, err
		}
		raws = append(raws, raw)
	}
	keeper, ok := backend.(keyKeeper)
	if !ok {
		return secret.NewRing(ringPurpose, append(raws, openKey[:])...)
	}
	read := keeper.MasterKey
	if create && len(configured) == 0 {
		read = keeper.CreateMasterKey
	}
	kept, err := read()
	if err != nil && (len(configured) == 0 || !errors.Is(err, auth.ErrNotInitialized)) {
		return nil, err
	}
	if err == nil {
		raw, err := secret.ParseMasterKey(kept)
		if err != nil {
			return nil, err
		}
		raws = append(raws, raw)
	}
	return secret.NewRing(ringPurpose, raws...)
}

// openAndInit opens a store for a gateway or `store init`: it makes, migrates
// and initializes what is missing. It returns whether it initialized.
func openAndInit(ctx context.Context, backend Backend, configured []auth.Secret, actor, prefix string) (*store.DB, *secret.Ring, bool, error) {
	db, err := store.Open(ctx, backend, store.Create)
	if err != nil {
		return nil, nil, false, err
	}
	fail := func(err error) (*store.DB, *secret.Ring, bool, error) {
		_ = db.Close() // the first error is the one to report
		return nil, nil, false, err
	}
	if err := db.Usable(ctx); err != nil {
		return fail(err)
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
