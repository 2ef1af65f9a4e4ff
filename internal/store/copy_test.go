package store_test

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/caddy-auth/caddy-auth/internal/auth"
	"github.com/caddy-auth/caddy-auth/internal/secret"
	"github.com/caddy-auth/caddy-auth/internal/store"
	"github.com/caddy-auth/caddy-auth/internal/store/postgres"
	"github.com/caddy-auth/caddy-auth/internal/store/sqlite"
	"github.com/caddy-auth/caddy-auth/test/servers"
)

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
	return db
}

func ring(t *testing.T) *secret.Ring {
	t.Helper()
	r, err := secret.NewRing("test", make([]byte, 32))
	must(t, err)
	return r
}

func file(t *testing.T) store.Backend {
	return sqlite.New(filepath.Join(t.TempDir(), "auth.db"))
}

var schemas int

func schema(t *testing.T, p *servers.Postgres) store.Backend {
	t.Helper()
	schemas++
	name := fmt.Sprintf("s%d", schemas)
	p.Do("CREATE SCHEMA " + name + " AUTHORIZATION gateway")
	b, err := postgres.New(p.DSN("search_path=" + name))
	must(t, err)
	return b
}

// fill makes a store with n keys of a few owners.
func fill(t *testing.T, db *store.DB, n int) {
	t.Helper()
	ctx := t.Context()
	must(t, db.Init(ctx, "test", ring(t), "ca"))
	must(t, db.Change(ctx, "test", func(tx *store.Tx) error {
		for i := range n {
			owner := fmt.Sprintf("owner-%d", i%7)
			if i < 7 {
				if _, err := tx.EnsureOwner(ctx, owner); err != nil {
					return err
				}
			}
			// Ids that sort otherwise in most locales than by their bytes.
			id := fmt.Sprintf("key_%s%07d", []string{"a", "B", "_", "-", "é"}[i%5], i)
			err := tx.InsertKey(ctx, &auth.Key{
				ID: id, Fingerprint: auth.FingerprintOf(id), Owner: owner, Name: "näme\n" + id, Environment: "live",
				Scopes: []string{"a", "b"}, Meta: map[string]string{"x": "y"}, CreatedAt: tx.Now(), ExpiresAt: int64(i),
			})
			if err != nil {
				return err
			}
		}
		for i, name := range []string{"alice", "Älice", "_", "-", "a:b"} {
			for _, c := range []auth.CutOff{{Issuer: "corp", JTI: name, IssuedBefore: auth.AnyTime}, {Issuer: "legacy", Subject: name, IssuedBefore: int64(i), KeptUntil: 9}} {
				if _, err := tx.CutOff(ctx, c); err != nil {
					return err
				}
			}
		}
		return errors.Join(tx.Journal(ctx, "x", []auth.Fingerprint{{1}, {2}}, auth.Parent{}), tx.Audit(ctx, "x", "x", map[string]any{"n": n}))
	}))
}

func copyAll(ctx context.Context, from, to *store.DB, finish bool) ([]store.Tally, error) {
	return store.Copy(ctx, from, to, "test", finish, func(string, string, int64, int64) {})
}

// TestCopy_TakesEveryColumn: what a migration adds is copied too.
func TestCopy_TakesEveryColumn(t *testing.T) {
	db := open(t, file(t))
	tables, err := db.Strings(`SELECT name FROM sqlite_master WHERE type = 'table' AND name NOT LIKE 'sqlite_%'`)
	must(t, err)
	known := store.CopiedColumns()
	for _, table := range tables {
		if slices.Contains([]string{"store_meta", "nodes", "schema_migrations"}, table) {
			continue
		}
		columns, err := db.Strings("SELECT name FROM pragma_table_info('" + table + "')")
		must(t, err)
		if slices.Sort(columns); !slices.Equal(columns, slices.Sorted(slices.Values(known[table]))) {
			t.Errorf("%s has %v, copied are %v", table, columns, known[table])
		}
		delete(known, table)
	}
	if len(known) > 0 {
		t.Errorf("copied are tables that are not there: %v", known)
	}
}

