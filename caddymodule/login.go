package caddymodule

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp"

	"github.com/caddy-auth/caddy-auth/internal/auth"
	"github.com/caddy-auth/caddy-auth/internal/fetch"
	"github.com/caddy-auth/caddy-auth/internal/grant"
	"github.com/caddy-auth/caddy-auth/internal/jwks"
	"github.com/caddy-auth/caddy-auth/internal/jwt"
	"github.com/caddy-auth/caddy-auth/internal/login"
	"github.com/caddy-auth/caddy-auth/internal/strictjson"
	"github.com/caddy-auth/caddy-auth/internal/verifier"
)

// LoginConfig says where people log in: an OpenID provider, which knows this
// gateway as a client, for the handler auth_login.
type LoginConfig struct {
	// The provider: what ID tokens have as iss, to the last character. Its
	// endpoints and keys are found by OpenID Connect Discovery. Required.
	Issuer string `json:"issuer,omitempty"`
	// The gateway's id there. Required.
	ClientID string `json:"client_id,omitempty"`
	// The client's secret or, for private_key_jwt, its private key (PEM or JWK).
	// Use a placeholder: what stands here is shown by the admin API. {env.X} is
	// read once, {file.X} is watched.
	ClientSecret string `json:"client_secret,omitempty"`
	// A file with it, which is watched.
	ClientSecretFile string `json:"client_secret_file,omitempty"`
	// How the client says who it is: "basic" (the default), "post",
	// "private_key_jwt" or "none".
	Auth string `json:"auth,omitempty"`
	// The scopes that are asked for; openid always is. Default: openid.
	Scopes []string `json:"scopes,omitempty"`
	// More parameters of the authorization request, such as audience.
	Params map[string]string `json:"params,omitempty"`
	// What ID tokens are signed with. Default: RS256 PS256 ES256 ES384 EdDSA.
	Algorithms []string `json:"algorithms,omitempty"`
	// How long the provider may take to answer. Default: 5s.
	Timeout caddy.Duration `json:"timeout,omitempty"`

	// The redirect URI, as the provider knows it: a path on every host that has
	// the login, or a whole URL. Default: /auth/callback.
	Redirect string `json:"redirect,omitempty"`
	// Where a sign-in begins, with ?return=/path. Default: /auth/login.
	SignInPath string `json:"sign_in_path,omitempty"`
	// Where people log out. Default: /auth/logout.
	LogoutPath string `json:"logout_path,omitempty"`
	// Where the provider says that somebody logged out elsewhere. Default:
	// /auth/backchannel-logout.
	BackChannelPath string `json:"backchannel_path,omitempty"`
	// Where the provider sends people after they logged out, as it knows it: a
	// path or a whole URL. Default: the logout path.
	AfterLogout string `json:"after_logout,omitempty"`

	// How long a session lasts that is not used. Default: 1h.
	Idle caddy.Duration `json:"idle,omitempty"`
	// How long a session lasts. Default: 12h, at most 2160h.
	Lifetime caddy.Duration `json:"lifetime,omitempty"`
	// Other origins whose pages may change things with a session.
	TrustedOrigins []string `json:"trusted_origins,omitempty"`
	// A directory with templates of the pages that people see.
	Templates string `json:"templates,omitempty"`

	ClaimConfig
}

// Defaults of a login's paths.
const (
	defaultRedirect    = "/auth/callback"
	defaultSignIn      = "/auth/login"
	defaultLogout      = "/auth/logout"
	defaultBackChannel = "/auth/backchannel-logout"
)

// ownParams are parameters of the authorization request that are ours to set.
var ownParams = []string{
	"response_type", "response_mode", "max_age", "client_id", "redirect_uri", "scope", "state", "nonce", "code_challenge", "code_challenge_method", "request", "request_uri", "client_secret",
}

