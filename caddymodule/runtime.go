package caddymodule

import (
	"context"
	"errors"
	"math"
	"sync"
	"sync/atomic"
	"time"

	"github.com/caddyserver/caddy/v2"
	"go.uber.org/zap"

	"github.com/caddy-auth/caddy-auth/internal/assertion"
	"github.com/caddy-auth/caddy-auth/internal/auth"
	"github.com/caddy-auth/caddy-auth/internal/cache"
	"github.com/caddy-auth/caddy-auth/internal/feed"
	"github.com/caddy-auth/caddy-auth/internal/login"
	"github.com/caddy-auth/caddy-auth/internal/oauth"
	"github.com/caddy-auth/caddy-auth/internal/pace"
	"github.com/caddy-auth/caddy-auth/internal/secret"
	"github.com/caddy-auth/caddy-auth/internal/store"
	"github.com/caddy-auth/caddy-auth/internal/stream"
	"github.com/caddy-auth/caddy-auth/internal/verifier"
)

// runtimes keeps what survives reloads.
var runtimes = caddy.NewUsagePool()

// runtimeKey is everything that makes two runtimes different: what filled
// their caches.
type runtimeKey struct {
	store   string
	secrets [32]byte
}

const (
	openTimeout  = 10 * time.Second
	leaveTimeout = 3 * time.Second
	// importedTimeout bounds the reading of all imported keys, of which there
	// may be millions.
	importedTimeout = time.Minute
	retryInterval   = time.Second
	usesInterval    = 10 * time.Second
	usesPerTx       = 500
	// usesPerRound bounds what last-used times cost: with more keys in use
	// each is written less often.
	usesPerRound  = 1000
	pruneInterval = time.Hour
	journalKept   = 24 * time.Hour
	// A runtime that a reload replaced ends when no request has used it for
	// quietTicks ticks: a request of the old configuration may still be in a
	// handler before ours. One that comes later gets 503.
	drainTick  = 100 * time.Millisecond
	quietTicks = 50
	// openWait is how long a request waits for a store that is just being
	// opened: Caddy may serve before this app has started.
	openWait = 5 * time.Second
	// failureInterval is how often a lasting failure is logged.
	failureInterval = 15 * time.Second
)

// runtime is a store, its caches and the verifier over both.
type runtime struct {
	backend Backend
	masters []auth.Secret // newest first

	memory   *cache.Memory
	follower *feed.Follower
	verifier *verifier.Verifier
	streams  *stream.Registry
	leaks    leakLog
	refusals refusalLog
	pacer    *pace.Pacer // of refusals
	issuing  *oauth.Batcher
	failures *oauth.Failures // of clients that could not prove to be one
	users    atomic.Int64    // requests inside
	touched  touches         // sessions whose use was noted lately
	enders   sync.Map        // the logins at work, as *loginSource
	attempts *login.Attempts // codes that were no good

	now     atomic.Pointer[settings] // those in force, never nil
	settled atomic.Pointer[settings] // the last ones that settle saw
	linkMu  sync.Mutex               // held while the shared tier is exchanged; guards bell
	bell    doorbell
	opened  chan struct{} // closed when the first try to open the store has ended

	lookBad     atomic.Bool  // the last look at the store failed
	redisDown   atomic.Bool  // that Redis can't be used was logged
	lastFailure atomic.Int64 // unix nanoseconds
	lastRedis   atomic.Int64
	lastWrite   atomic.Int64
	lastPrefix  atomic.Int64
	lastBell    atomic.Int64
	lastBeat    atomic.Int64

	lastAssertion atomic.Int64
	assertLate    atomic.Bool // reading the assertion keys failed

	cutMu    sync.Mutex // held while cut-offs are read
	assertMu sync.Mutex // held while assertion keys are read

	db       atomic.Pointer[store.DB]
	ring     atomic.Pointer[secret.Ring]
	envelope atomic.Pointer[secret.Envelope]
	signer   atomic.Pointer[assertion.Signer] // of assertions; nil: its keys are not known

	known atomic.Pointer[[]string] // prefixes, never nil

	openedOnce, endOnce sync.Once

	startMu sync.Mutex // guards started and background
	started bool
	stop    context.CancelFunc
	done    sync.WaitGroup

	usesMu  sync.Mutex // held while last-used times are written
	pending []auth.Use
}

func newRuntime(backend Backend, masters []auth.Secret) *runtime {
	rt := &runtime{backend: backend, masters: masters, pacer: pace.New(), opened: make(chan struct{})}
	rt.now.Store(&settings{log: zap.NewNop(), prefix: DefaultKeyPrefix})
	rt.memory = cache.NewMemory(cache.Limits{})
	rt.follower = feed.New(journal{rt}, rt.memory, newNode(), feed.Config{}, feed.Events{
		Booted:      rt.booted,
		Learning:    rt.learning,
		Applied:     rt.applied,
		LostHistory: rt.lostHistory,
		Emptied:     func() { rt.streams.DoubtAll() },
		Looked:      func() { rt.lookBad.Store(false) },
		LookFailed:  rt.lookFailed,
		BeatFailed:  rt.beatFailed,
		Rung:        func(news bool) { metrics.rung(news) },
	})
	rt.verifier = verifier.New(rt.memory, rt.follower, rt, meter{}, verifier.Hooks{})
	rt.streams = stream.NewRegistry(rt.verifier)
	rt.issuing, rt.failures = oauth.NewBatcher(rt.writeTokens), oauth.NewFailures()
	rt.attempts = login.NewAttempts()
	rt.leaks.rt = rt
	rt.known.Store(&[]string{DefaultKeyPrefix})
	return rt
}

