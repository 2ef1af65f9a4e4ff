package verifier_test

import (
	"context"
	"database/sql"
	"errors"
	"os"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/caddy-auth/caddy-auth/internal/auth"
	"github.com/caddy-auth/caddy-auth/internal/feed"
	"github.com/caddy-auth/caddy-auth/internal/manage"
	"github.com/caddy-auth/caddy-auth/internal/store"
	"github.com/caddy-auth/caddy-auth/internal/verifier"
)

func TestVerify_LifeOfAKey(t *testing.T) {
	n := newNode(t)
	ctx := t.Context()
	k := n.create("acme")
	v := n.verify(k)
	if v.Outcome != auth.Allow || v.Identity.Subject != "acme" || v.Identity.Scopes != "a b" || v.Identity.CredentialID != k.Key.ID || v.Identity.Environment != "live" {
		t.Fatalf("verdict %+v", v)
	}
	n.verify(k)
	if got := n.loads.Load(); got != 1 {
		t.Errorf("%d loads for two requests", got)
	}

	_, err := n.manage.SetDisabled(ctx, []string{k.Key.ID}, true, "")
	n.must(err)
	n.want(k, auth.Allow, auth.ReasonNone) // not looked yet
	n.look()
	n.want(k, auth.Deny, auth.ReasonDisabled)
	_, err = n.manage.SetDisabled(ctx, []string{k.Key.ID}, false, "")
	n.must(err)
	n.look()
	n.want(k, auth.Allow, auth.ReasonNone)

	_, err = n.manage.SetOwnerDisabled(ctx, "acme", true, "")
	n.must(err)
	n.look()
	n.want(k, auth.Deny, auth.ReasonOwnerDisabled)
	_, err = n.manage.SetOwnerDisabled(ctx, "acme", false, "")
	n.must(err)
	n.look()
	n.want(k, auth.Allow, auth.ReasonNone) // the denial carried its owner

	made, err := n.manage.Rotate(ctx, k.Key.ID, time.Hour, nil)
	n.must(err)
	n.look()
	n.want(k, auth.Allow, auth.ReasonNone)
	n.want(made, auth.Allow, auth.ReasonNone)
	if v := n.verifier.VerifyKey(ctx, k.Text.Reveal(), time.Now().Add(2*time.Hour)); v.Outcome == auth.Allow {
		t.Error("the old key works after its overlap")
	}
	again, err := n.manage.Rotate(ctx, made.Key.ID, 0, nil)
	n.must(err)
	n.look()
	n.want(made, auth.Deny, auth.ReasonReplaced)
	n.revoke(again)
	n.look()
	n.want(again, auth.Deny, auth.ReasonRevoked)
}

func TestVerify_ExpiryIsJudgedOnEveryRequest(t *testing.T) {
	n := newNode(t)
	made, err := n.manage.Create(t.Context(), manage.KeySpec{Owner: "acme", ExpiresAt: time.Now().Add(time.Hour).UnixMilli()})
	n.must(err)
	n.want(made, auth.Allow, auth.ReasonNone)
	now := time.Now()
	end := time.UnixMilli(made.Key.ExpiresAt)
	for at, want := range map[time.Time]auth.Outcome{now: auth.Allow, end.Add(-time.Millisecond): auth.Allow, end: auth.Deny, end.Add(time.Hour): auth.Deny} {
		// The clock moved, but the look is recent.
		v := n.verifier.VerifyKey(t.Context(), made.Text.Reveal(), at)
		if at.Sub(now) < time.Minute && v.Outcome != want {
			t.Errorf("at %s: %d, want %d", at.Sub(now), v.Outcome, want)
		}
		if want == auth.Deny && v.Outcome == auth.Allow {
			t.Errorf("at %s: allowed", at.Sub(now))
		}
	}
}

