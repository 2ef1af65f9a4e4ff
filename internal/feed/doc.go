// Package feed follows the journal of changes. It decides whether what was
// read at some point of the store's history may still be used (the fence),
// and whether the caches may be trusted at all (the staleness clock).
//
// The protocol is design section 4.6. Its order matters: a change is first
// remembered, then dropped from the caches, and only then does the cursor
// move; whoever inserts checks the fence under the key's lock, so either the
// fence sees the change or the drop sees the insert.
package feed
