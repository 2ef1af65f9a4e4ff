package verifier

import (
	"errors"
	"fmt"
	"net/http"
	"net/netip"
	"slices"
	"strings"

	"github.com/caddy-auth/caddy-auth/internal/auth"
	"github.com/caddy-auth/caddy-auth/internal/redact"
	"github.com/caddy-auth/caddy-auth/internal/secret"
	"github.com/caddy-auth/caddy-auth/internal/urlpath"
)

// AnyEnvironment opens a site to credentials of every environment.
const AnyEnvironment = "any"

// SiteRules are one site's rules, as configured. The zero value is the
// strictest site: everything protected, live credentials only.
type SiteRules struct {
	Public         []PathRule
	Environments   []string // none: live
	Accept         []auth.Method
	Issuers        []string // whose tokens pass; none: everybody's. Keys of our own are not concerned
	RequireScopes  []string
	Query          redact.Rules
	AllowAmbiguous bool
	PreflightPass  bool
	Optional       bool
}

// Site judges requests and identities by one site's rules. It is immutable.
type Site struct {
	rules   SiteRules
	scanner *redact.Scanner
}

// NewSite compiles rules. All that is wrong with them is in the error.
func NewSite(r SiteRules) (*Site, error) {
	var errs []error
	for _, p := range r.Public {
		if err := p.Validate(); err != nil {
			errs = append(errs, fmt.Errorf("public: %w", err))
		}
	}
	for _, m := range r.Accept {
		if !slices.Contains(auth.Methods(), m) {
			errs = append(errs, auth.Invalidf("accept: unknown method %q", m))
		}
	}
	for _, s := range r.RequireScopes {
		if err := auth.CheckNewScope(s); err != nil {
			errs = append(errs, fmt.Errorf("require_scope: %w", err))
		}
	}
	if slices.Contains(r.Environments, AnyEnvironment) && len(r.Environments) > 1 {
		errs = append(errs, auth.Invalidf("environment: any stands alone"))
	}
	for _, name := range r.Environments {
		if err := secret.CheckEnvironment(name); err != nil && name != AnyEnvironment {
			errs = append(errs, fmt.Errorf("environment: %w", err))
		}
	}
	return &Site{rules: r, scanner: redact.NewScanner(r.Query)}, errors.Join(errs...)
}

// Target is what a site makes of a request's method and raw target, before
// any credential is looked at.
type Target struct {
	Refusal *auth.Refusal
	Public  bool
	Leaked  []string // texts shaped like our keys, to be burnt
}

// JudgeTarget scans a request's raw target and path. target is as the client
// sent it; preflight says it is a CORS preflight request; prefixes and imported
// say which keys there are.
func (s *Site) JudgeTarget(method, target string, preflight bool, prefixes []string, imported *auth.Imported) Target {
	if f := s.scanner.Scan(target, prefixes); f.What != redact.Nothing {
		return Target{Refusal: targetRefusal(f), Leaked: f.Keys}
	}
	if f := redact.ScanImported(target, imported); f.What != redact.Nothing {
		return Target{Refusal: targetRefusal(f), Leaked: f.Keys}
	}
	if oddMethod(method) {
		return Target{Refusal: invalid("the method has lower-case letters: methods are case-sensitive, send " + strings.ToUpper(printableToken(method)))}
	}
	parts, ok := redact.SplitTarget(target)
	if !ok { // the scan refused it already
		return Target{Refusal: targetRefusal(redact.Finding{What: redact.MalformedTarget})}
	}
	path := parts.Path
	if urlpath.Read(path) >= urlpath.Parameters && !s.rules.AllowAmbiguous {
		return Target{Refusal: invalid("the path can be read in more than one way: send it as UTF-8 without dot segments, empty segments, backslashes, semicolons, invalid or nested escapes, blanks at a segment's end and compatibility forms of ASCII characters")}
	}
	if MatchRules(s.rules.Public, method, path) || preflight && s.rules.PreflightPass {
		return Target{Public: true}
	}
	return Target{}
}

// WouldBePublic reports whether the site's public rules match another path
// than the one the client sent, to explain a refusal.
func (s *Site) WouldBePublic(method, path string) bool {
	return MatchRules(s.rules.Public, method, path)
}

func targetRefusal(f redact.Finding) *auth.Refusal {
	const advice = "a URL ends up in logs, histories and caches: send credentials in a header, and replace this one if it was real"
	r := &auth.Refusal{Code: auth.CodeCredentialInQuery}
	switch {
	case f.What == redact.MalformedTarget:
		return invalid("the request target is neither a path nor an http URL, or has user information or a fragment")
	case f.InPath:
		r.Detail = "a credential in the path; " + advice
	case f.Name != "":
		r.Detail = fmt.Sprintf("the query parameter %q holds a credential; %s", f.Name, advice)
	default:
		r.Detail = "a credential in the query; " + advice
	}
	return r
}

// JudgeIdentity applies the site's rules to a verified identity. It returns
// nil to let the request through. address is what networks are judged on; it
// is needed only for credentials bound to networks.
func (s *Site) JudgeIdentity(id *auth.Identity, address netip.Addr) *auth.Refusal {
	for i := range identityChecks {
		if r := s.check(i, id, address); r != nil {
			return r
		}
	}
	return nil
}

// ExplainIdentity tells what each check of JudgeIdentity says, under the name of
// what configures it, up to the first that refuses.
func (s *Site) ExplainIdentity(id *auth.Identity, address netip.Addr, tell func(rule string, r *auth.Refusal)) {
	for i := range identityChecks {
		r := s.check(i, id, address)
		if tell(identityChecks[i], r); r != nil {
			return
		}
	}
}