func TestVerify_JunkCostsNoLookup(t *testing.T) {
	n := newNode(t)
	good := n.create("acme").Text.Reveal()
	last := good[len(good)-1]
	flipped := good[:len(good)-1] + string("AB"[b2i(last == 'A')])
	for junk, want := range map[string]auth.Reason{
		"":                                       auth.ReasonMalformed,
		"x":                                      auth.ReasonMalformed,
		strings.ToUpper(good):                    auth.ReasonMalformed,
		flipped:                                  auth.ReasonForged,
		"zz" + good[2:]:                          auth.ReasonMalformed,
		"eyJhbGciOiJub25lIn0.eyJzdWIiOiJ4In0.":   auth.ReasonMalformed,
		strings.Replace(good, "live", "test", 1): auth.ReasonForged,
		auth.FingerprintOf(good).String():        auth.ReasonMalformed,
		strings.Repeat("A", 8000):                auth.ReasonMalformed,
	} {
		if v := n.verifier.VerifyKey(t.Context(), junk, time.Now()); v.Outcome != auth.Deny || v.Reason != want {
			t.Errorf("%.40q: outcome %d reason %s, want %s", junk, v.Outcome, v.Reason, want)
		}
	}
	if n.loads.Load() != 0 {
		t.Errorf("%d lookups for junk", n.loads.Load())
	}
	n.away.Store(true)
	if v := n.verifier.VerifyKey(t.Context(), flipped, time.Now()); v.Outcome != auth.Deny {
		t.Error("a forged key is not refused in an outage")
	}
}

func b2i(b bool) int {
	if b {
		return 1
	}
	return 0
}

func TestVerify_OutageIsNoDenial(t *testing.T) {
	n := newNode(t)
	cached, cold := n.create("acme"), n.create("acme")
	n.want(cached, auth.Allow, auth.ReasonNone)
	n.away.Store(true)
	n.want(cached, auth.Allow, auth.ReasonNone)
	v := n.verify(cold)
	if v.Outcome != auth.CannotDecide || !errors.Is(v.Cause, auth.ErrUnavailable) {
		t.Errorf("verdict %+v", v)
	}
	if v := n.verifier.VerifyKey(t.Context(), cached.Text.Reveal(), time.Now().Add(2*time.Minute)); v.Outcome != auth.CannotDecide || !errors.Is(v.Cause, auth.ErrStale) {
		t.Errorf("after max_staleness: %+v", v)
	}
	n.away.Store(false)
	n.want(cold, auth.Allow, auth.ReasonNone) // the outage was not cached
}

func TestVerify_UndecidedWithoutSecrets(t *testing.T) {
	n := newNode(t)
	k := n.create("acme")
	n.verifier.SetMinter(nil)
	if v := n.verify(k); v.Outcome != auth.CannotDecide {
		t.Errorf("outcome %d", v.Outcome)
	}
}

// Trace "fence": a read that began before a revocation must not be written
// back or returned after the revocation was applied.
func TestTrace_RevokedBetweenReadAndInsert(t *testing.T) {
	n := newNode(t)
	k := n.create("acme")
	n.look()
	n.setHooks(verifier.Hooks{AfterLoad: func(run int) {
		if run == 0 {
			n.revoke(k)
			n.look()
		}
	}})
	n.want(k, auth.Deny, auth.ReasonRevoked)
	if n.loads.Load() != 2 {
		t.Errorf("%d runs, want 2", n.loads.Load())
	}
	n.setHooks(verifier.Hooks{})
	n.want(k, auth.Deny, auth.ReasonRevoked)
}

// Trace "remember before drop": the look is stopped between the two, while a
// load that read the old row tries to land.
func TestTrace_LandingBetweenRememberAndDrop(t *testing.T) {
	n := newNode(t)
	k := n.create("acme")
	n.look()
	remembered, goOn := make(chan struct{}), make(chan struct{})
	first := true
	n.follower = feed.New(journal{n}, n.memory, auth.Node{ID: "node_2"}, feed.Config{MaxStaleness: time.Minute}, feed.Events{Remembered: func(auth.Change) {
		if first {
			first = false
			close(remembered)
			<-goOn
		}
	}})
	n.look()
	minter := n.verifier.Minter()
	looked := make(chan error, 1)
	release := sync.OnceFunc(func() { close(goOn) })
	n.verifier = verifier.New(n.memory, n.follower, n, onFenced(release), verifier.Hooks{
		AfterLoad: func(run int) {
			if run == 0 {
				n.revoke(k)
				go func() { looked <- n.follower.Look(context.Background()) }()
				<-remembered // the load lands now: nothing is dropped yet
			}
		},
	})
	n.verifier.SetMinter(minter)
	n.want(k, auth.Deny, auth.ReasonRevoked)
	release()
	n.must(<-looked)
	n.want(k, auth.Deny, auth.ReasonRevoked)
}

