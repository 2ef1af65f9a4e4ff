package login

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"pgregory.net/rapid"

	"github.com/caddy-auth/caddy-auth/internal/auth"
	"github.com/caddy-auth/caddy-auth/internal/grant"
)

// keeper is a store in memory, of one session.
type keeper struct {
	mu      sync.Mutex
	plain   []byte
	version int64
	by      string
	until   time.Time
	ended   string
	away    bool
	reads   int
	bad     error
}

var errAway = fmt.Errorf("the store is away: %w", auth.ErrUnavailable)

func (k *keeper) do(f func()) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.away {
		return errAway
	}
	f()
	return nil
}

func (k *keeper) Tokens(context.Context, string) (out Kept, err error) {
	err = k.do(func() { k.reads++; out = Kept{Plain: bytes.Clone(k.plain), Version: k.version, Ended: k.ended != ""} })
	if err == nil && k.bad != nil {
		return Kept{Version: out.Version}, k.bad
	}
	return out, err
}

func (k *keeper) Lease(_ context.Context, _ string, version int64, by string, ttl time.Duration) (ours, after bool, err error) {
	err = k.do(func() {
		after = k.by != ""
		if ours = version == k.version && !time.Now().Before(k.until); ours {
			k.by, k.until = by, time.Now().Add(ttl)
		}
	})
	return ours, after, err
}

func (k *keeper) Release(_ context.Context, _, by string) error {
	return k.do(func() {
		if k.by == by {
			k.by, k.until = "", time.Time{}
		}
	})
}

func (k *keeper) Put(_ context.Context, _ string, version int64, plain []byte) (did bool, err error) {
	err = k.do(func() {
		if did = version == k.version; did {
			k.plain, k.version, k.by, k.until = bytes.Clone(plain), version+1, "", time.Time{}
		}
	})
	return did, err
}

func (k *keeper) End(_ context.Context, _, reason string) error {
	return k.do(func() { k.ended = reason })
}

func (k *keeper) setAway(away bool) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.away = away
}

func (k *keeper) isEnded() string {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.ended
}

// idp rotates refresh tokens, and ends everything when one is used twice.
type idp struct {
	mu       sync.Mutex
	n        int
	current  string
	life     time.Duration
	takes    time.Duration
	away     bool
	dead     bool
	reused   int
	asked    int
	revoked  []string
	inFlight int
	most     int
}

func (p *idp) grant() Tokens {
	p.n++
	p.current = fmt.Sprintf("rt%d", p.n)
	now := time.Now()
	return Tokens{tokensVersion, fmt.Sprintf("at%d", p.n), p.current, "", "alice", "", now.UnixMilli(), now.Add(p.life).UnixMilli()}
}

func (p *idp) Refresh(ctx context.Context, old Tokens) (Tokens, error) {
	p.mu.Lock()
	p.inFlight++
	p.asked++
	p.most = max(p.most, p.inFlight)
	takes := p.takes
	p.mu.Unlock()
	time.Sleep(takes)
	p.mu.Lock()
	defer p.mu.Unlock()
	p.inFlight--
	switch {
	case p.away:
		return old, grant.Unavailable("away", errAway)
	case old.Refresh != p.current:
		p.reused, p.dead = p.reused+1, true
	}
	if p.dead {
		return old, fmt.Errorf("%w: invalid_grant", ErrOver)
	}
	return p.grant(), nil
}

func (p *idp) RevokeTokens(_ context.Context, t Tokens) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.away {
		return grant.Unavailable("away", errAway)
	}
	p.revoked = append(p.revoked, t.Refresh)
	return nil
}

func (p *idp) set(f func()) {
	p.mu.Lock()
	defer p.mu.Unlock()
	f()
}

// fleet is some gateways, one store and one provider.
func fleet(n int, life, takes time.Duration) (*keeper, *idp, []*Delegate) {
	k, p := new(keeper), &idp{life: life, takes: takes}
	t := p.grant()
	k.plain, _ = t.Encode()
	var all []*Delegate
	for range n {
		all = append(all, NewDelegate(p, k, DelegateEvents{}))
	}
	return k, p, all
}