// withDefaults returns a copy with its placeholders replaced, and every default.
func (c *LoginConfig) withDefaults() (*LoginConfig, error) {
	out := *c
	if m := wholeFile.FindStringSubmatch(out.ClientSecret); m != nil {
		out.ClientSecret, out.ClientSecretFile = "", m[1]
	}
	out.Redirect = cmp.Or(out.Redirect, defaultRedirect)
	out.SignInPath, out.LogoutPath = cmp.Or(out.SignInPath, defaultSignIn), cmp.Or(out.LogoutPath, defaultLogout)
	out.BackChannelPath, out.AfterLogout = cmp.Or(out.BackChannelPath, defaultBackChannel), cmp.Or(out.AfterLogout, out.LogoutPath)
	out.Idle, out.Lifetime = cmp.Or(out.Idle, caddy.Duration(login.DefaultIdle)), cmp.Or(out.Lifetime, caddy.Duration(login.DefaultLifetime))
	var errs []error
	for name, text := range map[string]*string{
		"issuer": &out.Issuer, "client_id": &out.ClientID, "client_secret": &out.ClientSecret, "client_secret's file": &out.ClientSecretFile, "redirect": &out.Redirect,
		"after_logout": &out.AfterLogout, "templates": &out.Templates,
	} {
		var err error
		*text, err = expanded(*text)
		errs = append(errs, wrapIf(name, err))
	}
	if !slices.Contains(out.Scopes, "openid") { // OpenID Connect Core, 3.1.2.1
		out.Scopes = append([]string{"openid"}, out.Scopes...)
	}
	if len(out.Algorithms) == 0 {
		out.Algorithms = jwt.DefaultAlgorithms()
	}
	return &out, errors.Join(errs...)
}

// check says what is wrong with a configuration that has its defaults.
func (c *LoginConfig) check(name string) error {
	errs := []error{
		verifier.CheckName("login", name), wrapIf("issuer", fetch.CheckURL(c.Issuer)), oneOf("auth", c.Auth, "", grant.AuthBasic, grant.AuthPost, grant.AuthPrivateKeyJWT, grant.AuthNone),
	}
	add := func(format string, args ...any) { errs = append(errs, fmt.Errorf(format, args...)) }
	if strings.Contains(c.Issuer, "?") {
		add("issuer: an issuer has no query")
	}
	if c.ClientID == "" {
		add("no client_id: the provider gives one to this gateway when it is registered there")
	}
	if secret := c.ClientSecret + c.ClientSecretFile; (c.Auth == grant.AuthNone) != (secret == "") || c.ClientSecret != "" && c.ClientSecretFile != "" {
		add("want one client_secret, as a value or a file; or auth none for a client without one")
	}
	for _, s := range c.Scopes {
		errs = append(errs, auth.CheckScope(s))
	}
	for param := range c.Params {
		if slices.Contains(ownParams, param) {
			add("param %s: the gateway sets it", param)
		}
	}
	for _, name := range c.Algorithms {
		errs = append(errs, jwt.CheckAlgorithm(name))
	}
	if c.Timeout < 0 || time.Duration(c.Timeout) > 10*time.Second {
		add("timeout %s: want at most 10s", time.Duration(c.Timeout))
	}
	if c.Idle < caddy.Duration(time.Second) || c.Lifetime < c.Idle || time.Duration(c.Lifetime) > login.MostLifetime {
		add("idle %s and lifetime %s: want idle of a second or more, a lifetime that is no shorter, and at most %s", time.Duration(c.Idle), time.Duration(c.Lifetime), login.MostLifetime)
	}
	return errors.Join(append(errs, c.checkPaths()...)...)
}

