package outbound

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

// meeting is a Redis on a fake clock, with one record and one lock.
type meeting struct {
	mu     sync.Mutex
	record []byte
	until  time.Time
	lock   time.Time // until when it is held
	down   bool
	slow   time.Duration
}

var errDown = errors.New("down")

func (m *meeting) enter() error {
	m.mu.Lock()
	slow, down := m.slow, m.down
	m.mu.Unlock()
	time.Sleep(slow)
	if down {
		return errDown
	}
	return nil
}

func (m *meeting) Get(context.Context) ([]byte, error) {
	if err := m.enter(); err != nil {
		return nil, err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.record == nil || !time.Now().Before(m.until) {
		return nil, auth.ErrNotFound
	}
	return bytes.Clone(m.record), nil
}

// copy is what is there.
func (m *meeting) copy() []byte {
	m.mu.Lock()
	defer m.mu.Unlock()
	return bytes.Clone(m.record)
}

func (m *meeting) Put(_ context.Context, record []byte, ttl time.Duration) error {
	if err := m.enter(); err != nil {
		return err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.record, m.until = bytes.Clone(record), time.Now().Add(ttl)
	return nil
}

func (m *meeting) Lock(_ context.Context, ttl time.Duration) (bool, error) {
	if err := m.enter(); err != nil {
		return false, err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if time.Now().Before(m.lock) {
		return false, nil
	}
	m.lock = time.Now().Add(ttl)
	return true, nil
}

func (m *meeting) Keep(_ context.Context, ttl time.Duration) error {
	if err := m.enter(); err != nil {
		return err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.lock = time.Now().Add(ttl)
	return nil
}

// member is a gateway of the fleet as its endpoint and its Redis see it. Dead,
// it does nothing more.
type member struct {
	*issuer
	*meeting
	dead     bool
	flying   int
	overlaps int
	mu       sync.Mutex
}

func (m *member) isDead() bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.dead
}

func (m *member) Ask(ctx context.Context) (grant.Grant, error) {
	m.mu.Lock()
	if m.flying++; m.flying > 1 {
		m.overlaps++
	}
	m.mu.Unlock()
	defer func() { m.mu.Lock(); m.flying--; m.mu.Unlock() }()
	if m.isDead() {
		<-ctx.Done()
		return grant.Grant{}, ctx.Err()
	}
	return m.issuer.Ask(ctx)
}

func (m *member) Keep(ctx context.Context, ttl time.Duration) error {
	if m.isDead() {
		return errDown
	}
	return m.meeting.Keep(ctx, ttl)
}

func (m *member) Put(ctx context.Context, record []byte, ttl time.Duration) error {
	if m.isDead() {
		return errDown
	}
	return m.meeting.Put(ctx, record, ttl)
}

// world is a fleet, its token endpoint and its Redis.
type world struct {
	issuer  *issuer
	redis   *meeting
	members []*member
	tokens  []*Tokens

	mu       sync.Mutex
	revoked  map[string]bool
	problems []string
}

func newWorld(n int, life time.Duration) *world {
	w := &world{issuer: newIssuer(life), redis: &meeting{}, revoked: map[string]bool{}}
	for range n {
		m := &member{issuer: w.issuer, meeting: w.redis}
		t := NewTokens(m, 0)
		t.SetShared(m)
		t.Start()
		w.members, w.tokens = append(w.members, m), append(w.tokens, t)
	}
	return w
}

func (w *world) wrong(format string, args ...any) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.problems = append(w.problems, fmt.Sprintf(format, args...))
}

// request is one request through a gateway: it reports whether the upstream
// took its token.
func (w *world) request(k int) bool {
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	s := w.tokens[k]
	c, err := s.Credential(ctx)
	for try := 0; err == nil; try++ {
		if w.issuer.goodFor(c) <= 0 {
			w.wrong("gateway %d used an expired token", k)
			return false
		}
		w.mu.Lock()
		revoked := w.revoked[c.Value.Reveal()]
		w.mu.Unlock()
		if !revoked {
			return true
		}
		if try == 1 {
			return false
		}
		refused := c
		if c, err = s.Renew(ctx, c); err == nil && c.Is(refused) {
			w.wrong("gateway %d sends the refused token again", k)
		}
	}
	var f *grant.Failure
	if !errors.As(err, &f) && !errors.Is(err, ErrKept) {
		w.wrong("gateway %d: %v", k, err)
	}
	return false
}

type step struct {
	Do string
	N  int
}

func (w *world) do(s step, all *sync.WaitGroup) {
	k := s.N % len(w.tokens)
	switch s.Do {
	case "wait":
		time.Sleep(time.Duration(s.N) * 700 * time.Millisecond)
	case "long":
		time.Sleep(time.Duration(s.N) * 17 * time.Second)
	case "edge": // to about the end of a token
		if st, ok := w.tokens[k].Status(); ok {
			time.Sleep(time.Until(st.Expires) + time.Duration(s.N-12)*200*time.Millisecond)
		}
	case "requests":
		for range 1 + s.N%7 {
			all.Go(func() { w.request(k) })
		}
	case "everywhere":
		for k := range w.tokens {
			all.Go(func() { w.request(k) })
		}
	case "revoke":
		w.issuer.set(func() {
			w.mu.Lock()
			defer w.mu.Unlock()
			for name := range w.issuer.expires {
				w.revoked[name] = true
			}
		})
	case "slow":
		w.issuer.set(func() { w.issuer.slow = time.Duration(s.N%9) * 900 * time.Millisecond })
	case "fail":
		w.issuer.set(func() {
			w.issuer.fail = &grant.Failure{Cause: grant.CauseUnavailable, RetryAfter: time.Duration(s.N%5) * 10 * time.Second}
		})
	case "mend":
		w.issuer.set(func() { w.issuer.fail, w.issuer.slow = nil, 0 })
	case "life":
		w.issuer.set(func() { w.issuer.life = time.Duration(1+s.N*s.N) * time.Second })
	case "redis":
		w.redis.mu.Lock()
		w.redis.down, w.redis.slow = s.N%3 == 0, time.Duration(s.N%3)*20*time.Millisecond
		w.redis.mu.Unlock()
	case "die":
		w.members[k].mu.Lock()
		w.members[k].dead = len(w.members) > 1 && k > 0 // the first lives
		w.members[k].mu.Unlock()
	case "secret":
		w.issuer.by.Add(1)
		for _, t := range w.tokens {
			t.SecretChanged()
		}
	}
}

// run does the steps, mends everything but the dead, and looks whether all who
// live get tokens that are good.
func (w *world) run(steps []step) []string {
	var all sync.WaitGroup
	for _, s := range steps {
		w.do(s, &all)
	}
	w.do(step{"mend", 0}, &all)
	w.issuer.set(func() { w.issuer.life = 10 * time.Minute })
	time.Sleep(2 * time.Minute)
	all.Wait()
	for k, m := range w.members {
		if m.isDead() {
			continue
		}
		good := false
		for range 3 { // what it kept may have been revoked; then there is another soon
			good = good || w.request(k)
			time.Sleep(mostBackoff)
		}
		if !good {
			w.wrong("gateway %d does not recover", k)
		}
		if m.overlaps > 0 {
			w.wrong("gateway %d asked %d times at once", k, m.overlaps)
		}
	}
	for _, t := range w.tokens {
		t.Close()
	}
	time.Sleep(time.Minute) // what is under way ends
	return w.problems
}

// TestTokens_Property: whatever happens to the endpoint, Redis and other
// gateways, no expired token is used, no gateway asks twice at once, and all
// recover.
func TestTokens_Property(t *testing.T) {
	what := rapid.SampledFrom([]string{
		"wait", "wait", "long", "edge", "edge", "requests", "requests", "everywhere", "everywhere", "revoke", "slow", "fail", "mend", "life", "redis", "die", "secret",
	})
	rapid.Check(t, func(rt *rapid.T) {
		n := rapid.IntRange(1, 3).Draw(rt, "gateways")
		life := time.Duration(rapid.IntRange(1, 900).Draw(rt, "life")) * time.Second
		steps := rapid.SliceOfN(rapid.Custom(func(rt *rapid.T) step {
			return step{what.Draw(rt, "do"), rapid.IntRange(0, 20).Draw(rt, "n")}
		}), 1, 40).Draw(rt, "steps")
		var problems []string
		synctest.Test(t, func(*testing.T) { problems = newWorld(n, life).run(steps) })
		if len(problems) > 0 {
			rt.Fatalf("%v", problems)
		}
	})
}

// TestFleet_FetchesOnce: many gateways that start at once ask once, and so they
// do when that token ends or is refused.
func TestFleet_FetchesOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(8, 10*time.Minute)
		w.issuer.slow = 2 * time.Second // longer than the lock lives without a beat
		everywhere := func() {
			var all sync.WaitGroup
			for range 50 {
				w.do(step{"everywhere", 0}, &all)
			}
			all.Wait()
		}
		everywhere()
		if n := w.issuer.asked(); n != 1 || w.issuer.overlaps > 0 {
			t.Fatalf("asked %d times", n)
		}
		w.do(step{"revoke", 0}, nil)
		everywhere()
		if n := w.issuer.asked(); n != 2 || w.issuer.overlaps > 0 {
			t.Errorf("asked %d times when it was revoked", n)
		}
		for range 100 { // past the end of the second
			time.Sleep(6 * time.Second)
			everywhere()
		}
		if n := w.issuer.asked(); n != 3 || w.issuer.overlaps > 0 {
			t.Errorf("asked %d times when it had expired", n)
		}
		if len(w.problems) > 0 {
			t.Error(w.problems)
		}
		for _, s := range w.tokens {
			s.Close()
		}
	})
}

