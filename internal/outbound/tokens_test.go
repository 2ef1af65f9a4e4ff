package outbound

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"

	"github.com/caddy-auth/caddy-auth/internal/auth"
	"github.com/caddy-auth/caddy-auth/internal/grant"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// issuer is a token endpoint on a fake clock. It counts, and says what is wrong
// with how it is asked.
type issuer struct {
	mu       sync.Mutex
	n        int
	flying   int
	life     time.Duration
	slow     time.Duration
	fail     *grant.Failure
	same     bool // gives out the last token again
	expires  map[string]time.Time
	overlaps int
	by       atomic.Uint32 // which secret
}

func newIssuer(life time.Duration) *issuer {
	return &issuer{life: life, expires: map[string]time.Time{}}
}

func (i *issuer) Timeout() time.Duration { return grant.DefaultTimeout }
func (i *issuer) By() auth.Fingerprint   { return auth.FingerprintOf(fmt.Sprint(i.by.Load())) }

func (i *issuer) set(f func()) {
	i.mu.Lock()
	defer i.mu.Unlock()
	f()
}

func (i *issuer) asked() int {
	i.mu.Lock()
	defer i.mu.Unlock()
	return i.n
}

func (i *issuer) Ask(ctx context.Context) (grant.Grant, error) {
	ctx, cancel := context.WithTimeout(ctx, i.Timeout())
	defer cancel()
	g := grant.Grant{Issued: time.Now(), By: i.By()}
	i.mu.Lock()
	i.n++
	if i.flying++; i.flying > 1 {
		i.overlaps++
	}
	slow := i.slow
	i.mu.Unlock()
	select {
	case <-time.After(slow):
	case <-ctx.Done():
	}
	i.mu.Lock()
	defer i.mu.Unlock()
	i.flying--
	if ctx.Err() != nil {
		return g, grant.Unavailable("too slow", ctx.Err())
	}
	if i.fail != nil {
		f := *i.fail
		return g, &f
	}
	name := fmt.Sprintf("token-%d", i.n)
	if i.same {
		name = "token-same"
	}
	g.Token, g.Expires, g.Told = auth.NewSecret(name), g.Issued.Add(i.life), true
	i.expires["Bearer "+name] = time.Now().Add(i.life) // by its own clock, when it answers
	return g, nil
}

// goodFor is how long a credential is good by the issuer.
func (i *issuer) goodFor(c Credential) time.Duration {
	i.mu.Lock()
	defer i.mu.Unlock()
	return time.Until(i.expires[c.Value.Reveal()])
}

func started(i *issuer, before time.Duration) *Tokens {
	t := NewTokens(i, before)
	t.Start()
	return t
}

func get(t *testing.T, s Source) Credential {
	t.Helper()
	c, err := s.Credential(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// TestTokens_FetchedOnceAndEarly: a thousand at once are one question, and
// nobody waits for the next token.
func TestTokens_FetchedOnceAndEarly(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		i := newIssuer(10 * time.Minute)
		i.slow = time.Second
		s := started(i, 0)
		defer s.Close()
		var all sync.WaitGroup
		for range 1000 {
			all.Go(func() { get(t, s) })
		}
		all.Wait()
		if i.asked() != 1 {
			t.Fatalf("asked %d times", i.asked())
		}
		first := get(t, s)
		time.Sleep(10*time.Minute - 75*time.Second - 2*time.Second) // the earliest refresh is 75 s before the end
		synctest.Wait()
		if i.asked() != 1 || !get(t, s).Is(first) {
			t.Fatalf("refreshed too early: asked %d times", i.asked())
		}
		time.Sleep(18 * time.Second) // less than 60 s are left, and nobody has asked
		synctest.Wait()
		began := time.Now()
		c := get(t, s)
		if i.asked() != 2 || c.Is(first) || time.Since(began) != 0 {
			t.Errorf("asked %d times, the same: %v, waited %s", i.asked(), c.Is(first), time.Since(began))
		}
	})
}

