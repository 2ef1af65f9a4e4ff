package caddymodule

import (
	"context"
	"errors"
	"fmt"

	"go.uber.org/zap"

	"github.com/caddy-auth/caddy-auth/internal/auth"
	"github.com/caddy-auth/caddy-auth/internal/store"
	"github.com/caddy-auth/caddy-auth/internal/verifier"
)

// learning is told of a change before it is applied: what is verified after it
// must know what was cut off.
func (rt *runtime) learning(c auth.Change) {
	if c.Kind != store.ChangeTokenRevoke {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), openTimeout)
	defer cancel()
	if err := rt.learnCutOff(ctx, c); err != nil {
		rt.verifier.SetCutOffs(nil) // better not to decide
		rt.logger().Error("reading what was cut off; tokens of other issuers get 503 until it is read", zap.Error(err))
	}
}

func (rt *runtime) learnCutOff(ctx context.Context, c auth.Change) error {
	db := rt.db.Load()
	if db == nil {
		return fmt.Errorf("the store is not open: %w", auth.ErrUnavailable)
	}
	rt.cutMu.Lock()
	known := rt.verifier.CutOffs()
	one, err := db.CutOff(ctx, c.Parent)
	if err == nil && known != nil {
		known.Add(one)
	}
	rt.cutMu.Unlock()
	if known == nil || errors.Is(err, auth.ErrNotFound) {
		return rt.readCutOffs(ctx, db)
	}
	return err
}

// readCutOffs reads all that was cut off.
func (rt *runtime) readCutOffs(ctx context.Context, db *store.DB) error {
	// What came before may have taken as long as there are imported keys.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), importedTimeout)
	defer cancel()
	rt.cutMu.Lock() // who reads later knows more
	defer rt.cutMu.Unlock()
	all := verifier.NewCutOffs()
	if err := db.CutOffs(ctx, func(c auth.CutOff) error { all.Add(c); return nil }); err != nil {
		return err
	}
	rt.verifier.SetCutOffs(all)
	return nil
}

// cutOffsAgain tries again to read what could not be read.
func (rt *runtime) cutOffsAgain() {
	db := rt.db.Load()
	if db == nil || rt.verifier.CutOffs() != nil {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), openTimeout)
	defer cancel()
	if err := rt.readCutOffs(ctx, db); err != nil && lately(&rt.lastFailure) {
		rt.logger().Error("reading what was cut off; tokens of other issuers get 503 until it is read", zap.Error(err))
	}
}
