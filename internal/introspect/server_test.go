package introspect

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/netip"
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
		if _, err := s.Introspect(t.Context(), "to+ken&x=1", netip.Addr{}); err != nil {
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
		o, err := s.Introspect(t.Context(), "secret-token", netip.Addr{})
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
			if _, err := s.Introspect(t.Context(), "x", netip.Addr{}); err != nil {
				t.Error(err)
			}
		})
	}
	for range MaxInFlight {
		<-arrived
	}
	if _, err := s.Introspect(t.Context(), "one too many", netip.Addr{}); !errors.Is(err, auth.ErrOverloaded) {
		t.Error(err)
	}
	close(release)
	all.Wait()

	var asked atomic.Int64
	s = serve(t, Config{ClientID: "gw", Rate: 20}, func(w http.ResponseWriter, r *http.Request) { asked.Add(1); say(`{"active":false}`)(w, r) })
	refused := 0
	for range 200 {
		if _, err := s.Introspect(t.Context(), "x", netip.Addr{}); errors.Is(err, auth.ErrOverloaded) {
			refused++
		}
	}
	if n := asked.Load(); n < 20 || n > 60 || int(n)+refused != 200 {
		t.Errorf("asked %d times, refused %d", n, refused)
	}
}

// TestShares: never more than the rate in a second; made-up tokens leave a part
// for known ones, and one address leaves a part for others.
func TestShares(t *testing.T) {
	const rate = 40
	a, b := netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("192.0.2.2")
	start := time.Unix(1000, 0)
	took := func(s *shares, n int, q question, reserved bool) (got int) {
		for range n {
			if done := s.begin(q, reserved); done != nil {
				done()
				got++
			}
		}
		return got
	}
	s := newShares(rate)
	if got := took(s, 100, question{at: start}, false); got != rate {
		t.Errorf("nobody in particular: %d", got)
	}
	if got := took(s, 100, question{at: start.Add(period - 1)}, false); got != 0 {
		t.Errorf("%d more in the same second", got)
	}
	if got := took(s, 100, question{at: start.Add(period)}, true); got != 30 {
		t.Errorf("while tokens are known: %d", got)
	}
	if got := took(s, 100, question{at: start.Add(period), known: true}, true); got != 10 {
		t.Errorf("known ones: %d", got)
	}
	s = newShares(rate)
	if got := took(s, 100, question{at: start, address: a}, false); got != 25 {
		t.Errorf("one address: %d", got)
	}
	if got := took(s, 10, question{at: start, address: b}, true); got != 5 { // at once, before anybody knew of it
		t.Errorf("another: %d", got)
	}
	for second := 1; second < 5; second++ {
		at := start.Add(time.Duration(second) * period)
		if got := took(s, 100, question{at: at, address: a}, true); got != 15 {
			t.Errorf("one address beside another, second %d: %d", second, got)
		}
		if got := took(s, 8, question{at: at, address: b}, true); got != 8 {
			t.Errorf("the other, second %d: %d", second, got)
		}
	}
	// What is under way has the same shares.
	s = newShares(1000)
	var held []func()
	for range 100 {
		if done := s.begin(question{at: start, address: a}, true); done != nil {
			held = append(held, done)
		}
	}
	if len(held) != MaxInFlight*5/8 || took(s, 1, question{at: start, address: b}, true) != 1 || took(s, 1, question{at: start, known: true}, true) != 1 {
		t.Errorf("%d of one address are under way", len(held))
	}
	for _, done := range held {
		done()
	}
	if s.flying.all != 0 || s.flying.strange != 0 || len(s.flying.of) != 0 {
		t.Errorf("left: %+v", s.flying)
	}
}

func TestKnownTokens(t *testing.T) {
	var k knownTokens
	now := time.Unix(1000, 0)
	fp := auth.FingerprintOf("x")
	check := func(what string, want bool) {
		t.Helper()
		if got, any := k.has(fp, now); got != want || any != want {
			t.Errorf("%s: %v %v", what, got, any)
		}
	}
	check("never seen", false)
	k.note(fp, true, now)
	check("active", true)
	now = now.Add(knownFor)
	check("a while later", true)
	k.note(fp, false, now)
	check("not active any more", false)
	k.note(fp, true, now)
	now = now.Add(3 * knownFor)
	check("long ago", false)
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
		if _, err := s.Introspect(t.Context(), "x", netip.Addr{}); !errors.Is(err, auth.ErrUnavailable) {
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
		if _, err := junk.Introspect(t.Context(), "junk", netip.Addr{}); !errors.Is(err, auth.ErrUnavailable) {
			t.Fatal(err)
		}
	}
	if _, err := junk.Introspect(t.Context(), "good", netip.Addr{}); err != nil {
		t.Errorf("after tokens that the server can't do with: %v", err)
	}
	well.Store(true)
	ctx, cancel := context.WithTimeout(t.Context(), 4*openFor)
	defer cancel()
	for tick := time.NewTicker(50 * time.Millisecond); ; {
		if _, err := s.Introspect(ctx, "x", netip.Addr{}); err == nil {
			return
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			t.Fatal("it is not asked again")
		}
	}
}
