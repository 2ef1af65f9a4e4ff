package oauth_test

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/caddy-auth/caddy-auth/internal/auth"
	"github.com/caddy-auth/caddy-auth/internal/oauth"
)

// TestBatcher: what comes while a transaction is under way goes with the next,
// everybody gets their own answer, and a failure is told to those it concerns.
func TestBatcher(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var batches []int
		broken := errors.New("broken")
		b := oauth.NewBatcher(func(ctx context.Context, issues []*oauth.Issue) error {
			batches = append(batches, len(issues))
			time.Sleep(time.Second)
			if len(batches) == 3 {
				return broken
			}
			for _, i := range issues {
				if i.Token.ID == "used" {
					i.Err = auth.ErrConflict
				}
			}
			return nil
		})
		results := map[string]chan error{}
		issue := func(id string) {
			c := make(chan error, 1)
			results[id] = c
			go func() { c <- b.Issue(t.Context(), &oauth.Issue{Token: auth.AccessToken{ID: id}}) }()
		}
		issue("first")
		synctest.Wait() // it is being written
		for _, id := range []string{"a", "b", "used", "c"} {
			issue(id)
		}
		synctest.Wait()
		time.Sleep(1500 * time.Millisecond) // the second is under way
		issue("late")
		issue("later")
		time.Sleep(5 * time.Second)
		synctest.Wait()
		for id, c := range results {
			want := error(nil)
			switch id {
			case "used":
				want = auth.ErrConflict
			case "late", "later":
				want = broken
			}
			if err := <-c; !errors.Is(err, want) {
				t.Errorf("%s: %v, want %v", id, err, want)
			}
		}
		if fmt.Sprint(batches) != "[1 4 2]" {
			t.Errorf("batches %v", batches)
		}
	})
}

// TestBatcher_IsBounded: more than can wait are refused at once, and who gives up
// stops waiting.
func TestBatcher_IsBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		release := make(chan struct{})
		b := oauth.NewBatcher(func(context.Context, []*oauth.Issue) error { <-release; return nil })
		var overloaded, gaveUp atomic.Int64
		for range 5000 {
			go func() {
				ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
				defer cancel()
				switch err := b.Issue(ctx, &oauth.Issue{}); {
				case errors.Is(err, auth.ErrOverloaded):
					overloaded.Add(1)
				case errors.Is(err, context.DeadlineExceeded):
					gaveUp.Add(1)
				case err != nil:
					t.Error(err)
				}
			}()
		}
		synctest.Wait()
		if n := overloaded.Load(); n < 2700 || n > 3000 {
			t.Errorf("%d of 5000 were refused", n)
		}
		time.Sleep(2 * time.Minute)
		if gaveUp.Load() == 0 {
			t.Error("nobody gave up")
		}
		close(release)
		synctest.Wait()
		if err := b.Issue(t.Context(), &oauth.Issue{}); err != nil {
			t.Errorf("after that: %v", err)
		}
	})
}

func TestCheckIssuer(t *testing.T) {
	for issuer, ok := range map[string]bool{
		"https://api.example.com": true, "https://api.example.com/tenant": true, "https://api.example.com:8443": true, "http://127.0.0.1:8080": true, "http://localhost": true, "http://[::1]:1": true,
		"http://api.example.com": false, "https://api.example.com/": false, "https://api.example.com?": false, "https://api.example.com#": false, "https://u@api.example.com": false,
		"api.example.com": false, "ftp://x": false, "": false, "https://": false, "mailto:a@b": false,
	} {
		if err := oauth.CheckIssuer(issuer); (err == nil) != ok {
			t.Errorf("%q: %v", issuer, err)
		}
	}
}

func TestWellKnown(t *testing.T) {
	for about, want := range map[string]string{
		"https://a.example": "https://a.example/.well-known/x", "https://a.example/": "https://a.example/.well-known/x", "https://a.example/b/c": "https://a.example/.well-known/x/b/c",
		"https://a.example:1/b/": "https://a.example:1/.well-known/x/b",
	} {
		if got, err := oauth.WellKnown("/.well-known/x", about); err != nil || got != want {
			t.Errorf("%s: %s, %v", about, got, err)
		}
	}
}
