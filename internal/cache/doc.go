// Package cache is the memory tier: verdicts by fingerprint, in shards whose
// memory the garbage collector does not scan, and the flights that load what
// is missing.
//
// One lock per shard is "the key's lock" of the revocation protocol: a
// flight's fence check, its insert and its closing to newcomers happen in one
// step under it, and so does the dropping of what a change names. Strings
// handed out are copies and never alias the cache's memory.
package cache
