package caddymodule

import (
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"net/url"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/caddyserver/caddy/v2"
	"go.uber.org/zap"

	"github.com/caddy-auth/caddy-auth/internal/auth"
	"github.com/caddy-auth/caddy-auth/internal/fetch"
	"github.com/caddy-auth/caddy-auth/internal/forward"
	"github.com/caddy-auth/caddy-auth/internal/grant"
	"github.com/caddy-auth/caddy-auth/internal/outbound"
	"github.com/caddy-auth/caddy-auth/internal/redact"
	"github.com/caddy-auth/caddy-auth/internal/verifier"
)

// OutboundConfig is a credential of the gateway's own toward upstreams, for
// the transport auth_outbound: tokens that it gets as an OAuth client
// (RFC 6749, 4.4), or a header with a key.
type OutboundConfig struct {
	// Where tokens are got: https, or http on this machine.
	TokenURL string `json:"token_url,omitempty"`
	// The gateway's id there.
	ClientID string `json:"client_id,omitempty"`
	// The client's secret or, for private_key_jwt, its private key (PEM or JWK).
	// Use a placeholder: what stands here is shown by the admin API. {env.X} is
	// read once, {file.X} is watched.
	ClientSecret string `json:"client_secret,omitempty"`
	// A file with it, which is watched.
	ClientSecretFile string `json:"client_secret_file,omitempty"`
	// How the client says who it is: "basic" (the default), "post" or
	// "private_key_jwt".
	Auth string `json:"auth,omitempty"`
	// The private key's id there. Default: the JWK's own, none for PEM.
	KeyID string `json:"key_id,omitempty"`
	// What it signs with: RS256, PS256, ES256, ES384 or EdDSA. Default: the
	// JWK's own, else by the key; RS256 for RSA.
	Algorithm string `json:"algorithm,omitempty"`
	// Whom signed assertions are for. Default: token_url; some servers want their
	// issuer.
	AssertionAudience string `json:"assertion_audience,omitempty"`
	// The scopes that are asked for.
	Scopes []string `json:"scopes,omitempty"`
	// What the token is for, where the server wants to know.
	Audiences []string `json:"audiences,omitempty"`
	// The same as URIs (RFC 8707).
	Resources []string `json:"resources,omitempty"`
	// How long before its end a token is refreshed; at most half of its life.
	// Default: 1m.
	RefreshBefore caddy.Duration `json:"refresh_before,omitempty"`
	// How long the token endpoint may take to answer. Default: 5s.
	Timeout caddy.Duration `json:"timeout,omitempty"`

	// A key in a header, instead of all that.
	Header *OutboundHeader `json:"header,omitempty"`
}

// OutboundHeader is a key that the upstream wants in a header.
type OutboundHeader struct {
	// The header's name.
	Name string `json:"name,omitempty"`
	// What stands before the key, such as Bearer; a blank comes between.
	Prefix string `json:"prefix,omitempty"`
	// The key. Use a placeholder: what stands here is shown by the admin API.
	// {env.X} is read once, {file.X} is watched.
	Value string `json:"value,omitempty"`
	// A file with it, which is watched.
	File string `json:"file,omitempty"`
}

// outboundUser is what the credential of who is signed in is called.
const outboundUser = "user"

// ownCredentials are the app's outbounds, and what they hold in the pool.
type ownCredentials struct {
	sources map[string]*source
	held    []string
	started bool
}

// provisionOutbound compiles the outbounds. It reads the files of secrets and
// opens no connection.
func (a *App) provisionOutbound() error {
	a.outbound = &ownCredentials{sources: map[string]*source{}}
	var errs []error
	for _, name := range slices.Sorted(maps.Keys(a.Outbound)) {
		errs = append(errs, wrapIf("outbound "+name, a.provisionSource(name, a.Outbound[name])))
	}
	if err := errors.Join(errs...); err != nil {
		return hinted(err)
	}
	return nil
}

