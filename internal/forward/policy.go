package forward

import (
	"errors"
	"maps"
	"net/http"
	"slices"
	"strings"

	"github.com/caddy-auth/caddy-auth/internal/auth"
)

// DefaultPrefix begins the names of our headers.
const DefaultPrefix = "X-Auth-"

// Headers that upstreams may trust although this gateway does not set them. A
// name that ends in * is a prefix. A policy's Keep exempts names.
var foreignHeaders = []string{
	// Identities, as other gateways write them.
	"Remote-User", "Remote-Name", "Remote-Email", "Remote-Groups", "X-Remote-*",
	"X-Forwarded-User", "X-Forwarded-Email", "X-Forwarded-Groups", "X-Forwarded-Preferred-Username", "X-Forwarded-Access-Token",
	"X-Auth-Request-*", "X-Consumer-*", "X-Credential-*", "X-Anonymous-Consumer", "X-Authenticated-*",
	"X-WebAuth-*", "X-Pomerium-*", "X-Authentik-*", "X-Vouch-*", "X-Userinfo", "X-Token-*",
	"Cf-Access-*", "Tailscale-User-*", "X-Goog-Authenticated-*", "X-Goog-Iap-*", "X-Apigateway-Api-Userinfo", "X-Endpoint-Api-Userinfo",
	"X-Amzn-Oidc-*", "X-Amzn-Request-Context", "X-Amzn-Lambda-Context", "X-Ms-Client-Principal*", "X-Ms-Token-*",
	"Oidc-Claim-*", "Shib-*", "Iv-User", "Iv-Groups", "Iv-Creds", "Sm-User", "Sm-Userdn", "Oam-Remote-User",
	"Impersonate-User", "Impersonate-Group", "Impersonate-Uid", "Impersonate-Extra-*",
	// Certificates, as proxies that end TLS write them.
	"X-Forwarded-Client-Cert", "X-Forwarded-Tls-Client-Cert*", "Client-Cert", "Client-Cert-Chain", "X-Client-Cert*", "Ssl-Client-*", "X-Ssl-Client-*", "Wl-Proxy-Client-*",
	"X-Amzn-Mtls-Clientcert*", "X-Arr-Clientcert", "Cf-Client-Cert-*",
	// Another method or place than the gateway judged.
	"X-HTTP-Method-Override", "X-HTTP-Method", "X-Method-Override", "X-Original-Method", "X-Forwarded-Method", "X-Envoy-Original-Method",
	"X-Original-URL", "X-Original-URI", "X-Original-Path", "X-Rewrite-URL", "X-Rewrite-URI", "X-Override-URL", "X-Forwarded-Uri", "X-Forwarded-Path", "X-Waws-Unencoded-Url", "X-HTTP-Path-Override", "X-HTTP-DestinationURL", "X-Envoy-Original-Path",
}

// takenOff begin names that some upstreams read without them, folded:
// grpc-gateway makes metadata x of Grpc-Metadata-X, AWS API Gateway renames x to
// X-Amzn-Remapped-X, and CGI's HTTP_ is taken off more than once by some.
var takenOff = []string{"grpc_metadata_", "http_", "x_amzn_remapped_"}

// Names a policy may neither set nor map to.
var forbiddenNames = []string{
	"Connection", "Keep-Alive", "Te", "Trailer", "Transfer-Encoding", "Upgrade", "Proxy-Connection", "Proxy-Authenticate", "Proxy-Authorization",
	"Content-Length", "Content-Type", "Host", "Cookie", "Authorization", "Expect",
}

// Mapping adds a header that carries one field of the identity.
type Mapping struct {
	Header string
	Field  string // subject, method, credential_id, scopes, environment, issuer, client_id or meta.NAME
}

// Config is the identity_headers block.
type Config struct {
	Prefix string   // default X-Auth-
	Former []string // other prefixes that upstreams may still read: such names go too, but headers of credentials may have one
	Map    []Mapping
	Strip  []string // more names to remove; a trailing * makes a prefix
	Keep   []string // names of other gateways' headers that pass
}

// field reads one field of an identity.
type field func(*auth.Identity) string

type header struct {
	name  string // canonical
	field field
	words bool // spaces stay as they are
}

// Policy is a compiled Config.
type Policy struct {
	headers []header
	prefix  string
	exact   map[string]bool // folded names to remove; true: they are ours
	own     []string        // folded prefixes to remove that are ours
	former  []string        // and that were
	foreign []string        // and others
	keep    map[string]bool // folded
	begins  [256]uint64     // by the first byte of names to remove: their second bytes, mod 64
}

