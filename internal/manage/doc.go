// Package manage holds what operators do: make, rotate, edit, disable and
// revoke keys, disable owners. Every change validates all its arguments
// first and then commits with its journal and audit rows, or not at all.
// A key's text leaves this package once, as an auth.Secret.
package manage
