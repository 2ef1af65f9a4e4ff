//go:build unix

package sqlite

import (
	"fmt"
	"os"
	"os/user"
	"path/filepath"
	"strconv"
	"syscall"
)

// Owner returns the name of a file's owner if that is not the user who
// asks, else "".
func Owner(path string) string {
	info, err := os.Stat(path)
	if err != nil {
		return ""
	}
	st, ok := info.Sys().(*syscall.Stat_t)
	if !ok || int(st.Uid) == os.Geteuid() {
		return ""
	}
	id := strconv.Itoa(int(st.Uid))
	if u, err := user.LookupId(id); err == nil {
		return u.Username
	}
	return "#" + id
}

// Adopt gives a file that root made the owner of the directory in which
// it, or what it will become, stands: else a gateway that is not root could
// not use it.
func Adopt(file, becomes string) error {
	if os.Geteuid() != 0 {
		return nil
	}
	info, err := os.Stat(filepath.Dir(becomes))
	if err != nil {
		return fmt.Errorf("looking at the directory: %w", err)
	}
	st, ok := info.Sys().(*syscall.Stat_t)
	if !ok || st.Uid == 0 {
		return nil
	}
	if err := os.Chown(file, int(st.Uid), int(st.Gid)); err != nil {
		return fmt.Errorf("giving %s to its directory's owner: %w", file, err)
	}
	return nil
}

// me is the name of the user who runs this process.
func me() string {
	if u, err := user.Current(); err == nil {
		return u.Username
	}
	return "#" + strconv.Itoa(os.Geteuid())
}
