package auth

import (
	"strconv"
	"time"
)

// Client is an OAuth client that this gateway gives tokens to (RFC 6749, 2).
// Times are unix milliseconds, 0 meaning "never" or "not".
type Client struct {
	ID            string // client_ + UUIDv7 + a tag, see secret.Tagged
	Owner         string
	Name          string
	Environment   string
	Scopes        []string // what it may ask for; sorted, without repeats
	Networks      []string // CIDR prefixes, masked
	Meta          map[string]string
	TokenLifetime time.Duration // of its tokens; 0: the gateway's default
	JWKS          string        // its public keys (RFC 7517), for private_key_jwt; empty: none
	CreatedAt     int64
	DisabledAt    int64
	RevokedAt     int64
	RevokedReason string
	LastTokenAt   int64          // when it was given a token last
	Secrets       []ClientSecret // the oldest first
	OwnerDisabled bool           // read with the row, not written with it
}

// ClientSecret is a secret of a client as the store holds it: never the secret
// itself.
type ClientSecret struct {
	Fingerprint Fingerprint
	Hint        string
	CreatedAt   int64
	EndsAt      int64 // when a replaced one stops working; 0: it was not replaced
}

// State returns the client's state in the words of keys.
func (c *Client) State() KeyState {
	switch {
	case c.RevokedAt != 0:
		return KeyRevoked
	case c.DisabledAt != 0:
		return KeyDisabled
	case c.OwnerDisabled:
		return KeyOwnerDisabled
	}
	return KeyActive
}

// AccessToken is a token that this gateway issued, as the store holds it: never
// the token itself. It belongs to a client, to a key that was exchanged for
// it, or to both.
type AccessToken struct {
	ID          string // at_ + UUIDv7
	Fingerprint Fingerprint
	ClientID    string
	KeyID       string
	Scopes      string // space-separated, sorted
	IssuedAt    int64
	ExpiresAt   int64
	RevokedAt   int64
}

// Longest lifetimes of tokens of our own.
const (
	DefaultTokenLifetime = time.Hour
	MostOwnTokenLifetime = 24 * time.Hour
)

// AssertionKey is a key that the gateway signs assertions for upstreams with.
// Private is PKCS #8 and never leaves the process but sealed.
type AssertionKey struct {
	ID             string // kid
	Algorithm      string // EdDSA or ES256
	Private        []byte
	CreatedAt      int64
	SignsFrom      int64 // unix milliseconds; published before that
	PublishedUntil int64 // unix milliseconds; 0: until it is replaced
}

// Names of metadata that only the token endpoint reads, in the verdict on a
// client. No operator can give such names.
const (
	MetaLifetime = ":lifetime" // milliseconds
	MetaJWKS     = ":jwks"
)

// ClientLifetime is how long the tokens of a client live, by the verdict on it;
// 0: as long as the gateway's default.
func ClientLifetime(id *Identity) time.Duration {
	ms, err := strconv.ParseInt(id.MetaValue(MetaLifetime), 10, 64)
	if err != nil {
		return 0
	}
	return time.Duration(ms) * time.Millisecond
}

// ClientJWKS is a client's public keys (RFC 7517), by the verdict on it.
func ClientJWKS(id *Identity) string { return id.MetaValue(MetaJWKS) }
