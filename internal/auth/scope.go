package auth

import (
	"slices"
	"strings"
)

// CommonScopes returns what two sets of scopes, separated by spaces, have in
// common: of a wildcard and what it covers, that.
func CommonScopes(a, b string) string {
	one, other := Identity{Scopes: a}, Identity{Scopes: b}
	var out []string
	for scope := range strings.FieldsSeq(a) {
		if other.HasScope(scope) {
			out = append(out, scope)
		}
	}
	for scope := range strings.FieldsSeq(b) {
		if one.HasScope(scope) {
			out = append(out, scope)
		}
	}
	return strings.Join(slices.Compact(slices.Sorted(slices.Values(out))), " ")
}

// CheckNewScope is CheckScope for scopes that people write down. A comma in one is
// nearly always meant to divide two, so it is refused; scopes that exist keep it.
func CheckNewScope(s string) error {
	if strings.Contains(s, ",") {
		return WithHint(Invalidf("scope %q has a comma in it", s), "name each scope by itself: "+strings.Join(strings.FieldsFunc(s, func(r rune) bool { return r == ',' }), " and "))
	}
	return CheckScope(s)
}

// CheckNewScopes is CheckNewScope for each of several.
func CheckNewScopes(scopes []string) error {
	for _, s := range scopes {
		if err := CheckNewScope(s); err != nil {
			return err
		}
	}
	return nil
}

// CheckScope says what is wrong with a scope token (RFC 6749, 3.3).
func CheckScope(s string) error {
	if s == "" || len(s) > 128 {
		return Invalidf("scope %q: want 1 to 128 characters", s)
	}
	for i := range len(s) {
		if c := s[i]; c < 0x21 || c > 0x7e || c == '"' || c == '\\' {
			return Invalidf("scope %q: want visible ASCII without quotes and backslashes", s)
		}
	}
	return nil
}
