package login

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"slices"
)

// Judgement is the part of a login's configuration that decides who somebody is
// and what they may: a session under one is none under another.
type Judgement struct {
	Issuer     string
	ClientID   string
	Algorithms []string // of ID tokens, in any order
	Claims     any      // the rules for claims, which JSON can write
}

// Digests returns the digest of all of it, and that of the provider and the
// client, which tokens are bound to.
func (j Judgement) Digests() (judgedBy, authority string, err error) {
	j.Algorithms = slices.Sorted(slices.Values(j.Algorithms))
	all, err := json.Marshal(j)
	if err != nil {
		return "", "", fmt.Errorf("writing a login's rules: %w", err)
	}
	return digest("judgement", all), digest("authority", []byte(j.Issuer+"\x00"+j.ClientID)), nil
}

func digest(kind string, text []byte) string {
	sum := sha256.Sum256(append([]byte(kind+"\x00"), text...))
	return hex.EncodeToString(sum[:16])
}
