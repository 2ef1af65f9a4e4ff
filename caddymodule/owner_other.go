//go:build !unix

package caddymodule

// fileOwner knows no owners here.
func fileOwner(string) string { return "" }

// adoptOwner changes nothing here.
func adoptOwner(string, string) error { return nil }