// onFenced is a meter that calls itself when a landing was refused.
type onFenced func()

func (f onFenced) Lookup(_ verifier.Tier, r verifier.Result) {
	if r == verifier.Fenced {
		f()
	}
}
func (onFenced) Took(verifier.Tier, time.Duration)        {}
func (onFenced) Wait(context.Context) func(*auth.Verdict) { return func(*auth.Verdict) {} }

// Trace "check, insert and closing the flight in one step": a change is
// applied right after the fence passed; the insert must be found by its drop.
func TestTrace_RevokedBetweenFenceAndInsert(t *testing.T) {
	n := newNode(t)
	k := n.create("acme")
	n.look()
	looked := make(chan struct{})
	n.setHooks(verifier.Hooks{AfterFence: func() {
		n.setHooks(verifier.Hooks{})
		n.revoke(k)
		go func() {
			defer close(looked)
			_ = n.follower.Look(context.Background())
		}()
		for range 1000 { // the look reaches the drop and must wait there
			runtime.Gosched()
		}
	}})
	n.verify(k) // began before the revocation was applied: either answer is right
	<-looked
	n.want(k, auth.Deny, auth.ReasonRevoked)
}

// Trace "joins a finished load": a waiter that comes after a revocation was
// applied must not get the answer of a load that began before.
func TestTrace_LateJoiner(t *testing.T) {
	n := newNode(t)
	k := n.create("acme")
	n.look()
	joined := make(chan struct{})
	late := make(chan auth.Verdict, 1)
	n.setHooks(verifier.Hooks{
		AfterJoin: func() { close(joined) },
		AfterLoad: func(run int) {
			if run > 0 {
				return
			}
			n.revoke(k)
			n.look()
			go func() { late <- n.verify(k) }()
			<-joined
		},
	})
	n.verify(k)
	if v := <-late; v.Outcome != auth.Deny {
		t.Errorf("a request that arrived after the revocation was applied got %d", v.Outcome)
	}
}

// Trace "negatives carry their parents": a load that found the owner disabled
// is overtaken by the owner's being enabled.
func TestTrace_NegativeOvertakenByItsParent(t *testing.T) {
	n := newNode(t)
	k := n.create("acme")
	_, err := n.manage.SetOwnerDisabled(t.Context(), "acme", true, "")
	n.must(err)
	n.look()
	n.setHooks(verifier.Hooks{AfterLoad: func(run int) {
		if run == 0 {
			_, err := n.manage.SetOwnerDisabled(context.Background(), "acme", false, "")
			if err != nil {
				t.Error(err)
			}
			n.look()
		}
	}})
	n.want(k, auth.Allow, auth.ReasonNone)
}

// Trace: a key that is looked up before it exists works as soon as it does.
func TestTrace_CreationDropsTheDenial(t *testing.T) {
	n := newNode(t)
	minter := n.verifier.Minter()
	text, err := minter.Mint("ca", "live")
	n.must(err)
	ghost := manage.Made{Text: text}
	n.want(ghost, auth.Deny, auth.ReasonUnknown)
	loads := n.loads.Load()
	n.want(ghost, auth.Deny, auth.ReasonUnknown)
	if n.loads.Load() != loads {
		t.Error("the denial was not cached")
	}
	err = n.db.Change(t.Context(), "test", func(tx *store.Tx) error {
		ctx := t.Context()
		if _, err := tx.EnsureOwner(ctx, "acme"); err != nil {
			return err
		}
		fp := auth.FingerprintOf(text.Reveal())
		if err := tx.InsertKey(ctx, &auth.Key{ID: "key_x", Fingerprint: fp, Owner: "acme", Environment: "live", Meta: map[string]string{}}); err != nil {
			return err
		}
		return errors.Join(tx.Journal(ctx, store.ChangeKeyCreate, []auth.Fingerprint{fp}, auth.Parent{}), tx.Audit(ctx, "key.create", "key_x", nil))
	})
	n.must(err)
	n.look()
	n.want(ghost, auth.Allow, auth.ReasonNone)
}