// enter and leave are called around every request that uses the runtime.
func (rt *runtime) enter() { rt.users.Add(1) }
func (rt *runtime) leave() { rt.users.Add(-1) }

func (rt *runtime) logger() *zap.Logger { return rt.now.Load().log }

// start opens the store and begins to follow its journal. Called again, by
// another configuration, it does nothing.
func (rt *runtime) start() error {
	rt.startMu.Lock()
	defer rt.startMu.Unlock()
	if rt.started {
		return nil
	}
	defer rt.openedOnce.Do(func() { close(rt.opened) })
	rt.memory.SetLimits(rt.now.Load().limits) // it is empty yet
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
	db, ring, made, err := openAndInit(ctx, rt.backend, rt.masters, "gateway", rt.now.Load().prefix)
	if err != nil {
		return err
	}
	minter, err := db.Minter(ctx, ring)
	if err != nil {
		_ = db.Close() // the first error is the one to report
		return err
	}
	// Only now is it known that the master key is the right one.
	if err := db.EnsureSealing(ctx, "gateway", ring); err != nil {
		rt.logger().Warn("the secret for shared records could not be written; redis is not used", zap.Error(err))
	}
	if _, open, err := ringOf(ctx, db, rt.masters, rt.backend); err == nil && open {
		rt.logger().Warn("the store's secrets are still sealed under no master key: run caddy-auth store rotate-secrets", zap.String("store", rt.backend.Describe()))
	}
	rt.ring.Store(ring)
	rt.learn(minter.Prefixes()...) // the verifier gets them with the first look
	rt.setEnvelope(ctx, db, ring)
	if err := db.Warm(ctx); err != nil {
		rt.logger().Warn("not all connections to the store could be opened; others are tried as they are needed", zap.Error(hinted(err)))
	}
	rt.db.Store(db)
	rt.ensurePrefix(ctx, rt.now.Load().prefix)
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
	rt.streams.Start()
	defer rt.streams.Stop()
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
			rt.writeRefusals()
		case <-prune.C:
			rt.prune()
		case <-secrets.C:
			rt.settle()
			if rt.verifier.Minter() == nil { // reading them failed when they changed
				rt.secretsChanged()
			}
			rt.cutOffsAgain()
			rt.ensureAssertionKeys()
		}
	}
}

// Destruct implements caddy.Destructor: the last configuration that used this
// runtime is gone. Requests of it may still be running: then it goes on until
// the last of them has ended.
func (rt *runtime) Destruct() error {
	rt.startMu.Lock()
	defer rt.startMu.Unlock()
	if !rt.started {
		return nil
	}
	if caddy.Exiting() {
		return rt.end()
	}
	rt.writeUses(math.MaxInt)
	rt.drains(true)
	go func() {
		tick := time.NewTicker(drainTick)
		defer tick.Stop()
		for quiet := 0; quiet < quietTicks; quiet++ {
			<-tick.C
			if rt.users.Load() > 0 {
				quiet = -1
			}
		}
		if err := rt.end(); err != nil {
			caddy.Log().Named("auth").Warn("closing a store that a reload replaced", zap.Error(err))
		}
	}()
	return nil
}

// awaitOpen lets a request wait while the store is opened for the first time.
func (rt *runtime) awaitOpen(ctx context.Context) {
	select {
	case <-rt.opened:
		return
	default:
	}
	timer := time.NewTimer(openWait)
	defer timer.Stop()
	select {
	case <-rt.opened:
	case <-timer.C:
	case <-ctx.Done():
	}
}

// end stops all work and closes the store. Nothing is trusted after it, since
// nobody follows the journal any more: whatever is still under way is ended,
// and only then is the gateway deregistered. Called again it does nothing.
func (rt *runtime) end() (err error) {
	rt.endOnce.Do(func() { err = rt.endNow() })
	return err
}

func (rt *runtime) endNow() error {
	rt.stop()
	rt.done.Wait()
	rt.follower.Retire() // also what a late request begins
	rt.drains(false)
	rt.verifier.SetShared(nil)
	masker.SetImported(rt, nil)
	rt.linkMu.Lock()
	rt.linkBell(&settings{})
	rt.linkMu.Unlock()
	db := rt.db.Load()
	if db == nil {
		return nil
	}
	rt.writeUses(math.MaxInt)
	rt.writeRefusals()
	rt.streams.EndAll(stream.ReasonStopped)
	rt.deregister(db)
	return db.Close()
}
