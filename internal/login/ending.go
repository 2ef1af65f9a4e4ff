package login

import (
	"context"
	"errors"
	"net/http"
	"time"

	"github.com/caddy-auth/caddy-auth/internal/auth"
	"github.com/caddy-auth/caddy-auth/internal/grant"
)

// RevokeEnded tells the provider that the tokens of a session which has ended
// have ended too (RFC 7009), and wipes them. told is false if another gateway
// does, or it was done. An error that can pass leaves them, to be tried again;
// what the provider does not want to hear is wiped all the same.
func RevokeEnded(ctx context.Context, client Refresher, keeper Keeper, id string) (told bool, err error) {
	kept, err := keeper.Tokens(ctx, id)
	if errors.Is(err, auth.ErrNotFound) || err == nil && kept.Plain == nil {
		return false, nil
	}
	if errors.Is(err, auth.ErrCorrupt) { // nobody will ever open them
		_, err = keeper.Put(ctx, id, kept.Version, nil)
		return false, err
	}
	if err != nil {
		return false, err
	}
	by := newLessee()
	ours, _, err := keeper.Lease(ctx, id, kept.Version, by, leaseTTL)
	if err != nil || !ours {
		return false, err
	}
	t, ok := kept.tokens()
	if ok {
		ctx, cancel := context.WithTimeout(ctx, leaseTTL-2*time.Second)
		defer cancel()
		err = client.RevokeTokens(ctx, t)
	}
	if Passes(err) {
		_ = keeper.Release(context.WithoutCancel(ctx), id, by) // else it ends by itself
		return false, err
	}
	_, putErr := keeper.Put(ctx, id, kept.Version, nil)
	return err == nil && ok && putErr == nil, errors.Join(err, putErr)
}

// Passes reports whether an error about tokens that are to be revoked may be gone
// later: somebody is away, says nonsense, or refuses this gateway, as while its
// secret is changed.
func Passes(err error) bool {
	var f *grant.Failure
	if !errors.As(err, &f) {
		return err != nil && !errors.Is(err, ErrCantRevoke) && !errors.Is(err, ErrOthers)
	}
	switch f.Code {
	case "invalid_client", "unauthorized_client", "access_denied":
		return true
	}
	return f.Cause != grant.CauseRefused || f.Status == http.StatusUnauthorized || f.Status == http.StatusForbidden
}
