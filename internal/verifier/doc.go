// Package verifier is the hot path: it turns a credential into a verdict
// through the memory tier and the store, and holds the rules that turn an
// identity and a request into an answer. One file per credential kind.
//
// A verdict allows, denies or cannot decide; a failure of the store is never a
// denial. What is cached is the identity, never a decision: expiry, network,
// environment and scope are judged on every request. All types are safe for
// concurrent use.
package verifier
