package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"

	"github.com/caddy-auth/caddy-auth/internal/auth"
	"github.com/caddy-auth/caddy-auth/internal/secret"
	"github.com/caddy-auth/caddy-auth/internal/store"
	"github.com/caddy-auth/caddy-auth/internal/store/sqlite"
)

// build builds what is measured.
func (b *bench) build(ctx context.Context, out, pkg string) error {
	fmt.Fprintln(os.Stderr, "building", pkg)
	build := exec.CommandContext(ctx, "go", "build", "-trimpath", "-tags", "nobadger,nomysql,nopgx", "-o", out, pkg)
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	build.Stderr = os.Stderr
	if err := build.Run(); err != nil {
		return fmt.Errorf("building %s: %w", pkg, err)
	}
	return nil
}

// prepare builds the binaries and makes a store with n keys.
func (b *bench) prepare(ctx context.Context, n int) error {
	if b.binary == "" {
		b.binary = filepath.Join(b.dir, "caddy-auth")
		if err := b.build(ctx, b.binary, "./cmd/caddy-auth"); err != nil {
			return err
		}
	}
	b.db = filepath.Join(b.dir, "auth.db")
	if out, err := exec.CommandContext(ctx, b.binary, "store", "init", "--store", "sqlite:"+b.db).CombinedOutput(); err != nil {
		return fmt.Errorf("making the store: %w: %s", err, out)
	}
	backend := sqlite.New(b.db)
	master, err := backend.MasterKey()
	if err != nil {
		return err
	}
	b.keys, err = makeKeys(ctx, backend, master, n)
	if err != nil {
		return err
	}
	b.unknown, err = makeKeys(ctx, backend, master, -10_000)
	return err
}

// makeKeys puts n keys into a store; if n is negative they are only made.
func makeKeys(ctx context.Context, backend store.Backend, master auth.Secret, n int) (keys []string, err error) {
	db, err := store.Open(ctx, backend, store.Existing)
	if err != nil {
		return nil, err
	}
	defer db.Close()
	raw, err := secret.ParseMasterKey(master)
	if err != nil {
		return nil, err
	}
	ring, err := secret.NewRing("store secrets", raw)
	if err != nil {
		return nil, err
	}
	minter, err := db.Minter(ctx, ring)
	if err != nil {
		return nil, err
	}
	if n > 0 {
		fmt.Fprintf(os.Stderr, "making %d keys\n", n)
	}
	for range max(n, -n) {
		text, err := minter.Mint("ca", "live")
		if err != nil {
			return nil, err
		}
		keys = append(keys, text.Reveal())
	}
	for at := 0; at < n; at += 100_000 {
		if err := insert(ctx, db, keys[at:min(at+100_000, n)], at); err != nil {
			return nil, err
		}
	}
	return keys, nil
}

func insert(ctx context.Context, db *store.DB, keys []string, first int) error {
	return db.Change(ctx, "load", func(tx *store.Tx) error {
		if _, err := tx.EnsureOwner(ctx, "customer"); err != nil {
			return err
		}
		for i, text := range keys {
			err := tx.InsertKey(ctx, &auth.Key{
				ID: keyID(first + i), Fingerprint: auth.FingerprintOf(text), Owner: "customer", Environment: "live",
				Hint: secret.Hint(text), Scopes: []string{"orders:read", "orders:write"}, Meta: map[string]string{},
			})
			if err != nil {
				return err
			}
		}
		return errors.Join(tx.Journal(ctx, "load", nil, auth.Parent{}), tx.Audit(ctx, "load", "store", nil))
	})
}

func keyID(i int) string { return fmt.Sprintf("key_0192a7b0-0000-7000-8000-%012d", i) }
