package cache_test

import (
	"encoding/binary"
	"fmt"
	"os"
	"runtime"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"github.com/caddy-auth/caddy-auth/internal/auth"
	"github.com/caddy-auth/caddy-auth/internal/cache"
)

func fp(n uint64) (f auth.Fingerprint) {
	f = auth.FingerprintOf(fmt.Sprint(n))
	return f
}

func allow(subject string) auth.Verdict {
	return auth.Verdict{Outcome: auth.Allow, Identity: auth.Identity{
		Subject: subject, Method: auth.MethodAPIKey, CredentialID: "key_0192a7b0-0000-7000-8000-000000000000",
		Scopes: "orders:read orders:write", Environment: "live", Hint: "ca_live_...abcd",
	}}
}

// land loads v into the cache as a flight of its own would.
func land(m *cache.Memory, f auth.Fingerprint, v auth.Verdict) {
	var got auth.Verdict
	now := time.Now()
	hit, fl, lead := m.Join(&got, f, now)
	if hit || !lead {
		panic("not the leader")
	}
	m.Land(fl, v, now, func() bool { return true })
}

func TestMemory_RoundTrip(t *testing.T) {
	m := cache.NewMemory(cache.Limits{})
	for i, want := range []auth.Verdict{
		allow("acme"),
		{Outcome: auth.Allow, Identity: auth.Identity{
			Subject: "a", Method: auth.MethodJWT, CredentialID: "b", Scopes: strings.Repeat("scope ", 300), Environment: "test", Issuer: "iss",
			ClientID: "c", Hint: "d", Networks: "10.0.0.0/8 ::1/128", Meta: auth.EncodeMeta([]string{"tenant"}, map[string]string{"tenant": "x=y"}), NotAfter: 1 << 50, Replaced: true,
		}},
		{Outcome: auth.Deny, Reason: auth.ReasonOwnerDisabled, Identity: auth.Identity{Subject: "acme", Method: auth.MethodAPIKey}},
		auth.Denied(auth.ReasonUnknown),
	} {
		land(m, fp(uint64(i)), want)
		var got auth.Verdict
		if !m.Lookup(&got, fp(uint64(i)), time.Now()) {
			t.Fatalf("%d: not cached", i)
		}
		if d := cmp.Diff(want, got); d != "" {
			t.Errorf("%d: %s", i, d)
		}
	}
}

func TestMemory_UndecidedIsNeverKept(t *testing.T) {
	m := cache.NewMemory(cache.Limits{})
	land(m, fp(1), auth.Undecided(auth.ErrUnavailable))
	var got auth.Verdict
	if m.Lookup(&got, fp(1), time.Now()) {
		t.Error("an outage was cached")
	}
}

func TestMemory_ExpiresByAge(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := cache.NewMemory(cache.Limits{TTL: time.Minute, NegativeTTL: 10 * time.Second})
		land(m, fp(1), allow("acme"))
		land(m, fp(2), auth.Denied(auth.ReasonUnknown))
		var v auth.Verdict
		time.Sleep(9 * time.Second)
		if !m.Lookup(&v, fp(1), time.Now()) || !m.Lookup(&v, fp(2), time.Now()) {
			t.Fatal("forgotten too early")
		}
		time.Sleep(2 * time.Second)
		if m.Lookup(&v, fp(2), time.Now()) {
			t.Error("a denial outlived negative_ttl")
		}
		time.Sleep(time.Minute)
		if m.Lookup(&v, fp(1), time.Now()) {
			t.Error("an identity outlived ttl")
		}
	})
}

func TestMemory_LateJoinerGetsAFlightOfItsOwn(t *testing.T) {
	m := cache.NewMemory(cache.Limits{})
	var v auth.Verdict
	now := time.Now()
	_, first, lead := m.Join(&v, fp(1), now)
	if !lead {
		t.Fatal("the first is the leader")
	}
	if _, same, lead := m.Join(&v, fp(1), now); lead || same != first {
		t.Fatal("the second joins")
	}
	m.Land(first, allow("acme"), now, func() bool { return true })
	m.Drop(fp(1)) // a change right after the landing
	if hit, again, lead := m.Join(&v, fp(1), now); hit || !lead || again == first {
		t.Fatal("whoever comes after the landing must start a load of its own")
	}
}

