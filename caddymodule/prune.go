package caddymodule

import (
	"context"
	"errors"

	"go.uber.org/zap"
)

// prune removes what the store need not keep.
func (rt *runtime) prune() {
	db := rt.db.Load()
	if db == nil {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), openTimeout)
	defer cancel()
	kept := max(journalKept, 2*rt.follower.Config().Memory)
	if err := errors.Join(db.PruneJournal(ctx, kept), db.PruneNodes(ctx), db.PruneCutOffs(ctx), pruneAll(ctx, db.PruneTokens), pruneAll(ctx, db.PruneSessions)); err != nil {
		rt.logger().Warn("pruning the journal", zap.Error(err))
	}
}

// pruneAll removes what has ended, a part at a time.
func pruneAll(ctx context.Context, prune func(context.Context) (bool, error)) error {
	for {
		if more, err := prune(ctx); err != nil || !more {
			return err
		}
	}
}
