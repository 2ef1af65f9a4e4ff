package verifier

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/caddy-auth/caddy-auth/internal/auth"
	"github.com/caddy-auth/caddy-auth/internal/fetch"
	"github.com/caddy-auth/caddy-auth/internal/jwt"
	"github.com/caddy-auth/caddy-auth/internal/strictjson"
)

// Defaults of an issuer.
const (
	DefaultLeeway           = time.Minute
	mostLeeway              = 5 * time.Minute
	DefaultMaxTokenLifetime = 24 * time.Hour
)

// IssuerRules say whose tokens are taken and what they must be. The digest of
// all of it is in what is cached.
type IssuerRules struct {
	Name             string // [A-Za-z0-9][A-Za-z0-9._-]{0,63}
	URL              string // iss, to the last character; empty: see KeysURL
	KeysURL          string // empty: as URL says. Without URL, iss is a parent of it
	Audiences        []string
	AudienceClaim    string   // default: aud
	Algorithms       []string // default: jwt.DefaultAlgorithms
	TokenType        string   // of typ; empty: any that access tokens have
	Leeway           time.Duration
	MaxTokenLifetime time.Duration
	Identity         ClaimRules
}

// KeySet has an issuer's keys. Errors: auth.ErrNotFound, when there is no such
// key; anything else: that can't be told.
type KeySet interface {
	Key(ctx context.Context, kid, alg string, issued time.Time) (*jwt.Key, error)
}

// Issuer judges the tokens of one issuer. It is immutable.
type Issuer struct {
	rules  IssuerRules
	names  []string // the values of iss
	keys   KeySet
	source auth.Source
}

// NewIssuer compiles rules. All that is wrong with them is in the error.
func NewIssuer(r IssuerRules, keys KeySet) (*Issuer, error) {
	if len(r.Algorithms) == 0 {
		r.Algorithms = jwt.DefaultAlgorithms()
	}
	if r.AudienceClaim == "" {
		r.AudienceClaim = "aud"
	}
	if r.Leeway == 0 {
		r.Leeway = DefaultLeeway
	}
	if r.MaxTokenLifetime == 0 {
		r.MaxTokenLifetime = DefaultMaxTokenLifetime
	}
	i := &Issuer{rules: r, keys: keys, source: sourceOf("issuer", r)}
	return i, errors.Join(append(i.check(), i.readNames())...)
}

func (i *Issuer) check() (errs []error) {
	r := &i.rules
	errs = append(errs, CheckIssuerName(r.Name), r.Identity.Check())
	if len(r.Audiences) == 0 {
		errs = append(errs, auth.WithHint(auth.Invalidf("no audience: tokens that this issuer made for others would be good here"), "name what tokens for this API have as aud"))
	}
	if slices.Contains(r.Audiences, "") {
		errs = append(errs, auth.Invalidf("an empty audience"))
	}
	for _, name := range r.Algorithms {
		errs = append(errs, jwt.CheckAlgorithm(name))
	}
	if r.Leeway < 0 || r.Leeway > mostLeeway {
		errs = append(errs, auth.Invalidf("leeway %s: want at most %s", r.Leeway, mostLeeway))
	}
	if r.MaxTokenLifetime < 0 || r.MaxTokenLifetime > auth.MostTokenLifetime {
		errs = append(errs, auth.Invalidf("max_token_lifetime %s: want at most %s", r.MaxTokenLifetime, auth.MostTokenLifetime))
	}
	return errs
}

// readNames sets the values of iss. Without a URL the keys' place says who may
// speak with them: the parents of their URL.
func (i *Issuer) readNames() error {
	r := &i.rules
	if r.KeysURL != "" {
		if err := fetch.CheckURL(r.KeysURL); err != nil {
			return fmt.Errorf("jwks: %w", err)
		}
	}
	switch {
	case r.URL == "" && r.KeysURL == "":
		return auth.Invalidf("neither url nor jwks")
	case r.URL != "" && r.KeysURL == "":
		if err := fetch.CheckURL(r.URL); err != nil {
			return fmt.Errorf("url: %w", err)
		}
		if strings.Contains(r.URL, "?") { // RFC 8414, 2
			return auth.Invalidf("url: an issuer has no query")
		}
		fallthrough
	case r.URL != "":
		i.names = []string{r.URL}
		return nil
	}
	u, err := url.Parse(r.KeysURL)
	if err != nil {
		return auth.Invalidf("jwks: want a URL")
	}
	base := u.Scheme + "://" + u.Host
	i.names = []string{base, base + "/"}
	parts := strings.Split(strings.Trim(u.EscapedPath(), "/"), "/")
	for _, part := range parts[:len(parts)-1] {
		base += "/" + part
		i.names = append(i.names, base, base+"/")
	}
	return nil
}

// Name is the issuer's name in the configuration.
func (i *Issuer) Name() string { return i.rules.Name }

// CheckIssuerName says what is wrong with the name of an issuer.
func CheckIssuerName(name string) error { return CheckName("issuer", name) }

// CheckName says what is wrong with the name that a configuration gives to
// something.
func CheckName(what, name string) error {
	good := len(name) > 0 && len(name) <= 64
	for i := range len(name) {
		c := name[i]
		good = good && (auth.IsBase62(c) || i > 0 && (c == '-' || c == '_' || c == '.'))
	}
	if !good {
		return auth.Invalidf("%s name %q: want a letter or digit, then up to 63 letters, digits, dots, - or _", what, name)
	}
	return nil
}

