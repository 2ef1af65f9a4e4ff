package manage

import (
	"errors"
	"net/netip"
	"regexp"
	"slices"
	"strings"
	"unicode"
	"unicode/utf8"

	"github.com/caddy-auth/caddy-auth/internal/auth"
)

// keyShape is what a key looks like, whatever its prefix.
var keyShape = regexp.MustCompile(`[A-Za-z][A-Za-z0-9]*_[A-Za-z][A-Za-z0-9]*_[0-9A-Za-z]{43,}`)

// Mask replaces what is shaped like a key in a text for people.
func Mask(text string) string { return keyShape.ReplaceAllString(text, "[redacted]") }

// KeyShaped returns what is shaped like a key in a text.
func KeyShaped(text string) []string { return keyShape.FindAllString(text, -1) }

// CheckOwner says what is wrong with an owner's name.
func CheckOwner(name string) error {
	if keyShape.MatchString(name) {
		return errKeyInText("the owner's name")
	}
	ok := name != "" && len(name) <= 64
	for i := 0; ok && i < len(name); i++ {
		ok = auth.IsBase62(name[i]) || strings.IndexByte("._@-", name[i]) >= 0
	}
	if !ok {
		return auth.Invalidf("owner %q: want 1 to 64 letters, digits, or any of . _ @ -", name)
	}
	return nil
}

func errKeyInText(what string) error {
	return auth.WithHint(auth.Invalidf("%s holds what is shaped like a key", what), "if it is one, it is now in the shell's history: revoke it")
}

// CheckClaim says what is wrong with a text that says for whom an operator acts.
func CheckClaim(what, text string) error { return checkText(what, text, 128) }

func checkText(what, s string, most int) error {
	if keyShape.MatchString(s) {
		return errKeyInText(what)
	}
	if len(s) > most || !utf8.ValidString(s) || strings.ContainsFunc(s, unicode.IsControl) {
		return auth.Invalidf("%s: want at most %d bytes without control characters", what, most)
	}
	return nil
}

const (
	maxScopes   = 64
	maxNetworks = 64
	maxMeta     = 16
)

// normalizeScopes sorts scopes and drops repeats.
func normalizeScopes(in []string) ([]string, error) {
	var errs []error
	for _, s := range in {
		errs = append(errs, auth.CheckScope(s))
	}
	out := slices.Compact(slices.Sorted(slices.Values(in)))
	if len(out) > maxScopes {
		errs = append(errs, auth.Invalidf("%d scopes, at most %d", len(out), maxScopes))
	}
	return out, errors.Join(errs...)
}

// normalizeNetworks turns addresses and prefixes into masked prefixes.
func normalizeNetworks(in []string) ([]string, error) {
	var out []string
	var errs []error
	for _, s := range in {
		p, err := netip.ParsePrefix(s)
		if err != nil {
			var a netip.Addr
			if a, err = netip.ParseAddr(s); err == nil && a.Zone() == "" {
				a = a.Unmap()
				p = netip.PrefixFrom(a, a.BitLen())
			}
		}
		if err != nil || !p.IsValid() || p.Addr().Is4In6() {
			errs = append(errs, auth.Invalidf("network %q: want an address or a prefix such as 10.0.0.0/8", s))
			continue
		}
		out = append(out, p.Masked().String())
	}
	out = slices.Compact(slices.Sorted(slices.Values(out)))
	if len(out) > maxNetworks {
		errs = append(errs, auth.Invalidf("%d networks, at most %d", len(out), maxNetworks))
	}
	return out, errors.Join(errs...)
}

func checkMeta(meta map[string]string) error {
	var errs []error
	for k, v := range meta {
		if !metaName(k) {
			errs = append(errs, auth.Invalidf("metadata name %q: want a lower-case letter, then up to 31 lower-case letters, digits or _", k))
		}
		errs = append(errs, checkText("metadata "+k, v, 256))
	}
	if len(meta) > maxMeta {
		errs = append(errs, auth.Invalidf("%d metadata entries, at most %d", len(meta), maxMeta))
	}
	return errors.Join(errs...)
}

func metaName(s string) bool {
	if s == "" || len(s) > 32 || s[0] < 'a' || s[0] > 'z' {
		return false
	}
	for i := range len(s) {
		if c := s[i]; (c < 'a' || c > 'z') && (c < '0' || c > '9') && c != '_' {
			return false
		}
	}
	return true
}
