// Package storetest is what every backend of the store must do.
package storetest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/caddy-auth/caddy-auth/internal/auth"
	"github.com/caddy-auth/caddy-auth/internal/secret"
	"github.com/caddy-auth/caddy-auth/internal/store"
)

// Run runs the conformance suite. backend returns a backend for a new, empty
// database, the same one for the same name.
func Run(t *testing.T, backend func(t *testing.T, name string) store.Backend) {
	for name, test := range map[string]func(*testing.T, func(string) store.Backend){
		"opens only what exists":          testExisting,
		"initializes once":                testInit,
		"reads keys back":                 testKeys,
		"filters keys":                    testFilter,
		"commits journal and audit too":   testAtomic,
		"reads a point with the row":      testPoint,
		"looks above a cursor":            testLook,
		"orders sequences by commit":      testCommitOrder,
		"prunes but keeps the newest row": testPrune,
		"changes its epoch once":          testEpoch,
		"moves last use forward only":     testUse,
		"finds its minting secrets":       testMinter,
		"reads the tail from its head":    testTail,
		"seals what is shared":            testEnvelope,
		"knows its gateways":              testNodes,
		"cut-offs":                        testCutOffs,
		"says what a change wrote":        testWritten,
		"keeps the last refusal":          testRefusals,
		"finds in the audit log":          testAudit,
		"beats under a lock":              testBeatUnderLock,
		"rotates its secrets":             testRotateSecrets,
		"clients":                         testClients,
		"tokens":                          testTokens,
		"assertion keys":                  testAssertionKeys,
		"sessions":                        testSessions,
		"tokens of sessions":              testSessionTokens,
	} {
		t.Run(name, func(t *testing.T) {
			test(t, func(name string) store.Backend { return backend(t, name) })
		})
	}
}

