package oauth

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"time"

	"github.com/caddy-auth/caddy-auth/internal/auth"
	"github.com/caddy-auth/caddy-auth/internal/secret"
)

// findTimeout bounds the reading of a token that is to be ended.
const findTimeout = 2 * time.Second

// readToken reads a request about a token, and proves its client.
func (s *Server) readToken(w http.ResponseWriter, r *http.Request, c Caller) (token string, p proof, failure *Failure) {
	f, failure := readForm(w, r)
	if failure != nil {
		return "", p, failure
	}
	if p, failure = s.authenticate(r.Context(), r, f, c); failure != nil {
		return "", p, failure
	}
	if token = f.get("token"); token == "" && p.client != nil {
		return "", p, bad(invalidRequest, "token is missing")
	}
	return token, p, nil
}

// use spends the assertion that a client proved itself with, if it did so.
func (s *Server) use(ctx context.Context, p proof) *Failure {
	if p.assertion == nil {
		return nil
	}
	switch err := s.tokens.UseAssertion(ctx, p.assertion); {
	case errors.Is(err, auth.ErrConflict):
		return noClient("a client assertion that was used before")
	case err != nil:
		return unavailable(err)
	}
	return nil
}

// ServeRevocation answers at the revocation endpoint (RFC 7009, 2). A client
// ends its own tokens; who has a token that belongs to no client, since a key
// was exchanged for it, may end it without being one. token_type_hint is not
// needed: there is one type.
func (s *Server) ServeRevocation(w http.ResponseWriter, r *http.Request, c Caller) *Failure {
	text, p, failure := s.readToken(w, r, c)
	if failure != nil {
		return failure
	}
	ctx := r.Context()
	if failure := s.use(ctx, p); failure != nil {
		return failure
	}
	if secret.KindOf(text) == secret.Key && hasForm(text) { // it would go on working: that must not look like success
		if p.client == nil {
			return noClient("no client authentication")
		}
		f := bad(unsupportedTokenType, "an API key is ended with: caddy-auth key revoke")
		f.ClientID = p.client.ClientID
		return f
	}
	if failure := s.revoke(ctx, text, p); failure != nil {
		return failure
	}
	w.Header().Set("Cache-Control", "no-store")
	w.Header().Set("Content-Length", "0")
	w.WriteHeader(http.StatusOK)
	return nil
}

// revoke ends a token, if there is one, whether it is good at the moment or not:
// what stands in its way may be taken away again. What bears no tag of ours is
// not looked for.
func (s *Server) revoke(ctx context.Context, text string, p proof) *Failure {
	caller := ""
	if p.client != nil {
		caller = p.client.ClientID
	}
	var t *auth.AccessToken
	minter := s.credentials.Minter()
	if minter == nil {
		return unavailable(fmt.Errorf("the store's secrets were not read yet: %w", auth.ErrUnavailable))
	}
	fp := auth.FingerprintOf(text)
	ours := minter.CheckKind(secret.AccessToken, text) == auth.ReasonNone
	if ours && p.client == nil { // nobody knows who asks: what is cached will do to tell whether there is more to do
		v := s.credentials.VerifyKey(ctx, text, s.now())
		if v.Outcome == auth.CannotDecide {
			return unavailable(v.Cause)
		}
		ours = v.Identity.CredentialID != "" && v.Identity.ClientID == ""
	}
	if ours {
		ctx, cancel := context.WithTimeout(ctx, findTimeout)
		defer cancel()
		var err error
		if t, err = s.tokens.Find(ctx, fp); err != nil {
			return unavailable(err) // never 200: the client would think that it is done (RFC 7009, 2.2.1)
		}
	}
	switch {
	case p.client == nil && (t == nil || t.ClientID != ""):
		return noClient("no client authentication")
	case t == nil:
		return nil
	case t.ClientID != "" && t.ClientID != caller:
		f := bad(unauthorizedClient, "the token belongs to another client")
		f.ClientID = caller
		return f
	case t.RevokedAt != 0:
		return nil
	}
	if err := s.tokens.Revoke(ctx, fp, t.ID, t.ClientID); err != nil {
		return unavailable(err)
	}
	return nil
}

// introspected is an answer about a token (RFC 7662, 2.2).
type introspected struct {
	Active      bool   `json:"active"`
	Scope       string `json:"scope,omitempty"`
	ClientID    string `json:"client_id,omitempty"`
	Subject     string `json:"sub,omitempty"`
	TokenType   string `json:"token_type,omitempty"`
	Expires     int64  `json:"exp,omitempty"`
	IssuedAt    int64  `json:"iat,omitempty"`
	Issuer      string `json:"iss,omitempty"`
	ID          string `json:"jti,omitempty"`
	Environment string `json:"environment,omitempty"`
}

// ServeIntrospection answers at the introspection endpoint (RFC 7662, 2), to
// clients only. What is no token of this gateway is not active, and nothing
// more is said.
func (s *Server) ServeIntrospection(w http.ResponseWriter, r *http.Request, c Caller) *Failure {
	text, p, failure := s.readToken(w, r, c)
	if failure != nil {
		return failure
	}
	if p.client == nil {
		return noClient("no client authentication")
	}
	if failure := s.use(r.Context(), p); failure != nil {
		return failure
	}
	v := auth.Denied(auth.ReasonUnknown)
	if secret.KindOf(text) == secret.AccessToken {
		if v = s.credentials.VerifyKey(r.Context(), text, s.now()); v.Outcome == auth.CannotDecide {
			return unavailable(v.Cause)
		}
	}
	var answer introspected
	if id := &v.Identity; v.Outcome == auth.Allow && id.Method == auth.MethodAccessToken {
		answer = introspected{
			Active: true, Scope: id.Scopes, ClientID: id.ClientID, Subject: id.Subject, TokenType: "Bearer",
			Expires: id.NotAfter / 1000, IssuedAt: int64(id.IssuedAt), Issuer: s.cfg.Issuer, ID: id.CredentialID, Environment: id.Environment,
		}
	}
	_ = writeJSON(w, http.StatusOK, answer) // it was answered; who does not read it asks again
	return nil
}