// TestDelegate_OncePerFleet: a hundred requests at three gateways refresh once,
// while the old token works, and when it has expired.
func TestDelegate_OncePerFleet(t *testing.T) {
	for what, wait := range map[string]time.Duration{"early": 9*time.Minute + time.Second, "late": 11 * time.Minute} {
		synctest.Test(t, func(t *testing.T) {
			_, p, all := fleet(3, 10*time.Minute, 300*time.Millisecond)
			for _, d := range all {
				if got, err := d.Token(t.Context(), "s"); err != nil || got.Reveal() != "at1" {
					t.Fatal(err)
				}
			}
			time.Sleep(wait)
			var wg sync.WaitGroup
			for i := range 100 {
				wg.Go(func() {
					got, err := all[i%3].Token(t.Context(), "s")
					if want := map[string]string{"early": "at1", "late": "at2"}[what]; err != nil || got.Reveal() != want {
						t.Errorf("%s: %v, %v", what, got.Reveal(), err)
					}
				})
			}
			wg.Wait()
			time.Sleep(time.Second)
			for _, d := range all {
				if got, err := d.Token(t.Context(), "s"); err != nil || got.Reveal() != "at1" && got.Reveal() != "at2" {
					t.Errorf("%v, %v", got.Reveal(), err)
				}
			}
			time.Sleep(time.Second)
			for _, d := range all {
				if got, err := d.Token(t.Context(), "s"); err != nil || got.Reveal() != "at2" {
					t.Errorf("%s, after: %v, %v", what, got.Reveal(), err)
				}
			}
			if p.n != 2 || p.reused != 0 {
				t.Errorf("%s: %d tokens, %d reused", what, p.n, p.reused)
			}
		})
	}
}

// TestDelegate_Away: a provider that is away ends nobody's session, and is not
// asked more than once a second; a store that is away when new tokens come gets
// them later, and the old refresh token is never used again.
func TestDelegate_Away(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k, p, all := fleet(2, 10*time.Minute, 10*time.Millisecond)
		p.set(func() { p.away = true })
		d := all[0]
		if got, err := d.Token(t.Context(), "s"); err != nil || got.Reveal() != "at1" {
			t.Fatal(err)
		}
		time.Sleep(9*time.Minute + 30*time.Second)
		for range 50 {
			if got, err := d.Token(t.Context(), "s"); err != nil || got.Reveal() != "at1" { // due, and good
				t.Fatal(err)
			}
			time.Sleep(10 * time.Millisecond)
		}
		time.Sleep(time.Minute)
		var f *grant.Failure
		for range 50 {
			if _, err := d.Token(t.Context(), "s"); !errors.As(err, &f) || errors.Is(err, ErrOver) {
				t.Fatal(err)
			}
		}
		p.set(func() {
			if p.asked > 2 {
				t.Errorf("the provider was asked %d times", p.asked)
			}
		})
		if ended := k.isEnded(); ended != "" {
			t.Fatalf("the session was ended: %q", ended)
		}
		p.set(func() { p.away, p.takes = false, time.Second })
		time.Sleep(2 * time.Second)
		go func() {
			time.Sleep(500 * time.Millisecond)
			k.setAway(true) // while it is refreshed
		}()
		if got, err := d.Token(t.Context(), "s"); err != nil || got.Reveal() != "at2" {
			t.Fatal(got.Reveal(), err)
		}
		time.Sleep(5 * time.Minute)
		k.setAway(false)
		time.Sleep(time.Second)
		if got, err := all[1].Token(t.Context(), "s"); err != nil || got.Reveal() != "at2" || p.reused != 0 {
			t.Fatal(got.Reveal(), err, p.reused)
		}
	})
}

