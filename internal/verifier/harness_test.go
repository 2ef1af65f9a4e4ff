package verifier_test

import (
	"bytes"
	"context"
	"fmt"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
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

// node is a gateway's inside: a real SQLite store and everything over it. It
// looks at the journal only when a test says so.
type node struct {
	t        testing.TB
	path     string
	db       *store.DB
	ring     *secret.Ring
	manage   *manage.Manager
	memory   *cache.Memory
	follower *feed.Follower
	verifier *verifier.Verifier
	loads    atomic.Int64
	away     atomic.Bool // the store can't be reached
	hanging  atomic.Bool // it does not answer

	mu      sync.Mutex
	current verifier.Hooks
}

func newNode(t testing.TB) *node {
	t.Helper()
	return openNode(t, filepath.Join(t.TempDir(), "auth.db"))
}

func openNode(t testing.TB, path string) *node {
	t.Helper()
	n := &node{t: t, path: path}
	ctx := t.Context()
	var err error
	n.db, err = store.Open(ctx, sqlite.New(path), store.Create)
	n.must(err)
	t.Cleanup(func() { _ = n.db.Close() })
	n.ring, err = secret.NewRing("test", bytes.Repeat([]byte{7}, 32))
	n.must(err)
	n.must(n.db.Init(ctx, "test", n.ring, "ca"))
	n.manage = manage.New(n.db, "test", "ca", func(ctx context.Context) (*secret.Minter, error) { return n.db.Minter(ctx, n.ring) })
	n.start()
	return n
}

// start begins as a gateway does at boot.
func (n *node) start() {
	n.memory = cache.NewMemory(cache.Limits{})
	n.follower = feed.New(journal{n}, n.memory, auth.Node{ID: fmt.Sprintf("node_%p", n.memory), Name: "test"}, feed.Config{MaxStaleness: time.Minute}, feed.Events{Booted: n.booted, Learning: n.learning})
	n.verifier = verifier.New(n.memory, n.follower, n, nil, verifier.Hooks{
		BeforeLoad: func(run int) { n.hook(func(h verifier.Hooks) { call1(h.BeforeLoad, run) }) },
		AfterLoad:  func(run int) { n.hook(func(h verifier.Hooks) { call1(h.AfterLoad, run) }) },
		AfterFence: func() { n.hook(func(h verifier.Hooks) { call0(h.AfterFence) }) },
		AfterJoin:  func() { n.hook(func(h verifier.Hooks) { call0(h.AfterJoin) }) },
	})
	m, err := n.db.Minter(n.t.Context(), n.ring)
	n.must(err)
	n.verifier.SetMinter(m)
	n.look()
}

// booted is what a gateway reads before it trusts.
func (n *node) booted(ctx context.Context) error {
	all := verifier.NewCutOffs()
	n.verifier.SetCutOffs(all)
	return n.db.CutOffs(ctx, func(c auth.CutOff) error { all.Add(c); return nil })
}

// learning is what a gateway does with a cut-off.
func (n *node) learning(c auth.Change) {
	if c.Kind != store.ChangeTokenRevoke {
		return
	}
	one, err := n.db.CutOff(context.Background(), c.Parent)
	n.must(err)
	n.verifier.CutOffs().Add(one)
}

func call0(f func()) {
	if f != nil {
		f()
	}
}

func call1(f func(int), v int) {
	if f != nil {
		f(v)
	}
}

func (n *node) hook(f func(verifier.Hooks)) {
	n.mu.Lock()
	h := n.current
	n.mu.Unlock()
	f(h)
}

func (n *node) setHooks(h verifier.Hooks) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.current = h
}

func (n *node) must(err error) {
	n.t.Helper()
	if err != nil {
		n.t.Fatal(err)
	}
}

func (n *node) look() {
	n.t.Helper()
	n.must(n.follower.Look(n.t.Context()))
}

func (n *node) LookupKey(ctx context.Context, fp auth.Fingerprint) (store.Loaded, error) {
	return lookup(ctx, n, fp, n.db.LookupKey)
}

func (n *node) LookupToken(ctx context.Context, fp auth.Fingerprint) (store.LoadedToken, error) {
	return lookup(ctx, n, fp, n.db.LookupToken)
}

func (n *node) LookupSecret(ctx context.Context, fp auth.Fingerprint) (store.LoadedClient, error) {
	return lookup(ctx, n, fp, n.db.LookupSecret)
}

func (n *node) LookupSession(ctx context.Context, fp auth.Fingerprint) (store.LoadedSession, error) {
	return lookup(ctx, n, fp, n.db.LookupSession)
}

func (n *node) LookupClient(ctx context.Context, id string) (store.LoadedClient, error) {
	return lookup(ctx, n, id, n.db.LookupClient)
}

func lookup[Q, A any](ctx context.Context, n *node, q Q, ask func(context.Context, Q) (A, error)) (a A, err error) {
	n.loads.Add(1)
	if n.away.Load() {
		return a, auth.ErrUnavailable
	}
	if n.hanging.Load() {
		<-ctx.Done()
		return a, ctx.Err()
	}
	return ask(ctx, q)
}

func (n *node) create(owner string) manage.Made {
	n.t.Helper()
	made, err := n.manage.Create(n.t.Context(), manage.KeySpec{Owner: owner, Scopes: []string{"a", "b"}})
	n.must(err)
	return made
}

func (n *node) verify(m manage.Made) auth.Verdict {
	return n.verifier.VerifyKey(n.t.Context(), m.Text.Reveal(), time.Now())
}

func (n *node) want(m manage.Made, outcome auth.Outcome, reason auth.Reason) {
	n.t.Helper()
	if v := n.verify(m); v.Outcome != outcome || v.Reason != reason {
		n.t.Errorf("outcome %d, reason %s, cause %v; want %d, %s", v.Outcome, v.Reason, v.Cause, outcome, reason)
	}
}

func (n *node) revoke(m manage.Made) {
	n.t.Helper()
	_, err := n.manage.Revoke(n.t.Context(), []string{m.Key.ID}, "test")
	n.must(err)
}

type journal struct{ n *node }

func (j journal) Look(ctx context.Context, cursor int64) (feed.Look, error) {
	if j.n.away.Load() {
		return feed.Look{}, auth.ErrUnavailable
	}
	l, err := j.n.db.Look(ctx, cursor)
	return feed.Look{Epoch: l.Epoch, First: l.First, Head: l.Head, AtCursor: l.AtCursor, AtCursorOK: l.AtCursorOK, Rows: l.Rows}, err
}

func (j journal) Tail(ctx context.Context, since int64) (auth.Epoch, []auth.Change, error) {
	return j.n.db.Tail(ctx, since)
}

func (j journal) NewEpoch(ctx context.Context, old, next auth.Epoch) error {
	return j.n.db.NewEpoch(ctx, old, next)
}

func (j journal) Reopen(ctx context.Context) error { return j.n.db.Reopen(ctx) }

func (j journal) Beat(ctx context.Context, node auth.Node) error {
	if j.n.away.Load() {
		return auth.ErrUnavailable
	}
	return j.n.db.Beat(ctx, node)
}
