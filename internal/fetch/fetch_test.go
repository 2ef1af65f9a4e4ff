package fetch_test

import (
	"context"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/caddy-auth/caddy-auth/internal/fetch"
)

func TestCheckURL(t *testing.T) {
	for text, good := range map[string]bool{
		"https://idp.example":             true,
		"https://idp.example:8443/realm/": true,
		"http://127.0.0.1:9000/keys":      true,
		"http://localhost:9000":           true,
		"http://[::1]:9000":               true,
		"http://[::ffff:127.0.0.1]:9000":  true,
		"http://idp.example":              false,
		"http://127.0.0.1.evil.example":   false,
		"http://localhost.evil.example":   false,
		"http://169.254.169.254/":         false,
		"http://0.0.0.0/":                 false,
		"https://user:pw@idp.example":     false,
		"https://idp.example/#x":          false,
		"https://idp.example/#":           false,
		"ftp://idp.example":               false,
		"file:///etc/passwd":              false,
		"https:idp.example":               false,
		"https://":                        false,
		"idp.example":                     false,
		"":                                false,
		"https://idp.example/%zz":         false,
	} {
		if err := fetch.CheckURL(text); (err == nil) != good {
			t.Errorf("%q: %v", text, err)
		}
	}
}

// TestPost_StaysWhereItIs: what was posted holds a token and goes nowhere else.
func TestPost_StaysWhereItIs(t *testing.T) {
	followed := false
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/other" {
			followed = true
		}
		http.Redirect(w, r, "/other", http.StatusTemporaryRedirect)
	}))
	defer srv.Close()
	c := fetch.New(time.Second, 1)
	defer c.Close()
	a, err := c.PostForm(context.Background(), srv.URL, url.Values{"token": {"secret"}}, nil)
	if err != nil || a.Status != http.StatusTemporaryRedirect || followed {
		t.Errorf("%+v, %v, followed %v", a, err, followed)
	}
}

func TestErrors_HoldNoURL(t *testing.T) {
	c := fetch.New(time.Second, 1)
	defer c.Close()
	_, err := c.Get(context.Background(), "http://127.0.0.1:1/x?client_secret=hunter2")
	if err == nil || strings.Contains(err.Error(), "hunter2") || !strings.Contains(err.Error(), "127.0.0.1:1") {
		t.Error(err)
	}
}