// TestFleet_SecretChanged: one gateway asks with the new secret, and all have
// what it got.
func TestFleet_SecretChanged(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(3, 10*time.Minute)
		var all sync.WaitGroup
		w.do(step{"everywhere", 0}, &all)
		all.Wait()
		first := get(t, w.tokens[0])
		w.do(step{"secret", 0}, nil)
		time.Sleep(time.Second)
		second := get(t, w.tokens[0])
		for _, s := range w.tokens {
			if c := get(t, s); !c.Is(second) || c.Is(first) {
				t.Error("not the token of the new secret")
			}
			s.Close()
		}
		if w.issuer.asked() != 2 {
			t.Errorf("asked %d times", w.issuer.asked())
		}
	})
}

// TestFleet_OldSecret: what another got with the old secret says nothing about
// the new one.
func TestFleet_OldSecret(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(2, 10*time.Minute)
		var all sync.WaitGroup
		w.do(step{"everywhere", 0}, &all)
		all.Wait()
		w.do(step{"revoke", 0}, nil)
		w.request(0) // has a newer one than the other
		w.issuer.by.Add(1)
		w.tokens[1].SecretChanged()
		time.Sleep(time.Second)
		if w.issuer.asked() != 3 {
			t.Errorf("asked %d times", w.issuer.asked())
		}
		for _, s := range w.tokens {
			s.Close()
		}
	})
}