// TestTokens_UnusedIsNotRefreshed: a gateway without traffic does not ask.
func TestTokens_UnusedIsNotRefreshed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		i := newIssuer(10 * time.Minute)
		s := started(i, 0)
		defer s.Close()
		get(t, s)
		time.Sleep(10 * time.Minute) // that one was used, so there is a second
		synctest.Wait()
		if i.asked() != 2 {
			t.Fatalf("asked %d times", i.asked())
		}
		time.Sleep(24 * time.Hour)
		synctest.Wait()
		if i.asked() != 2 {
			t.Errorf("asked %d times although nobody used the second", i.asked())
		}
		if c := get(t, s); i.goodFor(c) <= 0 {
			t.Error("an expired token")
		}
	})
}

// TestTokens_Outage: the old token until it expires, then failures at once; the
// endpoint is not stormed, and is asked again.
func TestTokens_Outage(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		i := newIssuer(10 * time.Minute)
		s := started(i, 0)
		defer s.Close()
		first := get(t, s)
		i.set(func() { i.fail = &grant.Failure{Cause: grant.CauseUnavailable, Detail: "status 500"} })
		for ; i.goodFor(first) > 2*time.Second; time.Sleep(100 * time.Millisecond) {
			if c := get(t, s); !c.Is(first) {
				t.Fatal("another token")
			}
		}
		if n := i.asked(); n < 4 || n > 14 {
			t.Errorf("asked %d times in the last minute, want a growing pause between", n)
		}
		time.Sleep(3 * time.Second)
		before := i.asked()
		var failed int
		for end := time.Now().Add(10 * time.Minute); time.Now().Before(end); time.Sleep(50 * time.Millisecond) {
			began := time.Now()
			_, err := s.Credential(t.Context())
			var f *grant.Failure
			if !errors.As(err, &f) || f.Cause != grant.CauseUnavailable || f.RetryAfter <= 0 || f.RetryAfter > mostBackoff || time.Since(began) > 0 {
				t.Fatalf("%v after %s", err, time.Since(began))
			}
			failed++
		}
		if n := i.asked() - before; n < 20 || n > 45 {
			t.Errorf("%d failures asked %d times in ten minutes, want every 15 to 30 s", failed, n)
		}
		i.set(func() { i.fail = nil })
		time.Sleep(mostBackoff)
		if i.goodFor(get(t, s)) <= 0 {
			t.Error("an expired token")
		}
	})
}

// TestTokens_RetryAfter: the endpoint says when.
func TestTokens_RetryAfter(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		i := newIssuer(10 * time.Minute)
		i.fail = &grant.Failure{Cause: grant.CauseUnavailable, Status: 429, RetryAfter: 40 * time.Second}
		s := started(i, 0)
		defer s.Close()
		for end := time.Now().Add(39 * time.Second); time.Now().Before(end); time.Sleep(time.Second) {
			if _, err := s.Credential(t.Context()); err == nil {
				t.Fatal("a token")
			}
		}
		if i.asked() != 1 {
			t.Errorf("asked %d times", i.asked())
		}
		i.set(func() { i.fail = nil })
		time.Sleep(2 * time.Second)
		get(t, s)
	})
}

// TestTokens_RefusedByAThousand: a token that was revoked is replaced once.
func TestTokens_RefusedByAThousand(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		i := newIssuer(10 * time.Minute)
		i.slow = time.Second
		s := started(i, 0)
		defer s.Close()
		first := get(t, s)
		var all sync.WaitGroup
		for n := range 1000 {
			all.Go(func() {
				time.Sleep(time.Duration(n) * 3 * time.Millisecond) // some come when it is done
				c, err := s.Renew(t.Context(), first)
				if err != nil || c.Is(first) {
					t.Errorf("%v", err)
				}
			})
		}
		all.Wait()
		if i.asked() != 2 {
			t.Errorf("asked %d times", i.asked())
		}
	})
}

