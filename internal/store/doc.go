// Package store is the truth: owners, keys, the journal of changes and the
// audit log, as SQL that its backends share. A DB is safe for concurrent use.
//
// It never holds a key, only fingerprints and hints; secrets lie in it sealed
// under a master key that it does not know. Every change commits together
// with its journal row and its audit row, or not at all (see Tx).
package store