// TestFleet_Replayed: who can write to Redis can't bring back a token that was
// refused or has expired.
func TestFleet_Replayed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(2, 10*time.Minute)
		replay := func(old []byte) {
			w.redis.mu.Lock()
			defer w.redis.mu.Unlock()
			w.redis.record, w.redis.until = old, time.Now().Add(time.Hour)
		}
		w.request(0)
		old := w.redis.copy()
		for range 2 {
			w.do(step{"revoke", 0}, nil)
			if !w.request(0) {
				t.Error("no token")
			}
			replay(old)
		}
		if w.issuer.asked() != 3 {
			t.Errorf("asked %d times", w.issuer.asked())
		}
		time.Sleep(20 * time.Minute)
		w.request(0)
		old = w.redis.copy()
		time.Sleep(20 * time.Minute)
		replay(old)
		if !w.request(1) {
			t.Error("no token where an expired one was replayed")
		}
		for _, junk := range []string{
			"", "{", "null", `{"v":1}`, `{"v":2,"token":"x","expires":99999999999999}`, `{"v":1,"token":"a\nb","issued":1,"expires":99999999999999}`,
			`{"v":1,"token":"forever","issued":0,"expires":99999999999999}`,
		} {
			replay([]byte(junk))
			w.do(step{"revoke", 0}, nil)
			if !w.request(0) {
				t.Errorf("no token after %s", junk)
			}
			time.Sleep(time.Minute) // so that a refusal is heard again
		}
		if len(w.problems) > 0 {
			t.Error(w.problems)
		}
		w.tokens[0].Close()
		w.tokens[1].Close()
	})
}

// TestFleet_Clocks: a token that was fetched by a clock that is ahead would seem
// to live longer than it does, and is not used.
func TestFleet_Clocks(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(1, 10*time.Minute)
		now := time.Now()
		for ahead, used := range map[time.Duration]bool{-2 * time.Minute: true, 0: true, 500 * time.Millisecond: true, 5 * time.Minute: false, -time.Hour: false} {
			g := grant.Grant{Token: auth.NewSecret(fmt.Sprint("t", ahead)), Issued: now.Add(ahead), Expires: now.Add(ahead + 5*time.Minute)}
			if got := w.tokens[0].serves(g, goal{}, now); got != used {
				t.Errorf("%s ahead: %v", ahead, got)
			}
		}
		w.tokens[0].Close()
	})
}

// TestFleet_HolderDies: the others wait for it for the life of its lock, not
// longer.
func TestFleet_HolderDies(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(3, 10*time.Minute)
		w.issuer.slow = 3 * time.Second
		var all sync.WaitGroup
		all.Go(func() { w.request(0) })
		time.Sleep(time.Second) // it has the lock and asks
		w.members[0].mu.Lock()
		w.members[0].dead = true
		w.members[0].mu.Unlock()
		w.issuer.set(func() { w.issuer.slow = 0 })
		began := time.Now()
		if !w.request(1) {
			t.Error("no token")
		}
		if took := time.Since(began); took > lockTTL+2*lockPoll {
			t.Errorf("waited %s", took)
		}
		if !w.request(2) || w.issuer.asked() != 2 {
			t.Errorf("asked %d times", w.issuer.asked())
		}
		all.Wait()
		for _, s := range w.tokens {
			s.Close()
		}
	})
}

// TestFleet_HeldForEver: a lock that nobody gives back, as somebody who can
// write to Redis could leave it, costs time and nothing else.
func TestFleet_HeldForEver(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(1, 10*time.Minute)
		w.redis.lock = time.Now().Add(time.Hour)
		began := time.Now()
		if !w.request(0) {
			t.Error("no token")
		}
		if took := time.Since(began); took > grant.DefaultTimeout+waitLonger {
			t.Errorf("waited %s", took)
		}
		w.tokens[0].Close()
	})
}
