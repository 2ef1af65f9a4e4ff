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
	var text string
	var found []auth.Span
	if !stages(target, func(s string) bool {
		text = s
		found, _ = known.FindAll(s)
		return len(found) > 0
	}) {
		return Finding{}
	}
	f := Finding{What: KeyShape}
	for _, span := range found[:min(len(found), maxKeys)] {
		f.Keys = append(f.Keys, text[span.Start:span.End])
	}
	_, query, inQuery := strings.Cut(text[:found[0].Start], "?")
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
// decoded, or s holds too much to search all of it, all of s goes.
func (m *Masker) maskImported(s string) string {
	all := m.keys.Load()
	if all == nil || len(*all) == 0 {
		return s
	}
	for _, known := range *all {
		found, complete := known.FindAll(s)
		if !complete {
			return Mark
		}
		s = maskSpans(s, found)
		if strings.IndexByte(s, '%') < 0 {
			continue
		}
		if stages(DecodeOnce(s), func(s string) bool {
			found, complete := known.FindAll(s)
			return len(found) > 0 || !complete
		}) {
			return Mark
		}
	}
	return s
}

func maskSpans(s string, spans []auth.Span) string {
	if len(spans) == 0 {
		return s
	}
	var out strings.Builder
	at := 0
	for _, span := range spans {
		out.WriteString(s[at:max(at, span.Start)])
		out.WriteString(Mark)
		at = max(at, span.End)
	}
	out.WriteString(s[at:])
	return out.String()
}
