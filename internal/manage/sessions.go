package manage

import (
	"context"
	"errors"

	"github.com/caddy-auth/caddy-auth/internal/auth"
	"github.com/caddy-auth/caddy-auth/internal/store"
)

// sessionsPerChange is how many sessions one change ends: a journal row names
// each, and nobody else can write meanwhile.
const sessionsPerChange = 500

// EndSessions ends the sessions that a filter selects, and returns how many had
// not ended. The tokens that go with them are revoked at their provider by a
// gateway.
func (m *Manager) EndSessions(ctx context.Context, f store.SessionFilter, reason string) (ended int, err error) {
	if err := checkText("reason", reason, 256); err != nil {
		return 0, err
	}
	f.Limit = sessionsPerChange
	for {
		var found []*auth.Session
		err := m.change(ctx, func(tx *store.Tx) (err error) {
			if found, err = tx.EndSessions(ctx, f, reason); err != nil || len(found) == 0 {
				return err
			}
			errs := []error{tx.Journal(ctx, store.ChangeSession, fingerprintsOf(found), auth.Parent{})}
			for _, s := range found {
				errs = append(errs, tx.Audit(ctx, "session.end", s.ID, map[string]any{"subject": s.Subject, "reason": reason}))
			}
			return errors.Join(errs...)
		})
		if err != nil {
			return ended, err
		}
		if ended += len(found); len(found) < sessionsPerChange {
			return ended, nil
		}
		f.After = found[len(found)-1].ID
	}
}

func fingerprintsOf(sessions []*auth.Session) []auth.Fingerprint {
	var out []auth.Fingerprint
	for _, s := range sessions {
		out = append(out, s.Fingerprint)
	}
	return out
}
