package login

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
)

// Judgement is the part of a login's configuration that decides who somebody is
// and what they may: a session under one is none under another. Its JSON is what
// the digest is made of: a field that is added must be absent where it is not
// used, or everybody signs in anew.
type Judgement struct {
	Issuer     string      `json:"issuer"`
	ClientID   string      `json:"client_id"`
	Algorithms []string    `json:"algorithms"`        // of ID tokens
	Scopes     []string    `json:"scopes,omitempty"`  // that are asked for, where they are the session's
	Subject    string      `json:"subject,omitempty"` // the claim
	Raw        bool        `json:"raw,omitempty"`     // without the login's name in front
	ScopeClaim string      `json:"scope_claim,omitempty"`
	Env        string      `json:"environment,omitempty"`
	Required   []ClaimRule `json:"required,omitempty"`
	Meta       []string    `json:"meta,omitempty"`
}

// ClaimRule is a claim that must be there, with one of the values if there are any.
type ClaimRule struct {
	Claim  string   `json:"claim"`
	Values []string `json:"values,omitempty"`
}

// Digests returns the digest of all of it, in whatever order lists are written, and
// that of the provider and the client, which tokens are bound to.
func (j Judgement) Digests() (judgedBy, authority string, err error) {
	for _, list := range []*[]string{&j.Algorithms, &j.Scopes, &j.Meta} {
		*list = slices.Sorted(slices.Values(*list))
	}
	j.Required = slices.Clone(j.Required)
	for i := range j.Required {
		j.Required[i].Values = slices.Sorted(slices.Values(j.Required[i].Values))
	}
	slices.SortFunc(j.Required, func(a, b ClaimRule) int { return strings.Compare(a.Claim, b.Claim) })
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
