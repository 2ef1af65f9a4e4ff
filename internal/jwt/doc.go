// Package jwt reads signed tokens (RFC 7515, RFC 7519) and the public keys that
// others sign them with (RFC 7517), and checks the one against the other. It
// decides nothing about claims and does no I/O: keys come from whoever calls,
// never from a token. Values are immutable and safe for concurrent use.
package jwt
