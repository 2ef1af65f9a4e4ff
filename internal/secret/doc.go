// Package secret mints, parses and tags API keys, and wraps the secrets a
// store holds under the master key. It does no I/O and keeps no state; all
// functions are safe for concurrent use.
package secret