func ring(t *testing.T, b byte) *secret.Ring {
	t.Helper()
	r, err := secret.NewRing("test", bytes.Repeat([]byte{b}, 32))
	must(t, err)
	return r
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func open(t *testing.T, b store.Backend) *store.DB {
	t.Helper()
	db, err := store.Open(t.Context(), b, store.Create)
	must(t, err)
	t.Cleanup(func() { _ = db.Close() })
	must(t, db.Init(t.Context(), "test", ring(t, 1), "ca"))
	return db
}

func insert(t *testing.T, db *store.DB, k *auth.Key) {
	t.Helper()
	ctx := t.Context()
	if k.Meta == nil {
		k.Meta = map[string]string{}
	}
	must(t, db.Change(ctx, "test", func(tx *store.Tx) error {
		if _, err := tx.EnsureOwner(ctx, k.Owner); err != nil {
			return err
		}
		return errors.Join(tx.InsertKey(ctx, k),
			tx.Journal(ctx, store.ChangeKeyCreate, []auth.Fingerprint{k.Fingerprint}, auth.Parent{}),
			tx.Audit(ctx, "key.create", k.ID, nil))
	}))
}

func testExisting(t *testing.T, backend func(string) store.Backend) {
	_, err := store.Open(t.Context(), backend("a"), store.Existing)
	if !errors.Is(err, auth.ErrNotInitialized) || auth.Hint(err) == "" {
		t.Fatalf("a missing store: %v", err)
	}
	db := open(t, backend("a"))
	must(t, db.Close())
	again, err := store.Open(t.Context(), backend("a"), store.Existing)
	must(t, err)
	must(t, again.Close())
}

func testInit(t *testing.T, backend func(string) store.Backend) {
	db := open(t, backend("a"))
	before, _, err := db.Tail(t.Context(), 0)
	must(t, err)
	must(t, db.Init(t.Context(), "test", ring(t, 2), "zz"))
	after, rows, err := db.Tail(t.Context(), 0)
	must(t, err)
	if before != after || len(rows) != 1 || rows[0].Kind != "init" {
		t.Errorf("initialized twice: %v", rows)
	}
}

func testKeys(t *testing.T, backend func(string) store.Backend) {
	db := open(t, backend("a"))
	want := &auth.Key{
		ID: "key_1", Fingerprint: auth.Fingerprint{1, 0, 255}, Owner: "acme", Name: "n'; DROP TABLE keys--", Hint: "ca_live_...abcd", Environment: "live",
		Scopes: []string{"a", "b"}, Networks: []string{"10.0.0.0/8"}, Meta: map[string]string{"tenant": "é=x"}, CreatedAt: 5, ExpiresAt: 7,
	}
	insert(t, db, want)
	got, err := db.KeyByID(t.Context(), "key_1")
	must(t, err)
	if fmt.Sprint(got) != fmt.Sprint(want) {
		t.Errorf("got %+v, want %+v", got, want)
	}
	if _, err := db.KeyByID(t.Context(), "key_2"); !errors.Is(err, auth.ErrNotFound) {
		t.Errorf("a missing key: %v", err)
	}
	if _, err := db.Owner(t.Context(), "nobody"); !errors.Is(err, auth.ErrNotFound) {
		t.Errorf("a missing owner: %v", err)
	}
	err = db.Change(t.Context(), "test", func(tx *store.Tx) error { return tx.InsertKey(t.Context(), want) })
	if !errors.Is(err, auth.ErrConflict) {
		t.Errorf("the same key twice: %v", err)
	}
}

func testFilter(t *testing.T, backend func(string) store.Backend) {
	db := open(t, backend("a"))
	for i := range 10 {
		owner, env := "acme", "live"
		if i%2 == 1 {
			owner, env = "other", "test"
		}
		insert(t, db, &auth.Key{
			ID: fmt.Sprintf("key_%02d", i), Fingerprint: auth.Fingerprint{byte(i)}, Owner: owner, Environment: env, Hint: fmt.Sprintf("h%d", i),
			Scopes: []string{fmt.Sprintf("s%d", i%3)}, CreatedAt: int64(i + 1), ExpiresAt: int64(i / 8),
		})
	}
	for want, f := range map[string]store.KeyFilter{
		"10": {},
		"5":  {Owner: "acme"},
		"4":  {Scope: "s0"},
		"3":  {CreatedBefore: 4},
		"1":  {Hint: "h7"},
		"2":  {Limit: 2},
		"8":  {State: auth.KeyActive},
		"0":  {Owner: "acme", Environment: "test"},
	} {
		n := 0
		must(t, db.Keys(t.Context(), f, func(*auth.Key) error { n++; return nil }))
		if fmt.Sprint(n) != want {
			t.Errorf("%+v: %d keys, want %s", f, n, want)
		}
	}
	var owners []string
	must(t, db.Owners(t.Context(), func(o auth.Owner) error { owners = append(owners, fmt.Sprint(o.Name, o.Keys)); return nil }))
	if !slices.Equal(owners, []string{"acme4", "other4"}) {
		t.Errorf("owners %v", owners)
	}
}

func testAtomic(t *testing.T, backend func(string) store.Backend) {
	db, ctx := open(t, backend("a")), t.Context()
	owner := func(tx *store.Tx) error { _, err := tx.EnsureOwner(ctx, "acme"); return err }
	journal := func(tx *store.Tx) error { return tx.Journal(ctx, "x", nil, auth.Parent{}) }
	audit := func(tx *store.Tx) error { return tx.Audit(ctx, "x", "x", nil) }
	fail := func(*store.Tx) error { return errors.New("no") }
	for name, steps := range map[string][]func(*store.Tx) error{
		"no journal row": {owner, audit},
		"no audit row":   {owner, journal},
		"failed":         {owner, journal, audit, fail},
	} {
		err := db.Change(ctx, "test", func(tx *store.Tx) error {
			for _, s := range steps {
				if err := s(tx); err != nil {
					return err
				}
			}
			return nil
		})
		if err == nil {
			t.Errorf("%s: committed", name)
		}
		if _, err := db.Owner(ctx, "acme"); !errors.Is(err, auth.ErrNotFound) {
			t.Errorf("%s: the owner is there: %v", name, err)
		}
		if _, rows, _ := db.Tail(ctx, 0); len(rows) != 1 {
			t.Errorf("%s: %d journal rows", name, len(rows))
		}
	}
}

func testPoint(t *testing.T, backend func(string) store.Backend) {
	db := open(t, backend("a"))
	missing, err := db.LookupKey(t.Context(), auth.Fingerprint{9})
	must(t, err)
	if missing.Key != nil || missing.Point.Seq == 0 || missing.Point.Row == (auth.RowID{}) || missing.Point.Epoch == (auth.Epoch{}) {
		t.Errorf("missing key: %+v", missing)
	}
	insert(t, db, &auth.Key{ID: "key_1", Fingerprint: auth.Fingerprint{9}, Owner: "acme"})
	found, err := db.LookupKey(t.Context(), auth.Fingerprint{9})
	must(t, err)
	_, rows, err := db.Tail(t.Context(), 0)
	must(t, err)
	last := rows[len(rows)-1]
	if found.Key == nil || found.Point.Seq != last.Seq || found.Point.Row != last.Row || found.Point.Epoch != missing.Point.Epoch {
		t.Errorf("point %+v, last row %+v", found.Point, last)
	}
}

func testLook(t *testing.T, backend func(string) store.Backend) {
	db, ctx := open(t, backend("a")), t.Context()
	first, err := db.Look(ctx, 0)
	must(t, err)
	if first.AtCursorOK || len(first.Rows) != 1 || first.First != first.Head {
		t.Fatalf("look %+v", first)
	}
	cursor := first.Head
	must(t, db.Change(ctx, "test", func(tx *store.Tx) error {
		if _, err := tx.EnsureOwner(ctx, "acme"); err != nil {
			return err
		}
		return errors.Join(tx.SetOwnerDisabled(ctx, "acme", tx.Now(), "x"),
			tx.Journal(ctx, store.ChangeOwner, []auth.Fingerprint{{1}, {2}}, auth.Parent{Kind: auth.ParentOwner, Name: "acme"}), tx.Audit(ctx, "x", "x", nil))
	}))
	l, err := db.Look(ctx, cursor)
	must(t, err)
	if !l.AtCursorOK || l.AtCursor != first.Rows[0].Row || len(l.Rows) != 1 || l.Head != l.Rows[0].Seq {
		t.Fatalf("look %+v", l)
	}
	c := l.Rows[0]
	if c.Kind != store.ChangeOwner || c.Parent.Name != "acme" || !slices.Equal(c.Fingerprints, []auth.Fingerprint{{1}, {2}}) || c.At == 0 {
		t.Errorf("row %+v", c)
	}
}

// testCommitOrder: many writers at once; a reader that follows the journal by
// sequence never finds a row below one it has seen.
func testCommitOrder(t *testing.T, backend func(string) store.Backend) {
	db := open(t, backend("a"))
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	const writers, each = 8, 25
	var wg sync.WaitGroup
	var own []*store.DB // each that is open has one writer
	for range writers {
		own = append(own, open(t, backend("a")))
	}
	for w, own := range own {
		wg.Go(func() {
			for i := range each {
				err := own.Change(ctx, "test", func(tx *store.Tx) error {
					// Whoever comes later sees what those before it did.
					if _, err := tx.EnsureOwner(ctx, fmt.Sprintf("owner-%d", i)); err != nil {
						return err
					}
					return errors.Join(tx.Journal(ctx, "x", []auth.Fingerprint{{byte(w), byte(i)}}, auth.Parent{}), tx.Audit(ctx, "x", "x", nil))
				})
				if err != nil {
					t.Error(err)
				}
			}
		})
	}
	seen, cursor := 0, int64(0)
	for seen < writers*each+1 && ctx.Err() == nil && !t.Failed() {
		l, err := db.Look(ctx, cursor)
		must(t, err)
		for _, r := range l.Rows {
			if r.Seq <= cursor {
				t.Fatalf("row %d after %d", r.Seq, cursor)
			}
			cursor = r.Seq
			seen++
		}
		if n := len(l.Rows); n > 0 && l.Rows[n-1].Seq != l.Head {
			t.Fatalf("the head is %d, the last row %d: that was no one snapshot", l.Head, l.Rows[n-1].Seq)
		}
	}
	wg.Wait()
	if l, err := db.Look(ctx, 0); err != nil || len(l.Rows) != seen {
		t.Errorf("the follower saw %d rows of %d, %v: one appeared below its cursor", seen, len(l.Rows), err)
	}
}

func testPrune(t *testing.T, backend func(string) store.Backend) {
	db, ctx := open(t, backend("a")), t.Context()
	for range 3 {
		must(t, db.Change(ctx, "test", func(tx *store.Tx) error {
			return errors.Join(tx.Journal(ctx, "x", nil, auth.Parent{}), tx.Audit(ctx, "x", "x", nil))
		}))
	}
	before, err := db.Look(ctx, 0)
	must(t, err)
	must(t, db.PruneJournal(ctx, -time.Hour))
	after, err := db.Look(ctx, 0)
	must(t, err)
	if len(after.Rows) != 1 || after.Rows[0].Row != before.Rows[len(before.Rows)-1].Row {
		t.Errorf("kept %+v", after.Rows)
	}
	must(t, db.Change(ctx, "test", func(tx *store.Tx) error {
		return errors.Join(tx.Journal(ctx, "x", nil, auth.Parent{}), tx.Audit(ctx, "x", "x", nil))
	}))
	next, err := db.Look(ctx, 0)
	must(t, err)
	if next.Head <= before.Head {
		t.Errorf("sequence %d was used before", next.Head)
	}
}

func testEpoch(t *testing.T, backend func(string) store.Backend) {
	db, ctx := open(t, backend("a")), t.Context()
	old, _, err := db.Tail(ctx, 0)
	must(t, err)
	must(t, db.NewEpoch(ctx, old, auth.Epoch{1}))
	must(t, db.NewEpoch(ctx, old, auth.Epoch{2})) // somebody was quicker
	got, _, err := db.Tail(ctx, 0)
	must(t, err)
	if got != (auth.Epoch{1}) {
		t.Errorf("epoch %v", got)
	}
}

func testUse(t *testing.T, backend func(string) store.Backend) {
	db, ctx := open(t, backend("a")), t.Context()
	insert(t, db, &auth.Key{ID: "key_1", Fingerprint: auth.Fingerprint{1}, Owner: "acme"})
	for _, at := range []int64{50, 70, 60} {
		must(t, db.RecordUse(ctx, []auth.Use{{Fingerprint: auth.Fingerprint{1}, At: at}, {Fingerprint: auth.Fingerprint{99}, At: at}}))
	}
	k, err := db.KeyByID(ctx, "key_1")
	must(t, err)
	if k.LastUsedAt != 70 {
		t.Errorf("last used %d, want 70", k.LastUsedAt)
	}
	must(t, db.RecordUse(ctx, []auth.Use{{Fingerprint: auth.Fingerprint{1}, At: 5}, {Fingerprint: auth.Fingerprint{1}, At: 90}, {Fingerprint: auth.Fingerprint{1}, At: 80}}))
	must(t, db.RecordUse(ctx, []auth.Use{{Fingerprint: auth.Fingerprint{1}, At: 70}}))
	if k, err = db.KeyByID(ctx, "key_1"); err != nil || k.LastUsedAt != 90 {
		t.Errorf("last used %+v, want 90, %v", k, err)
	}
	if k.LastUsedAt < 70 {
		t.Errorf("last used %d, want 70", k.LastUsedAt)
	}
	if l, err := db.Look(ctx, 0); err != nil || len(l.Rows) != 2 {
		t.Errorf("last use wrote to the journal: %+v, %v", l.Rows, err)
	}
}

func testMinter(t *testing.T, backend func(string) store.Backend) {
	db, ctx := open(t, backend("a")), t.Context()
	must(t, db.EnsurePrefix(ctx, "test", "acme"))
	m, err := db.Minter(ctx, ring(t, 1))
	must(t, err)
	if !slices.Equal(m.Prefixes(), []string{"acme", "ca"}) {
		t.Errorf("prefixes %v", m.Prefixes())
	}
	if _, err := db.Minter(ctx, ring(t, 2)); !errors.Is(err, secret.ErrWrongKey) || auth.Hint(err) == "" {
		t.Errorf("another master key: %v", err)
	}
}

// testTail: the tail begins with the row that was the head at a time.
func testTail(t *testing.T, backend func(string) store.Backend) {
	db, ctx := open(t, backend("a")), t.Context()
	var at []int64
	for range 4 {
		for begin := time.Now(); time.Since(begin) < 3*time.Millisecond; { // rows of different times
		}
		must(t, db.Change(ctx, "test", func(tx *store.Tx) error {
			at = append(at, tx.Now())
			return errors.Join(tx.Journal(ctx, "x", nil, auth.Parent{}), tx.Audit(ctx, "x", "x", nil))
		}))
	}
	_, all, err := db.Tail(ctx, 0)
	must(t, err)
	for i, since := range at {
		_, rows, err := db.Tail(ctx, since)
		must(t, err)
		// all[0] is init's row, all[i] the head before at[i].
		if len(rows) != len(all)-i || rows[0].Row != all[i].Row || rows[len(rows)-1].Row != all[len(all)-1].Row {
			t.Errorf("the tail since row %d has %d rows", i+1, len(rows))
		}
	}
	_, rows, err := db.Tail(ctx, time.Now().Add(time.Hour).UnixMilli())
	must(t, err)
	if len(rows) != 1 || rows[0].Row != all[len(all)-1].Row {
		t.Errorf("%d rows, want the newest", len(rows))
	}
}

func testEnvelope(t *testing.T, backend func(string) store.Backend) {
	db, ctx := open(t, backend("a")), t.Context()
	fp := auth.FingerprintOf("x")
	name := func(db *store.DB) string {
		t.Helper()
		e, err := db.Envelope(ctx, ring(t, 1))
		must(t, err)
		return e.Name("key", nil, fp)
	}
	head, err := db.Look(ctx, 0)
	must(t, err)
	must(t, db.EnsureSealing(ctx, "test", ring(t, 1))) // there is one already
	after, err := db.Look(ctx, 0)
	must(t, err)
	if after.Head != head.Head {
		t.Error("a second sealing secret was made")
	}
	first, again := name(db), name(db)
	if first != again || first == name(open(t, backend("b"))) {
		t.Error("names must be one store's, and the same for all its gateways")
	}
	if _, err := db.Envelope(ctx, ring(t, 2)); !errors.Is(err, secret.ErrWrongKey) {
		t.Errorf("with another master key: %v", err)
	}
}
