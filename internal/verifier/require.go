package verifier

import (
	"fmt"
	"slices"

	"github.com/caddy-auth/caddy-auth/internal/auth"
)

// Requirement is what one auth_require demands. All its parts apply; within
// Scopes all are needed, within the others one of the listed values.
type Requirement struct {
	Scopes       []string
	AnyScopes    []string
	Subjects     []string
	Environments []string
	Methods      []string
	Issuers      []string
	Meta         []Claim // all of them, each with one of its values
}

// Empty reports whether nothing is demanded.
func (q *Requirement) Empty() bool {
	return len(q.Scopes)+len(q.AnyScopes)+len(q.Subjects)+len(q.Environments)+len(q.Methods)+len(q.Issuers)+len(q.Meta) == 0
}

// Judge applies the requirement to an identity. expand replaces placeholders
// in a value; what it makes of one is compared exactly, and an empty value
// never matches.
func (q *Requirement) Judge(id *auth.Identity, expand func(string) string) *auth.Refusal {
	if len(q.Scopes) > 0 {
		want := expandAll(q.Scopes, expand)
		for _, s := range want {
			if !id.HasScope(s) {
				return missingScopes(id, want)
			}
		}
	}
	if len(q.AnyScopes) > 0 {
		want := expandAll(q.AnyScopes, expand)
		if !slices.ContainsFunc(want, id.HasScope) {
			r := missingScopes(id, want)
			r.Detail = "the credential has none of the scopes that would do: " + r.Scopes
			return r
		}
	}
	if len(q.Environments) > 0 && !matches(q.Environments, id.Environment, expand) {
		return &auth.Refusal{Code: auth.CodeWrongEnvironment, Detail: fmt.Sprintf("the environment %s is not allowed here", id.Environment)}
	}
	if len(q.Subjects) > 0 && !matches(q.Subjects, id.Subject, expand) {
		return &auth.Refusal{Code: auth.CodeNotAllowed, Detail: "this subject is not allowed here", Reason: "subject"}
	}
	if len(q.Methods) > 0 && !matches(q.Methods, string(id.Method), expand) {
		return &auth.Refusal{Code: auth.CodeNotAllowed, Detail: fmt.Sprintf("credentials of the method %s are not allowed here", id.Method), Reason: "method"}
	}
	if len(q.Issuers) > 0 && !matches(q.Issuers, id.Issuer, expand) {
		return &auth.Refusal{Code: auth.CodeNotAllowed, Detail: "credentials of this issuer are not allowed here", Reason: "issuer"}
	}
	for _, m := range q.Meta {
		if !slices.ContainsFunc(m.Values, func(v string) bool { return id.HasMeta(m.Name, expand(v)) }) {
			return &auth.Refusal{Code: auth.CodeNotAllowed, Detail: fmt.Sprintf("the credential's %s is not allowed here", m.Name), Reason: "meta"}
		}
	}
	return nil
}

func expandAll(values []string, expand func(string) string) []string {
	out := make([]string, len(values))
	for i, v := range values {
		out[i] = expand(v)
	}
	return out
}

func matches(allowed []string, have string, expand func(string) string) bool {
	for _, a := range allowed {
		if v := expand(a); v != "" && v == have {
			return true
		}
	}
	return false
}