// TestTokens_RefusedAlways: an upstream that refuses whatever it gets, or refuses
// one kind of request, does not make the token endpoint be asked for every
// request; its 401 is the client's then.
func TestTokens_RefusedAlways(t *testing.T) {
	for _, others := range []bool{false, true} { // whether it takes other requests
		synctest.Test(t, func(t *testing.T) {
			i := newIssuer(time.Hour)
			s := started(i, 0)
			defer s.Close()
			kept := 0
			for range 600 { // a minute
				c := get(t, s)
				if others {
					s.Accepted(c)
				}
				if _, err := s.Renew(t.Context(), c); errors.Is(err, ErrKept) {
					kept++
				} else if err != nil {
					t.Fatal(err)
				}
				time.Sleep(100 * time.Millisecond)
			}
			if n := i.asked(); n > 10 || n < 5 || kept != 600-(n-1) {
				t.Errorf("asked %d times, kept %d times", n, kept)
			}
		})
	}
}

// TestTokens_RevokedAfterThat: when a client has used up what refusals may cost,
// nobody is told that a token is bad which may have been revoked.
func TestTokens_RevokedAfterThat(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		i := newIssuer(time.Hour)
		s := started(i, 0)
		defer s.Close()
		for range 6 { // a request that is always refused
			_, _ = s.Renew(t.Context(), get(t, s))
		}
		s.Accepted(get(t, s)) // while others pass
		time.Sleep(2 * time.Second)
		began := time.Now()
		for { // and now it is revoked
			_, err := s.Renew(t.Context(), get(t, s))
			if err == nil {
				break
			}
			var f *grant.Failure
			if !errors.As(err, &f) || f.Cause != grant.CauseUnavailable || f.RetryAfter <= 0 {
				t.Fatalf("%v", err)
			}
			time.Sleep(100 * time.Millisecond)
		}
		if took := time.Since(began); took > refusedRate.Every {
			t.Errorf("it took %s", took)
		}
	})
}

// TestTokens_OthersDoNotWait: who is refused waits for another token; who is not
// goes on.
func TestTokens_OthersDoNotWait(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		i := newIssuer(time.Hour)
		s := started(i, 0)
		defer s.Close()
		first := get(t, s)
		i.set(func() { i.slow = time.Hour })
		var all sync.WaitGroup
		all.Go(func() {
			var f *grant.Failure
			if _, err := s.Renew(t.Context(), first); !errors.As(err, &f) {
				t.Error(err)
			}
		})
		for range 100 {
			began := time.Now()
			if c := get(t, s); !c.Is(first) || time.Since(began) > 0 {
				t.Fatalf("waited %s", time.Since(began))
			}
			time.Sleep(50 * time.Millisecond)
		}
		all.Wait()
	})
}

// TestTokens_Fresh: only what was asked for after a refusal says something about
// the next one: not what was under way, or what another gateway had fetched.
func TestTokens_Fresh(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		i := newIssuer(10 * time.Minute)
		i.slow = time.Second
		s := started(i, 0)
		defer s.Close()
		first := get(t, s)
		second, err := s.Renew(t.Context(), first)
		if err != nil || !second.fresh {
			t.Errorf("%v, fresh: %v", err, second.fresh)
		}
		if c, err := s.Renew(t.Context(), first); err != nil || c.fresh || !c.Is(second) {
			t.Errorf("of a late refusal: %v, fresh: %v", err, c.fresh)
		}
		if get(t, s).fresh {
			t.Error("fresh without a refusal")
		}
		i.by.Add(1)
		s.SecretChanged() // one is under way
		c, err := s.Renew(t.Context(), second)
		if err != nil || c.Is(second) || c.fresh {
			t.Errorf("of one that was under way: %v, fresh: %v", err, c.fresh)
		}
	})
}

