package routes

import (
	"encoding/json"
	"slices"
	"strings"
)

// cond is a route's matchers: one of the sets must match, with all of its matchers.
type cond []map[string]any

// always reports whether every request matches.
func (c cond) always() bool {
	return slices.ContainsFunc(c, func(set map[string]any) bool {
		paths := strs(set["path"])
		return len(set) == 0 || len(set) == 1 && (slices.Contains(paths, "*") || slices.Contains(paths, "/*"))
	})
}

// same reports whether both are the matchers of one route: a request that got into
// it has matched, whatever changed since.
func (c cond) same(o cond) bool { return len(c) > 0 && len(o) > 0 && &c[0] == &o[0] }

// unchanged are the matchers that look at what a rewrite leaves as it is.
var unchanged = []string{"host", "protocol", "remote_ip", "client_ip", "header", "header_regexp", "tls"}

// canBeRewritten reports whether a rewrite can change what c looks at.
func (c cond) canBeRewritten() bool {
	for _, set := range c {
		for name := range set {
			if !slices.Contains(unchanged, name) {
				return true
			}
		}
	}
	return false
}

// implies reports whether every request that matches c matches o. A doubt is no.
func (c cond) implies(o cond) bool {
	for _, set := range c {
		if !slices.ContainsFunc(o, func(other map[string]any) bool { return implied(set, other) }) {
			return false
		}
	}
	return len(c) > 0
}

// implied reports whether what matches set matches other.
func implied(set, other map[string]any) bool {
	for name, want := range other {
		have, ok := set[name]
		if !ok {
			return false
		}
		if text(have) == text(want) {
			continue
		}
		haves, wants := strs(have), strs(want)
		within := map[string]func(have, want string) bool{"path": pathWithin, "host": strings.EqualFold, "method": func(a, b string) bool { return a == b }}[name]
		if within == nil || len(haves) == 0 {
			return false
		}
		for _, one := range haves {
			if !slices.ContainsFunc(wants, func(w string) bool { return within(one, w) }) {
				return false
			}
		}
	}
	return true
}

// pathWithin reports whether every path that a pattern of Caddy's matches is
// matched by another one.
func pathWithin(have, want string) bool {
	have, want = strings.ToLower(have), strings.ToLower(want) // as Caddy compares them
	prefix, ok := strings.CutSuffix(want, "*")
	if !ok || strings.ContainsAny(prefix, "*%{") {
		return have == want
	}
	return strings.TrimPrefix(prefix, "/") == "" || strings.HasPrefix(have, prefix) && !strings.Contains(have, "%")
}

// hostsOf returns the hosts that a route is for, within those that are known.
func hostsOf(c cond, known []string) []string {
	var out []string
	for _, set := range c {
		hosts := strs(set["host"])
		if len(hosts) == 0 {
			return known
		}
		out = append(out, hosts...)
	}
	return out
}

// words says what conditions are, with their hosts or without.
func words(conds []cond, hosts bool) string {
	var all []string
	for _, c := range conds {
		var sets []string
		for _, set := range c {
			var parts []string
			for _, name := range sorted(set) {
				switch values := strs(set[name]); {
				case name == "host" && !hosts:
				case len(values) > 0:
					parts = append(parts, name+" "+strings.Join(values, " "))
				default:
					parts = append(parts, name+" "+text(set[name]))
				}
			}
			if len(parts) > 0 {
				sets = append(sets, strings.Join(parts, ", "))
			}
		}
		if len(sets) > 0 {
			all = append(all, strings.Join(sets, " or "))
		}
	}
	return strings.Join(all, ", ")
}

func sorted(set map[string]any) (names []string) {
	for name := range set {
		names = append(names, name)
	}
	slices.Sort(names)
	return names
}

// text is a matcher as JSON, always the same for the same.
func text(v any) string {
	out, err := json.Marshal(v)
	if err != nil { // it came out of JSON
		return ""
	}
	return string(out)
}

func asAny(texts []string) (out []any) {
	for _, t := range texts {
		out = append(out, t)
	}
	return out
}

// strs returns a list of texts, or nil if v is anything else.
func strs(v any) (out []string) {
	list, _ := v.([]any)
	for _, x := range list {
		s, ok := x.(string)
		if !ok {
			return nil
		}
		out = append(out, s)
	}
	return out
}
