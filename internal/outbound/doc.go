// Package outbound holds the gateway's own credentials toward upstreams: tokens
// that it gets as an OAuth client (RFC 6749, 4.4), and keys that it was given.
// A source has one credential for all requests: it is fetched once, refreshed
// while the old one still works, and replaced when the upstream refuses it. A
// Transport puts it on requests. Neither a token nor a secret is ever in an
// error, an event or a status.
package outbound
