// Package machine puts a small fleet of gateways' insides over one real store
// and stops each of their steps until a test lets it go on: any order of
// things can be tried, and comes out the same each time. Time is the bubble's
// (testing/synctest); every gateway has a clock of its own.
package machine

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/caddy-auth/caddy-auth/internal/auth"
	"github.com/caddy-auth/caddy-auth/internal/cache"
	"github.com/caddy-auth/caddy-auth/internal/feed"
	"github.com/caddy-auth/caddy-auth/internal/manage"
	"github.com/caddy-auth/caddy-auth/internal/secret"
	"github.com/caddy-auth/caddy-auth/internal/store"
	"github.com/caddy-auth/caddy-auth/internal/store/sqlite"
	"github.com/caddy-auth/caddy-auth/internal/verifier"
)

const (
	maxStaleness = time.Minute
	sharedTTL    = time.Hour
	skew         = 10 * time.Minute
)

// world is a store, a Redis that nobody can trust, and who uses them.
type world struct {
	t     *testing.T
	path  string
	ring  *secret.Ring
	db    *store.DB
	ops   *manage.Manager // the operator
	redis *hostile
	nodes []*node
	keys  []*key
	stops stops

	backups int
}

type key struct {
	id, text, owner string
}

// String is for the trace of a failure.
func (k *key) String() string { return k.id[len(k.id)-4:] + " of " + k.owner }

// run makes a world with some gateways in a bubble and takes it down again.
func run(t *testing.T, gateways int, f func(t *testing.T, w *world)) {
	t.Helper()
	dir := t.TempDir()
	if _, err := os.Stat("/dev/shm"); err == nil { // what a disk does is tested elsewhere
		if dir, err = os.MkdirTemp("/dev/shm", "caddy-auth-machine"); err != nil {
			t.Fatal(err)
		}
		defer os.RemoveAll(dir)
	}
	synctest.Test(t, func(t *testing.T) {
		w := &world{t: t, path: filepath.Join(dir, "auth.db"), redis: &hostile{values: map[string][][]byte{}}}
		w.redis.stops = &w.stops
		defer w.close()
		var err error
		w.ring, err = secret.NewRing("test", bytes.Repeat([]byte{7}, 32))
		w.must(err)
		w.db = w.open(store.Create)
		w.must(w.db.Init(t.Context(), "test", w.ring, "ca"))
		w.ops = w.operator()
		for i := range gateways {
			w.nodes = append(w.nodes, w.newNode(i))
		}
		f(t, w)
	})
}

func (w *world) close() {
	w.stops.openAll()
	synctest.Wait()
	for _, n := range w.nodes {
		_ = n.db.Close()
	}
	if w.db != nil {
		_ = w.db.Close()
	}
	synctest.Wait()
}

func (w *world) must(err error) {
	w.t.Helper()
	if err != nil {
		w.t.Fatal(err)
	}
}

func (w *world) open(mode store.Mode) *store.DB {
	w.t.Helper()
	db, err := store.Open(w.t.Context(), sqlite.New(w.path), mode)
	w.must(err)
	return db
}

func (w *world) operator() *manage.Manager {
	return manage.New(w.db, "test", "ca", func(ctx context.Context) (*secret.Minter, error) { return w.db.Minter(ctx, w.ring) })
}

func (w *world) create(owner string, expires time.Duration) *key {
	w.t.Helper()
	spec := manage.KeySpec{Owner: owner}
	if expires > 0 {
		spec.ExpiresAt = time.Now().Add(expires).UnixMilli()
	}
	made, err := w.ops.Create(w.t.Context(), spec)
	w.must(err)
	k := &key{made.Key.ID, made.Text.Reveal(), owner}
	w.keys = append(w.keys, k)
	return k
}

func (w *world) revoke(k *key) {
	w.t.Helper()
	_, err := w.ops.Revoke(w.t.Context(), []string{k.id}, "")
	w.must(err)
}

// acknowledged asks once whether all live gateways have applied the
// operator's last change.
func (w *world) acknowledged() (int, error) {
	ack, err := w.ops.Applied(w.t.Context())
	return ack.Nodes, err
}

// stops are where something waits to be let go on.
type stops struct {
	mu      sync.Mutex
	waiting []*stop
	open    bool
}

type stop struct {
	node *node // nil: Redis
	at   string
	pick int // which of Redis's values is given; -1: none
	next chan struct{}
}

// String is for the trace of a failure.
func (s *stop) String() string { return s.node.name + ": " + s.at }