// TestTokens_WorseToken: a refresh that brings a token which ends before the
// present one changes nothing until that ends; then such tokens do. One that has
// ended when it comes is a failure.
func TestTokens_WorseToken(t *testing.T) {
	for _, life := range []time.Duration{3 * time.Second, 5 * time.Second, 20 * time.Second} {
		synctest.Test(t, func(t *testing.T) {
			i := newIssuer(10 * time.Minute)
			s := started(i, 0)
			defer s.Close()
			s.SetEvents(Events{Failed: func(f *grant.Failure, _ time.Duration) { t.Errorf("a failure: %v", f) }})
			first := get(t, s)
			i.set(func() { i.life = life })
			for i.goodFor(first) > life+2*time.Second {
				if c := get(t, s); !c.Is(first) {
					t.Fatal("another token")
				}
				time.Sleep(50 * time.Millisecond)
			}
			if n := i.asked(); n < 2 || n > 10 {
				t.Errorf("asked %d times", n)
			}
			for end := time.Now().Add(time.Minute); time.Now().Before(end); time.Sleep(50 * time.Millisecond) {
				if c := get(t, s); i.goodFor(c) <= 0 {
					t.Fatal("an expired token")
				}
			}
		})
	}
	synctest.Test(t, func(t *testing.T) {
		i := newIssuer(time.Second)
		i.slow = 1200 * time.Millisecond
		s := started(i, 0)
		defer s.Close()
		for end := time.Now().Add(time.Minute); time.Now().Before(end); time.Sleep(50 * time.Millisecond) {
			var f *grant.Failure
			if _, err := s.Credential(t.Context()); !errors.As(err, &f) || f.Cause != grant.CauseAnswer {
				t.Fatal(err)
			}
		}
		if n := i.asked(); n > 9 {
			t.Errorf("asked %d times for tokens that have ended when they come", n)
		}
	})
}

// TestTokens_RefusedWithItsSecret: a token that was revoked together with its
// secret is replaced by one of the new secret, though one with the old secret was
// asked for when that changed.
func TestTokens_RefusedWithItsSecret(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		i := newIssuer(time.Hour)
		s := started(i, 0)
		defer s.Close()
		first := get(t, s)
		i.set(func() { i.slow, i.fail = time.Second, &grant.Failure{Cause: grant.CauseRefused} })
		time.AfterFunc(500*time.Millisecond, func() { i.by.Add(1); s.SecretChanged() })
		time.AfterFunc(1500*time.Millisecond, func() { i.set(func() { i.fail = nil }) })
		if c, err := s.Renew(t.Context(), first); err != nil || c.Is(first) {
			t.Error(err)
		}
	})
}

// TestTokens_RefusedInAnOutage: nobody is told that the credential is bad, and
// who can use the old one still does.
func TestTokens_RefusedInAnOutage(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		i := newIssuer(time.Hour)
		s := started(i, 0)
		defer s.Close()
		first := get(t, s)
		i.set(func() { i.fail, i.slow = &grant.Failure{Cause: grant.CauseUnavailable}, time.Second })
		var f *grant.Failure
		if _, err := s.Renew(t.Context(), first); !errors.As(err, &f) {
			t.Fatal(err)
		}
		for range 100 { // a minute: others
			began := time.Now()
			if c := get(t, s); !c.Is(first) || time.Since(began) > 0 {
				t.Fatalf("another token, or it took %s", time.Since(began))
			}
			if _, err := s.Renew(t.Context(), first); !errors.As(err, &f) {
				t.Fatalf("%v", err)
			}
			time.Sleep(600 * time.Millisecond)
		}
		if n := i.asked(); n > 12 {
			t.Errorf("asked %d times", n)
		}
		i.set(func() { i.fail = nil })
		time.Sleep(mostBackoff)
		get(t, s) // what it kept, while another is fetched
		time.Sleep(2 * time.Second)
		if get(t, s).Is(first) {
			t.Error("the refused token is still in use")
		}
	})
}

// TestTokens_SameAgain: a server that gives out the token that was refused.
func TestTokens_SameAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		i := newIssuer(time.Hour)
		i.same = true
		s := started(i, 0)
		defer s.Close()
		if _, err := s.Renew(t.Context(), get(t, s)); !errors.Is(err, ErrKept) {
			t.Error(err)
		}
		get(t, s)
	})
}

