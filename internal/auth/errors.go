package auth

import (
	"errors"
	"fmt"
)

// Kinds of technical failure. They are wrapped with what was being done, and
// never become "your credential is bad".
var (
	// ErrNotFound: the thing named does not exist.
	ErrNotFound = errors.New("not found")
	// ErrConflict: the change contradicts the present state.
	ErrConflict = errors.New("conflict")
	// ErrInvalid: an argument is not acceptable.
	ErrInvalid = errors.New("invalid")
	// ErrUnavailable: the store cannot be asked now; trying again may help.
	ErrUnavailable = errors.New("unavailable")
	// ErrNotWritable: the store can be read, and what is read is the newest
	// there is, but it can't be written now: it is full or read-only. It comes
	// with ErrUnavailable.
	ErrNotWritable = errors.New("not writable")
	// ErrCorrupt: the store can be read but not understood; trying again won't help.
	ErrCorrupt = errors.New("corrupt")
	// ErrTooNew: the store was written by a newer release.
	ErrTooNew = errors.New("written by a newer release")
	// ErrNotInitialized: there is no store yet.
	ErrNotInitialized = errors.New("not initialized")
	// ErrMoved: the store was copied to another place, and is not changed here
	// any more.
	ErrMoved = errors.New("moved")
	// ErrReplaced: the store's file is not the one that was opened.
	ErrReplaced = errors.New("replaced")
	// ErrOverloaded: too much of this work is already under way.
	ErrOverloaded = errors.New("too many lookups in flight")
	// ErrStale: the journal was not read recently enough to trust the caches.
	ErrStale = errors.New("no recent look at the journal")
	// ErrFenced: every run of a load was overtaken by a change.
	ErrFenced = errors.New("overtaken by changes")
)

// invalidError is an ErrInvalid that says what is wrong and nothing else.
type invalidError string

func (e invalidError) Error() string        { return string(e) }
func (e invalidError) Is(target error) bool { return target == ErrInvalid }

// Invalidf returns an error that is ErrInvalid and reads as formatted.
func Invalidf(format string, args ...any) error { return invalidError(fmt.Sprintf(format, args...)) }

// hinted is an error with advice for a person.
type hinted struct {
	error
	hint string
}

func (h hinted) Unwrap() error { return h.error }

// WithHint adds what to do about err. The hint is shown on a line of its own.
func WithHint(err error, hint string) error { return hinted{err, hint} }

// Hint returns the outermost hint in err's chain, or "".
func Hint(err error) string {
	var h hinted
	if errors.As(err, &h) {
		return h.hint
	}
	return ""
}