// TestCopy goes from a file to PostgreSQL and back to another file, and ends
// with what it began with.
func TestCopy(t *testing.T) {
	p := servers.StartPostgres(t)
	first, second, third := open(t, file(t)), open(t, schema(t, p)), open(t, file(t))
	const keys = 2*store.CopyChunk + 17
	fill(t, first, keys)
	must(t, first.Beat(t.Context(), auth.Node{ID: "node_a", Name: "a", MaxStaleness: time.Minute}))
	before, _, err := first.Tail(t.Context(), 0)
	must(t, err)
	there, err := copyAll(t.Context(), first, second, true)
	must(t, err)
	back, err := copyAll(t.Context(), second, third, true)
	must(t, err)
	for i, tally := range there {
		if tally.Table == "journal" || tally.Table == "audit" { // the copies are in them
			continue
		}
		if back[i] != tally {
			t.Errorf("there %+v, and back %+v", tally, back[i])
		}
		if tally.Table == "keys" && tally.Rows != keys {
			t.Errorf("%d keys", tally.Rows)
		}
	}
	for _, db := range []*store.DB{second, third} {
		if after, _, err := db.Tail(t.Context(), 0); err != nil || after != before {
			t.Errorf("the epoch is %v, was %v, %v", after, before, err)
		}
		if _, err := db.Minter(t.Context(), ring(t)); err != nil {
			t.Errorf("the secrets can't be opened: %v", err)
		}
		fleet, err := db.Fleet(t.Context(), auth.Point{})
		must(t, err)
		if len(fleet.Members) != 1 || fleet.Now-fleet.Members[0].HeartbeatAt > 60_000 || fleet.Members[0].Live(fleet.Now) == false {
			t.Errorf("the copy does not know the gateways: %+v", fleet.Members)
		}
	}
	must(t, third.Change(t.Context(), "test", func(tx *store.Tx) error { // numbers go on
		return errors.Join(tx.Journal(t.Context(), "x", nil, auth.Parent{}), tx.Audit(t.Context(), "x", "x", nil))
	}))
}

// TestCopy_TheSourceIsClosed: after a copy nothing can be changed at the
// source, and both say where the store is.
func TestCopy_TheSourceIsClosed(t *testing.T) {
	p := servers.StartPostgres(t)
	for name, from := range map[string]store.Backend{"file": file(t), "PostgreSQL": schema(t, p)} {
		src, dst := open(t, from), open(t, schema(t, p))
		fill(t, src, 10)
		_, err := copyAll(t.Context(), src, dst, true)
		must(t, err)
		refused := map[string]error{
			"a change":      src.EnsurePrefix(t.Context(), "test", "zz"),
			"a heartbeat":   src.Beat(t.Context(), auth.Node{ID: "node_a"}),
			"last use":      src.RecordUse(t.Context(), []auth.Use{{At: 1}}),
			"being used":    src.Usable(t.Context()),
			"an epoch":      src.NewEpoch(t.Context(), auth.Epoch{}, auth.Epoch{1}),
			"another place": func() error { _, err := copyAll(t.Context(), src, open(t, file(t)), true); return err }(),
		}
		for what, err := range refused {
			if !errors.Is(err, auth.ErrMoved) || errors.Is(err, auth.ErrNotWritable) || !strings.Contains(err.Error(), dst.Describe()) || auth.Hint(err) == "" {
				t.Errorf("%s: %s: %v", name, what, err)
			}
		}
		if _, err := copyAll(t.Context(), src, dst, true); !errors.Is(err, auth.ErrConflict) {
			t.Errorf("%s: copied twice: %v", name, err)
		}
		l, err := src.LookupKey(t.Context(), auth.Fingerprint{9})
		must(t, err)
		if !l.Moved || l.Key != nil {
			t.Errorf("%s: a lookup at the source: %+v", name, l)
		}
		must(t, dst.Usable(t.Context()))
		must(t, dst.EnsurePrefix(t.Context(), "test", "zz"))
	}
}

