package redact

import (
	"strings"

	"github.com/caddy-auth/caddy-auth/internal/auth"
)

// ScanImported looks for imported keys in a raw request target, in clear and
// decoded. What only looks like one, such as any UUID, is none.
func ScanImported(target string, known *auth.Imported) Finding {
	if known.Len() == 0 {
		return Finding{}
	}
	text := target
	start, end, ok := known.Find(text)
	if !ok && strings.IndexByte(target, '%') >= 0 {
		text = string(decode(nil, target))
		start, end, ok = known.Find(text)
	}
	if !ok {
		return Finding{}
	}
	f := Finding{What: KeyShape, Keys: []string{text[start:end]}}
	_, query, inQuery := strings.Cut(text[:start], "?")
	if f.InPath = !inQuery; f.InPath {
		return f
	}
	if i := strings.LastIndexAny(query, "&;"); i >= 0 {
		query = query[i+1:]
	}
	if name, _, hasName := strings.Cut(query, "="); hasName {
		f.Name = printable([]byte(name))
	}
	return f
}

// SetImported makes a masker mask the imported keys that owner knows; nil ends
// it.
func (m *Masker) SetImported(owner any, known *auth.Imported) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.imported == nil {
		m.imported = map[any]*auth.Imported{}
	}
	delete(m.imported, owner)
	if known.Len() > 0 {
		m.imported[owner] = known
	}
	var all []*auth.Imported
	for _, k := range m.imported {
		all = append(all, k)
	}
	m.keys.Store(&all)
}

// maskImported masks imported keys in s. Where one shows only when s is
// decoded all of s goes.
func (m *Masker) maskImported(s string) string {
	all := m.keys.Load()
	if all == nil || len(*all) == 0 {
		return s
	}
	for _, known := range *all {
		for {
			start, end, ok := known.Find(s)
			if !ok {
				break
			}
			s = s[:start] + Mark + s[end:]
		}
		if strings.IndexByte(s, '%') >= 0 {
			if _, _, ok := known.Find(string(decode(nil, s))); ok {
				return Mark
			}
		}
	}
	return s
}
