package verifier

import (
	"strings"

	"github.com/caddy-auth/caddy-auth/internal/auth"
)

// verdictOfKey turns a row of the store into what is cached. An expired key
// is an identity like any other: expiry is judged on every request. A denial
// about a row carries its owner, so that enabling the owner reaches it.
func verdictOfKey(k *auth.Key) auth.Verdict {
	if k == nil {
		return auth.Denied(auth.ReasonUnknown)
	}
	v := auth.Verdict{Outcome: auth.Allow, Identity: auth.Identity{
		Subject:      k.Owner,
		Method:       auth.MethodAPIKey,
		CredentialID: k.ID,
		Scopes:       strings.Join(k.Scopes, " "),
		Environment:  k.Environment,
		Hint:         k.Hint,
		Networks:     strings.Join(k.Networks, " "),
		Meta:         encodeMeta(k.Meta),
		NotAfter:     k.NotAfter(),
		Replaced:     k.ReplacedBy != "",
	}}
	switch {
	case k.RevokedAt != 0:
		v.Outcome, v.Reason = auth.Deny, auth.ReasonRevoked
	case k.DisabledAt != 0:
		v.Outcome, v.Reason = auth.Deny, auth.ReasonDisabled
	case k.OwnerDisabled:
		v.Outcome, v.Reason = auth.Deny, auth.ReasonOwnerDisabled
	}
	return v
}