func fields() []header {
	return []header{
		{name: "Subject", field: func(id *auth.Identity) string { return id.Subject }},
		{name: "Method", field: func(id *auth.Identity) string { return string(id.Method) }},
		{name: "Credential-Id", field: func(id *auth.Identity) string { return id.CredentialID }},
		{name: "Scopes", field: func(id *auth.Identity) string { return id.Scopes }, words: true},
		{name: "Environment", field: func(id *auth.Identity) string { return id.Environment }},
		{name: "Issuer", field: func(id *auth.Identity) string { return id.Issuer }},
		{name: "Client-Id", field: func(id *auth.Identity) string { return id.ClientID }},
	}
}

// Compile checks a configuration. All that is wrong with it is in the error.
func Compile(c Config) (*Policy, error) {
	if c.Prefix == "" {
		c.Prefix = DefaultPrefix
	}
	p := &Policy{prefix: c.Prefix, exact: map[string]bool{}, keep: map[string]bool{}}
	var errs []error
	if !validName(c.Prefix) || !strings.HasSuffix(c.Prefix, "-") || len(c.Prefix) < 3 {
		errs = append(errs, auth.Invalidf("prefix %q: want a header name that ends in a hyphen", c.Prefix))
	}
	for _, h := range fields() {
		h.name = http.CanonicalHeaderKey(c.Prefix + h.name)
		p.headers = append(p.headers, h)
	}
	p.own = append(p.own, fold(c.Prefix))
	for _, former := range c.Former {
		p.former = append(p.former, fold(former))
	}
	for _, m := range c.Map {
		h, err := compileMapping(m)
		if err != nil {
			errs = append(errs, err)
			continue
		}
		p.headers = append(p.headers, h)
		p.exact[fold(h.name)] = true
	}
	errs = append(errs, p.compileKeep(c)...)
	for _, s := range c.Strip {
		errs = append(errs, p.remove(s, true))
	}
	for _, s := range foreignHeaders {
		errs = append(errs, p.remove(s, false))
	}
	for n := range p.exact {
		p.markBeginning(n)
	}
	for _, n := range slices.Concat(p.own, p.former, p.foreign, takenOff) {
		p.markBeginning(n)
	}
	return p, errors.Join(errs...)
}

// remove adds a name, or the beginning of names, to those that are removed.
func (p *Policy) remove(s string, own bool) error {
	name, isPrefix := strings.CutSuffix(s, "*")
	switch f := fold(name); {
	case !validName(name) || isPrefix && len(name) < 3:
		return auth.Invalidf("strip %q: want a header name, or the beginning of one and a star", s)
	case isPrefix && own:
		p.own = append(p.own, f)
	case isPrefix:
		p.foreign = append(p.foreign, f)
	default:
		p.exact[f] = own || p.exact[f]
	}
	return nil
}

// markBeginning marks the first two bytes of every spelling of a folded name.
func (p *Policy) markBeginning(folded string) {
	second := ^uint64(0)
	if len(folded) > 1 {
		second = 0
		for b := range 256 {
			if auth.AppendFolded(nil, string([]byte{byte(b)}))[0] == folded[1] {
				second |= 1 << (b & 63)
			}
		}
	}
	for b := range p.begins {
		if auth.AppendFolded(nil, string([]byte{byte(b)}))[0] == folded[0] {
			p.begins[b] |= second
		}
	}
}

// dismisses reports whether no spelling of anything to remove begins as a name
// does: most headers of most requests.
func (p *Policy) dismisses(name string) bool {
	seconds := p.begins[name[0]]
	return seconds == 0 || len(name) > 1 && seconds&(1<<(name[1]&63)) == 0
}

func compileMapping(m Mapping) (header, error) {
	name := http.CanonicalHeaderKey(m.Header)
	if !validName(m.Header) || slices.Contains(forbiddenNames, name) {
		return header{}, auth.Invalidf("map %q: not a header name that may carry an identity", m.Header)
	}
	if meta, ok := strings.CutPrefix(m.Field, "meta."); ok && meta != "" {
		return header{name: name, field: func(id *auth.Identity) string { return id.MetaValue(meta) }}, nil
	}
	var known []string
	for _, h := range fields() {
		f := strings.ToLower(strings.ReplaceAll(h.name, "-", "_"))
		if f == m.Field {
			h.name = name
			return h, nil
		}
		known = append(known, f)
	}
	return header{}, auth.Invalidf("map %s %q: no such field; the fields are %s and meta.NAME", m.Header, m.Field, strings.Join(known, ", "))
}