func (a *App) provisionSource(name string, c *OutboundConfig) error {
	if err := c.check(name); err != nil {
		return err
	}
	c, err := c.resolve()
	if err != nil {
		return err
	}
	if c.Header != nil {
		identity, err := forward.Compile((*IdentityHeaders)(nil).over(a.IdentityHeaders))
		if err != nil {
			return wrapIf("identity_headers", err)
		}
		if identity.Claims(c.Header.Name) {
			return fmt.Errorf("header %s would be taken for an identity header: upstreams trust those", c.Header.Name)
		}
		masker.AddHeaders(c.Header.Name)
	}
	text, err := json.Marshal(c)
	if err != nil {
		return fmt.Errorf("comparing configurations: %w", err)
	}
	sum := sha256.Sum256(text)
	key := name + " " + string(sum[:])
	v, _, err := outbounds.LoadOrNew(key, func() (caddy.Destructor, error) { return c.source(name) })
	if err != nil {
		return err
	}
	s := v.(*source)
	a.outbound.held = append(a.outbound.held, key)
	a.outbound.sources[name] = s
	if s.short && a.log != nil {
		a.log.Warn("the secret is too short to be masked where an upstream says it again", zap.String("outbound", name), zap.Int("want", redact.ShortestLiteral))
	}
	return nil
}

// check says what is wrong without reading anything.
func (c *OutboundConfig) check(name string) error {
	if err := verifier.CheckName("outbound", name); err != nil {
		return err
	}
	switch {
	case c == nil:
		return errors.New("no configuration")
	case name == outboundUser:
		return errors.New("the name is reserved for the tokens of who is logged in")
	case c.Header != nil && !reflect.DeepEqual(*c, OutboundConfig{Header: c.Header}):
		return errors.New("a header with a key has nothing beside it: want either that, or token_url and what belongs to it")
	case c.Header != nil:
		return c.Header.check()
	case c.TokenURL == "" || c.ClientID == "":
		return auth.WithHint(errors.New("want token_url, client_id and client_secret, or a header with a key"), "see docs/outbound.md")
	case fileInside(c.ClientSecret):
		return errors.New("client_secret has a {file.X} inside of a value, which would not be watched: write it alone")
	case (c.ClientSecret == "") == (c.ClientSecretFile == ""):
		return errors.New("want one client_secret, as a value or a file; with private_key_jwt it is a private_key")
	}
	signs := c.Auth == grant.AuthPrivateKeyJWT
	if !signs && (c.KeyID != "" || c.Algorithm != "" || c.AssertionAudience != "") {
		return errors.New("key_id, algorithm and assertion_audience are for auth private_key_jwt")
	}
	if c.RefreshBefore < 0 || c.Timeout < 0 || time.Duration(c.Timeout) > grant.MaxTimeout {
		return fmt.Errorf("refresh_before can't be negative, timeout is at most %s", grant.MaxTimeout)
	}
	for _, s := range c.Scopes {
		if err := auth.CheckScope(s); err != nil {
			return err
		}
	}
	return oneOf("auth", c.Auth, "", grant.AuthBasic, grant.AuthPost, grant.AuthPrivateKeyJWT)
}

func (h *OutboundHeader) check() error {
	if err := outbound.CheckHeader(h.Name); err != nil {
		return err
	}
	if strings.Contains(h.Prefix, "{") {
		return errors.New("header: placeholders are replaced in the key, not in what stands before it")
	}
	if fileInside(h.Value) {
		return errors.New("header: a {file.X} inside of a value would not be watched: write it alone, with the word before it as an argument of its own: header Authorization Bearer {file.X}")
	}
	if (h.Value == "") == (h.File == "") {
		return errors.New("header: want one key, as a value or a file")
	}
	if h.Prefix != "" {
		return wrapIf("header: what stands before the key", grant.CheckValue(h.Prefix))
	}
	return nil
}

// fileInside reports whether a value holds a file's content and something else.
func fileInside(value string) bool {
	return strings.Contains(value, "{file.") && !wholeFile.MatchString(value)
}

// wholeFile is a value that is the content of a file and nothing else.
var wholeFile = regexp.MustCompile(`^\{file\.([^{}]+)\}$`)

