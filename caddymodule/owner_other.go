//go:build !unix

package caddymodule

// fileOwner knows no owners here.
func fileOwner(string) string { return "" }