// at waits until somebody lets it go on, and returns what they picked.
func (s *stops) at(n *node, name string) int {
	s.mu.Lock()
	if s.open || n != nil && n.free {
		s.mu.Unlock()
		return -1
	}
	st := &stop{node: n, at: name, pick: -1, next: make(chan struct{})}
	s.waiting = append(s.waiting, st)
	s.mu.Unlock()
	<-st.next
	return st.pick
}

// pass lets one go on and waits until everything stands still again.
func (s *stops) pass(st *stop, pick int) {
	s.mu.Lock()
	for i, other := range s.waiting {
		if other == st {
			s.waiting = append(s.waiting[:i:i], s.waiting[i+1:]...)
			break
		}
	}
	s.mu.Unlock()
	st.pick = pick
	close(st.next)
	synctest.Wait()
}

func (s *stops) list() []*stop {
	s.mu.Lock()
	defer s.mu.Unlock()
	return append([]*stop(nil), s.waiting...)
}

// find returns the stop of a node at a place, which must be there.
func (w *world) find(n *node, at string) *stop {
	w.t.Helper()
	for _, s := range w.stops.list() {
		if s.node == n && s.at == at {
			return s
		}
	}
	w.t.Fatalf("%s does not stand at %s", n.name, at)
	return nil
}

func (w *world) pass(n *node, at string) {
	w.t.Helper()
	w.stops.pass(w.find(n, at), -1)
}

func (s *stops) openAll() {
	s.mu.Lock()
	s.open = true
	all := s.waiting
	s.waiting = nil
	s.mu.Unlock()
	for _, st := range all {
		close(st.next)
	}
}

// release lets everything of one node go on that waits.
func (s *stops) release(n *node) {
	for _, st := range s.list() {
		if st.node == n {
			s.pass(st, -1)
		}
	}
}

// hostile is a Redis whose writer replays every record it ever saw.
type hostile struct {
	stops  *stops
	mu     sync.Mutex
	values map[string][][]byte // by name, oldest first
}

func (h *hostile) count(name string) int {
	h.mu.Lock()
	defer h.mu.Unlock()
	return len(h.values[name])
}

// ofNode is Redis as one gateway reaches it.
type ofNode struct {
	*hostile
	n *node
}