func TestMemory_FencedFlightGoesOn(t *testing.T) {
	m := cache.NewMemory(cache.Limits{})
	var v auth.Verdict
	now := time.Now()
	_, f, _ := m.Join(&v, fp(1), now)
	if m.Land(f, allow("acme"), now, func() bool { return false }) {
		t.Fatal("landed although fenced")
	}
	select {
	case <-f.Done():
		t.Fatal("a fenced load was returned")
	default:
	}
	if m.Lookup(&v, fp(1), now) {
		t.Fatal("a fenced load was stored")
	}
	m.Land(f, auth.Denied(auth.ReasonRevoked), now, func() bool { return true })
	<-f.Done()
	if f.Verdict().Reason != auth.ReasonRevoked {
		t.Errorf("verdict %v", f.Verdict())
	}
}

// TestMemory_CheckAndInsertAreOneStep stops a landing between its fence check
// and its insert and lets a change drop the key meanwhile: the drop must wait,
// and then find what was inserted.
func TestMemory_CheckAndInsertAreOneStep(t *testing.T) {
	m := cache.NewMemory(cache.Limits{})
	var v auth.Verdict
	now := time.Now()
	_, f, _ := m.Join(&v, fp(1), now)
	dropped := make(chan struct{})
	m.Land(f, allow("acme"), now, func() bool {
		started := make(chan struct{})
		go func() {
			close(started)
			m.Drop(fp(1))
			close(dropped)
		}()
		<-started
		for range 100 {
			runtime.Gosched()
			select {
			case <-dropped:
				t.Error("the drop went through between check and insert")
				return true
			default:
			}
		}
		return true
	})
	<-dropped
	if m.Lookup(&v, fp(1), now) {
		t.Error("a dropped identity is cached")
	}
}

func TestMemory_SweepByParent(t *testing.T) {
	m := cache.NewMemory(cache.Limits{})
	for i := range uint64(200) {
		owner := "acme"
		if i%2 == 1 {
			owner = "other"
		}
		v := allow(owner)
		if i%4 >= 2 {
			v = auth.Verdict{Outcome: auth.Deny, Reason: auth.ReasonOwnerDisabled, Identity: auth.Identity{Subject: owner, Method: auth.MethodAPIKey}}
		}
		land(m, fp(i), v)
	}
	m.Sweep(auth.Parent{Kind: auth.ParentOwner, Name: "acme"})
	var v auth.Verdict
	for i := range uint64(200) {
		if got, want := m.Lookup(&v, fp(i), time.Now()), i%2 == 1; got != want {
			t.Fatalf("entry %d cached: %v, want %v", i, got, want)
		}
	}
}

func TestMemory_NegativesCannotEvictIdentities(t *testing.T) {
	m := cache.NewMemory(cache.Limits{Size: 1000, NegativeSize: 640})
	land(m, fp(1), allow("acme"))
	for i := range uint64(20_000) {
		land(m, fp(i+10), auth.Denied(auth.ReasonUnknown))
	}
	var v auth.Verdict
	if !m.Lookup(&v, fp(1), time.Now()) {
		t.Error("a flood of unknown keys evicted an identity")
	}
	if good, bad := m.Len(); good != 1 || bad > 640*5/4 {
		t.Errorf("%d identities, %d denials", good, bad)
	}
}

func TestMemory_UsedEntriesStay(t *testing.T) {
	m := cache.NewMemory(cache.Limits{Size: 6400})
	var v auth.Verdict
	for i := range uint64(50_000) {
		if i > 0 && !m.Lookup(&v, fp(0), time.Now()) {
			t.Fatalf("the hot entry was evicted after %d others", i)
		}
		land(m, fp(i), allow("acme"))
	}
	if good, _ := m.Len(); good > 6400*5/4 {
		t.Errorf("%d identities, want about 6400", good)
	}
}

