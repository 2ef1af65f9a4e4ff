package caddymodule

import (
	"fmt"
	"slices"
	"strings"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp"

	"github.com/caddy-auth/caddy-auth/internal/secret"
	"github.com/caddy-auth/caddy-auth/internal/verifier"
)

// unknownName is the error of a configuration that names something which it does
// not have.
func unknownName(what, name string, known []string) error {
	return fmt.Errorf("there is no %s %q: %s", what, name, thereAre(name, known))
}

// thereAre says which names there are, and first the one that was probably meant.
func thereAre(name string, known []string) string {
	if len(known) == 0 {
		return "there are none; it belongs into the global auth block"
	}
	text := "there are " + strings.Join(known, ", ")
	if len(known) == 1 {
		text = "there is only " + known[0]
	}
	for most := 1; most <= 2; most++ {
		for _, k := range known {
			if distance(name, k) <= most && len(k) > most {
				return "did you mean " + k + "? " + strings.ToUpper(text[:1]) + text[1:]
			}
		}
	}
	return text
}

// distance is how many letters must be added, left out, changed or swapped with
// their neighbour to get from a to b.
func distance(a, b string) int {
	before, row := make([]int, len(b)+1), make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		next := make([]int, len(b)+1)
		next[0] = i + 1
		for j := range len(b) {
			cost := 1
			if a[i] == b[j] {
				cost = 0
			}
			next[j+1] = min(row[j+1]+1, next[j]+1, row[j]+cost)
			if i > 0 && j > 0 && a[i] == b[j-1] && a[i-1] == b[j] {
				next[j+1] = min(next[j+1], before[j-1]+1)
			}
		}
		before, row = row, next
	}
	return row[len(b)]
}

// storeNames are the stores that this build has.
func storeNames() (out []string) {
	for _, m := range caddy.GetModules("auth.stores") {
		out = append(out, m.ID.Name())
	}
	slices.Sort(out)
	return out
}

// checkEnvironment says what is wrong with the name of an environment that a site
// demands. Placeholders are looked at when they are replaced.
func checkEnvironment(name string) error {
	if name == verifier.AnyEnvironment || strings.Contains(name, "{") {
		return nil
	}
	err := secret.CheckEnvironment(name)
	if lower := strings.ToLower(name); err != nil && secret.CheckEnvironment(lower) == nil {
		return fmt.Errorf("%w; did you mean %s?", err, lower)
	}
	return err
}

// checkArrives refuses a key header that Caddy drops before any handler sees it:
// services behind it may fold its name into another one.
func checkArrives(srv *caddyhttp.Server, name string) error {
	if !strings.ContainsAny(name, "_.") {
		return nil
	}
	if strings.Contains(name, "_") && strings.Contains(name, ".") {
		return fmt.Errorf("header %s: no header for keys can have an underscore and a dot in its name: Caddy drops it", name)
	}
	option, list := "expected_underscore_headers", srv.ExpectedUnderscoreHeaders
	if strings.Contains(name, ".") {
		option, list = "expected_dot_headers", srv.ExpectedDotHeaders
	}
	for _, have := range list {
		prefix, ok := strings.CutSuffix(have, "*")
		if strings.EqualFold(have, name) || ok && len(name) >= len(prefix) && strings.EqualFold(name[:len(prefix)], prefix) {
			return nil
		}
	}
	hyphens := strings.NewReplacer("_", "-", ".", "-").Replace(name)
	return fmt.Errorf("no key would ever arrive in the header %s, since Caddy drops headers whose names have an underscore or a dot: "+
		"let clients send %s, or put servers { %s %s } into the global options", name, hyphens, option, strings.ToLower(name))
}