// TestDelegate_Refused: what the upstream refuses is refreshed once, however
// many were refused; while that fails nobody gets the old one.
func TestDelegate_Refused(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		_, p, all := fleet(2, time.Hour, 50*time.Millisecond)
		d := all[0]
		old, _ := d.Token(t.Context(), "s")
		var wg sync.WaitGroup
		for range 100 {
			wg.Go(func() {
				if got, err := d.Renew(t.Context(), "s", old); err != nil || got.Reveal() != "at2" {
					t.Errorf("%v %v", got.Reveal(), err)
				}
			})
		}
		wg.Wait()
		now, _ := d.Token(t.Context(), "s")
		if _, err := d.Renew(t.Context(), "s", now); !errors.Is(err, ErrKept) { // just now
			t.Error(err)
		}
		if got, err := all[1].Renew(t.Context(), "s", old); err != nil || got.Reveal() != "at2" { // from the store
			t.Error(got.Reveal(), err)
		}
		if p.n != 2 {
			t.Errorf("%d tokens", p.n)
		}
		time.Sleep(forcedEvery)
		p.set(func() { p.away = true })
		var f *grant.Failure
		if _, err := d.Renew(t.Context(), "s", now); !errors.As(err, &f) {
			t.Error(err)
		}
	})
}

// TestDelegate_Over: a refresh token that the provider refuses ends the session,
// a missing one when the access token has expired; and an ended session's tokens
// are given to nobody who does not hold them.
func TestDelegate_Over(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k, p, all := fleet(2, time.Hour, 0)
		p.set(func() { p.dead = true })
		time.Sleep(2 * time.Hour)
		if _, err := all[0].Token(t.Context(), "s"); !errors.Is(err, ErrOver) || k.isEnded() == "" {
			t.Error(err)
		}
		if _, err := all[1].Token(t.Context(), "s"); !errors.Is(err, ErrOver) {
			t.Error(err)
		}
		k, p, all = fleet(1, time.Hour, 0)
		tokens := p.grant()
		tokens.Refresh = ""
		k.plain, _ = tokens.Encode()
		if got, err := all[0].Token(t.Context(), "s"); err != nil || got.Reveal() != tokens.Access {
			t.Error(err)
		}
		if _, err := all[0].Renew(t.Context(), "s", auth.NewSecret(tokens.Access)); !errors.Is(err, ErrKept) {
			t.Error(err)
		}
		time.Sleep(2 * time.Hour)
		if _, err := all[0].Token(t.Context(), "s"); !errors.Is(err, ErrOver) || k.isEnded() == "" {
			t.Error(err)
		}
	})
}

// TestRevokeEnded: the provider is told once, whoever looks; while it is away the
// tokens are kept.
func TestRevokeEnded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k, p, _ := fleet(1, time.Hour, 0)
		k.ended = "logout"
		p.set(func() { p.away = true })
		if told, err := RevokeEnded(t.Context(), p, k, "s"); told || err == nil || k.plain == nil {
			t.Fatal(told, err)
		}
		p.set(func() { p.away = false })
		told := 0
		for range 3 {
			did, err := RevokeEnded(t.Context(), p, k, "s")
			if err != nil {
				t.Fatal(err)
			}
			if did {
				told++
			}
		}
		if told != 1 || len(p.revoked) != 1 || len(k.plain) != 0 {
			t.Errorf("told %d times: %v, left %q", told, p.revoked, k.plain)
		}
	})
}