// resolve returns a copy with its placeholders replaced; a secret that is a
// whole file becomes that file.
func (c *OutboundConfig) resolve() (*OutboundConfig, error) {
	out := *c
	secret := func(value, file *string) {
		if m := wholeFile.FindStringSubmatch(*value); m != nil {
			*value, *file = "", m[1]
		}
	}
	texts := map[string]*string{"token_url": &out.TokenURL, "client_id": &out.ClientID, "assertion_audience": &out.AssertionAudience, "key_id": &out.KeyID}
	if c.Header != nil {
		h := *c.Header
		out.Header = &h
		secret(&h.Value, &h.File)
		texts["header"], texts["header's file"] = &h.Value, &h.File
	} else {
		secret(&out.ClientSecret, &out.ClientSecretFile)
		texts["client_secret"], texts["client_secret's file"] = &out.ClientSecret, &out.ClientSecretFile
	}
	var errs []error
	for _, name := range slices.Sorted(maps.Keys(texts)) {
		text, err := expanded(*texts[name])
		*texts[name] = text
		errs = append(errs, wrapIf(name, err))
	}
	for name, list := range map[string]*[]string{"audience": &out.Audiences, "resource": &out.Resources} {
		texts, err := expandedAll(*list)
		*list = texts
		errs = append(errs, wrapIf(name, err))
	}
	if c.Header == nil {
		errs = append(errs, wrapIf("token_url", fetch.CheckURL(out.TokenURL)))
		for _, text := range out.Resources { // RFC 8707, 2
			if u, err := url.Parse(text); err != nil || !u.IsAbs() || u.Fragment != "" || strings.ContainsAny(text, "# ") {
				errs = append(errs, fmt.Errorf("resource %q: want an absolute URI without a fragment", text))
			}
		}
	}
	return &out, errors.Join(errs...)
}

// source makes what a resolved configuration says.
func (c *OutboundConfig) source(name string) (*source, error) {
	s := &source{name: name, header: "Authorization"}
	value, file, what := c.ClientSecret, c.ClientSecretFile, "client_secret"
	check := grant.CheckClientSecret(c.Auth, c.key())
	if c.Header != nil {
		value, file, what, check = c.Header.Value, c.Header.File, "header", grant.CheckValue
	}
	var secret grant.Secret
	if file != "" {
		var err error
		if s.file, err = outbound.NewFile(file, check); err != nil {
			return nil, wrapIf(what, err)
		}
		secret = s.file
	} else {
		if err := check(value); err != nil {
			return nil, wrapIf(what, err)
		}
		secret = grant.Fixed(auth.NewSecret(value))
	}
	s.hidden.hideSecret(secret.Current())
	s.short = len(secret.Current().Reveal()) < redact.ShortestLiteral
	if c.Header != nil {
		s.header = http.CanonicalHeaderKey(c.Header.Name)
		prefix := c.Header.Prefix
		if prefix != "" {
			prefix += " "
		}
		s.Source = outbound.NewStatic(s.header, prefix, secret)
		return s, nil
	}
	var err error
	s.ask, err = grant.NewEndpoint(grant.Config{
		TokenURL: c.TokenURL, ClientID: c.ClientID, Auth: c.Auth, Secret: secret, Key: c.key(),
		Scopes: c.Scopes, Audiences: c.Audiences, Resources: c.Resources, Timeout: time.Duration(c.Timeout),
	})
	if err != nil {
		return nil, wrapIf(what, err)
	}
	s.tokens = outbound.NewTokens(s.ask, time.Duration(c.RefreshBefore))
	s.Source = s.tokens
	return s, nil
}

func (c *OutboundConfig) key() grant.KeyConfig {
	return grant.KeyConfig{ID: c.KeyID, Algorithm: c.Algorithm, Audience: c.AssertionAudience}
}

// start lets the sources work.
func (o *ownCredentials) start() {
	o.started = true
	for _, s := range o.sources {
		s.start()
		ownInUse.add(s)
	}
}

// release gives back what the pool holds.
func (o *ownCredentials) release() error {
	var errs []error
	if o.started {
		o.started = false
		for _, s := range o.sources {
			ownInUse.remove(s)
		}
	}
	for _, key := range o.held {
		_, err := outbounds.Delete(key)
		errs = append(errs, err)
	}
	o.held = nil
	return errors.Join(errs...)
}

// causeOf names why there is no token.
func causeOf(err error) string {
	var f *grant.Failure
	if errors.As(err, &f) {
		return string(f.Cause)
	}
	return ""
}