// judge decides on a token, first by what it says of itself, which costs
// nothing, then by its signature. Nothing in it is believed before that; then
// it becomes an identity.
func (i *Issuer) judge(ctx context.Context, t *jwt.Token, now time.Time, cut *CutOffs) auth.Verdict {
	denied := func(r auth.Reason) auth.Verdict {
		return auth.Verdict{Outcome: auth.Deny, Reason: r, Source: i.source, Identity: auth.Identity{Method: auth.MethodJWT, Issuer: i.rules.Name}}
	}
	if r := i.judgeForm(t); r != auth.ReasonNone {
		return denied(r)
	}
	times, r := i.judgeTimes(t.Claims, now)
	if r != auth.ReasonNone {
		return denied(r)
	}
	key, err := i.keys.Key(ctx, t.KeyID, t.Algorithm, time.UnixMilli(times.issued))
	switch {
	case errors.Is(err, auth.ErrNotFound):
		return denied(auth.ReasonKeyID)
	case err != nil:
		return auth.Undecided(fmt.Errorf("the keys of issuer %s: %w", i.rules.Name, err))
	}
	if r := t.Verify(key, i.rules.Algorithms); r != auth.ReasonNone {
		return denied(r)
	}
	id := auth.Identity{Method: auth.MethodJWT, Issuer: i.rules.Name, IssuedAt: uint32(times.issued / 1000), NotAfter: times.expires + i.rules.Leeway.Milliseconds()}
	subject, r := i.rules.Identity.Read(&id, t.Claims)
	if r != auth.ReasonNone {
		return denied(r)
	}
	return judgeCut(auth.Verdict{Outcome: auth.Allow, Source: i.source, Identity: id}, cut, subject)
}

// judgeCut denies what was cut off.
func judgeCut(v auth.Verdict, cut *CutOffs, subject string) auth.Verdict {
	if cut == nil {
		return auth.Undecided(errCutOffs)
	}
	if id := &v.Identity; cut.Cut(id.Issuer, subject, id.CredentialID, id.IssuedAt) {
		v.Outcome, v.Reason = auth.Deny, auth.ReasonRevoked
	}
	return v
}

// judgeForm looks at what a token is for: its typ and algorithm, whom it is
// meant for, and what only other kinds of tokens have.
func (i *Issuer) judgeForm(t *jwt.Token) auth.Reason {
	if !slices.Contains(i.rules.Algorithms, jwt.Canonical(t.Algorithm)) {
		return auth.ReasonAlgorithm
	}
	switch want := i.rules.TokenType; {
	case want != "": // RFC 8725, 3.11; RFC 9068, 4
		if !t.IsType(want) {
			return auth.ReasonTokenType
		}
	case t.Type != "" && !t.IsType("JWT") && !t.IsType("at+jwt"):
		return auth.ReasonTokenType
	}
	if otherToken(t.Claims) {
		return auth.ReasonTokenType
	}
	audiences, ok := t.Claims.Words(i.rules.AudienceClaim)
	if !ok {
		return auth.ReasonClaims
	}
	if !slices.ContainsFunc(audiences, func(a string) bool { return slices.Contains(i.rules.Audiences, a) }) { // RFC 7519, 4.1.3
		return auth.ReasonAudience
	}
	if _, bound := t.Claims["cnf"]; bound { // RFC 7800: it needs a proof that is not asked for here
		return auth.ReasonBound
	}
	return auth.ReasonNone
}

// otherToken reports whether claims are those of an ID token, a logout or
// another event, or a refresh token: the issuer signs them with the same keys
// (RFC 8725, 3.12).
func otherToken(claims strictjson.Object) bool {
	for _, name := range []string{"at_hash", "c_hash", "s_hash"} {
		if _, there := claims[name]; there {
			return true
		}
	}
	events, _ := claims["events"].(strictjson.Object) // RFC 8417, 2.2
	for name := range events {
		if strings.HasPrefix(name, "http://schemas.openid.net/") || strings.HasPrefix(name, "https://schemas.openid.net/") {
			return true
		}
	}
	// What some issuers say besides typ in the header.
	if use, _ := claims.Text("token_use"); use != "" && !strings.HasPrefix(use, "access") {
		return true
	}
	switch typ, _ := claims.Text("typ"); strings.ToLower(typ) {
	case "id", "refresh", "offline", "logout":
		return true
	}
	return false
}

// tokenTimes are in unix milliseconds.
type tokenTimes struct{ issued, expires int64 }

// judgeTimes looks at exp, nbf and iat (RFC 7519, 4.1.4 to 4.1.6). A token that
// does not say when it was issued, or that lives longer than cut-offs are kept,
// could not be ended.
func (i *Issuer) judgeTimes(claims strictjson.Object, now time.Time) (t tokenTimes, r auth.Reason) {
	expires, hasExp, ok1 := claims.Date("exp")
	begins, _, ok2 := claims.Date("nbf")
	issued, hasIat, ok3 := claims.Date("iat")
	leeway, at := i.rules.Leeway.Milliseconds(), now.UnixMilli()
	switch {
	case !ok1 || !ok2 || !ok3 || !hasExp:
		return t, auth.ReasonClaims
	case at >= expires+leeway:
		return t, auth.ReasonExpired
	case !hasIat, expires-issued > i.rules.MaxTokenLifetime.Milliseconds():
		return t, auth.ReasonLifetime
	case begins > at+leeway, issued > at+leeway:
		return t, auth.ReasonNotYet
	}
	return tokenTimes{issued, expires}, auth.ReasonNone
}
