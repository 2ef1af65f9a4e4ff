package manage_test

import (
	"bytes"
	"context"
	"errors"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/caddy-auth/caddy-auth/internal/auth"
	"github.com/caddy-auth/caddy-auth/internal/manage"
	"github.com/caddy-auth/caddy-auth/internal/secret"
	"github.com/caddy-auth/caddy-auth/internal/store"
	"github.com/caddy-auth/caddy-auth/internal/store/sqlite"
)

func open(t *testing.T) (*manage.Manager, *store.DB) {
	t.Helper()
	ctx := t.Context()
	db, err := store.Open(ctx, sqlite.New(filepath.Join(t.TempDir(), "auth.db")), store.Create)
	must(t, err)
	t.Cleanup(func() { _ = db.Close() })
	ring, err := secret.NewRing("test", bytes.Repeat([]byte{1}, 32))
	must(t, err)
	must(t, db.Init(ctx, "test", ring, "ca"))
	return manage.New(db, "test", "ca", func(ctx context.Context) (*secret.Minter, error) { return db.Minter(ctx, ring) }), db
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func TestCreate_NormalizesAndRefuses(t *testing.T) {
	m, db := open(t)
	made, err := m.Create(t.Context(), manage.KeySpec{
		Owner: "acme", Scopes: []string{"b", "a", "b"}, Networks: []string{"10.1.2.3/8", "192.0.2.7", "::ffff:192.0.2.8"}, Meta: map[string]string{"tenant": "t"},
	})
	must(t, err)
	k, err := db.KeyByID(t.Context(), made.Key.ID)
	must(t, err)
	if d := cmp.Diff([]string{"a", "b"}, k.Scopes) + cmp.Diff([]string{"10.0.0.0/8", "192.0.2.7/32", "192.0.2.8/32"}, k.Networks); d != "" || k.Environment != "live" || !made.NewOwner {
		t.Errorf("%+v %s", k, d)
	}
	text := made.Text.Reveal()
	for name, spec := range map[string]manage.KeySpec{
		"no owner":           {},
		"owner with a colon": {Owner: "client:x"},
		"long owner":         {Owner: strings.Repeat("a", 65)},
		"a key as owner":     {Owner: text},
		"a key as name":      {Owner: "a", Name: text},
		"control character":  {Owner: "a", Name: "x\ny"},
		"environment":        {Owner: "a", Environment: "rt"},
		"scope":              {Owner: "a", Scopes: []string{"x y"}},
		"network":            {Owner: "a", Networks: []string{"10.0.0.0/33"}},
		"zone":               {Owner: "a", Networks: []string{"fe80::1%eth0"}},
		"metadata name":      {Owner: "a", Meta: map[string]string{"X": "y"}},
		"metadata value":     {Owner: "a", Meta: map[string]string{"x": "a\x1fb"}},
		"past expiry":        {Owner: "a", ExpiresAt: 1},
		"many scopes":        {Owner: "a", Scopes: strings.Fields(strings.Repeat("s", 1) + manyWords(65))},
	} {
		_, err := m.Create(t.Context(), spec)
		if !errors.Is(err, auth.ErrInvalid) {
			t.Errorf("%s: %v", name, err)
		} else if strings.Contains(err.Error(), text) {
			t.Errorf("%s: the error repeats the key", name)
		}
	}
	n := 0
	must(t, db.Owners(t.Context(), func(auth.Owner) error { n++; return nil }))
	if n != 1 {
		t.Errorf("%d owners: a refused key left one behind", n)
	}
}

func manyWords(n int) string {
	var b strings.Builder
	for i := range n {
		b.WriteString(" s" + strings.Repeat("x", i))
	}
	return b.String()
}

func TestRotate_OnceAlsoWhenRaced(t *testing.T) {
	m, db := open(t)
	made, err := m.Create(t.Context(), manage.KeySpec{Owner: "acme", Scopes: []string{"a"}, ExpiresAt: time.Now().Add(time.Hour).UnixMilli()})
	must(t, err)
	var wg sync.WaitGroup
	var mu sync.Mutex
	done, refused := 0, 0
	for range 8 {
		wg.Go(func() {
			_, err := m.Rotate(context.Background(), made.Key.ID, 2*time.Hour, nil)
			mu.Lock()
			defer mu.Unlock()
			switch {
			case err == nil:
				done++
			case errors.Is(err, auth.ErrConflict):
				refused++
			default:
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if done != 1 || refused != 7 {
		t.Errorf("%d rotations, %d refused", done, refused)
	}
	old, err := db.KeyByID(t.Context(), made.Key.ID)
	must(t, err)
	if old.NotAfter() != made.Key.ExpiresAt {
		t.Error("an overlap longer than the lifetime made the old key live longer")
	}
	successor, err := db.KeyByID(t.Context(), old.ReplacedBy)
	must(t, err)
	if successor.ExpiresAt != made.Key.ExpiresAt || !cmp.Equal(successor.Scopes, old.Scopes) || successor.OverlapUntil != 0 {
		t.Errorf("the new key inherits: %+v", successor)
	}
}

func TestRevoke_AllOrNothingAndAgain(t *testing.T) {
	m, db := open(t)
	a, err := m.Create(t.Context(), manage.KeySpec{Owner: "acme"})
	must(t, err)
	if _, err := m.Revoke(t.Context(), []string{a.Key.ID, "key_none"}, ""); !errors.Is(err, auth.ErrNotFound) {
		t.Errorf("an unknown id: %v", err)
	}
	k, err := db.KeyByID(t.Context(), a.Key.ID)
	must(t, err)
	if k.RevokedAt != 0 {
		t.Error("revoked half of a list")
	}
	for i, want := range []int{1, 0} {
		changed, err := m.Revoke(t.Context(), []string{a.Key.ID, a.Key.ID}, "leaked")
		must(t, err)
		if len(changed) != want {
			t.Errorf("call %d changed %d keys", i, len(changed))
		}
	}
	for name, change := range map[string]func() error{
		"enable": func() error { _, err := m.SetDisabled(t.Context(), []string{a.Key.ID}, false, ""); return err },
		"edit": func() error {
			_, err := m.Edit(t.Context(), []string{a.Key.ID}, func(s *manage.KeySpec) { s.Name = "x" })
			return err
		},
		"rotate": func() error { _, err := m.Rotate(t.Context(), a.Key.ID, 0, nil); return err },
	} {
		if err := change(); !errors.Is(err, auth.ErrConflict) {
			t.Errorf("%s of a revoked key: %v", name, err)
		}
	}
}

func TestMask(t *testing.T) {
	m, _ := open(t)
	made, err := m.Create(t.Context(), manage.KeySpec{Owner: "acme"})
	must(t, err)
	if got := manage.Mask("owner " + made.Text.Reveal() + ": not found"); got != "owner [redacted]: not found" {
		t.Errorf("%q", got)
	}
	if got := manage.Mask("key key_0192a7b0-0000-7000-8000-000000000000: not found"); !strings.Contains(got, "key_0192") {
		t.Errorf("an id was masked: %q", got)
	}
}