// TestMemory_SetLimits: another size keeps what fits, the entries in use last
// of all to go, and nothing turns into something else.
func TestMemory_SetLimits(t *testing.T) {
	m := cache.NewMemory(cache.Limits{Size: 6400})
	const n = 4000
	for i := range uint64(n) {
		land(m, fp(i), allow(fmt.Sprint("owner-", i)))
	}
	land(m, fp(n), auth.Denied(auth.ReasonUnknown))
	var v auth.Verdict
	for i := range uint64(100) {
		m.Lookup(&v, fp(i), time.Now())
	}
	m.SetLimits(cache.Limits{Size: 64_000, NegativeSize: 10})
	if good, bad := m.Len(); good != n || bad != 1 {
		t.Errorf("growing left %d identities and %d denials", good, bad)
	}
	m.SetLimits(cache.Limits{Size: 1280, TTL: time.Hour})
	good, _ := m.Len()
	if good < 1000 || good > 1280*5/4 || m.TTL() != time.Hour {
		t.Errorf("shrinking left %d identities, ttl %s", good, m.TTL())
	}
	used := 0
	for i := range uint64(n) {
		if !m.Lookup(&v, fp(i), time.Now()) {
			continue
		}
		if v.Identity.Subject != fmt.Sprint("owner-", i) {
			t.Fatalf("entry %d is of %s", i, v.Identity.Subject)
		}
		if i < 100 {
			used++
		}
	}
	if used != 100 {
		t.Errorf("%d of 100 entries in use were kept", used)
	}
	if got := len(m.TakeUses(n)); got < good {
		t.Errorf("%d last-used times, at least those of %d entries are due", got, good)
	}
}

func TestMemory_TakesUsesOnce(t *testing.T) {
	m := cache.NewMemory(cache.Limits{})
	land(m, fp(1), allow("acme"))
	expired := allow("acme")
	expired.Identity.NotAfter = 1
	land(m, fp(2), expired)
	uses := m.TakeUses(10)
	if len(uses) != 1 || uses[0].Fingerprint != fp(1) {
		t.Fatalf("uses %v", uses)
	}
	if again := m.TakeUses(10); len(again) != 0 {
		t.Errorf("taken twice: %v", again)
	}
	var v auth.Verdict
	m.Lookup(&v, fp(1), time.Now())
	m.Drop(fp(1))
	if uses := m.TakeUses(10); len(uses) != 1 {
		t.Errorf("the use of a dropped entry is lost: %v", uses)
	}
}

func TestMemory_TakesUsesInTurns(t *testing.T) {
	m := cache.NewMemory(cache.Limits{})
	const keys = 5000
	for i := range uint64(keys) {
		land(m, fp(i), allow("acme"))
	}
	seen := map[auth.Fingerprint]bool{}
	for range 100 {
		uses := m.TakeUses(100)
		if len(uses) > 100 {
			t.Fatalf("%d at once", len(uses))
		}
		for _, u := range uses {
			seen[u.Fingerprint] = true
		}
	}
	if len(seen) != keys {
		t.Errorf("%d of %d keys had their turn", len(seen), keys)
	}
}

func TestLookup_OneAllocation(t *testing.T) {
	m := cache.NewMemory(cache.Limits{})
	land(m, fp(1), allow("acme"))
	now, f := time.Now(), fp(1)
	var v auth.Verdict
	if n := testing.AllocsPerRun(1000, func() { m.Lookup(&v, f, now) }); n > 1 {
		t.Errorf("%v allocations", n)
	}
}

func TestMemory_BytesPerIdentity(t *testing.T) {
	n := 200_000
	if os.Getenv("CADDY_AUTH_SOAK") != "" {
		n = 1_000_000
	}
	var before, after runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&before)
	m := cache.NewMemory(cache.Limits{Size: n})
	for i := range uint64(n) {
		var f auth.Fingerprint
		for j := 0; j < 32; j += 8 {
			binary.LittleEndian.PutUint64(f[j:], (i+1)*0x9e3779b97f4a7c15+uint64(j))
		}
		land(m, f, allow("customer-4711"))
	}
	runtime.GC()
	runtime.ReadMemStats(&after)
	good, _ := m.Len()
	per := float64(after.HeapAlloc-before.HeapAlloc) / float64(good)
	t.Logf("%d identities, %.0f bytes each", good, per)
	if good < n*9/10 || per > 320 {
		t.Errorf("%d of %d kept, %.0f bytes each, want at most 320", good, n, per)
	}
	runtime.KeepAlive(m)
}

