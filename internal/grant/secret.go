package grant

import (
	"context"

	"github.com/caddy-auth/caddy-auth/internal/auth"
)

// Secret is a secret that may change while it is used.
type Secret interface {
	// Current returns the secret. It does no I/O.
	Current() auth.Secret
	// Look looks now whether the secret has changed, until ctx ends.
	Look(ctx context.Context)
	// Watch calls changed after every change until stop is called.
	Watch(changed func()) (stop func())
}

type fixed struct{ text auth.Secret }

// Fixed is a secret that does not change.
func Fixed(text auth.Secret) Secret { return fixed{text} }

func (f fixed) Current() auth.Secret  { return f.text }
func (fixed) Look(context.Context)    {}
func (fixed) Watch(func()) (_ func()) { return func() {} }
