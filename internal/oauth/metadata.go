package oauth

import (
	"encoding/json"
	"fmt"
	"net/http"
	"net/url"
	"strconv"
	"strings"

	"github.com/caddy-auth/caddy-auth/internal/jwt"
)

// Paths of the documents (RFC 8414, 3; RFC 9728, 3) and of the keys that
// assertions for upstreams are signed with.
const (
	ServerMetadataPath   = "/.well-known/oauth-authorization-server"
	ResourceMetadataPath = "/.well-known/oauth-protected-resource"
	JWKSPath             = "/.well-known/jwks.json"
)

// Endpoints are the URLs of what is served; empty: it is not.
type Endpoints struct {
	Token, Revocation, Introspection, JWKS string
}

// WellKnown returns where a document about a URL is: the document's path stands
// between the host and the URL's path (RFC 8414, 3; RFC 9728, 3.1).
func WellKnown(document, about string) (string, error) {
	u, err := url.Parse(about)
	if err != nil {
		return "", fmt.Errorf("%s: %w", about, err)
	}
	u.Path, u.RawPath = document+strings.TrimSuffix(u.Path, "/"), ""
	return u.String(), nil
}

// ServerMetadata is RFC 8414, 2. No list in it is empty (3.2).
func (s *Server) ServerMetadata(e Endpoints) map[string]any {
	ways := []string{ClientSecretBasic, ClientSecretPost, PrivateKeyJWT}
	algorithms := jwt.DefaultAlgorithms()
	m := map[string]any{
		"issuer":                                           s.cfg.Issuer,
		"grant_types_supported":                            s.Grants(), // the default would say more (2)
		"response_types_supported":                         []string{"none"},
		"token_endpoint_auth_methods_supported":            ways,
		"token_endpoint_auth_signing_alg_values_supported": algorithms,
	}
	if e.Token != "" {
		m["token_endpoint"] = e.Token
	}
	if e.Revocation != "" {
		m["revocation_endpoint"] = e.Revocation
		m["revocation_endpoint_auth_methods_supported"] = ways
		m["revocation_endpoint_auth_signing_alg_values_supported"] = algorithms
	}
	if e.Introspection != "" {
		m["introspection_endpoint"] = e.Introspection
		m["introspection_endpoint_auth_methods_supported"] = ways
		m["introspection_endpoint_auth_signing_alg_values_supported"] = algorithms
	}
	return m
}

// ResourceMetadata is RFC 9728, 2: who gives tokens for a resource.
func ResourceMetadata(resource string, issuers []string) map[string]any {
	m := map[string]any{"resource": resource, "bearer_methods_supported": []string{"header"}}
	if len(issuers) > 0 {
		m["authorization_servers"] = issuers
	}
	return m
}

// documentAge is how long a document may be kept, in seconds.
const documentAge = 300

// WriteDocument answers with a public document.
func WriteDocument(w http.ResponseWriter, r *http.Request, kind string, document any) error {
	h := w.Header()
	if r.Method != http.MethodGet && r.Method != http.MethodHead {
		h.Set("Allow", "GET, HEAD")
		w.WriteHeader(http.StatusMethodNotAllowed)
		return nil
	}
	text, err := json.Marshal(document)
	if err != nil {
		return fmt.Errorf("writing a document: %w", err)
	}
	h.Set("Content-Type", kind)
	h.Set("Cache-Control", "public, max-age="+strconv.Itoa(documentAge))
	h.Set("Content-Length", strconv.Itoa(len(text)))
	w.WriteHeader(http.StatusOK)
	if r.Method == http.MethodHead {
		return nil
	}
	_, err = w.Write(text)
	return err
}