// Trace: a load that is overtaken three times is refused as undecided, and
// neither kept nor counted as a denial.
func TestTrace_ThreeRunsThen503(t *testing.T) {
	n := newNode(t)
	k := n.create("acme")
	n.look()
	n.setHooks(verifier.Hooks{AfterLoad: func(int) {
		_, err := n.manage.Edit(context.Background(), []string{k.Key.ID}, func(s *manage.KeySpec) { s.Name += "x" })
		if err != nil {
			t.Error(err)
		}
		n.look()
	}})
	v := n.verify(k)
	if v.Outcome != auth.CannotDecide || !errors.Is(v.Cause, auth.ErrFenced) {
		t.Errorf("verdict %+v", v)
	}
	if n.loads.Load() != 3 {
		t.Errorf("%d runs, want 3", n.loads.Load())
	}
	n.setHooks(verifier.Hooks{})
	n.want(k, auth.Allow, auth.ReasonNone)
}

// Trace: a load ahead of the cursor looks first, and does not lose a run.
func TestTrace_LoadAheadOfTheCursorLooks(t *testing.T) {
	n := newNode(t)
	k := n.create("acme") // the follower has not looked since
	before, _ := n.follower.Position()
	n.want(k, auth.Allow, auth.ReasonNone)
	if after, _ := n.follower.Position(); after == before {
		t.Error("did not look")
	}
	if n.loads.Load() != 1 {
		t.Errorf("%d runs, want 1", n.loads.Load())
	}
	n.revoke(k)
	other := n.create("acme")
	n.want(other, auth.Allow, auth.ReasonNone) // its load looked, and so applied the revocation
	n.want(k, auth.Deny, auth.ReasonRevoked)
}

// Trace "as_of as (sequence, row id)": a backup is restored that never held
// the key; another change then has the creation's sequence number.
func TestTrace_RestoredStore(t *testing.T) {
	n := newNode(t)
	n.create("someone")
	backup := copyDB(t, n)
	k := n.create("acme")
	n.want(k, auth.Allow, auth.ReasonNone)

	n.must(os.Rename(backup, n.path)) // another file, without a write-ahead log
	for _, suffix := range []string{"-wal", "-shm"} {
		_ = os.Remove(n.path + suffix)
	}
	old := n.follower
	n.look()
	n.want(k, auth.Deny, auth.ReasonUnknown)
	if old != n.follower {
		t.Fatal("the follower changed")
	}
	n.create("somebody.else")
	n.look()
	n.want(k, auth.Deny, auth.ReasonUnknown)
}

// copyDB makes a backup as SQLite itself does and returns its path.
func copyDB(t *testing.T, n *node) string {
	t.Helper()
	path := n.path + ".backup"
	db, err := sql.Open("sqlite", n.path)
	n.must(err)
	defer db.Close()
	_, err = db.ExecContext(t.Context(), "VACUUM INTO ?", path)
	n.must(err)
	return path
}

func TestTrace_LoadBegunBeforeARestore(t *testing.T) {
	n := newNode(t)
	n.create("someone")
	n.look()
	backup := copyDB(t, n)
	k := n.create("acme")
	n.setHooks(verifier.Hooks{AfterLoad: func(run int) {
		if run == 0 {
			if err := os.Rename(backup, n.path); err != nil {
				t.Error(err)
			}
			for _, suffix := range []string{"-wal", "-shm"} {
				_ = os.Remove(n.path + suffix)
			}
			n.look()
		}
	}})
	n.want(k, auth.Deny, auth.ReasonUnknown)
}

