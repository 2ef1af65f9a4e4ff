package body_test

import (
	"errors"
	"io"
	"net/http"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/caddy-auth/caddy-auth/internal/body"
)

// writer is a response whose connection has a read deadline, as a server's has.
type writer struct {
	http.ResponseWriter
	conn *slow
}

func (w writer) SetReadDeadline(t time.Time) error { w.conn.deadline = t; return nil }

// slow is a body of which a part comes, and then nothing.
type slow struct {
	first    io.Reader
	deadline time.Time
}

func (s *slow) Read(p []byte) (int, error) {
	if n, err := s.first.Read(p); err == nil {
		return n, nil
	}
	if s.deadline.IsZero() {
		select {}
	}
	time.Sleep(time.Until(s.deadline))
	return 0, errors.New("i/o timeout")
}

func (*slow) Close() error { return nil }

func TestRead(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		conn := &slow{first: strings.NewReader("token=")}
		began := time.Now()
		_, err := body.Read(writer{nil, conn}, &http.Request{Body: conn}, 100)
		if !errors.Is(err, body.ErrIncomplete) || time.Since(began) != body.Timeout || !conn.deadline.IsZero() {
			t.Errorf("%v after %s, deadline %s", err, time.Since(began), conn.deadline)
		}
	})
	for text, want := range map[string]error{strings.Repeat("x", 100): nil, strings.Repeat("x", 101): body.ErrTooBig, "": nil} {
		conn := &slow{}
		got, err := body.Read(writer{nil, conn}, &http.Request{Body: io.NopCloser(strings.NewReader(text))}, 100)
		if !errors.Is(err, want) || err == nil && string(got) != text {
			t.Errorf("%d bytes: %q %v, want %v", len(text), got, err, want)
		}
	}
	synctest.Test(t, func(t *testing.T) {
		reader, writer := io.Pipe()
		defer writer.Close()
		if _, err := body.Read(struct{ http.ResponseWriter }{}, &http.Request{Body: reader}, 100); !errors.Is(err, body.ErrIncomplete) {
			t.Errorf("a writer without deadlines: %v", err)
		}
	})
}
