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
// first, then of the one that the backend keeps; of openKey if there is none at
// all. create may make the one that a backend keeps.
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
	if !ok && len(raws) == 0 {
		return secret.NewRing(ringPurpose, openKey[:])
	}
	if !ok {
		return secret.NewRing(ringPurpose, raws...)
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

// ringOf returns the ring that opens a store's secrets. What is sealed under
// openKey is believed only until there is a rotation with a master key: open
// says that this is still to be done.
func ringOf(ctx context.Context, db *store.DB, configured []auth.Secret, backend Backend) (ring *secret.Ring, open bool, err error) {
	if ring, err = masterRing(configured, backend, false); err != nil {
		return nil, false, err
	}
	if _, ok := backend.(keyKeeper); ok || len(configured) == 0 {
		return ring, false, nil
	}
	if _, err := db.Minter(ctx, ring); !errors.Is(err, secret.ErrWrongKey) {
		return ring, false, nil // whoever uses it sees the error
	}
	raws := make([][]byte, 0, len(configured)+1)
	for _, key := range configured {
		raw, err := secret.ParseMasterKey(key)
		if err != nil {
			return nil, false, err
		}
		raws = append(raws, raw)
	}
	lenient, err := secret.NewRing(ringPurpose, append(raws, openKey[:])...)
	if err != nil {
		return nil, false, err
	}
	if _, err := db.Minter(ctx, lenient); err != nil {
		return ring, false, nil // neither does: the first error is the one to tell
	}
	return lenient, true, nil
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
	var ring *secret.Ring
	if done {
		ring, _, err = ringOf(ctx, db, configured, backend)
	} else {
		ring, err = masterRing(configured, backend, true)
	}
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
