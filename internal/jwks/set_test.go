package jwks

import (
	"context"
	"crypto/ed25519"
	"encoding/base64"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"

	"github.com/caddy-auth/caddy-auth/internal/auth"
	"github.com/caddy-auth/caddy-auth/internal/fetch"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// issuer answers as an issuer would, without a network.
type issuer struct {
	mu    sync.Mutex
	kids  []string
	age   string // Cache-Control
	err   error
	took  time.Duration
	asked int
	body  string // instead of the keys
}

func (i *issuer) set(change func(*issuer)) {
	i.mu.Lock()
	defer i.mu.Unlock()
	change(i)
}

func (i *issuer) count() int {
	i.mu.Lock()
	defer i.mu.Unlock()
	return i.asked
}

func jwk(kid string) string {
	key := ed25519.NewKeyFromSeed([]byte(fmt.Sprintf("%-32.32s", kid))).Public().(ed25519.PublicKey)
	return fmt.Sprintf(`{"kty":"OKP","crv":"Ed25519","kid":%q,"x":%q}`, kid, base64.RawURLEncoding.EncodeToString(key))
}

func (i *issuer) Get(ctx context.Context, _ string) (*fetch.Answer, error) {
	i.mu.Lock()
	i.asked++
	took, err, age, text := i.took, i.err, i.age, i.body
	var keys []string
	for _, kid := range i.kids {
		keys = append(keys, jwk(kid))
	}
	i.mu.Unlock()
	select {
	case <-time.After(took):
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	if err != nil {
		return nil, err
	}
	if text == "" {
		text = `{"keys":[` + strings.Join(keys, ",") + `]}`
	}
	return &fetch.Answer{Status: http.StatusOK, Header: http.Header{"Cache-Control": {age}}, Body: []byte(text)}, nil
}

// inBubble runs a test on a clock of its own with a set that was started.
func inBubble(t *testing.T, i *issuer, test func(t *testing.T, s *Set)) {
	synctest.Test(t, func(t *testing.T) {
		s := New(Config{KeysURL: "https://idp.example/keys"}, i)
		s.Start()
		s.Start()
		defer s.Stop()
		synctest.Wait()
		test(t, s)
		s.Stop()
	})
}

func (s *Set) ask1(kid string, issued time.Time) error {
	_, err := s.Key(context.Background(), kid, "EdDSA", issued)
	return err
}

func TestSet_Rotation(t *testing.T) {
	i := &issuer{kids: []string{"a"}}
	inBubble(t, i, func(t *testing.T, s *Set) {
		if err := s.ask1("a", time.Now()); err != nil {
			t.Fatal(err)
		}
		i.set(func(i *issuer) { i.kids = []string{"b"} })
		if err := s.ask1("b", time.Now()); err != nil {
			t.Fatalf("a new key: %v", err)
		}
		if n := i.count(); n != 2 {
			t.Errorf("asked %d times, want 2", n)
		}
		if err := s.ask1("a", time.Now().Add(-time.Hour)); !errors.Is(err, auth.ErrNotFound) {
			t.Errorf("a key that was taken away: %v", err)
		}
	})
}

// TestSet_UnknownFlood: whatever kids tokens name, the issuer is asked once in
// thirty seconds.
func TestSet_UnknownFlood(t *testing.T) {
	i := &issuer{kids: []string{"a"}, took: 100 * time.Millisecond}
	inBubble(t, i, func(t *testing.T, s *Set) {
		time.Sleep(time.Second)
		before := i.count()
		old := time.Now().Add(-time.Hour)
		for second := range 90 {
			var all sync.WaitGroup
			for n := range 20 {
				all.Go(func() {
					if err := s.ask1(fmt.Sprintf("x%d-%d", second, n), old); !errors.Is(err, auth.ErrNotFound) {
						t.Errorf("second %d: %v", second, err)
					}
				})
			}
			all.Wait()
			if err := s.ask1("a", old); err != nil {
				t.Fatal(err)
			}
			time.Sleep(time.Second)
		}
		if n := i.count() - before; n < 3 || n > 4 {
			t.Errorf("asked %d times in about 100 seconds, want one in 30", n)
		}
	})
}

// TestSet_NewerThanTheSet: while the issuer may not be asked again, a key may
// have been made since: such a token is not called bad.
func TestSet_NewerThanTheSet(t *testing.T) {
	i := &issuer{kids: []string{"a"}}
	inBubble(t, i, func(t *testing.T, s *Set) {
		if err := s.ask1("garbage", time.Now()); !errors.Is(err, auth.ErrNotFound) {
			t.Fatalf("asked just now: %v", err)
		}
		time.Sleep(5 * time.Second)
		i.set(func(i *issuer) { i.kids = []string{"a", "b"} })
		if err := s.ask1("b", time.Now()); !errors.Is(err, auth.ErrUnavailable) {
			t.Errorf("issued after the set was fetched: %v", err)
		}
		if err := s.ask1("c", time.Now().Add(-time.Minute)); !errors.Is(err, auth.ErrNotFound) {
			t.Errorf("issued before: %v", err)
		}
		time.Sleep(UnknownEvery)
		if err := s.ask1("b", time.Now()); err != nil {
			t.Errorf("when it may be asked again: %v", err)
		}
	})
}

func TestSet_IssuerAway(t *testing.T) {
	i := &issuer{kids: []string{"a"}}
	inBubble(t, i, func(t *testing.T, s *Set) {
		i.set(func(i *issuer) { i.err = auth.ErrUnavailable })
		time.Sleep(23 * time.Hour)
		if err := s.ask1("a", time.Now()); err != nil {
			t.Fatalf("a key of the last good set: %v", err)
		}
		if err := s.ask1("b", time.Now().Add(-24*time.Hour)); !errors.Is(err, auth.ErrUnavailable) {
			t.Errorf("an unknown key while the issuer is away: %v", err)
		}
		asked := i.count()
		if most := 23*60 + 300; asked > most {
			t.Errorf("asked %d times in 23 hours, at most %d", asked, most)
		}
		time.Sleep(2 * time.Hour)
		if err := s.ask1("a", time.Now()); !errors.Is(err, auth.ErrUnavailable) {
			t.Errorf("a day after the last good fetch: %v", err)
		}
		i.set(func(i *issuer) { i.err = nil })
		time.Sleep(2 * mostRetry)
		if err := s.ask1("a", time.Now()); err != nil {
			t.Errorf("when the issuer is back: %v", err)
		}
	})
}

func TestSet_NeverFetched(t *testing.T) {
	i := &issuer{err: auth.ErrUnavailable}
	inBubble(t, i, func(t *testing.T, s *Set) {
		if err := s.ask1("a", time.Now()); !errors.Is(err, auth.ErrUnavailable) {
			t.Error(err)
		}
	})
	slow := &issuer{kids: []string{"a"}, took: 2 * time.Second}
	inBubble(t, slow, func(t *testing.T, s *Set) {
		if err := s.ask1("a", time.Now()); err != nil {
			t.Errorf("a request that came before the first fetch had ended: %v", err)
		}
	})
	hanging := &issuer{took: time.Hour}
	inBubble(t, hanging, func(t *testing.T, s *Set) {
		began := time.Now()
		if err := s.ask1("a", time.Now()); !errors.Is(err, auth.ErrUnavailable) || time.Since(began) > patience {
			t.Errorf("%v after %v", err, time.Since(began))
		}
	})
}

// TestSet_Refresh holds how often keys are fetched against Cache-Control.
func TestSet_Refresh(t *testing.T) {
	for age, want := range map[string][2]int{ // in ten hours
		"":                       {40, 45},
		"max-age=0":              {120, 135},
		"no-store":               {120, 135},
		"max-age=1800":           {20, 23},
		"public, MAX-AGE=1800":   {20, 23},
		"max-age=99999999999999": {10, 12},
		"max-age=-5":             {40, 45},
		"max-age=nonsense":       {40, 45},
	} {
		i := &issuer{kids: []string{"a"}, age: age}
		inBubble(t, i, func(t *testing.T, s *Set) {
			time.Sleep(10 * time.Hour)
			if n := i.count(); n < want[0] || n > want[1] {
				t.Errorf("%q: asked %d times in ten hours, want %v", age, n, want)
			}
		})
	}
}

// TestSet_KeptShortly: keys that may not be kept for long are fetched in time.
func TestSet_KeptShortly(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		i := &issuer{kids: []string{"a"}, age: "max-age=3600"}
		s := New(Config{KeysURL: "https://idp.example/keys", Kept: 10 * time.Minute}, i)
		s.Start()
		defer s.Stop()
		for range 100 {
			time.Sleep(time.Minute)
			if err := s.ask1("a", time.Now()); err != nil {
				t.Fatal(err)
			}
		}
	})
}

