package cache

import (
	"hash/fnv"
	"hash/maphash"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/caddy-auth/caddy-auth/internal/auth"
)

// Limits are the sizes and lifetimes of the memory tier. Zero means the
// default.
type Limits struct {
	Size         int           // identities, default 100,000
	TTL          time.Duration // age of an identity, from the authoritative check; default 5m
	NegativeSize int           // denials, default 20,000
	NegativeTTL  time.Duration // default 10s
}

func (l Limits) withDefaults() Limits {
	if l.Size <= 0 {
		l.Size = 100_000
	}
	if l.TTL <= 0 {
		l.TTL = 5 * time.Minute
	}
	if l.NegativeSize <= 0 {
		l.NegativeSize = 20_000
	}
	if l.NegativeTTL <= 0 {
		l.NegativeTTL = 10 * time.Second
	}
	return l
}

const (
	shardCount = 64
	// maxEvictedUses bounds the last-used times kept of evicted entries.
	maxEvictedUses = 1024
)

// Memory is the memory tier. It is safe for concurrent use.
type Memory struct {
	limits atomic.Pointer[Limits]
	start  time.Time
	seed   maphash.Seed
	shards [shardCount]shard

	usesFrom atomic.Uint32 // the shard TakeUses read last
}

type shard struct {
	mu       sync.Mutex
	good     *table
	bad      *table
	flights  map[auth.Fingerprint]*Flight
	lostUses []auth.Use
	_        [64]byte // keeps neighbours off one cache line
}

// Flight is one load that several requests may wait for.
type Flight struct {
	fp      auth.Fingerprint
	done    chan struct{}
	verdict auth.Verdict
}

// Done is closed when the flight has landed.
func (f *Flight) Done() <-chan struct{} { return f.done }

// Verdict is the result; read it after Done.
func (f *Flight) Verdict() auth.Verdict { return f.verdict }

// NewMemory returns an empty tier.
func NewMemory(l Limits) *Memory {
	l = l.withDefaults()
	m := &Memory{start: time.Now(), seed: maphash.MakeSeed()}
	m.limits.Store(&l)
	for i := range m.shards {
		s := &m.shards[i]
		s.good = newTable(m.seed, perShard(l.Size), s.keepUse)
		s.bad = newTable(m.seed, perShard(l.NegativeSize), nil)
		s.flights = map[auth.Fingerprint]*Flight{}
	}
	return m
}

// perShard is an eighth more than a shard's part, since fingerprints don't
// spread evenly.
func perShard(n int) int { return n/shardCount + n/shardCount/8 + 1 }

// TTL is how long an identity is kept.
func (m *Memory) TTL() time.Duration { return m.limits.Load().TTL }

// SetLimits changes sizes and lifetimes and keeps what is cached, as far as it
// fits. Lifetimes apply to what is cached from now on.
func (m *Memory) SetLimits(l Limits) {
	l = l.withDefaults()
	old := m.limits.Swap(&l)
	if old.Size == l.Size && old.NegativeSize == l.NegativeSize {
		return
	}
	for i := range m.shards {
		s := &m.shards[i]
		s.mu.Lock()
		s.good = s.good.resized(perShard(l.Size))
		s.bad = s.bad.resized(perShard(l.NegativeSize))
		s.mu.Unlock()
	}
}

func (m *Memory) shard(fp *auth.Fingerprint) *shard {
	return &m.shards[fp[len(fp)-1]%shardCount]
}

func (m *Memory) clock(now time.Time) int64 { return now.Sub(m.start).Milliseconds() }

// Lookup fills v with the cached verdict for fp and reports whether there is
// one. It makes one allocation.
func (m *Memory) Lookup(v *auth.Verdict, fp auth.Fingerprint, now time.Time) bool {
	s := m.shard(&fp)
	s.mu.Lock()
	record := s.lookup(&fp, m.clock(now), now.UnixMilli())
	s.mu.Unlock()
	return record != nil && parseRecord(v, record) == nil
}

// lookup returns a copy of the record for fp, or nil.
func (s *shard) lookup(fp *auth.Fingerprint, clock, unix int64) []byte {
	for _, t := range [...]*table{s.good, s.bad} {
		e := t.find(fp)
		if e == nil {
			continue
		}
		if clock >= e.expires {
			if t == s.good {
				s.keepUse(e)
			}
			t.remove(fp)
			return nil
		}
		e.used = true
		if t == s.good && !e.foreign && (e.notAfter == 0 || unix < e.notAfter) {
			e.usedAt = unix
		}
		record := make([]byte, e.size)
		t.read(e, record)
		return record
	}
	return nil
}

// Join looks once more and otherwise joins the flight for fp, or starts it:
// then lead is true and the caller must see to it that Land or Abort is
// called. The second look and the joining are one step.
func (m *Memory) Join(v *auth.Verdict, fp auth.Fingerprint, now time.Time) (hit bool, f *Flight, lead bool) {
	s := m.shard(&fp)
	s.mu.Lock()
	defer s.mu.Unlock()
	if record := s.lookup(&fp, m.clock(now), now.UnixMilli()); record != nil && parseRecord(v, record) == nil {
		return true, nil, false
	}
	if f := s.flights[fp]; f != nil {
		return false, f, false
	}
	f = &Flight{fp: fp, done: make(chan struct{})}
	s.flights[fp] = f
	return false, f, true
}

