package forward

import (
	"net/http"
	"strings"

	"github.com/caddy-auth/caddy-auth/internal/auth"
)

// Clean removes from a request what a client must not choose: headers named
// in Connection (RFC 9110, 7.6.1; a proxy behind us would do it after we
// injected ours), trailers, and every spelling of an identity header. aliases
// are folded names of credential headers, of which other spellings go too.
func (p *Policy) Clean(r *http.Request, aliases map[string]bool) {
	cleanConnection(r.Header)
	delete(r.Header, "Http2-Settings")
	// net/http merges trailers into r.Trailer when the body ends, if it is not nil.
	r.Trailer = nil
	delete(r.Header, "Trailer")
	p.strip(r.Header, aliases)
}

// cleanConnection deletes what Connection names and rewrites it to the
// options that mean something to the connection itself.
func cleanConnection(h http.Header) {
	vals, ok := h["Connection"]
	if !ok {
		return
	}
	upgrade := false
	for _, v := range vals {
		for option := range strings.SplitSeq(v, ",") {
			switch option = strings.Trim(option, " \t"); {
			case option == "", strings.EqualFold(option, "close"), strings.EqualFold(option, "keep-alive"), strings.EqualFold(option, "te"):
			case strings.EqualFold(option, "upgrade"):
				upgrade = true
			default:
				h.Del(option)
			}
		}
	}
	// Only websockets may turn the connection into a tunnel: through h2c, and
	// through anything we don't know, requests would pass that nobody judged.
	if up := h["Upgrade"]; upgrade && len(up) == 1 && strings.EqualFold(up[0], "websocket") {
		h["Connection"] = []string{"Upgrade"}
		return
	}
	delete(h, "Connection")
	delete(h, "Upgrade")
}

func (p *Policy) strip(h http.Header, aliases map[string]bool) {
	var buf [maxFold]byte
	for name := range h {
		if name == "" || p.dismisses(name) && (len(aliases) == 0 || plainName(name)) {
			continue
		}
		folded := foldInto(buf[:0], name)
		if p.removes(folded) || len(aliases) > 0 && isAlias(aliases, name, folded) {
			delete(h, name)
		}
	}
}

// foldInto folds a name into a buffer, if it fits: a prefix of a long one may
// still be one to remove.
func foldInto(buf []byte, name string) []byte {
	if len(name) > cap(buf) {
		buf = make([]byte, 0, len(name))
	}
	return auth.AppendFolded(buf, name)
}

// isAlias reports whether a name is another spelling of one of aliases, or one
// of them behind what upstreams take off.
func isAlias(aliases map[string]bool, name string, folded []byte) bool {
	if aliases[string(folded)] {
		return !plainName(name)
	}
	for rest := takeOff(folded); len(rest) != len(folded); rest = takeOff(folded) {
		if folded = rest; aliases[string(folded)] {
			return true
		}
	}
	return false
}

// RemoveOwn removes the headers that the policy sets or was told to strip, in
// every spelling, and nothing else.
func (p *Policy) RemoveOwn(r *http.Request) {
	var buf [maxFold]byte
	for name := range r.Header {
		if name == "" || p.dismisses(name) {
			continue
		}
		folded := foldInto(buf[:0], name)
		for {
			if p.ownName(folded) {
				delete(r.Header, name)
				break
			}
			rest := takeOff(folded)
			if len(rest) == len(folded) {
				break
			}
			folded = rest
		}
	}
}

// plainName reports whether a name is spelt with letters, digits and hyphens
// only, as the headers that carry credentials are.
func plainName(name string) bool {
	for i := range len(name) {
		c := name[i]
		if (c < '0' || c > '9') && (c|0x20 < 'a' || c|0x20 > 'z') && c != '-' {
			return false
		}
	}
	return true
}
