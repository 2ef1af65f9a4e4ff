package caddymodule

import (
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	goruntime "runtime"
	"testing"
	"time"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp"

	"github.com/caddy-auth/caddy-auth/internal/auth"
	"github.com/caddy-auth/caddy-auth/internal/manage"
	"github.com/caddy-auth/caddy-auth/internal/store"
)

// newHandler provisions a handler and a started app on a store of its own,
// and makes a key.
func newHandler(t testing.TB) (*Handler, string) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "auth.db")
	raw, err := json.Marshal(map[string]any{"store": map[string]any{"driver": "sqlite", "path": path}})
	if err != nil {
		t.Fatal(err)
	}
	cfg := &caddy.Config{
		Admin:   &caddy.AdminConfig{Disabled: true},
		AppsRaw: caddy.ModuleMap{"auth": raw},
		Logging: &caddy.Logging{Logs: map[string]*caddy.CustomLog{"default": {BaseLog: caddy.BaseLog{EncoderRaw: json.RawMessage(`{"format":"auth_redact"}`)}}}},
	}
	ctx, err := caddy.ProvisionContext(cfg)
	if err != nil {
		t.Fatal(err)
	}
	app, err := ctx.App("auth")
	if err != nil {
		t.Fatal(err)
	}
	a := app.(*App)
	if err := a.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := a.Cleanup(); err != nil {
			t.Error(err)
		}
	})
	h := new(Handler)
	if err := h.Provision(ctx); err != nil {
		t.Fatal(err)
	}
	target := &target{backend: a.rt.backend, prefix: DefaultKeyPrefix}
	db, err := store.Open(t.Context(), target.backend, store.Existing)
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	made, err := manage.New(db, "test", "ca", target.minter(db)).Create(context.Background(),
		manage.KeySpec{Owner: "customer-4711", Scopes: []string{"orders:read", "orders:write"}})
	if err != nil {
		t.Fatal(err)
	}
	return h, made.Text.Reveal()
}

// requests prepares n requests as Caddy does before the first handler, so that
// only what the handler itself allocates is counted.
func requests(t testing.TB, n int, key string) []*http.Request {
	t.Helper()
	out := make([]*http.Request, n)
	w := httptest.NewRecorder()
	for i := range out {
		r := httptest.NewRequest(http.MethodGet, "/v1/orders/4711", nil)
		r.Header = http.Header{"User-Agent": {"bench"}, "Accept": {"*/*"}, "X-Api-Key": {key}}
		out[i] = caddyhttp.PrepareRequest(r, caddy.NewReplacer(), w, nil)
	}
	return out
}

func checkIdentity(_ http.ResponseWriter, r *http.Request) error {
	if v := r.Header["X-Auth-Subject"]; len(v) != 1 || v[0] != "customer-4711" {
		return errors.New("no identity")
	}
	return nil
}

func TestHandler_AllocationsOnAMemoryHit(t *testing.T) {
	h, key := newHandler(t)
	const n = 5000
	w := httptest.NewRecorder()
	next := caddyhttp.HandlerFunc(checkIdentity)
	all := requests(t, n+1, key)
	serve := func(r *http.Request) {
		if err := h.ServeHTTP(w, r, next); err != nil {
			t.Fatal(err)
		}
	}
	serve(all[n]) // fills the memory tier
	var before, after goruntime.MemStats
	goruntime.GC()
	goruntime.ReadMemStats(&before)
	for _, r := range all[:n] {
		serve(r)
	}
	goruntime.ReadMemStats(&after)
	allocs := float64(after.Mallocs-before.Mallocs) / n
	bytes := float64(after.TotalAlloc-before.TotalAlloc) / n
	t.Logf("%.2f allocations, %.0f bytes", allocs, bytes)
	if allocs > 4.05 || bytes > 512+8 { // a background goroutine may add a few
		t.Errorf("%.2f allocations and %.0f bytes, at most 4 and 512", allocs, bytes)
	}
}

func BenchmarkHandler(b *testing.B) {
	h, key := newHandler(b)
	w := httptest.NewRecorder()
	next := caddyhttp.HandlerFunc(checkIdentity)
	for name, k := range map[string]string{"hit": key, "forged": key[:len(key)-8] + "00000000"} {
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			const batch = 2000
			for i := 0; i < b.N; i += batch {
				b.StopTimer()
				all := requests(b, min(batch, b.N-i), k)
				b.StartTimer()
				for _, r := range all {
					w.Body.Reset()
					if err := h.ServeHTTP(w, r, next); err != nil {
						b.Fatal(err)
					}
				}
			}
		})
	}
}

func TestCaller_NeverPrints(t *testing.T) {
	c := &caller{verified: true, identity: auth.Identity{Subject: "acme"}}
	if s := c.String(); s != "" {
		t.Errorf("prints %q", s)
	}
}

func TestApp_StalenessIsComparedWithDefaults(t *testing.T) {
	for _, c := range []struct {
		poll, staleness time.Duration
		ok              bool
	}{
		{0, 0, true},
		{0, 900 * time.Millisecond, false}, // less than two of the default second
		{5 * time.Minute, 0, false},        // more than the default two minutes
		{5 * time.Minute, time.Hour, true},
	} {
		a := &App{KeyPrefix: DefaultKeyPrefix, PollInterval: caddy.Duration(c.poll), MaxStaleness: caddy.Duration(c.staleness)}
		if err := a.check(); (err == nil) != c.ok {
			t.Errorf("poll_interval %s, max_staleness %s: %v", c.poll, c.staleness, err)
		}
	}
}

// TestRuntime_NothingIsTrustedAfterItsEnd: nobody follows the journal any
// more, so a cached identity is worth nothing.
func TestRuntime_NothingIsTrustedAfterItsEnd(t *testing.T) {
	h, key := newHandler(t)
	serve := func() int {
		w := httptest.NewRecorder()
		if err := h.ServeHTTP(w, requests(t, 1, key)[0], caddyhttp.HandlerFunc(checkIdentity)); err != nil {
			t.Fatal(err)
		}
		return w.Code
	}
	if got := serve(); got != http.StatusOK {
		t.Fatalf("status %d", got)
	}
	if err := h.app.rt.end(); err != nil {
		t.Fatal(err)
	}
	if got := serve(); got != http.StatusServiceUnavailable {
		t.Errorf("status %d after the end", got)
	}
}
