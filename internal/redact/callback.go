package redact

import (
	"regexp"
	"slices"
	"strings"
)

// AddCallback makes a masker mask the authorization code in the query behind a
// path, where a provider sends people back to. It masks nothing else: who sends a
// code of their choice must not choose what logs show. None is ever forgotten.
func (m *Masker) AddCallback(path string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	var all []string
	if old := m.callbacks.Load(); old != nil {
		all = *old
	}
	if mark := path + "?"; !slices.Contains(all, mark) {
		all = append(slices.Clone(all), mark)
		m.callbacks.Store(&all)
	}
}

// codes are the values of code in a query, which JSON may have written.
var codes = regexp.MustCompile(`((?:^|[&;]|\\u0026)code=)[^&;#\s"'\\]*`)

// maskCodes masks the codes behind the paths of callbacks.
func (m *Masker) maskCodes(s string) string {
	all := m.callbacks.Load()
	if all == nil {
		return s
	}
	for _, mark := range *all {
		if before, query, found := strings.Cut(s, mark); found {
			s = before + mark + codes.ReplaceAllString(query, "${1}"+Mark)
		}
	}
	return s
}