func TestSet_BadAnswersKeepTheKeys(t *testing.T) {
	thousands := strings.Repeat(jwk("x")+",", 1000)
	for name, body := range map[string]string{
		"html":             "<html>",
		"no keys":          `{}`,
		"an empty set":     `{"keys":[]}`,
		"keys as text":     `{"keys":"x"}`,
		"twice":            `{"keys":[],"keys":[]}`,
		"thousands":        `{"keys":[` + strings.TrimSuffix(thousands, ",") + `]}`,
		"none that is any": `{"keys":[{"kty":"oct","k":"AAAA"}]}`,
		"deep":             strings.Repeat(`{"keys":[`, 50),
	} {
		i := &issuer{kids: []string{"a"}}
		inBubble(t, i, func(t *testing.T, s *Set) {
			i.set(func(i *issuer) { i.body = body })
			time.Sleep(2 * time.Hour)
			if err := s.ask1("a", time.Now()); err != nil {
				t.Errorf("%s: %v", name, err)
			}
		})
	}
}

func TestParse_PassesOver(t *testing.T) {
	keys, skipped, err := parse([]byte(`{"keys":[1,{"kty":"RSA","n":"AQ","e":"AQ","kid":"weak"},` + jwk("a") + `,` + jwk("a") + `,{"kty":"oct","k":"AA"},` + jwk("b") + `]}`))
	if err != nil || len(keys) != 2 || len(skipped) != 4 {
		t.Errorf("%d keys, skipped %q, %v", len(keys), skipped, err)
	}
}

func TestFind_WithoutKeyID(t *testing.T) {
	one, _, _ := parse([]byte(`{"keys":[` + jwk("a") + `]}`))
	two, _, _ := parse([]byte(`{"keys":[` + jwk("a") + `,` + jwk("b") + `]}`))
	if k, _ := find(one, "", "EdDSA"); k == nil {
		t.Error("the only key there is")
	}
	if k, _ := find(one, "", "Ed25519"); k == nil {
		t.Error("by its other name")
	}
	if k, _ := find(one, "", "RS256"); k != nil {
		t.Error("a key of another kind")
	}
	if k, ambiguous := find(two, "", "EdDSA"); k != nil || !ambiguous {
		t.Error("one of several")
	}
}
