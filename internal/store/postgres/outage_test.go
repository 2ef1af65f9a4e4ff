package postgres_test

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/caddy-auth/caddy-auth/internal/auth"
	"github.com/caddy-auth/caddy-auth/internal/secret"
	"github.com/caddy-auth/caddy-auth/internal/store"
	"github.com/caddy-auth/caddy-auth/test/servers"
)

func open(t *testing.T, dsn string) *store.DB {
	t.Helper()
	db, err := store.Open(t.Context(), backend(t, dsn), store.Create)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = db.Close() })
	ring, err := secret.NewRing("test", make([]byte, 32))
	if err != nil {
		t.Fatal(err)
	}
	if err := db.Init(t.Context(), "test", ring, "ca"); err != nil {
		t.Fatal(err)
	}
	return db
}

func change(ctx context.Context, db *store.DB, meanwhile func()) error {
	return db.Change(ctx, "test", func(tx *store.Tx) error {
		if meanwhile != nil {
			meanwhile()
		}
		return errors.Join(tx.Journal(ctx, "x", nil, auth.Parent{}), tx.Audit(ctx, "x", "x", nil))
	})
}

// TestStoppedWriter: a writer that stopped in the middle, its lock held, keeps
// others from changing anything until the server ends it; heartbeats and
// looks go on, and its own change is not made.
func TestStoppedWriter(t *testing.T) {
	p := servers.StartPostgres(t)
	const held = "1500"
	stopped, other := open(t, p.DSN("idle_in_transaction_session_timeout="+held)), open(t, p.DSN())
	before, err := other.Look(t.Context(), 0)
	if err != nil {
		t.Fatal(err)
	}
	resume := make(chan struct{})
	began, done := make(chan struct{}), make(chan error, 1)
	go func() { done <- change(context.Background(), stopped, func() { close(began); <-resume }) }()
	<-began
	if err := other.Beat(t.Context(), auth.Node{ID: "node_a", MaxStaleness: time.Minute}); err != nil {
		t.Errorf("a heartbeat waits for a writer: %v", err)
	}
	if _, err := other.Look(t.Context(), 0); err != nil {
		t.Errorf("a look waits for a writer: %v", err)
	}
	hurried, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	if err := change(hurried, other, nil); !errors.Is(err, auth.ErrUnavailable) {
		t.Errorf("a change that had no time to wait: %v", err)
	}
	if err := change(t.Context(), other, nil); err != nil {
		t.Errorf("a change that waited until the server ended the stopped writer: %v", err)
	}
	close(resume)
	if err := <-done; err == nil {
		t.Error("the stopped writer was told that its change is made")
	}
	after, err := other.Look(t.Context(), before.Head)
	if err != nil || len(after.Rows) != 1 {
		t.Errorf("%d changes were made, want the other's, %v", len(after.Rows), err)
	}
}

// TestStandbyByAnotherWay: whoever got a connection to a server that became a
// standby, or that a proxy chose, reads nothing from it.
func TestStandbyByAnotherWay(t *testing.T) {
	p := servers.StartPostgres(t)
	open(t, p.DSN())
	standby := p.Standby("second")
	proxy := servers.StartProxy(t, p.Addr)
	db := open(t, p.DSNAt(proxy.Addr))
	if err := db.Warm(t.Context()); err != nil {
		t.Fatal(err)
	}
	proxy.Retarget(standby.Addr)
	proxy.Drop()
	if _, err := db.Look(t.Context(), 0); !errors.Is(err, auth.ErrUnavailable) {
		t.Errorf("looked at a standby: %v", err)
	}
	// Where the check at connecting is passed, as with a server that is
	// demoted under a connection, the snapshot itself says what it is of.
	lenient := lenient(t, p.DSNAt(standby.Addr))
	if _, err := lenient.Look(t.Context(), 0); !errors.Is(err, auth.ErrUnavailable) || auth.Hint(err) == "" {
		t.Errorf("looked at a standby: %v", err)
	}
}

// lenient opens a store without looking at whom it connects to.
func lenient(t *testing.T, dsn string) *store.DB {
	t.Helper()
	b := backend(t, dsn)
	b.AcceptAnyServer()
	db, err := store.Open(t.Context(), b, store.Existing)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = db.Close() })
	return db
}

// TestPausedServer: nothing waits without a deadline.
func TestPausedServer(t *testing.T) {
	p := servers.StartPostgres(t)
	db := open(t, p.DSN())
	p.Hang()
	defer p.Resume()
	for what, call := range map[string]func(context.Context) error{
		"a look":      func(ctx context.Context) error { _, err := db.Look(ctx, 0); return err },
		"a lookup":    func(ctx context.Context) error { _, err := db.LookupKey(ctx, auth.Fingerprint{}); return err },
		"a heartbeat": func(ctx context.Context) error { return db.Beat(ctx, auth.Node{ID: "node_a"}) },
		"a change":    func(ctx context.Context) error { return change(ctx, db, nil) },
		"an opening": func(ctx context.Context) error {
			_, err := store.Open(ctx, backend(t, p.DSN()), store.Existing)
			return err
		},
	} {
		ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
		began := time.Now()
		err := call(ctx)
		cancel()
		if took := time.Since(began); took > 2*time.Second || !errors.Is(err, auth.ErrUnavailable) {
			t.Errorf("%s took %s: %v", what, took, err)
		}
	}
}
