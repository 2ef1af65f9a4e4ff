package caddymodule

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strings"

	"github.com/caddyserver/caddy/v2/modules/caddyhttp"

	"github.com/caddy-auth/caddy-auth/internal/auth"
	"github.com/caddy-auth/caddy-auth/internal/grant"
	"github.com/caddy-auth/caddy-auth/internal/login"
	"github.com/caddy-auth/caddy-auth/internal/outbound"
)

// userTokens gives each request the access token of who is signed in; see
// outbound.Source.
type userTokens struct{ app *App }

// causeOver: the session has no token any more. causeNobody: nobody is signed in.
const (
	causeOver   grant.Cause = "session_over"
	causeNobody grant.Cause = "nobody"
)

const bearer = "Bearer "

// Credential implements outbound.Source.
func (u userTokens) Credential(ctx context.Context) (outbound.Credential, error) {
	return u.ask(ctx, func(d *login.Delegate, id string) (auth.Secret, error) { return d.Token(ctx, id) })
}

// Renew implements outbound.Source.
func (u userTokens) Renew(ctx context.Context, refused outbound.Credential) (outbound.Credential, error) {
	old := auth.NewSecret(strings.TrimPrefix(refused.Value.Reveal(), bearer))
	return u.ask(ctx, func(d *login.Delegate, id string) (auth.Secret, error) { return d.Renew(ctx, id, old) })
}

// Accepted implements outbound.Source.
func (userTokens) Accepted(outbound.Credential) {}

func (u userTokens) ask(ctx context.Context, get func(*login.Delegate, string) (auth.Secret, error)) (outbound.Credential, error) {
	s, id := u.session(ctx)
	if s == nil {
		return outbound.Credential{}, &grant.Failure{Cause: causeNobody, Detail: "the caller is nobody who signed in"}
	}
	token, err := get(s.delegate, id)
	switch {
	case errors.Is(err, login.ErrOver):
		return outbound.Credential{}, &grant.Failure{Cause: causeOver, Detail: err.Error()}
	case errors.Is(err, login.ErrKept):
		return outbound.Credential{}, outbound.ErrKept
	case err != nil:
		return outbound.Credential{}, err
	}
	return outbound.Credential{Header: "Authorization", Value: auth.NewSecret(bearer + token.Reveal())}, nil
}

// session returns the login, and the session, of a request's caller.
func (u userTokens) session(ctx context.Context) (*signIn, string) {
	vars, _ := ctx.Value(caddyhttp.VarsCtxKey).(map[string]any)
	c, _ := vars[callerVar].(*caller)
	if c == nil || !c.verified || c.identity.Method != auth.MethodSession {
		return nil, ""
	}
	return u.app.signIns.byName[c.identity.Issuer], c.identity.CredentialID
}

// userFailed is the answer where a person has no token for the upstream.
func (t *OutboundTransport) userFailed(r *http.Request, f *grant.Failure) (refusal *auth.Refusal, page func(instance string) []byte) {
	switch f.Cause {
	case causeNobody:
		return &auth.Refusal{Code: auth.CodeNotAllowed, Detail: "the service behind this is asked in the name of who is signed in: sign in, a key or a token will not do"}, nil
	case causeOver:
		return verifyOver(), t.userPage(r, pageExpired)
	}
	return nil, t.userPage(r, pageUnavailable)
}

// userPage is what shows a page to a person; nil for who is none, or for another
// credential than theirs.
func (t *OutboundTransport) userPage(r *http.Request, name string) func(instance string) []byte {
	s, _ := userTokens{t.app}.session(r.Context())
	if s == nil || t.Outbound != outboundUser || !login.ShowsPages(r) {
		return nil
	}
	back := "/"
	if to := originalTarget(r); login.Navigates(r) && login.SafeReturn(to) {
		back = to
	}
	return func(instance string) []byte { return s.page(name, back, instance) }
}

func verifyOver() *auth.Refusal {
	return &auth.Refusal{Code: auth.CodeInvalidCredential, Detail: "your session has ended: sign in again", Reason: string(causeOver)}
}

// provisionUser finds out that people can sign in at all.
func (t *OutboundTransport) provisionUser() error {
	if !t.app.signIns.any() {
		return fmt.Errorf("transport auth_outbound %s: there is no login in the global auth block", outboundUser)
	}
	return nil
}
