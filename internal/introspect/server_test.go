package introspect

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/caddy-auth/caddy-auth/internal/auth"
)

// serve returns a server that answers with what answer writes.
func serve(t *testing.T, cfg Config, answer http.HandlerFunc) *Server {
	t.Helper()
	srv := httptest.NewServer(answer)
	cfg.URL = srv.URL + "/introspect"
	s := New(cfg)
	t.Cleanup(func() { s.Close(); srv.CloseClientConnections(); srv.Close() })
	return s
}

func say(text string) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/json;charset=utf-8")
		fmt.Fprint(w, text)
	}
}

// TestIntrospect_Request is RFC 7662, 2.1, and RFC 6749, 2.3.1.
func TestIntrospect_Request(t *testing.T) {
	for _, post := range []bool{false, true} {
		var got *http.Request
		s := serve(t, Config{ClientID: "a b:c", ClientSecret: auth.NewSecret("p&%ä"), Post: post}, func(w http.ResponseWriter, r *http.Request) {
			_ = r.ParseForm()
			got = r
			say(`{"active":true}`)(w, r)
		})
		if _, err := s.Introspect(t.Context(), "to+ken&x=1"); err != nil {
			t.Fatal(err)
		}
		id, secret, basic := got.BasicAuth()
		if got.Method != http.MethodPost || got.PostForm.Get("token") != "to+ken&x=1" || got.URL.RawQuery != "" || basic == post {
			t.Errorf("%s %s %v, basic %v", got.Method, got.URL, got.PostForm, basic)
		}
		if post && (got.PostForm.Get("client_id") != "a b:c" || got.PostForm.Get("client_secret") != "p&%ä") {
			t.Errorf("%v", got.PostForm)
		}
		if !post && (id != "a+b%3Ac" || secret != "p%26%25%C3%A4") {
			t.Errorf("%q %q", id, secret)
		}
	}
}

// TestIntrospect_NoAnswer: what is no answer says nothing about a token.
func TestIntrospect_NoAnswer(t *testing.T) {
	for name, answer := range map[string]http.HandlerFunc{
		"html": func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Type", "text/html")
			fmt.Fprint(w, `{"active":true}`)
		},
		"no type": func(w http.ResponseWriter, _ *http.Request) {
			w.Header()["Content-Type"] = nil
			fmt.Fprint(w, `{"active":true}`)
		},
		"half":    say(`{"active":true`),
		"twice":   say(`{"active":false,"active":true}`),
		"ACTIVE":  say(`{"ACTIVE":true}`),
		"a list":  say(`[{"active":true}]`),
		"nothing": say(``),
		"huge":    say(`{"active":true,"x":"` + strings.Repeat("x", maxAnswer) + `"}`),
		"401":     func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(401); fmt.Fprint(w, `{"active":true}`) },
		"404":     func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(404) },
		"500":     func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(500) },
		"201": func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Content-Type", "application/json")
			w.WriteHeader(201)
			fmt.Fprint(w, `{"active":true}`)
		},
		"a redirect": func(w http.ResponseWriter, r *http.Request) {
			http.Redirect(w, r, "/other", http.StatusTemporaryRedirect)
		},
		"hangs":    func(_ http.ResponseWriter, r *http.Request) { _ = r.ParseForm(); <-r.Context().Done() },
		"hangs up": func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) },
		"cut off": func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Length", "99")
			fmt.Fprint(w, `{"active":true}`)
		},
	} {
		s := serve(t, Config{ClientID: "gw", ClientSecret: auth.NewSecret("hunter2"), Timeout: 300 * time.Millisecond}, answer)
		o, err := s.Introspect(t.Context(), "secret-token")
		if !errors.Is(err, auth.ErrUnavailable) {
			t.Errorf("%s: %v, %v", name, o, err)
		} else if strings.Contains(err.Error(), "secret-token") || strings.Contains(err.Error(), "hunter2") {
			t.Errorf("%s: a secret in %v", name, err)
		}
	}
}

// TestIntrospect_Bounds: at most so many at a time, and so many a second.
func TestIntrospect_Bounds(t *testing.T) {
	release, arrived := make(chan struct{}), make(chan struct{}, MaxInFlight+1)
	s := serve(t, Config{ClientID: "gw", Rate: 1000}, func(w http.ResponseWriter, r *http.Request) {
		arrived <- struct{}{}
		<-release
		say(`{"active":false}`)(w, r)
	})
	var all sync.WaitGroup
	for range MaxInFlight {
		all.Go(func() {
			if _, err := s.Introspect(t.Context(), "x"); err != nil {
				t.Error(err)
			}
		})
	}
	for range MaxInFlight {
		<-arrived
	}
	if _, err := s.Introspect(t.Context(), "one too many"); !errors.Is(err, auth.ErrOverloaded) {
		t.Error(err)
	}
	close(release)
	all.Wait()

	var asked atomic.Int64
	s = serve(t, Config{ClientID: "gw", Rate: 20}, func(w http.ResponseWriter, r *http.Request) { asked.Add(1); say(`{"active":false}`)(w, r) })
	refused := 0
	for range 200 {
		if _, err := s.Introspect(t.Context(), "x"); errors.Is(err, auth.ErrOverloaded) {
			refused++
		}
	}
	if n := asked.Load(); n < 20 || n > 60 || int(n)+refused != 200 {
		t.Errorf("asked %d times, refused %d", n, refused)
	}
}

func TestWindow(t *testing.T) {
	w, now := newWindow(3, time.Second), time.Now()
	for n, tc := range []struct {
		after time.Duration
		want  bool
	}{{0, true}, {100, true}, {200, true}, {999, false}, {1000, true}, {1050, false}, {1100, true}, {1150, false}, {5000, true}, {5000, true}, {5000, true}, {5000, false}} {
		if got := w.take(now.Add(tc.after * time.Millisecond)); got != tc.want {
			t.Errorf("%d, after %d ms: %v", n, tc.after, got)
		}
	}
}

// TestIntrospect_Breaker: a server that fails is left alone, and asked again
// soon.
func TestIntrospect_Breaker(t *testing.T) {
	var asked atomic.Int64
	var well atomic.Bool
	s := serve(t, Config{ClientID: "gw", Rate: 1000}, func(w http.ResponseWriter, r *http.Request) {
		asked.Add(1)
		if !well.Load() {
			w.WriteHeader(500)
			return
		}
		say(`{"active":true}`)(w, r)
	})
	for range 100 {
		if _, err := s.Introspect(t.Context(), "x"); !errors.Is(err, auth.ErrUnavailable) {
			t.Fatal(err)
		}
	}
	if n := asked.Load(); n != failuresInARow {
		t.Errorf("asked %d times", n)
	}
	junk := serve(t, Config{ClientID: "gw", Rate: 1000}, func(w http.ResponseWriter, r *http.Request) {
		if r.PostFormValue("token") == "junk" {
			w.WriteHeader(http.StatusBadRequest)
			return
		}
		say(`{"active":true}`)(w, r)
	})
	for range 20 {
		if _, err := junk.Introspect(t.Context(), "junk"); !errors.Is(err, auth.ErrUnavailable) {
			t.Fatal(err)
		}
	}
	if _, err := junk.Introspect(t.Context(), "good"); err != nil {
		t.Errorf("after tokens that the server can't do with: %v", err)
	}
	well.Store(true)
	ctx, cancel := context.WithTimeout(t.Context(), 4*openFor)
	defer cancel()
	for tick := time.NewTicker(50 * time.Millisecond); ; {
		if _, err := s.Introspect(ctx, "x"); err == nil {
			return
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			t.Fatal("it is not asked again")
		}
	}
}