// TestDelegate_Property: whatever is away and however long things take, no
// refresh token is used twice, no expired token is given out, and when all is
// well again there is a token.
func TestDelegate_Property(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		plan := rapid.SliceOfN(rapid.SampledFrom([]string{"token", "token", "renew", "wait", "long", "idp", "store", "slow"}), 5, 40).Draw(rt, "plan")
		who := rapid.SliceOfN(rapid.IntRange(0, 2), len(plan), len(plan)).Draw(rt, "who")
		synctest.Test(t, func(t *testing.T) {
			k, p, all := fleet(3, 5*time.Minute, 20*time.Millisecond)
			idpAway, storeAway := false, false
			var wg sync.WaitGroup
			last := auth.NewSecret("at1")
			var lastMu sync.Mutex
			for i, step := range plan {
				d := all[who[i]]
				switch step {
				case "token", "renew":
					lastMu.Lock()
					refused := last
					lastMu.Unlock()
					wg.Go(func() {
						var got auth.Secret
						var err error
						if step == "token" {
							got, err = d.Token(t.Context(), "s")
						} else {
							got, err = d.Renew(t.Context(), "s", refused)
						}
						if errors.Is(err, ErrOver) {
							rt.Errorf("step %d: %v", i, err)
						}
						if err == nil {
							lastMu.Lock()
							last = got
							lastMu.Unlock()
						}
					})
					time.Sleep(5 * time.Millisecond)
				case "wait":
					time.Sleep(time.Second)
				case "long":
					time.Sleep(4*time.Minute + 30*time.Second)
				case "idp":
					idpAway = !idpAway
					p.set(func() { p.away = idpAway })
				case "store":
					// New tokens that the store could not be given die with their
					// gateway, and when another asks first: not in this world.
					wg.Wait()
					time.Sleep(time.Second)
					storeAway = !storeAway
					k.setAway(storeAway)
					time.Sleep(time.Second)
				case "slow":
					p.set(func() { p.takes = 3 * time.Second })
				}
			}
			wg.Wait()
			p.set(func() { p.away = false })
			k.setAway(false)
			time.Sleep(3 * time.Second)
			for i, d := range all {
				if got, err := d.Token(t.Context(), "s"); err != nil || got.Reveal() == "" {
					rt.Errorf("gateway %d in the end: %v", i, err)
				}
			}
			time.Sleep(refreshTimeout)
			p.set(func() {
				if p.reused > 0 || p.most > 1 {
					rt.Errorf("%d reused, %d at a time", p.reused, p.most)
				}
			})
			if ended := k.isEnded(); ended != "" {
				rt.Errorf("ended: %q", ended)
			}
			// What waits for the store ends by itself.
			time.Sleep(putFor)
		})
	})
}

// TestDelegate_Unsaved: tokens that the store could not be given are never
// overtaken by older ones, also when the upstream refuses them while the store
// comes back, and however long it is away.
func TestDelegate_Unsaved(t *testing.T) {
	for _, away := range []time.Duration{time.Minute, 3 * time.Hour} {
		synctest.Test(t, func(t *testing.T) {
			k, _, all := fleet(2, 5*time.Hour, time.Second)
			d := all[0]
			old, err := d.Token(t.Context(), "s")
			if err != nil {
				t.Fatal(err)
			}
			go func() { time.Sleep(500 * time.Millisecond); k.setAway(true) }()
			second, err := d.Renew(t.Context(), "s", old)
			if err != nil || second.Reveal() != "at2" {
				t.Fatal(second.Reveal(), err)
			}
			time.Sleep(away)
			go func() { time.Sleep(300 * time.Millisecond); k.setAway(false) }() // while it is refreshed again
			third, err := d.Renew(t.Context(), "s", second)
			if err != nil || third.Reveal() != "at3" {
				t.Fatal(third.Reveal(), err)
			}
			time.Sleep(5 * time.Second)
			for _, d := range all {
				if got, err := d.Token(t.Context(), "s"); err != nil || got.Reveal() != "at3" {
					t.Errorf("%v %v", got.Reveal(), err)
				}
			}
			time.Sleep(5 * time.Hour)
			if got, err := all[1].Token(t.Context(), "s"); err != nil || got.Reveal() != "at4" || k.isEnded() != "" {
				t.Errorf("%v %v, ended %q", got.Reveal(), err, k.isEnded())
			}
		})
	}
}

// TestDelegate_Elsewhere: while another gateway refreshes, and the token is good,
// nobody asks the store for each request; and one that stops waits for its own.
func TestDelegate_Elsewhere(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k, p, all := fleet(2, 10*time.Minute, 5*time.Second)
		for _, d := range all {
			_, _ = d.Token(t.Context(), "s")
		}
		time.Sleep(9*time.Minute + time.Second)
		_, _ = all[0].Token(t.Context(), "s") // it refreshes
		time.Sleep(time.Millisecond)
		k.mu.Lock()
		k.reads = 0
		k.mu.Unlock()
		for range 400 {
			if got, err := all[1].Token(t.Context(), "s"); err != nil || got.Reveal() != "at1" {
				t.Fatal(got.Reveal(), err)
			}
			time.Sleep(10 * time.Millisecond)
		}
		k.mu.Lock()
		if k.reads > 5 {
			t.Errorf("%d reads", k.reads)
		}
		k.mu.Unlock()
		all[0].Close(time.Minute)
		k.mu.Lock()
		defer k.mu.Unlock()
		if k.version != 1 || p.n != 2 {
			t.Errorf("version %d, %d tokens", k.version, p.n)
		}
	})
}

