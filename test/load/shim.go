package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"testing"
)

// shim lets this program start the servers of test/servers, which tests use.
type shim struct {
	testing.TB
	dir      string
	n        int
	cleanups []func()
}

type failure struct{ error }

func (s *shim) Helper()                    {}
func (s *shim) Name() string               { return "load" }
func (s *shim) Cleanup(f func())           { s.cleanups = append(s.cleanups, f) }
func (s *shim) Log(args ...any)            { fmt.Fprintln(os.Stderr, args...) }
func (s *shim) Logf(f string, args ...any) { fmt.Fprintf(os.Stderr, f+"\n", args...) }
func (s *shim) Fatal(args ...any)          { panic(failure{errors.New(fmt.Sprintln(args...))}) }
func (s *shim) Fatalf(f string, a ...any)  { panic(failure{fmt.Errorf(f, a...)}) }
func (s *shim) Error(args ...any)          { s.Fatal(args...) }
func (s *shim) Errorf(f string, a ...any)  { s.Fatalf(f, a...) }
func (s *shim) Failed() bool               { return false }

func (s *shim) TempDir() string {
	s.n++
	dir := filepath.Join(s.dir, fmt.Sprint("t", s.n))
	if err := os.MkdirAll(dir, 0o755); err != nil {
		s.Fatal(err)
	}
	return dir
}

// end stops what was started and turns what was fatal into an error.
func (s *shim) end(err *error) {
	switch r := recover().(type) {
	case nil:
	case failure:
		*err = errors.Join(*err, r.error)
	default:
		defer panic(r)
	}
	stopAll()
	for i := len(s.cleanups) - 1; i >= 0; i-- {
		s.cleanups[i]()
	}
}
