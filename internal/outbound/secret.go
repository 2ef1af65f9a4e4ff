package outbound

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"github.com/caddy-auth/caddy-auth/internal/auth"
)

const (
	// watchInterval is how often a secret's file is read.
	watchInterval = 500 * time.Millisecond
	// settleTime is how long a file must read the same before it is believed:
	// it may be half written.
	settleTime = 200 * time.Millisecond
	// lookInterval is how often refusals by the upstream make a file be read.
	lookInterval = time.Second
	// maxSecretFile is the longest file that is read, in bytes.
	maxSecretFile = 64 << 10
)

// FileEvents are told about a file. Fields may be nil; they must not block.
type FileEvents struct {
	Changed func()
	Broken  func(error) // once until it is good again
	Mended  func()      // it holds the secret in use again
}

// File is a secret in a file that is watched. While the file can't be used, the
// last secret that could is. It is safe for concurrent use.
type File struct {
	path   string
	check  func(text string) error
	events atomic.Pointer[FileEvents]

	current atomic.Pointer[auth.Secret]

	mu     sync.Mutex // held while the file is read; guards broken
	broken string     // what was said to be wrong; "": nothing
	bad    atomic.Bool

	lookMu  sync.Mutex // guards what follows
	looked  time.Time
	looking chan struct{} // closed when the look has ended
}

// NewFile reads a secret from a file. One line end at its end is not a part of
// it. check says, without repeating it, what is wrong with a secret; a file
// that is wrong now is an error.
func NewFile(path string, check func(text string) error) (*File, error) {
	f := &File{path: path, check: check, looking: make(chan struct{})}
	close(f.looking)
	f.SetEvents(FileEvents{})
	text, err := f.read()
	if err != nil {
		return nil, auth.WithHint(err, "the file must hold the secret and nothing else, and the gateway's user must be able to read it")
	}
	f.current.Store(&text)
	return f, nil
}

// SetEvents sets who is told.
func (f *File) SetEvents(e FileEvents) { f.events.Store(&e) }

// Path returns the file's path.
func (f *File) Path() string { return f.path }

// Good reports whether the file held a usable secret when it was last read.
func (f *File) Good() bool { return !f.bad.Load() }

// Current implements Secret.
func (f *File) Current() auth.Secret { return *f.current.Load() }

// Look implements Secret. However often it is called, the file is read about
// once a second; who comes meanwhile gets what was read then.
func (f *File) Look(ctx context.Context) {
	f.lookMu.Lock()
	select {
	case <-f.looking:
		if time.Since(f.looked) >= lookInterval {
			f.looking = make(chan struct{})
			go f.look(f.looking)
		}
	default: // one is under way
	}
	done := f.looking
	f.lookMu.Unlock()
	late := time.NewTimer(lookInterval) // a file system may hang
	defer late.Stop()
	select {
	case <-done:
	case <-late.C:
	case <-ctx.Done():
	}
}

func (f *File) look(done chan struct{}) {
	f.mu.Lock()
	f.refresh()
	f.mu.Unlock()
	f.lookMu.Lock()
	f.looked = time.Now()
	f.lookMu.Unlock()
	close(done)
}

// Watch implements Secret.
func (f *File) Watch(changed func()) (stop func()) {
	end, ended := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(ended)
		tick := time.NewTicker(watchInterval)
		defer tick.Stop()
		seen := f.current.Load()
		for {
			select {
			case <-end:
				return
			case <-tick.C:
			}
			f.mu.Lock()
			f.refresh()
			f.mu.Unlock()
			if now := f.current.Load(); now != seen { // Look may have found it
				seen = now
				changed()
			}
		}
	}()
	return sync.OnceFunc(func() {
		close(end)
		select {
		case <-ended:
		case <-time.After(lookInterval): // a file system hangs
		}
	})
}

// refresh reads the file. f.mu is held.
func (f *File) refresh() {
	events := f.events.Load()
	text, err := f.read()
	if err == nil && text.Equal(f.Current()) {
		if f.broken != "" {
			f.broken = ""
			f.bad.Store(false)
			call(events.Mended)
		}
		return
	}
	wait := time.NewTimer(settleTime)
	<-wait.C
	again, errAgain := f.read()
	switch {
	case err == nil && errAgain == nil && text.Equal(again):
		f.current.Store(&again)
		f.broken = ""
		f.bad.Store(false)
		call(events.Changed)
	case err != nil && errAgain != nil && f.broken != errAgain.Error():
		f.broken = errAgain.Error()
		f.bad.Store(true)
		if events.Broken != nil {
			events.Broken(errAgain)
		}
	}
}

func call(f func()) {
	if f != nil {
		f()
	}
}

func (f *File) read() (auth.Secret, error) {
	info, err := os.Stat(f.path) // first: to open what is no file may wait for ever
	switch {
	case err != nil:
		return auth.Secret{}, fmt.Errorf("looking at the secret's file: %w", err)
	case !info.Mode().IsRegular():
		return auth.Secret{}, auth.Invalidf("%s is no regular file", f.path)
	}
	file, err := os.Open(f.path)
	if err != nil {
		return auth.Secret{}, fmt.Errorf("opening the secret's file: %w", err)
	}
	defer file.Close()
	text, err := io.ReadAll(io.LimitReader(file, maxSecretFile+1))
	switch {
	case err != nil:
		return auth.Secret{}, fmt.Errorf("reading the secret's file: %w", err)
	case len(text) > maxSecretFile:
		return auth.Secret{}, auth.Invalidf("the secret's file %s is longer than %d bytes", f.path, maxSecretFile)
	}
	text = bytes.TrimSuffix(bytes.TrimSuffix(text, []byte("\n")), []byte("\r"))
	if err := f.check(string(text)); err != nil {
		return auth.Secret{}, fmt.Errorf("the secret in %s can't be used: %w", f.path, err)
	}
	return auth.NewSecret(string(text)), nil
}
