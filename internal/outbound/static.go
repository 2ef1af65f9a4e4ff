package outbound

import (
	"context"
	"sync/atomic"

	"github.com/caddy-auth/caddy-auth/internal/auth"
	"github.com/caddy-auth/caddy-auth/internal/grant"
)

// Static is a source of a key that the gateway was given. It is safe for
// concurrent use.
type Static struct {
	header, prefix string
	secret         grant.Secret
	current        atomic.Pointer[staticCredential]
}

type staticCredential struct {
	secret     auth.Secret
	credential Credential
}

// NewStatic returns a source of a secret in a header, behind a prefix such as
// "Bearer " or none. The secret's values must pass CheckValue.
func NewStatic(header, prefix string, secret grant.Secret) *Static {
	return &Static{header: header, prefix: prefix, secret: secret}
}

// Credential returns the present key.
func (s *Static) Credential(context.Context) (Credential, error) {
	secret := s.secret.Current()
	if c := s.current.Load(); c != nil && c.secret == secret {
		return c.credential, nil
	}
	c := &staticCredential{secret, Credential{Header: s.header, Value: auth.NewSecret(s.prefix + secret.Reveal())}}
	s.current.Store(c)
	return c.credential, nil
}

// Renew returns the present key if it is another than the one that was refused:
// it looks whether it has changed. Else it is ErrKept.
func (s *Static) Renew(ctx context.Context, refused Credential) (Credential, error) {
	if c, _ := s.Credential(ctx); !c.Is(refused) {
		return c, nil
	}
	s.secret.Look(ctx)
	if c, _ := s.Credential(ctx); !c.Is(refused) {
		return c, nil
	}
	return Credential{}, ErrKept
}

// Accepted does nothing: a key is what it is.
func (*Static) Accepted(Credential) {}
