package body

import (
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

// slow is a body of which a byte arrives every so often, for ever or so many times.
type slow struct {
	every    time.Duration
	left     *atomic.Int64
	deadline func() time.Time
}

func (s *slow) Read(p []byte) (int, error) {
	if s.left.Load() == 0 {
		return 0, io.EOF
	}
	wait := min(s.every, time.Until(s.deadline()))
	time.Sleep(wait)
	if wait < s.every {
		return 0, os.ErrDeadlineExceeded
	}
	s.left.Add(-1)
	if s.left.Load() < 0 && s.every == 0 { // without end: as fast as it is read
		return len(p), nil
	}
	p[0] = 'x'
	return 1, nil
}

func bytesLeft(n int64) *atomic.Int64 {
	left := new(atomic.Int64)
	left.Store(n)
	return left
}

func (s *slow) Close() error { return nil }

// writer is one whose reads have a deadline, as net/http's.
type writer struct {
	*httptest.ResponseRecorder
	deadline atomic.Pointer[time.Time]
	ignores  bool // somebody else moves it, far into the future
}

func (w *writer) SetReadDeadline(t time.Time) error {
	if !w.ignores {
		w.deadline.Store(&t)
	}
	return nil
}

func TestRest(t *testing.T) {
	const forever = -1
	for name, c := range map[string]struct {
		every           time.Duration
		bytes           int64
		ignores         bool
		settled, finish time.Duration // most it may take, since the beginning
		whole           bool
	}{
		"at once":                {0, 1 << 20, false, 0, 0, true},
		"it keeps arriving":      {10 * time.Millisecond, 20, false, 200 * time.Millisecond, 200 * time.Millisecond, true},
		"it stands still":        {400 * time.Millisecond, 1, false, 2 * pause, 400 * time.Millisecond, true},
		"it takes too long":      {10 * time.Millisecond, 100, false, patience, Grace, false},
		"it never ends":          {time.Millisecond, forever, false, patience, Grace, false},
		"it never comes":         {time.Hour, 1, false, 2 * pause, Grace, false},
		"the deadline is moved":  {time.Millisecond, forever, true, patience, Grace + time.Millisecond, false},
		"no end, and no waiting": {0, forever, false, 0, 0, false},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := &writer{ResponseRecorder: httptest.NewRecorder(), ignores: c.ignores}
				late := time.Now().Add(time.Hour)
				w.deadline.Store(&late)
				b := &slow{c.every, bytesLeft(c.bytes), func() time.Time { return *w.deadline.Load() }}
				r := httptest.NewRequest(http.MethodPost, "/", b)
				r.ContentLength = -1
				began := time.Now()
				rest := Leave(w, r)
				if rest == nil || w.Header().Get("Connection") != "close" {
					t.Fatal("the connection goes on")
				}
				rest.Settle()
				if took := time.Since(began); took > c.settled {
					t.Errorf("the answer waits %s", took)
				}
				w.WriteHeader(http.StatusUnauthorized)
				rest.Finish()
				if took := time.Since(began); took > c.finish {
					t.Errorf("the connection is held for %s", took)
				}
				if (b.left.Load() == 0) != c.whole {
					t.Errorf("%d bytes were not read", b.left.Load())
				}
				if !w.Flushed {
					t.Error("the answer is not sent before")
				}
				if n := rest.read.Load(); n > mostRest {
					t.Errorf("%d bytes were read", n)
				}
			})
		})
	}
}

// TestRest_None: what has no body, or ends by itself, keeps its connection.
func TestRest_None(t *testing.T) {
	for name, change := range map[string]func(*http.Request){
		"no body":   func(r *http.Request) { r.Body, r.ContentLength = http.NoBody, 0 },
		"none kept": func(r *http.Request) { r.Body = nil },
		"HTTP/2":    func(r *http.Request) { r.ProtoMajor = 2 },
	} {
		w := &writer{ResponseRecorder: httptest.NewRecorder()}
		r := httptest.NewRequest(http.MethodPost, "/", &slow{time.Hour, bytesLeft(1), nil})
		change(r)
		rest := Leave(w, r)
		rest.Settle()
		rest.Finish()
		if rest != nil || w.Header().Get("Connection") != "" {
			t.Errorf("%s: the connection ends", name)
		}
	}
}

// TestRest_Continue: a client that waits to be asked for its body is not.
func TestRest_Continue(t *testing.T) {
	w := &writer{ResponseRecorder: httptest.NewRecorder()}
	r := httptest.NewRequest(http.MethodPost, "/", &slow{0, bytesLeft(1), nil})
	r.Header.Set("Expect", "100-continue")
	rest := Leave(w, r)
	if rest.Settle(); rest.read.Load() > 0 {
		t.Error("the body was read before the answer")
	}
}
