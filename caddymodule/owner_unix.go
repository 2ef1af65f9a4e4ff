//go:build unix

package caddymodule

import (
	"os"
	"os/user"
	"strconv"
	"syscall"
)

// fileOwner returns the name of a file's owner if that is not the user who
// asks, else "".
func fileOwner(path string) string {
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
