package login

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/caddy-auth/caddy-auth/internal/auth"
	"github.com/caddy-auth/caddy-auth/internal/fetch"
)

const issuer = "https://idp.example.com"

func metadata(change map[string]any) []byte {
	m := map[string]any{"issuer": issuer, "authorization_endpoint": issuer + "/a", "token_endpoint": issuer + "/t"}
	maps.Copy(m, change)
	text, _ := json.Marshal(m)
	return text
}

func TestReadMetadata(t *testing.T) {
	m, err := readMetadata(metadata(map[string]any{"revocation_endpoint": issuer + "/r", "end_session_endpoint": issuer + "/e?x=y", "authorization_response_iss_parameter_supported": true, "code_challenge_methods_supported": []string{"plain", "S256"}}), issuer)
	if err != nil || *m != (Metadata{issuer + "/a", issuer + "/t", issuer + "/r", issuer + "/e?x=y", true}) {
		t.Errorf("%+v %v", m, err)
	}
	for what, change := range map[string]map[string]any{
		"another issuer": {"issuer": issuer + "/"}, "no token endpoint": {"token_endpoint": ""}, "a number": {"authorization_endpoint": 7}, "plain HTTP": {"token_endpoint": "http://idp.example.com/t"},
		"this machine": {"revocation_endpoint": "http://127.0.0.1/r"}, "a script": {"authorization_endpoint": "javascript:alert(1)"}, "no S256": {"code_challenge_methods_supported": []string{"plain"}},
		"user name": {"end_session_endpoint": "https://u:p@idp.example.com/"}, "a fragment": {"authorization_endpoint": issuer + "/#x"},
	} {
		if m, err := readMetadata(metadata(change), issuer); err == nil {
			t.Errorf("%s: %+v", what, m)
		}
	}
	for _, text := range []string{"", "[]", `{"issuer":1}`, `{"issuer":"` + issuer + `","issuer":"` + issuer + `"}`} {
		if _, err := readMetadata([]byte(text), issuer); err == nil {
			t.Errorf("%q", text)
		}
	}
}

// getter answers with metadata, or not.
type getter struct {
	mu    sync.Mutex
	away  bool
	asked int
	path  string
}

func (g *getter) Get(_ context.Context, target string) (*fetch.Answer, error) {
	time.Sleep(10 * time.Millisecond)
	g.mu.Lock()
	defer g.mu.Unlock()
	g.asked++
	if g.away {
		return nil, fmt.Errorf("away: %w", auth.ErrUnavailable)
	}
	return &fetch.Answer{Status: 200, Body: metadata(map[string]any{"token_endpoint": issuer + g.path})}, nil
}

func (g *getter) set(f func()) {
	g.mu.Lock()
	defer g.mu.Unlock()
	f()
}

// TestProvider_Away: metadata is asked for once at a time, at most once a second
// while there is none, and what was said before is good while nobody answers.
func TestProvider_Away(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := &getter{away: true, path: "/1"}
		p := NewProvider(issuer, g)
		for range 3 {
			var all sync.WaitGroup
			for range 100 {
				all.Go(func() {
					if _, err := p.Metadata(t.Context()); !errors.Is(err, auth.ErrUnavailable) {
						t.Error(err)
					}
				})
			}
			all.Wait()
		}
		if g.asked != 1 {
			t.Errorf("asked %d times", g.asked)
		}
		g.set(func() { g.away = false })
		time.Sleep(2 * metadataRetry)
		m, err := p.Metadata(t.Context())
		if err != nil || m.Token != issuer+"/1" {
			t.Fatal(m, err)
		}
		g.set(func() { g.away, g.asked = true, 0 })
		time.Sleep(2 * metadataFresh)
		for range 50 {
			if m, err := p.Metadata(t.Context()); err != nil || m.Token != issuer+"/1" {
				t.Fatal(m, err)
			}
			time.Sleep(20 * time.Millisecond)
		}
		if g.asked > 2 {
			t.Errorf("asked %d times", g.asked)
		}
		g.set(func() { g.away, g.path = false, "/2" })
		time.Sleep(2 * metadataRetry)
		_, _ = p.Metadata(t.Context())
		time.Sleep(time.Second)
		if m, err := p.Metadata(t.Context()); err != nil || m.Token != issuer+"/2" {
			t.Error(m, err)
		}
	})
}
