package caddymodule

import (
	"fmt"
	"net/http"
	"net/netip"
	"sync/atomic"

	"github.com/caddyserver/caddy/v2/caddyconfig/caddyfile"

	"github.com/caddy-auth/caddy-auth/internal/auth"
	"github.com/caddy-auth/caddy-auth/internal/verifier"
)

// explanation collects what the handlers decide on the way of one request. The
// handlers of a gateway have none: then its methods do nothing and cost
// nothing.
type explanation struct {
	assumed bool             // no credential is shown: it is the key with
	fp      auth.Fingerprint // this fingerprint
	code    auth.Code        // of the refusal
	steps   []explained
}

// explained is one check.
type explained struct {
	Check  string `json:"check"`
	Result string `json:"result"` // ok, refused, skipped
	Detail string `json:"detail,omitempty"`
	Where  string `json:"where,omitempty"` // the line of the configuration that it comes from
}

// Results of a check.
const (
	checkOK      = "ok"
	checkRefused = "refused"
	checkSkipped = "skipped"
)

// explaining is the explanation that configurations which are loaded now are
// for: set in the process of the command, where nothing else is loaded.
var explaining atomic.Pointer[explanation]

// lines are where a directive and its subdirectives stand.
type lines map[string]string

// mark notes where a directive stands, and makes its parsers note where theirs
// do, if somebody wants to know.
func (l *lines) mark(d *caddyfile.Dispenser, parts parsers) parsers {
	if explaining.Load() == nil {
		return parts
	}
	*l = lines{"": at(d)}
	out := parsers{}
	for name, parse := range parts {
		out[name] = func(d *caddyfile.Dispenser) error {
			if first, again := (*l)[name]; again {
				(*l)[name] = first + fmt.Sprintf(",%d", d.Line())
			} else {
				(*l)[name] = at(d)
			}
			return parse(d)
		}
	}
	return out
}

func at(d *caddyfile.Dispenser) string { return fmt.Sprintf("%s:%d", d.File(), d.Line()) }

// of is where name stands, or, where it doesn't, the directive whose default
// counts.
func (l lines) of(name string) string {
	if where, ok := l[name]; ok {
		return where
	}
	if where := l[""]; where != "" && name != "" {
		return where + " (default)"
	}
	return l[""]
}

func (e *explanation) add(check, result, detail, where string) {
	e.steps = append(e.steps, explained{check, result, detail, where})
}

// assumesKey reports whether no credential is shown.
func (e *explanation) assumesKey() bool { return e != nil && e.assumed }

// target explains what a handler made of the request's URL.
func (e *explanation) target(h *Handler, r *http.Request, t *verifier.Target) {
	if e == nil {
		return
	}
	e.add("strip", checkOK, "identity headers that clients send are removed", h.Lines.of("identity_headers"))
	switch {
	case t.Refusal != nil && t.Refusal.Code == auth.CodeCredentialInQuery:
		e.add("url", checkRefused, t.Refusal.Detail, h.Lines.of("refuse_query"))
		return
	case t.Refusal != nil:
		e.add("path", checkRefused, t.Refusal.Detail, h.Lines.of("ambiguous_paths"))
		return
	}
	e.add("url", checkOK, "no credential in it", h.Lines.of("refuse_query"))
	switch {
	case t.Public && verifier.IsPreflight(r.Method, r.Header) && h.Preflight == "pass" && !h.site.WouldBePublic(r.Method, r.URL.EscapedPath()):
		e.add("preflight", checkOK, "it passes without an identity", h.Lines.of("preflight"))
	case t.Public:
		e.add("public", checkOK, "it passes without an identity; a credential is not looked at", h.Lines.of("public"))
	default:
		e.add("public", checkSkipped, "no rule matches: a credential is needed", h.Lines.of("public"))
	}
}

// credential explains what the request's headers hold.
func (e *explanation) credential(h *Handler, p *verifier.Presented) {
	if e == nil {
		return
	}
	where := h.Lines.of("from")
	switch {
	case p.Refusal != nil:
		e.add("credential", checkRefused, p.Refusal.Detail, where)
	case p.Credential == "" && h.Optional:
		e.add("credential", checkOK, "none, and none is needed: it passes as anonymous", h.Lines.of("optional"))
	case p.Credential == "":
		e.add("credential", checkRefused, h.sources.MissingRefusal().Detail, where)
	case p.Bearer:
		e.add("credential", checkOK, "a bearer token", where)
	default:
		e.add("credential", checkOK, "in a header of its own", where)
	}
}

// verdict explains what became of the credential.
func (e *explanation) verdict(h *Handler, v *auth.Verdict) {
	if e == nil {
		return
	}
	who := describe(&v.Identity)
	switch v.Outcome {
	case auth.Allow:
		e.add("verify", checkOK, who, "")
	case auth.Deny:
		if who != "" {
			who = ": " + who
		}
		e.add("verify", checkRefused, v.Reason.String()+who, "")
	default:
		e.add("verify", checkRefused, fmt.Sprintf("it can't be decided: %v", v.Cause), "")
	}
}

// describe names an identity for people.
func describe(id *auth.Identity) string {
	out := string(id.Method)
	for _, part := range []struct{ what, is string }{
		{"", id.CredentialID}, {"hint ", id.Hint}, {"subject ", id.Subject}, {"issuer ", id.Issuer}, {"environment ", id.Environment}, {"scopes ", id.Scopes}, {"networks ", id.Networks},
	} {
		if part.is != "" {
			out += ", " + part.what + printable(part.is)
		}
	}
	return out
}

// identity explains what a site's rules say of an identity.
func (e *explanation) identity(h *Handler, id *auth.Identity, address netip.Addr) {
	if e == nil {
		return
	}
	who := *id
	h.site.ExplainIdentity(&who, address, func(rule string, r *auth.Refusal) {
		where := h.Lines.of(rule)
		if rule == "networks" {
			where = "" // the key's own
		}
		if r != nil {
			e.add(rule, checkRefused, r.Detail, where)
		} else {
			e.add(rule, checkOK, "", where)
		}
	})
}

// requirement explains what an auth_require said.
func (e *explanation) requirement(q *Require, r *auth.Refusal, passes string) {
	switch {
	case e == nil:
	case r != nil:
		e.add("auth_require", checkRefused, r.Detail, q.Lines.of(""))
	default:
		e.add("auth_require", checkOK, passes, q.Lines.of(""))
	}
}

// refusal notes a refusal that no check before it explained.
func (e *explanation) refusal(h *Handler, r *auth.Refusal) {
	if e == nil {
		return
	}
	e.code = r.Code
	if len(e.steps) > 0 && e.steps[len(e.steps)-1].Result == checkRefused {
		return
	}
	rule := map[auth.Code]string{auth.CodeTooEarly: "early_data"}[r.Code]
	e.add(string(r.Code), checkRefused, r.Detail, h.Lines.of(rule))
}