func (c *LoginConfig) checkPaths() (errs []error) {
	seen := map[string]string{}
	for _, p := range [][2]string{{"redirect", pathOf(c.Redirect)}, {"sign_in_path", c.SignInPath}, {"logout_path", c.LogoutPath}, {"backchannel_path", c.BackChannelPath}} {
		name, path := p[0], p[1]
		if !login.SafeReturn(path) || strings.ContainsAny(path, "?%;*{") || path == "/" {
			errs = append(errs, fmt.Errorf("%s %q: want a plain path such as /auth/x", name, path))
		}
		if other := seen[path]; other != "" {
			errs = append(errs, fmt.Errorf("%s and %s are the same path", other, name))
		}
		seen[path] = name
	}
	for name, place := range map[string]string{"redirect": c.Redirect, "after_logout": c.AfterLogout} {
		if !strings.HasPrefix(place, "/") {
			errs = append(errs, wrapIf(name, fetch.CheckURL(place)))
		} else if !login.SafeReturn(place) {
			errs = append(errs, fmt.Errorf("%s %q: want a path or a URL", name, place))
		}
	}
	return errs
}

// judgement is what a session under this configuration hangs on. The scopes that
// are asked for count where they become the session's; other parameters of the
// request, and names that raw subjects may not begin with, don't.
func (c *LoginConfig) judgement(claims verifier.ClaimRules) login.Judgement {
	j := login.Judgement{
		Issuer: c.Issuer, ClientID: c.ClientID, Algorithms: c.Algorithms, Subject: cmp.Or(claims.SubjectClaim, "sub"), Raw: claims.RawSubject, ScopeClaim: claims.ScopeClaim,
		Env: cmp.Or(claims.Environment, auth.EnvironmentLive), Meta: claims.MetaClaims,
	}
	if claims.ScopeClaim == "" {
		j.Scopes = c.Scopes
	}
	for _, rule := range claims.Required {
		j.Required = append(j.Required, login.ClaimRule{Claim: rule.Name, Values: rule.Values})
	}
	return j
}

// pathOf is the path of a place that may be a whole URL.
func pathOf(place string) string {
	if strings.HasPrefix(place, "/") {
		return place
	}
	u, err := url.Parse(place)
	if err != nil {
		return ""
	}
	return u.EscapedPath()
}

// logins keeps what people's logins hold over reloads, by the runtime whose store
// the sessions are in.
var logins = caddy.NewUsagePool()

type loginKey struct {
	rt  *runtime
	sum [sha256.Size]byte
}

// signIns are the app's logins, and what they hold in the pools.
type signIns struct {
	byName   map[string]*signIn
	held     []loginKey
	heldSets []jwks.Config
	onServer map[*caddyhttp.Server][]*signIn // while handlers are provisioned
}

// provisionLogins compiles the logins. It opens no connection.
func (a *App) provisionLogins(backend Backend, masters []auth.Secret) error {
	a.signIns = &signIns{byName: map[string]*signIn{}}
	if _, keeps := backend.(keyKeeper); len(a.Login) > 0 && !keeps && len(masters) == 0 {
		return errors.New("login: a store that keeps no key of its own needs master_key, which seals people's tokens; make one with: openssl rand -base64 32")
	}
	var errs []error
	for _, name := range slices.Sorted(maps.Keys(a.Login)) {
		errs = append(errs, wrapIf("login "+name, a.provisionLogin(name, a.Login[name])))
	}
	return hintedIf(errors.Join(errs...))
}

