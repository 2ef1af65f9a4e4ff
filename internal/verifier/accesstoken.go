package verifier

import (
	"context"
	"maps"
	"net/netip"
	"slices"
	"strings"

	"github.com/caddy-auth/caddy-auth/internal/auth"
	"github.com/caddy-auth/caddy-auth/internal/cache"
	"github.com/caddy-auth/caddy-auth/internal/store"
)

// kindAccessToken is the kind of shared records about tokens of our own.
const kindAccessToken = "access_token"

func (v *Verifier) aboutToken(fp auth.Fingerprint) question {
	return question{fp: fp, about: cache.About{Kind: kindAccessToken}, ask: func(ctx context.Context) (answer, error) {
		l, err := v.keys.LookupToken(ctx, fp)
		return answer{verdictOfToken(&l), l.Point, l.Moved}, err
	}}
}

// verdictOfToken turns a token of our own, with what it hangs on, into what is
// cached. It is never more than what its client and its key are now. A denial
// carries what it hangs on too, so that enabling that reaches it.
func verdictOfToken(l *store.LoadedToken) auth.Verdict {
	t := l.Token
	if t == nil || t.ClientID == "" && t.KeyID == "" || (t.ClientID != "") != (l.Client != nil) || (t.KeyID != "") != (l.Key != nil) {
		return auth.Denied(auth.ReasonUnknown)
	}
	id := auth.Identity{
		Method: auth.MethodAccessToken, CredentialID: t.ID, ClientID: t.ClientID, Scopes: t.Scopes,
		IssuedAt: uint32(t.IssuedAt / 1000), NotAfter: t.ExpiresAt,
	}
	v := auth.Verdict{Outcome: auth.Allow}
	var roots []string
	var meta map[string]string
	if c := l.Client; c != nil {
		roots = append(roots, auth.RootOf(auth.ParentOwner, c.Owner))
		id.Subject, id.Environment, id.Networks, meta = auth.ClientSubject(c.ID), c.Environment, strings.Join(c.Networks, " "), c.Meta
		id.Scopes = auth.CommonScopes(id.Scopes, strings.Join(c.Scopes, " "))
	}
	if k := l.Key; k != nil { // it speaks for the key's owner, who is a parent as the subject
		roots = append(roots, auth.RootOf(auth.ParentKey, k.ID))
		if l.Client != nil && k.Environment != l.Client.Environment {
			v.Outcome, v.Reason = auth.Deny, auth.ReasonParentKey
		}
		id.Subject, id.Environment, id.Networks, meta = k.Owner, k.Environment, both(id.Networks, k.Networks), k.Meta
		id.Scopes = auth.CommonScopes(id.Scopes, strings.Join(k.Scopes, " "))
		if end := k.NotAfter(); end != 0 && end < id.NotAfter {
			id.NotAfter, id.Replaced = end, k.ReplacedBy != ""
		}
	}
	id.Meta = encodeMeta(withRoots(meta, roots...))
	v.Identity = id
	if r := ended(l); r != auth.ReasonNone {
		v.Outcome, v.Reason = auth.Deny, r
	}
	return v
}

// withRoots is metadata with what else a token, or a client, hangs on.
func withRoots(meta map[string]string, roots ...string) map[string]string {
	out := map[string]string{auth.MetaRoots: auth.JoinMeta(roots)}
	maps.Copy(out, meta)
	return out
}

func encodeMeta(meta map[string]string) string {
	return auth.EncodeMeta(slices.Sorted(maps.Keys(meta)), meta)
}

// ended says why a token does not work, or ReasonNone. Expiry is judged on
// every request.
func ended(l *store.LoadedToken) auth.Reason {
	c, k := l.Client, l.Key
	switch {
	case l.Token.RevokedAt != 0:
		return auth.ReasonRevoked
	case c != nil && (c.RevokedAt != 0 || c.DisabledAt != 0):
		return auth.ReasonClient
	case k != nil && (k.RevokedAt != 0 || k.DisabledAt != 0):
		return auth.ReasonParentKey
	case c != nil && c.OwnerDisabled || k != nil && k.OwnerDisabled:
		return auth.ReasonOwnerDisabled
	}
	return auth.ReasonNone
}

// nowhere is no network: what is bound to it can be used from nowhere.
const nowhere = "nowhere"

// both returns the networks that are in both lists; an empty list is any.
func both(have string, other []string) string {
	switch {
	case have == "":
		return strings.Join(other, " ")
	case len(other) == 0:
		return have
	}
	var out []string
	for word := range strings.FieldsSeq(have) {
		a, err := netip.ParsePrefix(word)
		if err != nil {
			continue
		}
		for _, text := range other {
			b, err := netip.ParsePrefix(text)
			if err != nil || !a.Overlaps(b) { // two that overlap: one is in the other
				continue
			}
			if a.Bits() < b.Bits() {
				out = append(out, b.String())
			} else {
				out = append(out, a.String())
			}
		}
	}
	if len(out) == 0 {
		return nowhere
	}
	return strings.Join(slices.Compact(slices.Sorted(slices.Values(out))), " ")
}
