package caddymodule

import (
	"context"
	"errors"
	"fmt"
	"math"
	"sync"
	"sync/atomic"
	"time"

	"github.com/caddyserver/caddy/v2"
	"go.uber.org/zap"

	"github.com/caddy-auth/caddy-auth/internal/auth"
	"github.com/caddy-auth/caddy-auth/internal/cache"
	"github.com/caddy-auth/caddy-auth/internal/feed"
	"github.com/caddy-auth/caddy-auth/internal/secret"
	"github.com/caddy-auth/caddy-auth/internal/store"
	"github.com/caddy-auth/caddy-auth/internal/verifier"
)

// runtimes keeps what survives reloads.
var runtimes = caddy.NewUsagePool()

// runtimeKey is everything that makes two runtimes different.
type runtimeKey struct {
	store     string
	master    [32]byte
	prefix    string
	limits    cache.Limits
	following feed.Config
}

const (
	openTimeout   = 10 * time.Second
	retryInterval = time.Second
	usesInterval  = 10 * time.Second
	usesPerTx     = 500
	// usesPerRound bounds what last-used times cost: with more keys in use
	// each is written less often.
	usesPerRound  = 1000
	pruneInterval = time.Hour
	journalKept   = 24 * time.Hour
	// drainTime is how long a runtime that a reload replaced keeps its store
	// open for requests that still use it.
	drainTime = 30 * time.Second
	// failureInterval is how often a lasting failure is logged.
	failureInterval = 15 * time.Second
)

// runtime is a store, its caches and the verifier over both.
type runtime struct {
	key     runtimeKey
	backend Backend
	master  auth.Secret

	memory   *cache.Memory
	follower *feed.Follower
	verifier *verifier.Verifier
	log      atomic.Pointer[zap.Logger]
	leaks    leakLog

	lastFailure atomic.Int64 // unix nanoseconds

	db   atomic.Pointer[store.DB]
	ring atomic.Pointer[secret.Ring]

	known atomic.Pointer[[]string] // prefixes, never nil

	startMu sync.Mutex // guards started and background
	started bool
	stop    context.CancelFunc
	done    sync.WaitGroup
	pending []auth.Use // of the goroutine that writes last-used times
}

func newRuntime(key runtimeKey, backend Backend, master auth.Secret) *runtime {
	rt := &runtime{key: key, backend: backend, master: master}
	rt.setLogger(zap.NewNop())
	rt.memory = cache.NewMemory(key.limits)
	rt.follower = feed.New(journal{rt}, rt.memory, key.following, feed.Events{
		Booted:      rt.readSecrets,
		Applied:     rt.applied,
		LostHistory: rt.lostHistory,
		LookFailed:  rt.lookFailed,
	})
	rt.verifier = verifier.New(rt.memory, rt.follower, rt, verifier.Hooks{})
	rt.leaks.rt = rt
	rt.known.Store(&[]string{key.prefix})
	return rt
}

func (rt *runtime) setLogger(l *zap.Logger) { rt.log.Store(l) }
func (rt *runtime) logger() *zap.Logger     { return rt.log.Load() }

// start opens the store and begins to follow its journal. Called again, by
// another configuration, it does nothing.
func (rt *runtime) start() error {
	rt.startMu.Lock()
	defer rt.startMu.Unlock()
	if rt.started {
		return nil
	}
	err := rt.open()
	if err != nil && !errors.Is(err, auth.ErrUnavailable) {
		return hinted(err)
	}
	rt.started = true
	ctx, cancel := context.WithCancel(context.Background())
	rt.stop = cancel
	if err != nil {
		rt.logger().Error("the store can't be reached; requests get 503 until it can", zap.Error(hinted(err)))
	} else {
		_ = rt.follower.Look(ctx) // before the first request, if it can be; failures are logged
	}
	rt.done.Add(1)
	go func() {
		defer rt.done.Done()
		rt.run(ctx, err != nil)
	}()
	return nil
}

// open opens, and if need be makes, the store.
func (rt *runtime) open() error {
	ctx, cancel := context.WithTimeout(context.Background(), openTimeout)
	defer cancel()
	db, ring, made, err := openAndInit(ctx, rt.backend, rt.master, "gateway", rt.key.prefix)
	if err != nil {
		return err
	}
	rt.ring.Store(ring)
	if err := db.EnsurePrefix(ctx, "gateway", rt.key.prefix); err != nil {
		rt.logger().Warn("the new key prefix could not be written; keys with it can't be issued", zap.Error(err))
	}
	minter, err := db.Minter(ctx, ring)
	if err != nil {
		_ = db.Close() // the first error is the one to report
		return err
	}
	rt.setMinter(minter)
	rt.db.Store(db)
	if made {
		rt.logger().Info("made a new store", zap.String("store", rt.backend.Describe()))
	}
	return nil
}

// run retries opening if need be, then follows the journal and writes
// last-used times until ctx ends.
func (rt *runtime) run(ctx context.Context, retry bool) {
	for retry {
		select {
		case <-ctx.Done():
			return
		case <-time.After(retryInterval):
		}
		err := rt.open()
		retry = err != nil
		if err != nil {
			rt.lookFailed(err)
		}
	}
	rt.follower.Start()
	defer rt.follower.Stop()
	uses := time.NewTicker(usesInterval)
	defer uses.Stop()
	prune := time.NewTicker(pruneInterval)
	defer prune.Stop()
	secrets := time.NewTicker(retryInterval)
	defer secrets.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-uses.C:
			rt.writeUses(usesPerRound)
		case <-prune.C:
			rt.prune()
		case <-secrets.C:
			if rt.verifier.Minter() == nil { // reading them failed when they changed
				rt.applied(auth.Change{Kind: store.ChangeSecrets})
			}
		}
	}
}

