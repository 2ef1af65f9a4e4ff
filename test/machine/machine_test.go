package machine

import (
	"context"
	"flag"
	"fmt"
	"os"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"pgregory.net/rapid"

	"github.com/caddy-auth/caddy-auth/internal/auth"
)

// TestMachine_Property lets anything happen in any order: changes, requests,
// loads, records of Redis, looks, heartbeats, evictions, outages, restarts,
// restores, --wait. A revoked credential is never let in by a gateway that has
// applied the revocation, nor by any after --wait returned; a good one is never
// refused while the store can be reached; and once all can be reached, every
// answer is the truth.
func TestMachine_Property(t *testing.T) {
	checks := "150"
	if os.Getenv("CADDY_AUTH_SOAK") != "" {
		checks = "20000"
	}
	if n := os.Getenv("CADDY_AUTH_MACHINE_CHECKS"); n != "" {
		checks = n
	}
	for name, value := range map[string]string{"rapid.checks": checks, "rapid.nofailfile": "true"} {
		if err := flag.Set(name, value); err != nil {
			t.Fatal(err)
		}
	}
	seen := map[string]int{}
	rapid.Check(t, func(rt *rapid.T) {
		var violation string
		var caught any
		run(t, 2, func(_ *testing.T, w *world) {
			m := &machine{w: w, rt: rt, o: &oracle{w: w, saved: map[string][]version{}}, seen: seen}
			func() {
				defer func() { caught = recover() }() // rapid's own way to stop
				m.play()
			}()
			violation = m.o.verdict
			m.end(caught == nil && violation == "")
			if violation == "" {
				violation = m.o.verdict
			}
		})
		if caught != nil {
			panic(caught)
		}
		if violation != "" {
			rt.Fatal(violation)
		}
	})
	for _, what := range []string{"allow", "deny", "undecided", "waited", "missing", "restore", "crash", "record used"} {
		if seen[what] == 0 {
			t.Errorf("it never came to %q: the test shows little", what)
		}
	}
	t.Log(seen)
}

type machine struct {
	w       *world
	rt      *rapid.T
	o       *oracle
	backups []string
	seen    map[string]int
	steps   int
}

func (m *machine) play() {
	m.commitFirst()
	for _, n := range m.w.nodes {
		n.look()
		n.knows(m.o.restores)
	}
	for range rapid.IntRange(20, 120).Draw(m.rt, "steps") {
		m.step()
		m.o.settle()
		if m.o.verdict != "" {
			return
		}
	}
}

func (m *machine) commitFirst() {
	m.o.commit(func(*version) {})
	m.create()
	m.create()
}

func (m *machine) step() {
	actions := []struct {
		name   string
		weight int
		do     func()
	}{
		{"request", 7, m.request},
		{"go on", 20, m.goOn},
		{"look", 4, m.look},
		{"beat", 3, m.beat},
		{"create", 1, m.create},
		{"revoke", 2, m.revoke},
		{"disable", 2, m.disable},
		{"owner", 2, m.owner},
		{"rotate", 1, m.rotate},
		{"evict", 1, m.evict},
		{"time", 1, m.time},
		{"store", 1, m.store},
		{"redis", 1, m.redis},
		{"crash", 1, m.crash},
		{"wait", 3, m.wait},
		{"catch up", 2, m.catchUp},
		{"backup", 1, m.backup},
		{"restore", 1, m.restore},
	}
	var names []string
	for _, a := range actions {
		for range a.weight {
			names = append(names, a.name)
		}
	}
	name := rapid.SampledFrom(names).Draw(m.rt, "step")
	for _, a := range actions {
		if a.name == name {
			a.do()
		}
	}
	m.steps++
}

func (m *machine) node() *node {
	return m.w.nodes[rapid.IntRange(0, len(m.w.nodes)-1).Draw(m.rt, "node")]
}

func (m *machine) key() *key { return rapid.SampledFrom(m.w.keys).Draw(m.rt, "key") }

