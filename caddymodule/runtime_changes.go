package caddymodule

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"
	"time"

	"go.uber.org/zap"

	"github.com/caddy-auth/caddy-auth/internal/auth"
	"github.com/caddy-auth/caddy-auth/internal/store"
)

// prefixes returns the prefixes keys can have.
func (rt *runtime) prefixes() []string { return *rt.known.Load() }

// booted is asked before the journal is trusted. Nobody begins to trust a store
// that was moved.
func (rt *runtime) booted(ctx context.Context) error {
	if db := rt.db.Load(); db != nil {
		if err := db.Usable(ctx); err != nil {
			return err
		}
	}
	rt.verifier.SetMoved(false)
	if err := rt.readSecrets(ctx); err != nil {
		return err
	}
	rt.readAssertionKeys(ctx)
	return rt.readCutOffs(ctx, rt.db.Load())
}

// readSecrets reads the minting secrets, the prefixes and the imported keys
// anew.
func (rt *runtime) readSecrets(ctx context.Context) error {
	db := rt.db.Load()
	if db == nil {
		return fmt.Errorf("the store is not open: %w", auth.ErrUnavailable)
	}
	// The key file may have been put back together with the database, and after
	// a rotation less opens the secrets than before.
	ring, _, err := ringOf(ctx, db, rt.masters, rt.backend)
	if err != nil {
		if ring = rt.ring.Load(); ring == nil { // what was read before still opens them, though its file may be gone
			return err
		}
	}
	m, err := db.Minter(ctx, ring)
	if err != nil {
		return err
	}
	rt.ring.Store(ring)
	if err := db.EnsureSealing(ctx, "gateway", ring); err != nil && !errors.Is(err, auth.ErrMoved) { // a restored store may have none
		rt.logger().Warn("the secret for shared records could not be written; redis is not used", zap.Error(err))
	}
	rt.setEnvelope(ctx, db, ring)
	if err := rt.readImported(ctx, db); err != nil {
		return err
	}
	rt.setMinter(m) // last: without the imported keys it would call them forged
	return nil
}

func (rt *runtime) applied(c auth.Change) {
	rt.streams.Applied(c)
	metrics.lag.Set(max(0, time.Since(time.UnixMilli(c.At)).Seconds()))
	switch c.Kind {
	case store.ChangeSecrets:
		rt.secretsChanged()
		rt.assertionKeysChanged()
	case store.ChangeAssertionKeys:
		rt.assertionKeysChanged()
	case store.ChangeKeyImport:
		if err := rt.learnImported(c.Fingerprints); err != nil {
			rt.setMinter(nil) // as with secrets: better not to decide
			rt.logger().Error("reading the imported keys", zap.Error(err))
		}
	case store.ChangeSession:
		rt.enders.Range(func(s, _ any) bool { s.(*loginSource).revokeSoon(); return true })
	case store.ChangeUnmoved:
		rt.verifier.SetMoved(false)
	case store.ChangeMoved: // a key that is not good here may be, where the store is now
		rt.verifier.SetMoved(true)
		rt.memory.ClearDenials()
		rt.logger().Error("the store was moved: name the new one in the configuration and reload; cached verdicts are trusted until max_staleness, then requests get 503",
			zap.String("store", rt.backend.Describe()), zap.Duration("left", rt.follower.Config().MaxStaleness-min(rt.follower.BeatAge(time.Now()), never)))
	}
}

func (rt *runtime) secretsChanged() {
	ctx, cancel := context.WithTimeout(context.Background(), openTimeout)
	defer cancel()
	if err := rt.readSecrets(ctx); err != nil {
		// Keys that need them would look forged: better not to decide.
		rt.setMinter(nil)
		rt.logger().Error("reading the store's secrets", zap.Error(err))
	}
}

func (rt *runtime) lostHistory(why string) {
	rt.logger().Error("the store went back in time or was replaced; all caches were emptied and a new epoch begins",
		zap.String("store", rt.backend.Describe()), zap.String("seen", why))
}

// never is more than any age.
const never = 365 * 24 * time.Hour

// ageField is how long ago something was, or that it never was.
func ageField(name string, age time.Duration) zap.Field {
	if age >= never {
		return zap.String(name, "never")
	}
	return zap.Duration(name, age)
}

// storeUp reports whether the store answered when it was last asked.
func (rt *runtime) storeUp() bool { return rt.db.Load() != nil && !rt.lookBad.Load() }

func (rt *runtime) lookFailed(err error) {
	rt.lookBad.Store(true)
	if !lately(&rt.lastFailure) {
		return
	}
	rt.logger().Error("the store can't be read; cached verdicts are trusted until max_staleness, then requests get 503",
		zap.Error(hinted(err)), ageField("last_look", rt.follower.Age(time.Now())))
}

// beatFailed says that nobody can know what this gateway has applied.
func (rt *runtime) beatFailed(err error) {
	if !lately(&rt.lastBeat) {
		return
	}
	if errors.Is(err, auth.ErrNotWritable) {
		rt.logger().Warn("the store can't be written: verification goes on, changes fail, and nobody can wait for this gateway", zap.Error(hinted(err)))
		return
	}
	rt.logger().Error("the heartbeat could not be written; cached verdicts are trusted until max_staleness, then requests get 503",
		zap.Error(hinted(err)), ageField("last_heartbeat", rt.follower.BeatAge(time.Now())))
}

// lately reports whether a lasting failure is due to be logged again.
func lately(last *atomic.Int64) bool {
	now := time.Now().UnixNano()
	at := last.Load()
	return now-at >= int64(failureInterval) && last.CompareAndSwap(at, now)
}

// writeUses writes up to limit collected last-used times, in batches.
func (rt *runtime) writeUses(limit int) {
	rt.usesMu.Lock()
	defer rt.usesMu.Unlock()
	db := rt.db.Load()
	if db == nil {
		return
	}
	if more := limit - len(rt.pending); more > 0 {
		rt.pending = append(rt.pending, rt.memory.TakeUses(more)...)
	}
	ctx, cancel := context.WithTimeout(context.Background(), openTimeout)
	defer cancel()
	for len(rt.pending) > 0 {
		n := min(len(rt.pending), usesPerTx)
		if err := db.RecordUse(ctx, rt.pending[:n]); err != nil {
			rt.logger().Warn("writing last-used times; they are tried again", zap.Error(err))
			return
		}
		rt.pending = rt.pending[n:]
	}
	rt.pending = nil
}

// hinted puts an error's hint into its text, for logs and Caddy's own output.
func hinted(err error) error {
	if h := auth.Hint(err); h != "" {
		return fmt.Errorf("%w (hint: %s)", err, h)
	}
	return err
}
