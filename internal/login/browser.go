package login

import (
	"net/http"
	"strings"
)

// Navigates reports whether a request is a browser's that opens a page: only
// that one is led elsewhere. What a script, or a program, asks for gets a plain
// answer. Browsers say which it is (Fetch Metadata); those that don't, and those
// on plain HTTP, ask for HTML by name.
func Navigates(r *http.Request) bool {
	if r.Method != http.MethodGet && r.Method != http.MethodHead || prefetches(r) {
		return false
	}
	return ShowsPages(r)
}

// prefetches reports whether a browser asks before anybody wants the page.
func prefetches(r *http.Request) bool {
	return strings.Contains(r.Header.Get("Sec-Purpose"), "prefetch") || strings.EqualFold(r.Header.Get("Purpose"), "prefetch")
}

// ShowsPages is Navigates for any method: a form that was sent.
func ShowsPages(r *http.Request) bool {
	if mode := r.Header.Get("Sec-Fetch-Mode"); mode != "" {
		return mode == "navigate" && r.Header.Get("Sec-Fetch-Dest") == "document"
	}
	if r.Header.Get("X-Requested-With") != "" || len(r.Header["Upgrade"]) > 0 {
		return false
	}
	for _, accepted := range r.Header["Accept"] {
		for part := range strings.SplitSeq(accepted, ",") {
			kind, rest, _ := strings.Cut(part, ";")
			if kind = strings.TrimSpace(kind); (strings.EqualFold(kind, "text/html") || strings.EqualFold(kind, "application/xhtml+xml")) && strings.ReplaceAll(rest, " ", "") != "q=0" {
				return true
			}
		}
	}
	return false
}

// SameOrigin tells whether a request that could change something comes from a
// page of its own origin, or one that is trusted.
type SameOrigin struct{ cross *http.CrossOriginProtection }

// NewSameOrigin trusts origins, such as https://app.example.com, beside a
// request's own.
func NewSameOrigin(origins ...string) (*SameOrigin, error) {
	s := &SameOrigin{http.NewCrossOriginProtection()}
	for _, o := range origins {
		if err := s.cross.AddTrustedOrigin(o); err != nil {
			return nil, err
		}
	}
	return s, nil
}

// Allows looks at Sec-Fetch-Site, else at Origin. A request with neither is no
// browser's of today, and a page can't take them off. Safe methods pass, but not
// what becomes a websocket: those have no same-origin policy.
func (s *SameOrigin) Allows(r *http.Request) bool {
	if len(r.Header["Upgrade"]) == 0 {
		return s.cross.Check(r) == nil
	}
	unsafe := *r
	unsafe.Method = http.MethodPost
	return s.cross.Check(&unsafe) == nil
}