func TestVerify_HerdMakesOneRead(t *testing.T) {
	n := newNode(t)
	k := n.create("acme")
	n.look()
	const herd = 10_000
	joined := make(chan struct{}, herd)
	n.setHooks(verifier.Hooks{
		AfterJoin: func() { joined <- struct{}{} },
		BeforeLoad: func(int) {
			for range herd - 1 {
				<-joined
			}
		},
	})
	var wg sync.WaitGroup
	for range herd {
		wg.Go(func() {
			if v := n.verify(k); v.Outcome != auth.Allow {
				t.Errorf("outcome %d, %v", v.Outcome, v.Cause)
			}
		})
	}
	wg.Wait()
	if got := n.loads.Load(); got != 1 {
		t.Errorf("%d reads for %d requests", got, herd)
	}
}

func TestVerify_BoundsLookupsInFlight(t *testing.T) {
	n := newNode(t)
	minter := n.verifier.Minter()
	block, entered := make(chan struct{}), make(chan struct{}, verifier.MaxLoads)
	n.setHooks(verifier.Hooks{BeforeLoad: func(int) {
		entered <- struct{}{}
		<-block
	}})
	var wg sync.WaitGroup
	for range verifier.MaxLoads {
		text, err := minter.Mint("ca", "live")
		n.must(err)
		wg.Go(func() { n.verifier.VerifyKey(t.Context(), text.Reveal(), time.Now()) })
	}
	for range verifier.MaxLoads {
		<-entered
	}
	text, err := minter.Mint("ca", "live")
	n.must(err)
	if v := n.verifier.VerifyKey(t.Context(), text.Reveal(), time.Now()); v.Outcome != auth.CannotDecide || !errors.Is(v.Cause, auth.ErrOverloaded) {
		t.Errorf("verdict %+v", v)
	}
	close(block)
	wg.Wait()
	n.setHooks(verifier.Hooks{})
	if v := n.verifier.VerifyKey(t.Context(), text.Reveal(), time.Now()); v.Outcome != auth.Deny {
		t.Errorf("the overload was kept: %+v", v)
	}
}

func TestVerify_ClientThatLeavesWastesNothing(t *testing.T) {
	n := newNode(t)
	k := n.create("acme")
	n.look()
	goOn := make(chan struct{})
	ctx, cancel := context.WithCancel(t.Context())
	n.setHooks(verifier.Hooks{BeforeLoad: func(int) {
		cancel()
		<-goOn
	}})
	if v := n.verifier.VerifyKey(ctx, k.Text.Reveal(), time.Now()); v.Outcome != auth.CannotDecide {
		t.Errorf("outcome %d", v.Outcome)
	}
	n.setHooks(verifier.Hooks{})
	close(goOn)
	n.want(k, auth.Allow, auth.ReasonNone)
	if n.loads.Load() != 1 {
		t.Errorf("%d loads, want the first one's result", n.loads.Load())
	}
}

func TestVerify_AllocationsOnAMemoryHit(t *testing.T) {
	n := newNode(t)
	key, now, ctx := n.create("acme").Text.Reveal(), time.Now(), t.Context()
	n.verifier.VerifyKey(ctx, key, now)
	if got := testing.AllocsPerRun(1000, func() {
		if v := n.verifier.VerifyKey(ctx, key, now); v.Outcome != auth.Allow {
			t.Fatal("not allowed")
		}
	}); got > 1 {
		t.Errorf("%v allocations, at most 1", got)
	}
}

func BenchmarkVerify(b *testing.B) {
	n := newNode(b)
	key, now, ctx := n.create("acme").Text.Reveal(), time.Now(), b.Context()
	bad := key[:len(key)-1] + "!"
	forged := key[:len(key)-8] + "00000000"
	for name, k := range map[string]string{"hit": key, "malformed": bad, "forged": forged} {
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				n.verifier.VerifyKey(ctx, k, now)
			}
		})
	}
}