func (p *Policy) compileKeep(c Config) []error {
	var errs []error
	for _, k := range c.Keep {
		f := fold(k)
		if !validName(k) {
			errs = append(errs, auth.Invalidf("keep %q: not a header name", k))
			continue
		}
		// Nothing of ours may be kept: a client could then choose it.
		if strings.HasPrefix(f, fold(c.Prefix)) || p.exact[f] {
			errs = append(errs, auth.Invalidf("keep %q: the gateway sets this header itself", k))
			continue
		}
		p.keep[f] = true
	}
	return errs
}

// Exempt keeps headers that carry credentials on a site, although a header of
// others has such a name. Call it before the policy is used.
func (p *Policy) Exempt(names ...string) {
	for _, name := range names {
		if !p.Claims(name) {
			p.keep[fold(name)] = true
		}
	}
}

// Same reports whether two policies remove the same headers as their own.
func (p *Policy) Same(o *Policy) bool {
	own := func(p *Policy) map[string]bool {
		names := maps.Clone(p.exact)
		maps.DeleteFunc(names, func(_ string, own bool) bool { return !own })
		return names
	}
	return slices.Equal(p.own, o.own) && slices.Equal(p.former, o.former) && maps.Equal(own(p), own(o)) && maps.Equal(p.keep, o.keep)
}

// Names returns the canonical names of the headers the policy sets.
func (p *Policy) Names() []string {
	var out []string
	for _, h := range p.headers {
		out = append(out, h.name)
	}
	return out
}

// Prefix is what the names of identity headers begin with.
func (p *Policy) Prefix() string { return p.prefix }

// AssertionHeader is the canonical name of the header for signed assertions,
// which the policy removes from requests like its own.
func (p *Policy) AssertionHeader() string { return http.CanonicalHeaderKey(p.prefix + "Assertion") }

// Claims reports whether the policy sets a header of that name, or was told to
// strip it.
func (p *Policy) Claims(name string) bool {
	folded := auth.AppendFolded(nil, name)
	return len(folded) > 0 && !p.keep[string(folded)] && (p.exact[string(folded)] || hasPrefix(folded, p.own))
}

const maxFold = 96

// removes reports whether a header is removed whose name, folded, is this one,
// or becomes one to remove when an upstream takes its beginning off.
func (p *Policy) removes(folded []byte) bool {
	for {
		if p.removesName(folded) {
			return true
		}
		rest := takeOff(folded)
		if len(rest) == len(folded) {
			return false
		}
		folded = rest
	}
}

func (p *Policy) removesName(folded []byte) bool {
	if p.ownName(folded) {
		return true
	}
	if len(folded) == 0 || p.keep[string(folded)] {
		return false
	}
	_, there := p.exact[string(folded)]
	return there || hasPrefix(folded, p.foreign)
}

// ownName reports whether a folded name is one of a header that the policy sets
// or was told to strip.
func (p *Policy) ownName(folded []byte) bool {
	if len(folded) == 0 || p.keep[string(folded)] {
		return false
	}
	return p.exact[string(folded)] || hasPrefix(folded, p.own) || hasPrefix(folded, p.former)
}

func hasPrefix(folded []byte, prefixes []string) bool {
	for _, prefix := range prefixes {
		if len(folded) >= len(prefix) && string(folded[:len(prefix)]) == prefix {
			return true
		}
	}
	return false
}

// takeOff returns a folded name without the first of takenOff that it begins
// with; all of it, if it begins with none.
func takeOff(folded []byte) []byte {
	for _, prefix := range takenOff {
		if len(folded) > len(prefix) && string(folded[:len(prefix)]) == prefix {
			return folded[len(prefix):]
		}
	}
	return folded
}

func fold(name string) string { return string(auth.AppendFolded(nil, name)) }

func validName(s string) bool {
	if s == "" || len(s) > maxFold {
		return false
	}
	for i := range len(s) {
		c := s[i]
		if (c < '0' || c > '9') && (c|0x20 < 'a' || c|0x20 > 'z') && c != '-' && c != '_' {
			return false
		}
	}
	return true
}
