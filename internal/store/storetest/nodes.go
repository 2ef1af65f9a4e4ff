package storetest

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/caddy-auth/caddy-auth/internal/auth"
	"github.com/caddy-auth/caddy-auth/internal/store"
)

func testNodes(t *testing.T, backend func(string) store.Backend) {
	ctx := t.Context()
	db := open(t, backend("a"))
	first := fleet(t, db, auth.Point{})
	if len(first.Members) != 0 || first.There || first.Head.Seq == 0 || time.Since(time.UnixMilli(first.Now)).Abs() > time.Minute {
		t.Errorf("an empty fleet: %+v", first)
	}
	a := auth.Node{ID: "node_a", Name: "one:1", Version: "1.0", MaxStaleness: time.Minute}
	must(t, db.Beat(ctx, a))
	f := fleet(t, db, first.Head)
	if !f.There || len(f.Members) != 1 || f.Members[0].Known || f.Members[0].Applied(1) {
		t.Errorf("before it has applied anything: %+v", f)
	}
	a.Seq, a.Row = first.Head.Seq, first.Head.Row
	must(t, db.Beat(ctx, a))
	must(t, db.Beat(ctx, auth.Node{ID: "node_b", Name: "two:2", MaxStaleness: time.Second, Seq: a.Seq, Row: auth.RowID{9}}))
	insert(t, db, &auth.Key{ID: "key_1", Fingerprint: auth.Fingerprint{1}, Owner: "acme", Environment: "live"})
	f = fleet(t, db, auth.Point{Seq: a.Seq, Row: auth.RowID{9}})
	if f.There || len(f.Members) != 2 {
		t.Fatalf("%+v", f)
	}
	one, two := f.Members[0], f.Members[1]
	if one.ID == "node_b" {
		one, two = two, one
	}
	if !one.Known || !one.Applied(a.Seq) || one.Applied(a.Seq+1) || one.Name != "one:1" || one.Version != "1.0" || one.MaxStaleness != time.Minute {
		t.Errorf("one: %+v", one)
	}
	if two.Known || two.Applied(a.Seq) {
		t.Errorf("an acknowledgement with another row's id counts: %+v", two)
	}
	if !one.Live(f.Now) || one.Live(f.Now+(time.Minute+6*time.Second+5*time.Second).Milliseconds()+1) || one.StartedAt > one.HeartbeatAt || one.HeartbeatAt > f.Now {
		t.Errorf("its times: %+v at %d", one, f.Now)
	}
	if n, err := db.Behind(ctx, one.Seq); err != nil || n != 1 {
		t.Errorf("%d behind, %v", n, err)
	}
	must(t, db.Leave(ctx, "node_a"))
	must(t, db.Leave(ctx, "node_a"))
	must(t, db.PruneNodes(ctx))
	if f = fleet(t, db, auth.Point{}); len(f.Members) != 1 || f.Members[0].ID != "node_b" {
		t.Errorf("after it left: %+v", f.Members)
	}
}

func fleet(t *testing.T, db *store.DB, p auth.Point) store.Fleet {
	t.Helper()
	f, err := db.Fleet(t.Context(), p)
	must(t, err)
	return f
}

// testWritten: what a change says it wrote is what the journal has.
func testWritten(t *testing.T, backend func(string) store.Backend) {
	ctx := t.Context()
	db := open(t, backend("a"))
	var tx *store.Tx
	must(t, db.Change(ctx, "test", func(x *store.Tx) error {
		tx = x
		if _, err := tx.EnsureOwner(ctx, "acme"); err != nil {
			return err
		}
		return errors.Join(tx.Journal(ctx, store.ChangeOwner, nil, auth.Parent{Kind: auth.ParentOwner, Name: "acme"}), tx.Audit(ctx, "owner", "owner:acme", nil))
	}))
	p, ok := tx.Written()
	if head := fleet(t, db, p); !ok || head.Head != p || !head.There {
		t.Errorf("wrote %+v (%v), the head is %+v", p, ok, head.Head)
	}
	must(t, db.Change(ctx, "test", func(x *store.Tx) error { tx = x; return nil }))
	if p, ok := tx.Written(); ok {
		t.Errorf("nothing was written, but %+v", p)
	}
	must(t, db.NewEpoch(ctx, p.Epoch, auth.Epoch{7}))
	if head := fleet(t, db, p); head.Head.Epoch != (auth.Epoch{7}) || !head.There {
		t.Errorf("after a new epoch: %+v", head)
	}
}