func TestMemory_ReadersNeverSeeHalfARecord(t *testing.T) {
	m := cache.NewMemory(cache.Limits{Size: 64})
	stop := make(chan struct{})
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			var v auth.Verdict
			for {
				select {
				case <-stop:
					return
				default:
				}
				for i := range uint64(50) {
					v = auth.Verdict{}
					if m.Lookup(&v, fp(i), time.Now()) && v.Identity.Subject != strings.Repeat(fmt.Sprint(i), 20) {
						t.Errorf("entry %d has subject %q", i, v.Identity.Subject)
						return
					}
				}
			}
		})
	}
	for round := range 200 {
		for i := range uint64(50) {
			m.Drop(fp(i))
			land(m, fp(i), allow(strings.Repeat(fmt.Sprint(i), 20)))
		}
		if round%50 == 0 {
			m.Clear()
		}
	}
	close(stop)
	wg.Wait()
}

// TestMemory_VerdictsOutliveTheirSlots: what a request was told stays as it is
// while its slot goes to others.
func TestMemory_VerdictsOutliveTheirSlots(t *testing.T) {
	m := cache.NewMemory(cache.Limits{Size: 64}) // one a shard, or few
	var wg sync.WaitGroup
	for worker := range uint64(8) {
		wg.Go(func() {
			held := map[string]auth.Verdict{}
			for i := range uint64(2000) {
				n := worker*1_000_000 + i
				subject := strings.Repeat(fmt.Sprint(n, " "), int(i%30)+1)
				land(m, fp(n), allow(subject))
				var v auth.Verdict
				if m.Lookup(&v, fp(n), time.Now()) {
					held[subject] = v
				}
			}
			if len(held) < 1000 {
				t.Errorf("only %d were found right after they were put in", len(held))
			}
			for subject, v := range held {
				if v.Identity.Subject != subject || v.Identity.Scopes != "orders:read orders:write" || v.Identity.Environment != "live" {
					t.Errorf("%q became %+v", subject, v.Identity)
					return
				}
			}
		})
	}
	wg.Wait()
}

// TestMemoryProperty compares the cache with a map: it may forget, but never
// tell anything that was not put there or was dropped.
func TestMemoryProperty(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		m := cache.NewMemory(cache.Limits{Size: rapid.SampledFrom([]int{64, 640, 100_000}).Draw(t, "size")})
		model := map[uint64]auth.Verdict{}
		key := rapid.Uint64Range(0, 60)
		t.Repeat(map[string]func(*rapid.T){
			"put": func(t *rapid.T) {
				k := key.Draw(t, "key")
				v := allow(rapid.StringN(0, 300, 700).Draw(t, "subject"))
				if rapid.Bool().Draw(t, "bad") {
					v.Outcome, v.Reason = auth.Deny, auth.ReasonRevoked
				}
				m.Drop(fp(k))
				land(m, fp(k), v)
				model[k] = v
			},
			"drop": func(t *rapid.T) {
				k := key.Draw(t, "key")
				m.Drop(fp(k))
				delete(model, k)
			},
			"sweep": func(t *rapid.T) {
				owner := model[key.Draw(t, "key")].Identity.Subject
				m.Sweep(auth.Parent{Kind: auth.ParentOwner, Name: owner})
				for k, v := range model {
					if v.Identity.Subject == owner && owner != "" {
						delete(model, k)
					}
				}
			},
			"clear": func(*rapid.T) {
				m.Clear()
				clear(model)
			},
			"": func(t *rapid.T) {
				for k := range uint64(61) {
					var got auth.Verdict
					if !m.Lookup(&got, fp(k), time.Now()) {
						continue
					}
					want, ok := model[k]
					if !ok {
						t.Fatalf("key %d was dropped and is still told", k)
					}
					if d := cmp.Diff(want, got); d != "" {
						t.Fatalf("key %d: %s", k, d)
					}
				}
			},
		})
	})
}

func BenchmarkLookup(b *testing.B) {
	for _, n := range []int{10_000, 1_000_000} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			m := cache.NewMemory(cache.Limits{Size: n * 2})
			fps := make([]auth.Fingerprint, n)
			for i := range fps {
				fps[i] = fp(uint64(i))
				land(m, fps[i], allow("customer"))
			}
			now := time.Now()
			b.ReportAllocs()
			var v auth.Verdict
			for i := 0; b.Loop(); i++ {
				if !m.Lookup(&v, fps[i*7919%n], now) {
					b.Fatal("miss")
				}
			}
		})
	}
}