// TestCopy_Resumes: a copy that ended anywhere is not a store, and goes on.
func TestCopy_Resumes(t *testing.T) {
	from, to := open(t, file(t)), open(t, file(t))
	const keys = 3 * store.CopyChunk
	fill(t, from, keys)
	ctx, cancel := context.WithCancel(t.Context())
	_, err := store.Copy(ctx, from, to, "test", true, func(_, table string, done, _ int64) {
		if table == "keys" && done > store.CopyChunk {
			cancel()
		}
	})
	if err == nil {
		t.Fatal("it was not interrupted")
	}
	if err := to.Usable(t.Context()); !errors.Is(err, auth.ErrConflict) || auth.Hint(err) == "" {
		t.Errorf("half a copy: %v", err)
	}
	must(t, from.Usable(t.Context()))
	other := open(t, file(t))
	fill(t, other, 1)
	if _, err := copyAll(t.Context(), other, to, true); !errors.Is(err, auth.ErrConflict) {
		t.Errorf("two stores into one: %v", err)
	}
	// Meanwhile the source changes, and somebody damages the copy.
	ids, err := from.Strings(`SELECT id FROM keys ORDER BY id LIMIT 3`)
	must(t, err)
	must(t, from.RecordUse(t.Context(), []auth.Use{{Fingerprint: auth.FingerprintOf(ids[1]), At: 77}}))
	must(t, to.Exec(`UPDATE keys SET scopes = 'admin' WHERE id = $1`, ids[0]))
	must(t, to.Exec(`INSERT INTO keys (id, fingerprint, owner, name, hint, environment, scopes, networks, meta, created_at) VALUES ('key_z', x'00', 'owner-1', '', '', 'live', '', '', '{}', 0)`))
	if _, err := copyAll(t.Context(), from, to, false); err != nil {
		t.Fatal(err)
	}
	must(t, from.EnsurePrefix(t.Context(), "test", "later"))
	tallies, err := copyAll(t.Context(), from, to, true)
	must(t, err)
	for _, tally := range tallies {
		if tally.Table == "keys" && tally.Rows != keys {
			t.Errorf("%+v", tally)
		}
	}
	for want, id := range map[int64]string{0: ids[0], 77: ids[1]} {
		if k, err := to.KeyByID(t.Context(), id); err != nil || k.LastUsedAt != want || slices.Contains(k.Scopes, "admin") {
			t.Errorf("%+v, %v", k, err)
		}
	}
	if _, err := to.KeyByID(t.Context(), "key_z"); !errors.Is(err, auth.ErrNotFound) {
		t.Errorf("a row that the source does not have: %v", err)
	}
	if prefixes, err := to.Prefixes(t.Context()); err != nil || !slices.Contains(prefixes, "later") {
		t.Errorf("prefixes %v, %v", prefixes, err)
	}
}

// TestCopy_InterruptedAtItsEnd: the source is closed, the copy not open yet:
// nobody can change either until it is run again.
func TestCopy_InterruptedAtItsEnd(t *testing.T) {
	from, to := open(t, file(t)), open(t, file(t))
	fill(t, from, 10)
	if _, err := copyAll(t.Context(), from, to, false); err != nil {
		t.Fatal(err)
	}
	must(t, from.Exec(`INSERT INTO store_meta (name, value) VALUES ('moved', $1)`, []byte(to.Describe())))
	if _, err := copyAll(t.Context(), from, to, false); !errors.Is(err, auth.ErrConflict) {
		t.Errorf("prepared once more: %v", err)
	}
	must(t, to.Exec(`DELETE FROM keys`)) // it is compared all the same
	if err := to.Usable(t.Context()); !errors.Is(err, auth.ErrConflict) {
		t.Errorf("%v", err)
	}
	tallies, err := copyAll(t.Context(), from, to, true)
	must(t, err)
	for _, tally := range tallies {
		if tally.Table == "keys" && tally.Rows != 10 {
			t.Errorf("%+v", tally)
		}
	}
	if keys, err := to.Strings(`SELECT id FROM keys`); err != nil || len(keys) != 10 {
		t.Errorf("%d keys, %v", len(keys), err)
	}
	must(t, to.Usable(t.Context()))
}

// TestCopy_TwoAtOnce: a run that another has overtaken writes nothing more,
// least of all into what has become a store.
func TestCopy_TwoAtOnce(t *testing.T) {
	p := servers.StartPostgres(t)
	for name, target := range map[string]store.Backend{"file": file(t), "PostgreSQL": schema(t, p)} {
		from, to := open(t, file(t)), open(t, target)
		fill(t, from, 10)
		var once sync.Once
		_, err := store.Copy(t.Context(), from, to, "slow", false, func(_, table string, _, _ int64) {
			if table != "owners" {
				return
			}
			once.Do(func() {
				if _, err := copyAll(t.Context(), from, to, true); err != nil {
					t.Error(err)
				}
				must(t, to.Change(t.Context(), "test", func(tx *store.Tx) error {
					if _, err := tx.RevokeOwnerKeys(t.Context(), "owner-1", "x"); err != nil {
						return err
					}
					return errors.Join(tx.Journal(t.Context(), "x", nil, auth.Parent{}), tx.Audit(t.Context(), "x", "x", nil))
				}))
			})
		})
		if !errors.Is(err, auth.ErrConflict) {
			t.Errorf("%s: the run that was overtaken: %v", name, err)
		}
		revived, err := to.Strings(`SELECT id FROM keys WHERE owner = 'owner-1' AND revoked_at = 0`)
		if err != nil || len(revived) > 0 {
			t.Errorf("%s: revoked keys came back: %v, %v", name, revived, err)
		}
	}
}

