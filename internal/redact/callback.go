package redact

import (
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

// maskCodes masks the codes behind the paths of callbacks.
func (m *Masker) maskCodes(s string) string {
	all := m.callbacks.Load()
	if all == nil {
		return s
	}
	for _, mark := range *all {
		if before, query, found := strings.Cut(s, mark); found {
			s = before + mark + maskCodeValues(query)
		}
	}
	return s
}

// maskCodeValues masks the values of code in a query, which JSON may have written.
func maskCodeValues(query string) string {
	const name = "code="
	var out strings.Builder
	rest := query
	for {
		i := strings.Index(rest, name)
		if i < 0 {
			break
		}
		begins := i == 0 && out.Len() == 0 || i > 0 && (rest[i-1] == '&' || rest[i-1] == ';') || strings.HasSuffix(rest[:i], `\u0026`)
		out.WriteString(rest[:i+len(name)])
		rest = rest[i+len(name):]
		if begins {
			out.WriteString(Mark)
			if end := strings.IndexAny(rest, "&;# \t\r\n\v\f\"'\\"); end >= 0 {
				rest = rest[end:]
			} else {
				rest = ""
			}
		}
	}
	out.WriteString(rest)
	return out.String()
}
