package caddymodule

import (
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/caddy-auth/caddy-auth/internal/grant"

	"github.com/caddy-auth/caddy-auth/internal/auth"
)

// TestHiddenTexts: a secret stays masked however many tokens come, tokens while
// they are good; nothing comes back when the source is gone.
func TestHiddenTexts(t *testing.T) {
	hidden := func(text string) bool { return masker.String("it said "+text) != "it said "+text }
	var h hiddenTexts
	h.hideSecret(auth.NewSecret("first secret"))
	h.hideSecret(auth.NewSecret("second secret"))
	now := time.Now()
	for n := range 50 {
		h.hideToken(grant.Grant{Token: auth.NewSecret(fmt.Sprintf("opaque token %d", n)), Expires: now.Add(time.Hour)})
		h.hideToken(grant.Grant{Token: auth.NewSecret(fmt.Sprintf("expired token %d", n)), Expires: now.Add(-time.Second)})
	}
	for _, text := range []string{"first secret", "second secret", "opaque token 0", "opaque token 49", "expired token 49"} {
		if !hidden(text) {
			t.Errorf("%s is shown", text)
		}
	}
	if hidden("expired token 3 ") {
		t.Error("an expired token is kept for ever")
	}
	h.forget()
	h.hideSecret(auth.NewSecret("third secret"))
	if hidden("first secret") || hidden("third secret") {
		t.Error("a source that is gone hides for ever")
	}
}

type roundTripper func(*http.Request) (*http.Response, error)

func (f roundTripper) RoundTrip(r *http.Request) (*http.Response, error) { return f(r) }

// TestCheckMemory: the last answer to a check is kept as far as it was read; a
// 401 is not, and changes nothing; what does not end is passed on as it comes.
func TestCheckMemory(t *testing.T) {
	var answer *http.Response
	m := newCheckMemory(roundTripper(func(*http.Request) (*http.Response, error) {
		if answer == nil {
			return nil, io.ErrUnexpectedEOF
		}
		return answer, nil
	}))
	r, _ := http.NewRequest("GET", "http://127.0.0.1/health?x=1", nil)
	check := func(status int, body io.Reader, read int) {
		t.Helper()
		answer = &http.Response{StatusCode: status, Header: http.Header{"X-Up": {"1"}}, Body: io.NopCloser(body)}
		res, err := m.RoundTrip(r)
		if err != nil {
			t.Fatal(err)
		}
		_, _ = io.CopyN(io.Discard, res.Body, int64(read))
		_ = res.Body.Close()
	}
	last := func() string {
		res := m.last(r)
		if res == nil {
			return "none"
		}
		body, _ := io.ReadAll(res.Body)
		return fmt.Sprint(res.StatusCode, " ", string(body), res.Header.Get("X-Up"))
	}
	if last() != "none" {
		t.Error(last())
	}
	check(200, strings.NewReader("well"), 100)
	for range 2 {
		if got := last(); got != "200 well1" {
			t.Error(got)
		}
	}
	check(401, strings.NewReader("who?"), 100)
	if got := last(); got != "200 well1" {
		t.Errorf("after a 401: %s", got)
	}
	in, out := io.Pipe() // a stream
	go func() { _, _ = io.WriteString(out, "begin") }()
	check(200, in, 5)
	if got := last(); got != "200 begin1" {
		t.Errorf("of a stream: %s", got)
	}
	check(503, strings.NewReader("ill"), 100)
	if got := last(); got != "503 ill1" {
		t.Error(got)
	}
	check(200, strings.NewReader(strings.Repeat("x", maxCheckBody+1)), 1<<20)
	if got := last(); got != "none" {
		t.Errorf("of what is too long: %.20s", got)
	}
	check(200, strings.NewReader("well"), 100)
	answer = nil
	if _, err := m.RoundTrip(r); err == nil || last() != "none" {
		t.Errorf("when it is down: %v, %s", err, last())
	}
}