func (m *machine) request() {
	n, k := m.node(), m.key()
	p := m.o.arrive(n, k)
	answer := make(chan auth.Verdict, 1)
	p.answer = answer
	go func() {
		v := n.verifier.VerifyKey(context.Background(), k.text, p.at)
		answer <- v
	}()
	synctest.Wait()
	select {
	case v := <-answer: // at once
		m.seen[map[auth.Outcome]string{auth.Allow: "allow", auth.Deny: "deny", auth.CannotDecide: "undecided"}[v.Outcome]]++
		answer <- v
	default:
	}
}

// goOn lets one of those who wait take its next step; Redis gives any record
// it ever held, or none.
func (m *machine) goOn() {
	all := m.w.stops.list()
	if len(all) == 0 {
		return
	}
	s := rapid.SampledFrom(all).Draw(m.rt, "who goes on")
	pick := -1
	if s.at == "redis answers" {
		pick = rapid.IntRange(-1, m.w.redis.count(s.node.asked)-1).Draw(m.rt, "record")
		if pick >= 0 {
			m.seen["record used"]++
		}
	}
	m.w.stops.pass(s, pick)
}

func (m *machine) look() {
	n := m.node()
	seen := m.o.restores
	go func() {
		if n.follower.Look(context.Background()) == nil {
			n.knows(seen)
		}
	}()
	synctest.Wait()
}

func (m *machine) beat() {
	n := m.node()
	go func() { _ = n.follower.Beat(context.Background()) }()
	synctest.Wait()
}

func (m *machine) create() {
	var expires time.Duration
	if rapid.Bool().Draw(m.rt, "expires") {
		expires = rapid.SampledFrom([]time.Duration{5 * time.Second, 12 * time.Minute}).Draw(m.rt, "in")
	}
	owner := rapid.SampledFrom([]string{"acme", "other"}).Draw(m.rt, "owner")
	k := m.w.create(owner, expires)
	m.o.commit(func(v *version) { v.keys[k.id] = m.fact(k.id) })
}

// fact reads a key's truth from its row.
func (m *machine) fact(id string) fact {
	row, err := m.w.db.KeyByID(m.w.t.Context(), id)
	m.w.must(err)
	return fact{exists: true, revoked: row.RevokedAt != 0, disabled: row.DisabledAt != 0, notAfter: row.NotAfter()}
}

func (m *machine) revoke() {
	k := m.key()
	if _, err := m.w.ops.Revoke(m.w.t.Context(), []string{k.id}, ""); err == nil {
		m.o.commit(func(v *version) { v.keys[k.id] = m.fact(k.id) })
	}
}

func (m *machine) disable() {
	k, off := m.key(), rapid.Bool().Draw(m.rt, "off")
	if _, err := m.w.ops.SetDisabled(m.w.t.Context(), []string{k.id}, off, ""); err == nil {
		m.o.commit(func(v *version) { v.keys[k.id] = m.fact(k.id) })
	}
}

func (m *machine) owner() {
	name, off := rapid.SampledFrom([]string{"acme", "other"}).Draw(m.rt, "owner"), rapid.Bool().Draw(m.rt, "off")
	if _, err := m.w.ops.SetOwnerDisabled(m.w.t.Context(), name, off, ""); err == nil {
		m.o.commit(func(v *version) { v.disabled[name] = off })
	}
}

func (m *machine) rotate() {
	k := m.key()
	overlap := rapid.SampledFrom([]time.Duration{0, 10 * time.Second}).Draw(m.rt, "overlap")
	made, err := m.w.ops.Rotate(m.w.t.Context(), k.id, overlap, nil)
	if err != nil {
		return
	}
	m.w.keys = append(m.w.keys, &key{made.Key.ID, made.Text.Reveal(), k.owner})
	m.o.commit(func(v *version) { v.keys[k.id], v.keys[made.Key.ID] = m.fact(k.id), m.fact(made.Key.ID) })
}

func (m *machine) evict() { m.node().memory.Drop(auth.FingerprintOf(m.key().text)) }