// Land ends a flight with a verdict that was read at checked, unless usable
// says that a change overtook it: then the flight goes on and Land returns
// false. usable, the insert and the closing are one step under the key's lock.
func (m *Memory) Land(f *Flight, v auth.Verdict, checked time.Time, usable func() bool) bool {
	s := m.shard(&f.fp)
	s.mu.Lock()
	defer s.mu.Unlock()
	if !usable() {
		return false
	}
	m.insert(s, &f.fp, &v, checked)
	s.close(f, v)
	return true
}

// Abort ends a flight with a verdict that is not kept.
func (m *Memory) Abort(f *Flight, v auth.Verdict) {
	s := m.shard(&f.fp)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.close(f, v)
}

func (s *shard) close(f *Flight, v auth.Verdict) {
	delete(s.flights, f.fp)
	f.verdict = v
	close(f.done)
}

func (m *Memory) insert(s *shard, fp *auth.Fingerprint, v *auth.Verdict, checked time.Time) {
	var buf [512]byte
	record := appendRecord(buf[:0], v)
	e := entry{parents: parentSums(auth.ParentsOf(&v.Identity)), notAfter: v.Identity.NotAfter, foreign: v.Source != auth.Source{}}
	clock, limits := m.clock(checked), m.limits.Load()
	switch v.Outcome {
	case auth.Allow:
		e.expires = clock + limits.TTL.Milliseconds()
		if !e.foreign && (v.Identity.NotAfter == 0 || checked.UnixMilli() < v.Identity.NotAfter) {
			e.usedAt = checked.UnixMilli()
		}
		s.bad.remove(fp)
		s.good.put(fp, record, e)
	case auth.Deny:
		e.expires = clock + limits.NegativeTTL.Milliseconds()
		s.good.remove(fp)
		s.bad.put(fp, record, e)
	}
}

// Drop forgets what is cached for fp.
func (m *Memory) Drop(fp auth.Fingerprint) {
	s := m.shard(&fp)
	s.mu.Lock()
	defer s.mu.Unlock()
	if e := s.good.find(&fp); e != nil {
		s.keepUse(e)
	}
	s.good.remove(&fp)
	s.bad.remove(&fp)
}

// Sweep forgets everything that depends on parent.
func (m *Memory) Sweep(parent auth.Parent) {
	sum := parentSum(parent)
	for i := range m.shards {
		s := &m.shards[i]
		s.mu.Lock()
		for _, t := range [...]*table{s.good, s.bad} {
			var doomed []auth.Fingerprint
			t.each(func(e *entry) {
				if slices.Contains(e.parents[:], sum) {
					if t == s.good {
						s.keepUse(e)
					}
					doomed = append(doomed, e.fp)
				}
			})
			for i := range doomed {
				t.remove(&doomed[i])
			}
		}
		s.mu.Unlock()
	}
}

// Clear forgets everything. Flights under way are not ended; their fence is.
func (m *Memory) Clear() {
	for i := range m.shards {
		s := &m.shards[i]
		s.mu.Lock()
		s.good = newTable(m.seed, s.good.most, s.keepUse)
		s.bad = newTable(m.seed, s.bad.most, nil)
		s.lostUses = nil
		s.mu.Unlock()
	}
}

// ClearDenials forgets every denial.
func (m *Memory) ClearDenials() {
	for i := range m.shards {
		s := &m.shards[i]
		s.mu.Lock()
		s.bad = newTable(m.seed, s.bad.most, nil)
		s.mu.Unlock()
	}
}

// Len returns how many identities and denials are cached.
func (m *Memory) Len() (good, bad int) {
	for i := range m.shards {
		s := &m.shards[i]
		s.mu.Lock()
		good, bad = good+s.good.live, bad+s.bad.live
		s.mu.Unlock()
	}
	return good, bad
}

// TakeUses returns up to limit last-used times that were collected and not
// taken yet. Calls go around the shards, so that with more keys in use than
// limit each has its turn.
func (m *Memory) TakeUses(limit int) []auth.Use {
	var out []auth.Use
	for range shardCount {
		s := &m.shards[m.usesFrom.Add(1)%shardCount]
		s.mu.Lock()
		out = append(out, s.lostUses...)
		s.lostUses = nil
		s.good.each(func(e *entry) {
			if e.usedAt != 0 && len(out) < limit {
				out = append(out, auth.Use{Fingerprint: e.fp, At: e.usedAt})
				e.usedAt = 0
			}
		})
		s.mu.Unlock()
		if len(out) >= limit {
			m.usesFrom.Add(shardCount - 1) // this shard may have more
			return out
		}
	}
	return out
}

// keepUse saves the last-used time of an entry that goes.
func (s *shard) keepUse(e *entry) {
	if e.usedAt != 0 && len(s.lostUses) < maxEvictedUses {
		s.lostUses = append(s.lostUses, auth.Use{Fingerprint: e.fp, At: e.usedAt})
	}
}

func parentSums(p auth.Parents) (sums [len(auth.Parents{})]uint32) {
	for i := range p {
		sums[i] = parentSum(p[i])
	}
	return sums
}

// parentSum shortens a parent to 32 bits: a collision only makes a sweep drop
// one entry too many. 0 is nobody.
func parentSum(p auth.Parent) uint32 {
	if p == (auth.Parent{}) {
		return 0
	}
	h := fnv.New32a()
	_, _ = h.Write([]byte(p.Kind))
	_, _ = h.Write([]byte{0})
	_, _ = h.Write([]byte(p.Name))
	return h.Sum32() | 1
}