// TestDelegate_CantBeOpened: tokens that nobody can open end their session.
func TestDelegate_CantBeOpened(t *testing.T) {
	k, p, all := fleet(1, time.Hour, 0)
	k.bad = fmt.Errorf("opening: %w", auth.ErrCorrupt)
	if _, err := all[0].Token(t.Context(), "s"); !errors.Is(err, ErrOver) || k.isEnded() == "" {
		t.Error(err)
	}
	if _, err := RevokeEnded(t.Context(), p, k, "s"); err != nil || len(k.plain) != 0 {
		t.Error(err)
	}
}

// TestDelegate_TakenOver: a gateway that could not write what it got is not
// overtaken by one that takes over its lease when the store is back.
func TestDelegate_TakenOver(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k, p, all := fleet(2, time.Hour, time.Second)
		for _, d := range all {
			_, _ = d.Token(t.Context(), "s")
		}
		time.Sleep(2 * time.Hour)
		go func() { time.Sleep(500 * time.Millisecond); k.setAway(true) }()
		if got, err := all[0].Token(t.Context(), "s"); err != nil || got.Reveal() != "at2" {
			t.Fatal(got.Reveal(), err)
		}
		time.Sleep(45 * time.Second)
		k.setAway(false)
		if got, err := all[1].Token(t.Context(), "s"); err != nil || got.Reveal() != "at2" || p.reused != 0 {
			t.Errorf("%v %v, %d reused", got.Reveal(), err, p.reused)
		}
	})
}

// TestDelegate_OverUnsaved: a grant that ends while its tokens could not be
// written ends the session when the store is back, and not before then is any
// older token used.
func TestDelegate_OverUnsaved(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k, p, all := fleet(1, 5*time.Hour, time.Second)
		d := all[0]
		old, _ := d.Token(t.Context(), "s")
		go func() { time.Sleep(500 * time.Millisecond); k.setAway(true) }()
		second, err := d.Renew(t.Context(), "s", old)
		if err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Minute)
		p.set(func() { p.dead = true })
		if _, err := d.Renew(t.Context(), "s", second); !errors.Is(err, ErrOver) {
			t.Fatal(err)
		}
		time.Sleep(time.Minute)
		if _, err := d.Token(t.Context(), "s"); !errors.Is(err, ErrOver) {
			t.Error(err)
		}
		k.setAway(false)
		time.Sleep(time.Minute)
		if k.isEnded() == "" {
			t.Error("not ended")
		}
	})
}

// TestDelegate_Close: what waits for another gateway holds nobody up; nothing
// begins after it; and it may be called while requests come.
func TestDelegate_Close(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k, p, all := fleet(2, time.Hour, 0)
		time.Sleep(2 * time.Hour)
		_, _, _ = k.Lease(t.Context(), "s", 0, "somebody", time.Hour)
		go func() { _, _ = all[0].Token(t.Context(), "s") }()
		time.Sleep(time.Second)
		began := time.Now()
		all[0].Close(time.Minute)
		if time.Since(began) > 0 {
			t.Errorf("it took %s", time.Since(began))
		}
		time.Sleep(time.Hour)
		var f *grant.Failure
		if _, err := all[0].Token(t.Context(), "s"); !errors.As(err, &f) || p.n != 1 {
			t.Error(err, p.n)
		}
		var wg sync.WaitGroup
		for range 20 {
			wg.Go(func() { _, _ = all[1].Token(t.Context(), "s") })
			wg.Go(func() { all[1].Close(time.Second) })
		}
		wg.Wait()
		time.Sleep(time.Hour)
	})
}
