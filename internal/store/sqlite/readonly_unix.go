//go:build unix

package sqlite

import (
	"errors"
	"syscall"

	"golang.org/x/sys/unix"
)

// onReadOnly reports whether a file is on a file system that takes no writes.
// It does not open the file: closing it would drop SQLite's locks.
func onReadOnly(path string) bool {
	return errors.Is(unix.Access(path, unix.W_OK), syscall.EROFS)
}
