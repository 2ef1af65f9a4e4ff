// Package body reads the bodies of requests that the gateway answers itself,
// bounded in size and in time, whoever sends them.
package body

import (
	"errors"
	"fmt"
	"io"
	"net/http"
	"time"
)

// Timeout is how long a body may take to arrive. Forms are small: who needs
// longer holds a connection on purpose.
const Timeout = 10 * time.Second

// ErrTooBig says that a body is longer than it may be.
var ErrTooBig = errors.New("the body is too big")

// ErrIncomplete says that a body did not arrive as a whole, or not in time.
var ErrIncomplete = errors.New("the body did not arrive as a whole, and in time")

// Read reads a request's body of at most so many bytes. After an error the rest
// of the body is unread.
func Read(w http.ResponseWriter, r *http.Request, most int64) ([]byte, error) {
	reader := http.MaxBytesReader(w, r.Body, most)
	control := http.NewResponseController(w)
	if control.SetReadDeadline(time.Now().Add(Timeout)) != nil {
		return readBeside(reader)
	}
	text, err := io.ReadAll(reader)
	_ = control.SetReadDeadline(time.Time{}) // what it could before it can now
	return text, explain(err)
}

// readBeside is for writers that can't end a read: the request goes on, and the
// read ends when the server closes the body.
func readBeside(reader io.Reader) ([]byte, error) {
	type result struct {
		text []byte
		err  error
	}
	done := make(chan result, 1)
	go func() {
		text, err := io.ReadAll(reader)
		done <- result{text, explain(err)}
	}()
	timer := time.NewTimer(Timeout)
	defer timer.Stop()
	select {
	case got := <-done:
		return got.text, got.err
	case <-timer.C:
		return nil, ErrIncomplete
	}
}

func explain(err error) error {
	var tooBig *http.MaxBytesError
	switch {
	case errors.As(err, &tooBig):
		return ErrTooBig
	case err != nil:
		return fmt.Errorf("%w: %w", ErrIncomplete, err)
	}
	return nil
}