// TestCopy_WhileOwnersComeAndGo: what is made during the first pass does not
// stop it, and two schemas of one database don't wait for each other.
func TestCopy_WhileOwnersComeAndGo(t *testing.T) {
	p := servers.StartPostgres(t)
	for name, source := range map[string]store.Backend{"file": file(t), "PostgreSQL": schema(t, p)} {
		from, to := open(t, source), open(t, schema(t, p))
		fill(t, from, 10)
		n := 0
		_, err := store.Copy(t.Context(), from, to, "test", true, func(stage, table string, _, _ int64) {
			if stage != "copying" {
				return
			}
			n++
			must(t, from.Change(t.Context(), "test", func(tx *store.Tx) error {
				id := fmt.Sprintf("key_late%d", n)
				if _, err := tx.EnsureOwner(t.Context(), "late-"+table); err != nil {
					return err
				}
				return errors.Join(tx.InsertKey(t.Context(), &auth.Key{ID: id, Fingerprint: auth.FingerprintOf(id), Owner: "late-" + table, Meta: map[string]string{}}),
					tx.Journal(t.Context(), "x", nil, auth.Parent{}), tx.Audit(t.Context(), "x", "x", nil))
			}))
		})
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		if keys, err := to.Strings(`SELECT id FROM keys WHERE id LIKE 'key_late%'`); err != nil || len(keys) != n {
			t.Errorf("%s: %d of %d keys that were made meanwhile, %v", name, len(keys), n, err)
		}
	}
}

// TestCopy_LooksAgain: what the copy's database made of a row is compared, not
// what was sent to it.
func TestCopy_LooksAgain(t *testing.T) {
	p := servers.StartPostgres(t)
	b := schema(t, p)
	from, to := open(t, file(t)), open(t, b)
	fill(t, from, 10)
	name := fmt.Sprintf("s%d", schemas)
	p.Do("CREATE FUNCTION " + name + ".spoil() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN NEW.scopes = 'admin'; RETURN NEW; END $$")
	p.Do("CREATE TRIGGER spoil BEFORE INSERT OR UPDATE ON " + name + ".keys FOR EACH ROW EXECUTE FUNCTION " + name + ".spoil()")
	if _, err := copyAll(t.Context(), from, to, true); !errors.Is(err, auth.ErrCorrupt) {
		t.Errorf("%v", err)
	}
	must(t, from.Usable(t.Context()))
}

// TestCopy_Abandoned: a run that goes on after its copy was given up makes no
// second store.
func TestCopy_Abandoned(t *testing.T) {
	from, to := open(t, file(t)), open(t, file(t))
	fill(t, from, 10)
	_, err := copyAll(t.Context(), from, to, false)
	must(t, err)
	must(t, from.Exec(`INSERT INTO store_meta (name, value) VALUES ('moved', $1)`, []byte(to.Describe())))
	var once sync.Once
	_, err = store.Copy(t.Context(), from, to, "test", true, func(string, string, int64, int64) {
		once.Do(func() {
			id, err := from.ID(t.Context())
			must(t, err)
			must(t, store.Abandon(t.Context(), to, id))
			must(t, store.Unmove(t.Context(), from, "test"))
		})
	})
	if !errors.Is(err, auth.ErrConflict) {
		t.Errorf("the run that goes on: %v", err)
	}
	must(t, from.Usable(t.Context()))
	if err := to.Usable(t.Context()); !errors.Is(err, auth.ErrConflict) {
		t.Errorf("the copy: %v", err)
	}
	complete := open(t, file(t))
	_, err = copyAll(t.Context(), from, complete, true)
	must(t, err)
	if err := store.Abandon(t.Context(), complete, nil); !errors.Is(err, auth.ErrConflict) {
		t.Errorf("a store is given up: %v", err)
	}
}

func TestCopy_IntoAStore(t *testing.T) {
	from, to := open(t, file(t)), open(t, file(t))
	fill(t, from, 1)
	fill(t, to, 1)
	if _, err := copyAll(t.Context(), from, to, true); !errors.Is(err, auth.ErrConflict) || auth.Hint(err) == "" {
		t.Errorf("%v", err)
	}
	must(t, from.Usable(t.Context()))
}
