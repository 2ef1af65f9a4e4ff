package caddymodule

import (
	"context"
	"net/http"
	"net/http/httptest"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/caddy-auth/caddy-auth/internal/auth"
	"github.com/caddy-auth/caddy-auth/internal/pace"
)

// TestSlowDown: what anybody can cause waits, what needs a credential or is our
// own fault never does, and who comes when too many wait loses its connection.
func TestSlowDown(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := &Handler{app: &App{rt: &runtime{pacer: pace.New()}}}
		h.app.rt.pacer.SetRate(1)
		refuse := func(code auth.Code) (took time.Duration, closes bool) {
			w, began := httptest.NewRecorder(), time.Now()
			h.slowDown(w, httptest.NewRequest(http.MethodGet, "/", nil), &auth.Refusal{Code: code})
			return time.Since(began), w.Header().Get("Connection") == "close"
		}
		refuse(auth.CodeInvalidCredential)
		for code, waits := range map[auth.Code]bool{
			auth.CodeInvalidCredential: true, auth.CodeMissingCredential: true, auth.CodeCredentialInQuery: true,
			auth.CodeInsufficientScope: false, auth.CodeUnavailable: false,
		} {
			if took, closes := refuse(code); took > 0 != waits || took > pace.Longest || closes {
				t.Errorf("%s waited %s, connection closed: %v", code, took, closes)
			}
		}
		ctx, cancel := context.WithCancel(t.Context())
		var wg sync.WaitGroup
		for range pace.MostWaiting {
			wg.Go(func() { h.app.rt.pacer.Wait(ctx) })
		}
		synctest.Wait()
		if took, closes := refuse(auth.CodeInvalidCredential); took > 0 || !closes {
			t.Errorf("with too many waiting: waited %s, connection closed: %v", took, closes)
		}
		cancel()
		wg.Wait()
	})
}
