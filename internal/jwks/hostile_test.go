package jwks

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/caddy-auth/caddy-auth/internal/auth"
	"github.com/caddy-auth/caddy-auth/internal/fetch"
)

// TestHostileIssuer: whatever an issuer's servers do, a fetch ends, reads no
// more than it may, and goes nowhere else.
func TestHostileIssuer(t *testing.T) {
	var trapped atomic.Int64
	trap := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		trapped.Add(1)
		fmt.Fprintf(w, `{"keys":[%s]}`, jwk("evil"))
	}))
	defer trap.Close()
	good := fmt.Sprintf(`{"keys":[%s]}`, jwk("a"))
	var sent atomic.Int64
	for name, answer := range map[string]func(w http.ResponseWriter, r *http.Request){
		"hangs": func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() },
		"drips": func(w http.ResponseWriter, r *http.Request) {
			for r.Context().Err() == nil {
				_, _ = w.Write([]byte(" "))
				_ = http.NewResponseController(w).Flush()
				select {
				case <-time.After(20 * time.Millisecond):
				case <-r.Context().Done():
				}
			}
		},
		"endless": func(w http.ResponseWriter, r *http.Request) {
			for chunk := []byte(strings.Repeat(" ", 64<<10)); r.Context().Err() == nil; {
				n, err := w.Write(chunk)
				if sent.Add(int64(n)); err != nil {
					return
				}
			}
		},
		"huge headers": func(w http.ResponseWriter, _ *http.Request) { w.Header().Set("X", strings.Repeat("x", 1<<20)) },
		"cut off": func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Length", "9999")
			_, _ = w.Write([]byte(good))
		},
		"an error": func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusInternalServerError) },
		"keys in a 404": func(w http.ResponseWriter, _ *http.Request) {
			w.WriteHeader(http.StatusNotFound)
			_, _ = w.Write([]byte(good))
		},
		"leads elsewhere": func(w http.ResponseWriter, r *http.Request) { http.Redirect(w, r, trap.URL+"/keys", http.StatusFound) },
		"to a file": func(w http.ResponseWriter, r *http.Request) {
			http.Redirect(w, r, "file:///etc/passwd", http.StatusFound)
		},
		"in circles": func(w http.ResponseWriter, r *http.Request) { http.Redirect(w, r, r.URL.Path, http.StatusFound) },
		"nothing":    func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) },
	} {
		srv := httptest.NewServer(http.HandlerFunc(answer))
		client := fetch.New(500*time.Millisecond, 1)
		s := New(Config{KeysURL: srv.URL}, client)
		began := time.Now()
		if err := s.fetch(context.Background()); !errors.Is(err, auth.ErrUnavailable) {
			t.Errorf("%s: %v", name, err)
		}
		if took := time.Since(began); took > 5*time.Second {
			t.Errorf("%s: took %v", name, took)
		}
		client.Close()
		srv.CloseClientConnections()
		srv.Close()
	}
	if n := trapped.Load(); n > 0 {
		t.Errorf("another host was asked %d times", n)
	}
	if n := sent.Load(); n > 64<<20 {
		t.Errorf("%d bytes of an endless answer were sent", n)
	}
}

func TestRedirectOnItsHost(t *testing.T) {
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/keys" {
			http.Redirect(w, r, "/elsewhere", http.StatusFound)
			return
		}
		fmt.Fprintf(w, `{"keys":[%s]}`, jwk("a"))
	}))
	defer srv.Close()
	client := fetch.New(time.Second, 1)
	defer client.Close()
	if err := New(Config{KeysURL: srv.URL + "/keys"}, client).fetch(context.Background()); err != nil {
		t.Error(err)
	}
}

func TestDiscovery(t *testing.T) {
	var metadata func(base string) string
	var only string // the path that answers
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		base := "http://" + r.Host
		switch {
		case r.URL.Path == "/keys":
			fmt.Fprintf(w, `{"keys":[%s]}`, jwk("a"))
		case r.URL.Path == only:
			fmt.Fprint(w, metadata(base))
		default:
			w.WriteHeader(http.StatusNotFound)
		}
	}))
	defer srv.Close()
	client := fetch.New(time.Second, 1)
	defer client.Close()
	good := func(base string) string {
		return fmt.Sprintf(`{"issuer":%q,"jwks_uri":"%s/keys"}`, base+"/realm", base)
	}
	for name, tc := range map[string]struct {
		path     string
		metadata func(string) string
		good     bool
	}{
		"OpenID Connect": {"/realm/.well-known/openid-configuration", good, true},
		"RFC 8414":       {"/.well-known/oauth-authorization-server/realm", good, true},
		"elsewhere":      {"/.well-known/openid-configuration", good, false},
		"another issuer": {"/realm/.well-known/openid-configuration", func(b string) string { return fmt.Sprintf(`{"issuer":%q,"jwks_uri":"%s/keys"}`, b, b) }, false},
		"a slash more":   {"/realm/.well-known/openid-configuration", func(b string) string { return fmt.Sprintf(`{"issuer":%q,"jwks_uri":"%s/keys"}`, b+"/realm/", b) }, false},
		"no jwks_uri":    {"/realm/.well-known/openid-configuration", func(b string) string { return fmt.Sprintf(`{"issuer":%q}`, b+"/realm") }, false},
		"jwks_uri in the clear": {"/realm/.well-known/openid-configuration", func(b string) string {
			return fmt.Sprintf(`{"issuer":%q,"jwks_uri":"http://10.0.0.1/keys"}`, b+"/realm")
		}, false},
		"jwks_uri a file": {"/realm/.well-known/openid-configuration", func(b string) string { return fmt.Sprintf(`{"issuer":%q,"jwks_uri":"file:///keys"}`, b+"/realm") }, false},
		"issuer twice": {"/realm/.well-known/openid-configuration", func(b string) string {
			return fmt.Sprintf(`{"issuer":"x","issuer":%q,"jwks_uri":"%s/keys"}`, b+"/realm", b)
		}, false},
	} {
		only, metadata = tc.path, tc.metadata
		err := New(Config{Issuer: srv.URL + "/realm"}, client).fetch(context.Background())
		if (err == nil) != tc.good || err != nil && !errors.Is(err, auth.ErrUnavailable) {
			t.Errorf("%s: %v", name, err)
		}
	}
	// An issuer far away must not make us ask this machine.
	if _, err := keysOf([]byte(`{"issuer":"https://idp.example","jwks_uri":"http://127.0.0.1/keys"}`), "https://idp.example"); err == nil {
		t.Error("an issuer elsewhere led to this machine")
	}
}
