package caddymodule

import (
	"context"
	"maps"
	"net/netip"
	"slices"
	"strings"

	"github.com/caddy-auth/caddy-auth/internal/auth"
)

// issuers asks each issuer for its keys, and each introspection server about a
// token that nobody has.
func (e *examination) issuers(ctx context.Context) {
	if e.t.app == nil || len(e.t.app.Issuers)+len(e.t.app.Introspection) == 0 {
		return
	}
	if err := e.t.app.provisionIssuers(); err != nil {
		return // the configuration's finding
	}
	all := e.t.app.issuers
	defer func() { _ = all.release() }() // nothing was kept
	for _, name := range slices.Sorted(maps.Keys(all.sets)) {
		keys, skipped, err := all.sets[name].Try(ctx)
		switch {
		case err != nil:
			e.found("issuer", named(name, err), "while its keys are not known, its tokens get 503; is the url right, and reachable from here?")
		case len(skipped) > 0:
			e.say(levelNote, "issuer", name+" publishes keys that are not used: "+strings.Join(skipped, "; "), "")
		default:
			e.ok("issuer", "%s publishes %d keys", name, keys)
		}
	}
	for _, name := range slices.Sorted(maps.Keys(all.opaque)) {
		if _, err := all.servers[name].Introspect(ctx, "caddy-auth-doctor", netip.Addr{}); err != nil {
			e.found("introspection", named(name, err), "tokens that only it knows get 503; is the url right?")
			continue
		}
		e.ok("introspection", "%s answers", name)
	}
}

// named says whose error it is, and keeps its hint.
func named(name string, err error) error {
	return auth.WithHint(wrapIf(name, err), auth.Hint(err))
}