// time lets time pass, which may be longer than anything under way lasts.
func (m *machine) time() {
	time.Sleep(rapid.SampledFrom([]time.Duration{time.Millisecond, time.Second, 7 * time.Second, maxStaleness / 2, maxStaleness + 10*time.Second, 2 * time.Hour}).Draw(m.rt, "time"))
	synctest.Wait()
	m.o.excuse(nil)
}

func (m *machine) store() {
	n := m.node()
	n.away = !n.away
	m.o.excuse(n)
}

func (m *machine) redis() {
	n := m.node()
	n.noRedis = !n.noRedis
}

// crash ends a gateway and starts another in its place. A clean stop answers
// what is under way first, and lets nobody in meanwhile.
func (m *machine) crash() {
	i := rapid.IntRange(0, len(m.w.nodes)-1).Draw(m.rt, "node")
	n := m.w.nodes[i]
	clean := rapid.Bool().Draw(m.rt, "clean")
	n.free = true
	for range 20 { // each thing under way has so few steps
		m.w.stops.release(n)
	}
	if clean {
		n.follower.Retire()
	}
	m.o.settle()
	m.o.open = slices.DeleteFunc(m.o.open, func(p *pending) bool { return p.n == n })
	if clean && !n.away {
		m.w.must(n.db.Leave(m.w.t.Context(), n.follower.Node().ID))
	}
	m.w.must(n.db.Close())
	other := m.w.newNode(i)
	other.away, other.noRedis = n.away, n.noRedis
	m.w.nodes[i] = other
	m.seen["crash"]++
}

// catchUp lets every gateway that can, and is idle, look and acknowledge.
func (m *machine) catchUp() {
	busy := map[*node]bool{}
	for _, s := range m.w.stops.list() {
		busy[s.node] = true
	}
	for _, n := range m.w.nodes {
		if busy[n] || n.away {
			continue
		}
		n.look()
		n.knows(m.o.restores)
		n.do(func() { m.w.must(n.follower.Beat(m.w.t.Context())) })
		if !n.follower.Trusted(n.clock()) && m.o.verdict == "" {
			m.o.verdict = n.name + " does not trust after a good look and heartbeat"
		}
	}
	m.wait()
}

// wait asks once what --wait would ask.
func (m *machine) wait() {
	mine, wrote := m.w.ops.Wrote()
	if !wrote {
		return
	}
	_, err := m.w.ops.Applied(m.w.t.Context())
	switch {
	case err == nil:
		m.o.waited = max(m.o.waited, mine.Seq)
		m.seen["waited"]++
	default:
		m.seen["missing"]++
	}
}

func (m *machine) backup() {
	if len(m.backups) < 3 {
		path := m.w.backup()
		m.backups = append(m.backups, path)
		m.o.backup(path)
	}
}

func (m *machine) restore() {
	if len(m.backups) == 0 || m.o.restores >= 2 {
		return
	}
	path := rapid.SampledFrom(m.backups).Draw(m.rt, "backup")
	m.w.restore(path, rapid.Bool().Draw(m.rt, "same epoch"))
	m.o.restore(path)
	m.seen["restore"]++
}

// end lets everything finish and, if all went well, asks every gateway about
// every key.
func (m *machine) end(ask bool) {
	m.w.stops.openAll()
	synctest.Wait()
	m.o.settle()
	if !ask || m.o.verdict != "" {
		return
	}
	last := &m.o.versions[len(m.o.versions)-1]
	for _, n := range m.w.nodes {
		n.away, n.noRedis = false, false
		time.Sleep(6 * time.Second) // nothing is left of what was under way
		if err := n.follower.Look(m.w.t.Context()); err != nil {
			m.o.verdict = fmt.Sprintf("%s does not recover: %v", n.name, err)
			return
		}
		for _, k := range m.w.keys {
			want := auth.Deny
			now := n.clock()
			if last.good(k, now) {
				want = auth.Allow
			}
			if v := n.verifier.VerifyKey(m.w.t.Context(), k.text, now); v.Outcome != want {
				m.o.verdict = fmt.Sprintf("in the end %s answers %d (%s, %v) for %s, want %d", n.name, v.Outcome, v.Reason, v.Cause, k.id, want)
				return
			}
		}
	}
}