// Destruct implements caddy.Destructor: the last configuration that used this
// runtime is gone. Requests of it may still be running.
func (rt *runtime) Destruct() error {
	rt.startMu.Lock()
	defer rt.startMu.Unlock()
	if !rt.started {
		return nil
	}
	rt.stop()
	rt.done.Wait()
	db := rt.db.Load()
	if db == nil {
		return nil
	}
	rt.writeUses(math.MaxInt)
	if caddy.Exiting() {
		return db.Close()
	}
	time.AfterFunc(drainTime, func() {
		rt.writeUses(math.MaxInt)
		if err := db.Close(); err != nil {
			caddy.Log().Warn("closing a store that a reload replaced", zap.Error(err))
		}
	})
	return nil
}

// LookupKey implements verifier.Keys.
func (rt *runtime) LookupKey(ctx context.Context, fp auth.Fingerprint) (store.Loaded, error) {
	db := rt.db.Load()
	if db == nil {
		return store.Loaded{}, fmt.Errorf("the store is not open: %w", auth.ErrUnavailable)
	}
	return db.LookupKey(ctx, fp)
}

// setMinter gives the verifier its secrets; the prefixes stay known when the
// secrets don't, so that keys in URLs are recognized in an outage too.
func (rt *runtime) setMinter(m *secret.Minter) {
	if m != nil {
		known := m.Prefixes()
		rt.known.Store(&known)
	}
	rt.verifier.SetMinter(m)
}

// prefixes returns the prefixes keys can have.
func (rt *runtime) prefixes() []string { return *rt.known.Load() }

// readSecrets reads the minting secrets and prefixes anew.
func (rt *runtime) readSecrets(ctx context.Context) error {
	db, ring := rt.db.Load(), rt.ring.Load()
	if db == nil || ring == nil {
		return fmt.Errorf("the store is not open: %w", auth.ErrUnavailable)
	}
	m, err := db.Minter(ctx, ring)
	if errors.Is(err, secret.ErrWrongKey) {
		// The key file may have been put back together with the database.
		if ring, err = masterRing(rt.master, rt.backend, false); err != nil {
			return err
		}
		m, err = db.Minter(ctx, ring)
	}
	if err != nil {
		return err
	}
	rt.ring.Store(ring)
	rt.setMinter(m)
	return nil
}

func (rt *runtime) applied(c auth.Change) {
	if c.Kind != store.ChangeSecrets {
		return
	}
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

func (rt *runtime) lookFailed(err error) {
	now := time.Now().UnixNano()
	if last := rt.lastFailure.Load(); now-last < int64(failureInterval) || !rt.lastFailure.CompareAndSwap(last, now) {
		return
	}
	rt.logger().Error("the store can't be read; cached verdicts are trusted until max_staleness, then requests get 503",
		zap.Error(hinted(err)), zap.Duration("last_look", min(rt.follower.Age(time.Now()), 365*24*time.Hour)))
}

// writeUses writes up to limit collected last-used times, in batches.
func (rt *runtime) writeUses(limit int) {
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

func (rt *runtime) prune() {
	db := rt.db.Load()
	if db == nil {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), openTimeout)
	defer cancel()
	if err := db.PruneJournal(ctx, time.Now().Add(-journalKept).UnixMilli()); err != nil {
		rt.logger().Warn("pruning the journal", zap.Error(err))
	}
}

// journal is the store as the follower sees it.
type journal struct{ rt *runtime }

func (j journal) open() (*store.DB, error) {
	if db := j.rt.db.Load(); db != nil {
		return db, nil
	}
	return nil, fmt.Errorf("the store is not open: %w", auth.ErrUnavailable)
}

// Look implements feed.Journal.
func (j journal) Look(ctx context.Context, cursor int64) (feed.Look, error) {
	db, err := j.open()
	if err != nil {
		return feed.Look{}, err
	}
	l, err := db.Look(ctx, cursor)
	return feed.Look{
		Epoch: l.Epoch, First: l.First, Head: l.Head, AtCursor: l.AtCursor, AtCursorOK: l.AtCursorOK,
		Rows: l.Rows, More: len(l.Rows) == store.MaxLookRows,
	}, err
}

// Tail implements feed.Journal.
func (j journal) Tail(ctx context.Context, since int64) (auth.Epoch, []auth.Change, error) {
	db, err := j.open()
	if err != nil {
		return auth.Epoch{}, nil, err
	}
	return db.Tail(ctx, since)
}

// NewEpoch implements feed.Journal.
func (j journal) NewEpoch(ctx context.Context, old, next auth.Epoch) error {
	db, err := j.open()
	if err != nil {
		return err
	}
	return db.NewEpoch(ctx, old, next)
}

// Reopen implements feed.Journal.
func (j journal) Reopen(ctx context.Context) error {
	db, err := j.open()
	if err != nil {
		return err
	}
	return db.Reopen(ctx)
}

// hinted puts an error's hint into its text, for logs and Caddy's own output.
func hinted(err error) error {
	if h := auth.Hint(err); h != "" {
		return fmt.Errorf("%w (hint: %s)", err, h)
	}
	return err
}
