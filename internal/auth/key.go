package auth

import "time"

// Key is an API key as the store holds it: never the key itself. Times are
// unix milliseconds, 0 meaning "never" or "not".
type Key struct {
	ID            string // key_ + UUIDv7
	Fingerprint   Fingerprint
	Owner         string
	Name          string
	Hint          string
	Environment   string
	Scopes        []string // sorted, without repeats
	Networks      []string // CIDR prefixes, masked
	Meta          map[string]string
	CreatedAt     int64
	ExpiresAt     int64
	DisabledAt    int64
	RevokedAt     int64
	RevokedReason string
	ReplacedBy    string
	ReplacedAt    int64
	OverlapUntil  int64 // when a replaced key stops working
	LastUsedAt    int64
	RefusedAt     int64  // when it was refused last
	RefusedReason string // and why
	Format        string // of an imported key, its declared pattern's name; empty: a key of our own
	OwnerDisabled bool   // read with the row, not written with it
}

// KeyState is the one word people see for a key.
type KeyState string

// The states, in the order they take precedence.
const (
	KeyRevoked       KeyState = "revoked"
	KeyExpired       KeyState = "expired"
	KeyDisabled      KeyState = "disabled"
	KeyOwnerDisabled KeyState = "owner_disabled"
	KeyReplaced      KeyState = "replaced"
	KeyActive        KeyState = "active"
)

// KeyStates lists every state.
func KeyStates() []KeyState {
	return []KeyState{KeyActive, KeyReplaced, KeyDisabled, KeyOwnerDisabled, KeyExpired, KeyRevoked}
}

// NotAfter is when the key stops working: its expiry or the end of its
// overlap, whichever is earlier; 0: never.
func (k *Key) NotAfter() int64 {
	if k.ExpiresAt == 0 || k.OverlapUntil != 0 && k.OverlapUntil < k.ExpiresAt {
		return k.OverlapUntil
	}
	return k.ExpiresAt
}

// State returns the key's state at now. A replaced key still works until its
// overlap ends and is then expired.
func (k *Key) State(now time.Time) KeyState {
	switch {
	case k.RevokedAt != 0:
		return KeyRevoked
	case k.NotAfter() != 0 && now.UnixMilli() >= k.NotAfter():
		return KeyExpired
	case k.DisabledAt != 0:
		return KeyDisabled
	case k.OwnerDisabled:
		return KeyOwnerDisabled
	case k.ReplacedBy != "":
		return KeyReplaced
	}
	return KeyActive
}

// Owner is whom keys speak for.
type Owner struct {
	Name           string
	CreatedAt      int64
	DisabledAt     int64
	DisabledReason string
	Keys           int // keys that are neither revoked nor expired
}

// Use is when a credential was last seen, collected by the cache and written
// to the store in batches.
type Use struct {
	Fingerprint Fingerprint
	At          int64 // unix milliseconds
}

// Refused is when and why a credential that exists was refused last.
type Refused struct {
	CredentialID string
	At           int64 // unix milliseconds
	Reason       string
}