func testRefusals(t *testing.T, backend func(string) store.Backend) {
	ctx := t.Context()
	db := open(t, backend("a"))
	insert(t, db, &auth.Key{ID: "key_1", Fingerprint: auth.Fingerprint{1}, Owner: "acme", Environment: "live"})
	must(t, db.RecordRefusals(ctx, []auth.Refused{{CredentialID: "key_1", At: 10, Reason: "revoked"}, {CredentialID: "nobody", At: 5, Reason: "x"}}))
	must(t, db.RecordRefusals(ctx, []auth.Refused{{CredentialID: "key_1", At: 9, Reason: "earlier"}}))
	k, err := db.KeyByID(ctx, "key_1")
	must(t, err)
	if k.RefusedAt != 10 || k.RefusedReason != "revoked" {
		t.Errorf("%+v", k)
	}
	must(t, db.RecordRefusals(ctx, nil))
}

func testAudit(t *testing.T, backend func(string) store.Backend) {
	ctx := t.Context()
	db := open(t, backend("a"))
	for i, action := range []string{"key.create", "key.revoke", "owner.disable", "key.leaked"} {
		must(t, db.Note(ctx, []string{"cli:root", "gateway"}[i%2], action, []string{"key_1", "owner:acme"}[i/2], map[string]any{"n": i}))
	}
	now := store.Millis(time.Now())
	for _, c := range []struct {
		f    store.AuditFilter
		want string
	}{
		{store.AuditFilter{Action: "key."}, "key.create key.revoke key.leaked "},
		{store.AuditFilter{Action: "key.", Limit: 2}, "key.revoke key.leaked "},
		{store.AuditFilter{Actor: "gateway"}, "key.revoke key.leaked "},
		{store.AuditFilter{Target: "key_1"}, "key.create key.revoke "},
		{store.AuditFilter{Action: "key%"}, ""},
		{store.AuditFilter{Since: now + 60_000}, ""},
		{store.AuditFilter{Until: now - 60_000}, ""},
		{store.AuditFilter{Since: now - 60_000, Until: now + 60_000, Action: "owner."}, "owner.disable "},
	} {
		got := ""
		must(t, db.FindAudit(ctx, c.f, func(e store.AuditEntry) error { got += e.Action + " "; return nil }))
		if got != c.want {
			t.Errorf("%+v: %q, want %q", c.f, got, c.want)
		}
	}
	stop := errors.New("stop")
	if err := db.FindAudit(ctx, store.AuditFilter{}, func(store.AuditEntry) error { return stop }); !errors.Is(err, stop) {
		t.Errorf("%v", err)
	}
}

// testBeatUnderLock: a store that is locked can be read, and is not one that
// nobody can write: a heartbeat is written, or the store is unavailable to it.
func testBeatUnderLock(t *testing.T, backend func(string) store.Backend) {
	db, other := open(t, backend("a")), open(t, backend("a"))
	must(t, other.Change(t.Context(), "test", func(tx *store.Tx) error { // it holds the writer's lock
		ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
		defer cancel()
		err := db.Beat(ctx, auth.Node{ID: "node_a"})
		if err != nil && !errors.Is(err, auth.ErrUnavailable) { // where it needs no lock it is written
			t.Errorf("%v", err)
		}
		if errors.Is(err, auth.ErrNotWritable) {
			t.Errorf("whoever holds the lock can write: %v", err)
		}
		if _, err := db.Look(t.Context(), 0); err != nil {
			t.Errorf("looking meanwhile: %v", err)
		}
		return nil
	}))
}