func (h ofNode) Get(_ context.Context, name string) ([]byte, error) {
	if h.n.noRedis {
		return nil, auth.ErrUnavailable
	}
	pick := -1
	if h.count(name) > 0 {
		h.n.asked = name
		pick = h.stops.at(h.n, "redis answers")
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	if v := h.values[name]; pick >= 0 && pick < len(v) {
		return v[pick], nil
	}
	return nil, auth.ErrNotFound
}

func (h ofNode) Set(_ context.Context, name string, value []byte, _ time.Duration) error {
	if h.n.noRedis {
		return auth.ErrUnavailable
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	h.values[name] = append(h.values[name], bytes.Clone(value))
	return nil
}

// node is one gateway's inside.
type node struct {
	w        *world
	name     string
	db       *store.DB
	memory   *cache.Memory
	follower *feed.Follower
	verifier *verifier.Verifier
	clock    func() time.Time
	free     bool         // it stops nowhere
	away     bool         // it can't reach the store
	noRedis  bool         // it can't reach Redis
	asked    string       // the name it asked Redis for last
	stirred  bool         // a change was made since something under way began
	stained  bool         // something is under way that an outage or time may have spoilt
	restores atomic.Int64 // the store's, that it knows of
}

func (w *world) newNode(i int) *node {
	w.t.Helper()
	n := &node{w: w, name: string(rune('A' + i)), memory: cache.NewMemory(cache.Limits{TTL: 30 * time.Minute})}
	ahead := time.Duration(i) * skew
	n.clock = func() time.Time { return time.Now().Add(ahead) }
	n.db = w.open(store.Existing)
	id := fmt.Sprintf("node_%s_%p", n.name, n)
	n.follower = feed.New(journal{n}, tier{n}, auth.Node{ID: id, Name: n.name}, feed.Config{MaxStaleness: maxStaleness, Memory: sharedTTL, Now: n.clock}, feed.Events{
		Remembered: func(auth.Change) { w.stops.at(n, "remembered") },
	})
	n.verifier = verifier.New(n.memory, n.follower, n, nil, verifier.Hooks{Now: n.clock})
	m, err := w.db.Minter(w.t.Context(), w.ring)
	w.must(err)
	n.verifier.SetMinter(m)
	e, err := w.db.Envelope(w.t.Context(), w.ring)
	w.must(err)
	n.verifier.SetShared(cache.NewShared(ofNode{w.redis, n}, e, "p:", sharedTTL).WithClock(n.clock))
	return n
}

// knows notes how many restores it has noticed.
func (n *node) knows(restores int) {
	for {
		if old := n.restores.Load(); old >= int64(restores) || n.restores.CompareAndSwap(old, int64(restores)) {
			return
		}
	}
}

// do runs f without stopping anywhere on this node.
func (n *node) do(f func()) {
	n.free = true
	f()
	n.free = false
}

// look looks at the journal without stopping.
func (n *node) look() {
	n.w.t.Helper()
	n.do(func() { n.w.must(n.follower.Look(n.w.t.Context())) })
}

// verify answers one request without stopping.
func (n *node) verify(k *key) (v auth.Verdict) {
	n.do(func() { v = n.verifier.VerifyKey(n.w.t.Context(), k.text, n.clock()) })
	synctest.Wait()
	return v
}

// request begins a request, which stops on its way.
func (n *node) request(k *key) <-chan auth.Verdict {
	answer := make(chan auth.Verdict, 1)
	go func() { answer <- n.verifier.VerifyKey(context.Background(), k.text, n.clock()) }()
	synctest.Wait()
	return answer
}

// start runs f, which stops on its way, in the background.
func (n *node) start(f func(context.Context) error) <-chan error {
	done := make(chan error, 1)
	go func() { done <- f(context.Background()) }()
	synctest.Wait()
	return done
}

// LookupKey implements verifier.Keys.
func (n *node) LookupKey(ctx context.Context, fp auth.Fingerprint) (store.Loaded, error) {
	n.w.stops.at(n, "load reads")
	if n.away {
		return store.Loaded{}, auth.ErrUnavailable
	}
	l, err := n.db.LookupKey(ctx, fp)
	n.w.stops.at(n, "load has read")
	return l, err
}

// The world has keys only.
func (n *node) LookupToken(ctx context.Context, fp auth.Fingerprint) (store.LoadedToken, error) {
	return n.db.LookupToken(ctx, fp)
}

func (n *node) LookupSecret(ctx context.Context, fp auth.Fingerprint) (store.LoadedClient, error) {
	return n.db.LookupSecret(ctx, fp)
}

func (n *node) LookupSession(ctx context.Context, fp auth.Fingerprint) (store.LoadedSession, error) {
	return n.db.LookupSession(ctx, fp)
}

func (n *node) LookupClient(ctx context.Context, id string) (store.LoadedClient, error) {
	return n.db.LookupClient(ctx, id)
}

// tier is the memory tier as the follower changes it.
type tier struct{ n *node }

func (t tier) Drop(fp auth.Fingerprint) { t.n.memory.Drop(fp); t.n.w.stops.at(t.n, "dropped") }
func (t tier) Sweep(p auth.Parent)      { t.n.memory.Sweep(p); t.n.w.stops.at(t.n, "dropped") }
func (t tier) Clear()                   { t.n.memory.Clear() }

// journal is the store as one gateway reaches it.
type journal struct{ n *node }

func (j journal) reach() error {
	if j.n.away {
		return auth.ErrUnavailable
	}
	return nil
}

func (j journal) Look(ctx context.Context, cursor int64) (feed.Look, error) {
	j.n.w.stops.at(j.n, "look reads")
	if err := j.reach(); err != nil {
		return feed.Look{}, err
	}
	l, err := j.n.db.Look(ctx, cursor)
	j.n.w.stops.at(j.n, "look has read")
	return feed.Look{
		Epoch: l.Epoch, First: l.First, Head: l.Head, AtCursor: l.AtCursor, AtCursorOK: l.AtCursorOK,
		Rows: l.Rows, More: len(l.Rows) == store.MaxLookRows,
	}, err
}

func (j journal) Tail(ctx context.Context, since int64) (auth.Epoch, []auth.Change, error) {
	if err := j.reach(); err != nil {
		return auth.Epoch{}, nil, err
	}
	return j.n.db.Tail(ctx, since)
}

func (j journal) NewEpoch(ctx context.Context, old, next auth.Epoch) error {
	if err := j.reach(); err != nil {
		return err
	}
	return j.n.db.NewEpoch(ctx, old, next)
}

func (j journal) Reopen(ctx context.Context) error {
	if err := j.reach(); err != nil {
		return err
	}
	return j.n.db.Reopen(ctx)
}

func (j journal) Beat(ctx context.Context, node auth.Node) error {
	j.n.w.stops.at(j.n, "beat writes")
	if err := j.reach(); err != nil {
		return err
	}
	err := j.n.db.Beat(ctx, node)
	j.n.w.stops.at(j.n, "beat was written")
	if err == nil {
		err = j.reach() // the confirmation may be lost
	}
	return err
}