func (a *App) provisionLogin(name string, c *LoginConfig) error {
	if c == nil {
		return errors.New("no configuration")
	}
	c, err := c.withDefaults()
	if err != nil {
		return err
	}
	claims, err := c.rules(a)
	if err := errors.Join(err, c.check(name), claims.Check(), a.checkLoginName(name, c)); err != nil {
		return err
	}
	same, err := login.NewSameOrigin(c.TrustedOrigins...)
	if err != nil {
		return fmt.Errorf("trusted_origins: %w", err)
	}
	pages, err := newPages(c.Templates)
	if err != nil {
		return fmt.Errorf("templates: %w", err)
	}
	text, err := json.Marshal(struct {
		Name string
		*LoginConfig
	}{name, c})
	if err != nil {
		return fmt.Errorf("comparing configurations: %w", err)
	}
	masker.AddCallback(pathOf(c.Redirect))
	keysOf := jwks.Config{Issuer: c.Issuer}
	v, _, err := keySets.LoadOrNew(keysOf, func() (caddy.Destructor, error) {
		client := fetch.New(keysTimeout, keysConns)
		return pooledKeys{jwks.New(keysOf, client), client}, nil
	})
	if err != nil {
		return err
	}
	a.signIns.heldSets = append(a.signIns.heldSets, keysOf)
	key := loginKey{a.rt, sha256.Sum256(text)}
	keys := v.(pooledKeys)
	v, _, err = logins.LoadOrNew(key, func() (caddy.Destructor, error) { return newLoginSource(name, c, claims, a.rt, keys) })
	if err != nil {
		return err
	}
	a.signIns.held = append(a.signIns.held, key)
	a.signIns.byName[name] = &signIn{LoginConfig: c, name: name, loginSource: v.(*loginSource), same: same, pages: pages}
	return nil
}

// checkLoginName refuses a name that an issuer of somebody else has: subjects
// could not be told apart.
func (a *App) checkLoginName(name string, c *LoginConfig) error {
	if err := notClient(name); err != nil {
		return err
	}
	if i := a.Issuers[name]; i != nil && i.URL != c.Issuer {
		return errors.New("an issuer with another url has that name too: subjects could not be told apart")
	}
	if _, twice := a.Introspection[name]; twice {
		return errors.New("an introspection has that name too: subjects could not be told apart")
	}
	return nil
}

// any reports whether there is a login at all.
func (s *signIns) any() bool { return s != nil && len(s.byName) > 0 }

// notClient refuses a name whose subjects would be those of OAuth clients.
func notClient(name string) error {
	if name == "client" {
		return errors.New("the name is reserved: subjects of OAuth clients begin with it")
	}
	return nil
}

// start lets the logins work.
func (s *signIns) start() {
	for _, one := range s.byName {
		one.start()
	}
}

// release gives back what the pools hold.
func (s *signIns) release() error {
	var errs []error
	for _, key := range s.held {
		_, err := logins.Delete(key)
		errs = append(errs, err)
	}
	for _, key := range s.heldSets {
		_, err := keySets.Delete(key)
		errs = append(errs, err)
	}
	s.held, s.heldSets = nil, nil
	return errors.Join(errs...)
}

// identify makes an identity of an ID token's claims. Scopes are those that were
// granted, unless a claim is said to have them.
func identify(name string, rules verifier.ClaimRules) func(strictjson.Object, []string) (auth.Identity, error) {
	return func(claims strictjson.Object, granted []string) (auth.Identity, error) {
		id := auth.Identity{Method: auth.MethodSession, Issuer: name}
		if rules.ScopeClaim == "" {
			claims = maps.Clone(claims)
			delete(claims, "scp")
			claims["scope"] = strings.Join(granted, " ")
		}
		if _, r := rules.Read(&id, claims); r != auth.ReasonNone {
			return id, auth.WithHint(auth.Invalidf("its claims are not what the login wants"), "see required_claims, subject_claim, scope_claim and meta_claims of login "+name)
		}
		return id, nil
	}
}

// marked is the store as login.Config's Once.
func marked(rt *runtime, name string) func(context.Context, string, []byte, time.Time) error {
	return func(ctx context.Context, kind string, hash []byte, until time.Time) error {
		return rt.useOnce(ctx, kind+":"+name, hash, until)
	}
}

// withoutLogins takes logins out of the names that a site's issuers has. If none
// is left of some, the site takes nobody's tokens.
func (a *App) withoutLogins(names []string) (issuers []string, onlyPeople bool) {
	for _, name := range names {
		_, isLogin := a.Login[name]
		_, isIssuer := a.Issuers[name]
		if !isLogin || isIssuer {
			issuers = append(issuers, name)
		}
	}
	return issuers, len(names) > 0 && len(issuers) == 0
}
