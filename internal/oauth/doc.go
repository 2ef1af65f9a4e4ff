// Package oauth is the gateway as an authorization server: it gives tokens to
// clients (RFC 6749, 4.4) and for keys (RFC 8693), ends them (RFC 7009), says
// what they are (RFC 7662) and what it can do (RFC 8414, RFC 9728). Tokens are
// the verifier's own: opaque, hashed in the store, on its journal. Plain
// net/http; whoever serves it decides where.
package oauth