// TestTokens_Hangs: a request waits for a bounded time, and not longer than its
// client.
func TestTokens_Hangs(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		i := newIssuer(time.Hour)
		i.slow = time.Hour
		s := started(i, 0)
		defer s.Close()
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		began := time.Now()
		if _, err := s.Credential(ctx); !errors.Is(err, context.DeadlineExceeded) || time.Since(began) != time.Second {
			t.Errorf("%v after %s", err, time.Since(began))
		}
		var f *grant.Failure
		if _, err := s.Credential(t.Context()); !errors.As(err, &f) || time.Since(began) > grant.DefaultTimeout+waitLonger {
			t.Errorf("%v after %s", err, time.Since(began))
		}
	})
}

// TestTokens_NotBeforeStart: what only checks a configuration asks nobody.
func TestTokens_NotBeforeStart(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		i := newIssuer(time.Hour)
		s := NewTokens(i, 0)
		defer s.Close()
		var f *grant.Failure
		if _, err := s.Credential(t.Context()); !errors.As(err, &f) || i.asked() != 0 {
			t.Errorf("%v, asked %d times", err, i.asked())
		}
		time.AfterFunc(time.Second, s.Start)
		get(t, s)
	})
}

// TestTokens_SecretChanged: a new secret is tried at once; if it is wrong the
// old token goes on.
func TestTokens_SecretChanged(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		i := newIssuer(time.Hour)
		s := started(i, 0)
		defer s.Close()
		var failed atomic.Int32
		s.SetEvents(Events{Failed: func(f *grant.Failure, left time.Duration) {
			if f.Cause == grant.CauseRefused && left > 50*time.Minute {
				failed.Add(1)
			}
		}})
		first := get(t, s)
		i.set(func() { i.fail = &grant.Failure{Cause: grant.CauseRefused} })
		i.by.Add(1)
		s.SecretChanged()
		synctest.Wait()
		if i.asked() != 2 || failed.Load() != 1 || !get(t, s).Is(first) {
			t.Errorf("asked %d times, failed %d times", i.asked(), failed.Load())
		}
		i.set(func() { i.fail = nil })
		i.by.Add(1)
		s.SecretChanged() // does not wait for the pause after the failure
		synctest.Wait()
		if i.asked() != 3 || get(t, s).Is(first) {
			t.Errorf("asked %d times", i.asked())
		}

		i.set(func() { i.slow = time.Second }) // changed while one is under way
		s.SecretChanged()
		synctest.Wait()
		i.by.Add(1)
		s.SecretChanged()
		time.Sleep(3 * time.Second)
		synctest.Wait()
		if i.asked() != 5 || i.overlaps != 0 {
			t.Errorf("asked %d times, %d at once", i.asked(), i.overlaps)
		}
	})
}

func TestTokens_Times(t *testing.T) {
	for _, tc := range []struct{ life, before, earliest, latest, usable time.Duration }{
		{time.Hour, time.Minute, time.Hour - 75*time.Second, time.Hour - 60*time.Second, time.Hour - time.Second},
		{time.Minute, time.Minute, 22*time.Second + 500*time.Millisecond, 30 * time.Second, 59 * time.Second},
		{2 * time.Second, time.Minute, 750 * time.Millisecond, time.Second, 1800 * time.Millisecond},
		{time.Hour, 10 * time.Minute, time.Hour - 12*time.Minute - 30*time.Second, 50 * time.Minute, time.Hour - time.Second},
		{time.Hour, time.Millisecond, time.Hour - time.Second, time.Hour - time.Second, time.Hour - time.Second},
	} {
		s := &Tokens{before: tc.before}
		g := grant.Grant{Issued: time.Unix(1e9, 0), Expires: time.Unix(1e9, 0).Add(tc.life)}
		latest, usable := s.times(g, 0)
		earliest, _ := s.times(g, 1)
		if latest.Sub(g.Issued) != tc.latest || earliest.Sub(g.Issued) != tc.earliest || usable.Sub(g.Issued) != tc.usable {
			t.Errorf("%s, %s: %s to %s, usable until %s", tc.life, tc.before, earliest.Sub(g.Issued), latest.Sub(g.Issued), usable.Sub(g.Issued))
		}
	}
}
