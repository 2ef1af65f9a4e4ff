// Package auth holds the nouns of the gateway: Identity, Verdict, Key, Owner,
// Change, Secret and the refusals a client can see. It does no I/O, imports
// only the standard library, and every value in it is either immutable or
// owned by one goroutine.
//
// Three outcomes are kept apart everywhere: allow, deny ("this credential is
// bad", answered 401) and cannot-decide ("we could not ask", answered 503).
package auth
