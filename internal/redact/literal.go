package redact

import (
	"cmp"
	"encoding/json"
	"net/url"
	"slices"
	"strconv"
	"strings"

	"github.com/caddy-auth/caddy-auth/internal/auth"
)

// ShortestLiteral is the shortest secret that is looked for: what is shorter
// could be a part of anything.
const ShortestLiteral = 8

// SetLiterals makes a masker mask secrets of no particular shape that owner
// uses, wherever they stand; none ends it.
func (m *Masker) SetLiterals(owner any, secrets ...auth.Secret) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.secrets == nil {
		m.secrets = map[any][]auth.Secret{}
	}
	delete(m.secrets, owner)
	if len(secrets) > 0 {
		m.secrets[owner] = secrets
	}
	var all []string
	for _, list := range m.secrets {
		for _, s := range list {
			if len(s.Reveal()) >= ShortestLiteral {
				all = append(all, written(s.Reveal())...)
			}
		}
	}
	// The longest first: one may be a part of another.
	slices.SortFunc(all, func(a, b string) int { return cmp.Or(len(b)-len(a), cmp.Compare(a, b)) })
	all = slices.Compact(all)
	m.literals.Store(&all)
}

// written lists how a text may stand in a log: as it is, as a form has it, as a
// URL's path has it, as JSON with and without escaped HTML, and quoted as Go does.
func written(text string) []string {
	all := []string{text, url.QueryEscape(text), url.PathEscape(text), inner(strconv.Quote(text)), inner(strconv.QuoteToASCII(text))}
	if escaped, err := json.Marshal(text); err == nil {
		all = append(all, inner(string(escaped)))
	}
	return all
}

// inner is a quoted text without its quotes.
func inner(quoted string) string { return quoted[1 : len(quoted)-1] }

// maskLiterals masks them in s. Where one shows only when s is decoded, all of
// s goes.
func (m *Masker) maskLiterals(s string) string {
	all := m.literals.Load()
	if all == nil || len(*all) == 0 || len(s) < ShortestLiteral {
		return s
	}
	for _, text := range *all {
		if strings.Contains(s, text) {
			s = strings.ReplaceAll(s, text, Mark)
		}
	}
	if strings.IndexByte(s, '%') < 0 && strings.IndexByte(s, '\\') < 0 {
		return s
	}
	plain := string(decode(nil, s))
	unescaped := strings.ReplaceAll(plain, `\`, "")
	for _, text := range *all {
		if strings.Contains(plain, text) || strings.Contains(unescaped, text) {
			return Mark
		}
	}
	return s
}
