//go:build !unix

package sqlite

// onReadOnly can't be told here.
func onReadOnly(string) bool { return false }
