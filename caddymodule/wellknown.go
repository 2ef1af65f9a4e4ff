package caddymodule

import (
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"time"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/caddyconfig/caddyfile"
	"github.com/caddyserver/caddy/v2/caddyconfig/httpcaddyfile"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp"

	"github.com/caddy-auth/caddy-auth/internal/oauth"
	"github.com/caddy-auth/caddy-auth/internal/verifier"
)

func init() {
	caddy.RegisterModule(WellKnown{})
	httpcaddyfile.RegisterHandlerDirective("auth_wellknown", parseWellKnown)
}

// WellKnown answers with the documents that tell clients and upstreams about
// this gateway, and lets every other request pass:
//
//   - /.well-known/oauth-authorization-server (RFC 8414), where token_endpoint
//     has an issuer
//   - /.well-known/oauth-protected-resource (RFC 9728), which challenges name
//   - /.well-known/jwks.json, the keys that assertions for upstreams are signed
//     with, where a site has them
type WellKnown struct {
	// What this gateway protects, as clients call it: URLs. Default: the issuer.
	// For one on another host this handler must be on that site too.
	Resources []string `json:"resources,omitempty"`

	app       *App
	answer    *Handler // refuses where the keys are not known
	documents map[string]func() (any, bool)
}

// CaddyModule returns the Caddy module information.
func (WellKnown) CaddyModule() caddy.ModuleInfo {
	return caddy.ModuleInfo{ID: "http.handlers.auth_wellknown", New: func() caddy.Module { return new(WellKnown) }}
}

// parseWellKnown sets up the handler from Caddyfile tokens. Syntax:
//
//	auth_wellknown [<matcher>] {
//		resource <urls...>
//	}
func parseWellKnown(h httpcaddyfile.Helper) (caddyhttp.MiddlewareHandler, error) {
	k := new(WellKnown)
	h.Next()
	if h.NextArg() {
		return nil, h.ArgErr()
	}
	return k, block(h.Dispenser, "auth_wellknown", map[string]func(*caddyfile.Dispenser) error{"resource": words(&k.Resources)})
}

// Provision collects the documents.
func (k *WellKnown) Provision(ctx caddy.Context) error {
	app, err := ctx.App("auth")
	if err != nil {
		return err
	}
	k.app = app.(*App)
	if err := expandAll(k); err != nil {
		return err
	}
	k.answer = &Handler{answersOnly: true}
	if err := k.answer.Provision(ctx); err != nil {
		return err
	}
	a := k.app.authority
	a.documents = true
	k.documents = map[string]func() (any, bool){oauth.JWKSPath: k.keySet}
	if a.issuer != "" {
		if err := k.add(oauth.ServerMetadataPath, a.issuer, func() (any, bool) { return a.ServerMetadata(a.endpoints), a.endpoints.Token != "" }); err != nil {
			return err
		}
	}
	resources := k.Resources
	if len(resources) == 0 && a.resource() != "" {
		resources = []string{a.resource()}
	}
	for _, resource := range resources {
		if u, err := url.Parse(resource); err != nil || u.Host == "" || u.Fragment != "" || u.RawQuery != "" {
			return fmt.Errorf("resource %q: want a URL without query and fragment", resource)
		}
		if err := k.add(oauth.ResourceMetadataPath, resource, func() (any, bool) { return oauth.ResourceMetadata(resource, a.servers()), true }); err != nil {
			return err
		}
		if !slices.Contains(a.resources, resource) {
			a.resources = append(a.resources, resource)
		}
	}
	return nil
}

// servers are the issuers whose tokens are taken: our own first.
func (a *authority) servers() []string {
	if a.issuer != "" && a.endpoints.Token != "" {
		return append([]string{a.issuer}, a.issuers...)
	}
	return a.issuers
}

// add makes a document known by its path.
func (k *WellKnown) add(document, about string, read func() (any, bool)) error {
	at, err := oauth.WellKnown(document, about)
	if err != nil {
		return err
	}
	u, err := url.Parse(at)
	if err != nil {
		return err
	}
	k.documents[u.Path] = read
	return nil
}

// keySet is the keys of assertions, if this configuration signs any.
func (k *WellKnown) keySet() (any, bool) {
	if len(k.app.settings.assertions) == 0 {
		return nil, false
	}
	s := k.app.rt.signer.Load()
	if s == nil {
		return nil, true
	}
	return s.KeySet(time.Now()), true
}

// ServeHTTP implements caddyhttp.MiddlewareHandler.
func (k *WellKnown) ServeHTTP(w http.ResponseWriter, r *http.Request, next caddyhttp.Handler) error {
	read, ok := k.documents[r.URL.Path]
	if !ok {
		return next.ServeHTTP(w, r)
	}
	k.app.rt.enter()
	defer k.app.rt.leave()
	k.app.rt.awaitOpen(r.Context())
	document, ok := read()
	switch {
	case !ok:
		return next.ServeHTTP(w, r)
	case document == nil:
		var in admitted
		k.answer.admit(r, &in)
		return k.answer.refuse(w, r, verifier.UndecidedRefusal(errors.New("the keys were not read yet")), nil)
	}
	kind := "application/json"
	if r.URL.Path == oauth.JWKSPath {
		kind = "application/jwk-set+json"
	}
	return oauth.WriteDocument(w, r, kind, document)
}

var (
	_ caddyhttp.MiddlewareHandler = (*WellKnown)(nil)
	_ caddy.Provisioner           = (*WellKnown)(nil)
)