// identityChecks are what a site asks of an identity, in order.
var identityChecks = [...]string{"accept", "issuers", "environment", "networks", "require_scope"}

// check makes one of them. It is no table of functions, which would let every
// identity escape to the heap.
func (s *Site) check(i int, id *auth.Identity, address netip.Addr) *auth.Refusal {
	switch i {
	case 0:
		return s.judgeMethod(id)
	case 1:
		return s.judgeIssuer(id)
	case 2:
		return s.judgeEnvironment(id)
	case 3:
		return judgeNetworks(id.Networks, address)
	}
	return s.judgeScopes(id)
}

func (s *Site) judgeMethod(id *auth.Identity) *auth.Refusal {
	if len(s.rules.Accept) > 0 && !slices.Contains(s.rules.Accept, id.Method) {
		return &auth.Refusal{Code: auth.CodeNotAllowed, Detail: fmt.Sprintf("this site does not accept credentials of the method %s", id.Method), Reason: "method"}
	}
	return nil
}

func (s *Site) judgeIssuer(id *auth.Identity) *auth.Refusal {
	if len(s.rules.Issuers) > 0 && id.Issuer != "" && !slices.Contains(s.rules.Issuers, id.Issuer) {
		return &auth.Refusal{Code: auth.CodeNotAllowed, Detail: fmt.Sprintf("this site does not accept tokens of the issuer %s", id.Issuer), Reason: "issuer"}
	}
	return nil
}

func (s *Site) judgeEnvironment(id *auth.Identity) *auth.Refusal {
	if !s.acceptsEnvironment(id.Environment) {
		want := auth.EnvironmentLive
		if len(s.rules.Environments) > 0 {
			want = strings.Join(s.rules.Environments, " or ")
		}
		return &auth.Refusal{Code: auth.CodeWrongEnvironment, Detail: fmt.Sprintf("the credential is of the environment %s, this site takes %s", id.Environment, want)}
	}
	return nil
}

func (s *Site) judgeScopes(id *auth.Identity) *auth.Refusal {
	for _, scope := range s.rules.RequireScopes {
		if !id.HasScope(scope) {
			return missingScopes(id, s.rules.RequireScopes)
		}
	}
	return nil
}

func (s *Site) acceptsEnvironment(env string) bool {
	if len(s.rules.Environments) == 0 {
		return env == auth.EnvironmentLive
	}
	return s.rules.Environments[0] == AnyEnvironment || slices.Contains(s.rules.Environments, env)
}

func missingScopes(id *auth.Identity, want []string) *auth.Refusal {
	var missing []string
	for _, w := range want {
		if !id.HasScope(w) {
			missing = append(missing, w)
		}
	}
	return &auth.Refusal{
		Code:   auth.CodeInsufficientScope,
		Detail: "the credential lacks: " + strings.Join(missing, " "),
		Scopes: strings.Join(want, " "),
	}
}

// judgeNetworks fails closed: no address, or a prefix that can't be read,
// lets nobody in.
func judgeNetworks(networks string, addr netip.Addr) *auth.Refusal {
	if networks == "" {
		return nil
	}
	if !addr.IsValid() {
		return &auth.Refusal{Code: auth.CodeNetworkNotAllowed, Detail: "the credential is bound to networks and the client's address is not known"}
	}
	if auth.InNetworks(networks, addr) {
		return nil
	}
	return &auth.Refusal{Code: auth.CodeNetworkNotAllowed, Detail: "the credential may not be used from " + addr.Unmap().WithZone("").String()}
}

// IsPreflight reports whether a request is a CORS preflight (Fetch, 3.2.2).
func IsPreflight(method string, h http.Header) bool {
	return method == http.MethodOptions && len(h["Origin"]) > 0 && len(h["Access-Control-Request-Method"]) > 0
}

// SafeMethod reports whether a request's method promises to change nothing, so
// that it may be replayed (RFC 9110, 9.2.1).
func SafeMethod(method string) bool {
	switch method {
	case http.MethodGet, http.MethodHead, http.MethodOptions, http.MethodTrace:
		return true
	}
	return false
}

// TooEarlyRefusal is the answer to early data that could be a replay
// (RFC 8470, 5.2).
func TooEarlyRefusal() *auth.Refusal {
	return &auth.Refusal{Code: auth.CodeTooEarly, Detail: "the request came as TLS early data, which anybody could replay: send it again when the handshake is complete"}
}

// DenialRefusal is what a client sees of a denied credential: one sentence
// for all reasons, so that nothing is learnt by trying.
func DenialRefusal(r auth.Reason) *auth.Refusal {
	return &auth.Refusal{
		Code:   auth.CodeInvalidCredential,
		Detail: "the credential is unknown, mistyped, expired, replaced, revoked or disabled",
		Reason: r.String(),
	}
}

// MissingRefusal is the answer to a request without a credential.
func (s *Sources) MissingRefusal() *auth.Refusal {
	return &auth.Refusal{Code: auth.CodeMissingCredential, Detail: "no credential: send " + s.advice}
}

// UndecidedRefusal is the answer when the store could not be asked. The cause
// goes to the log only.
func UndecidedRefusal(cause error) *auth.Refusal {
	r := &auth.Refusal{Code: auth.CodeUnavailable, Detail: "credentials can't be verified right now; this says nothing about yours, try again"}
	if cause != nil {
		r.Reason, r.Overloaded = cause.Error(), errors.Is(cause, auth.ErrOverloaded)
	}
	return r
}

func printableToken(s string) string {
	if auth.FieldName(s) && len(s) <= 32 {
		return s
	}
	return "it in upper case"
}
