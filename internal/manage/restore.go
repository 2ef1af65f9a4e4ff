package manage

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/caddy-auth/caddy-auth/internal/auth"
	"github.com/caddy-auth/caddy-auth/internal/store"
)

// MaxLostChanges bounds how many lost changes are kept for showing.
const MaxLostChanges = 1000

// Loss is what going back to a backup undoes.
type Loss struct {
	// Changes were made after the backup, oldest first, at most
	// MaxLostChanges; Count is how many there are.
	Changes []store.AuditEntry
	Count   int
	// Revived are keys that don't work now and would again.
	Revived []Revival
	// Owners are disabled now and would not be.
	Owners []auth.Owner
	// CutOffs end tokens of other issuers now and would not.
	CutOffs []auth.CutOff
	LostTokens
}

// Revival is a key that a backup lets work longer than it would now: one that
// is stopped and would not be, or stopped in a weaker way, or that has an end
// which would be later or none.
type Revival struct {
	Key *auth.Key // as it is now
	Why string    // revoked, disabled, replaced, expired or ending
}

// Same reports whether two comparisons came to the same.
func (l Loss) Same(o Loss) bool {
	same := func(a, b Revival) bool { return a.Key.ID == b.Key.ID && a.Why == b.Why }
	return l.Count == o.Count && slices.EqualFunc(l.Revived, o.Revived, same) && len(l.Owners) == len(o.Owners) && slices.Equal(l.CutOffs, o.CutOffs) && l.same(o.LostTokens)
}

// Compare says what going back from present to backup would undo. Backups of
// another store are auth.ErrConflict.
func Compare(ctx context.Context, present, backup *store.DB) (Loss, error) {
	var l Loss
	a, err := present.ID(ctx)
	if err != nil {
		return l, err
	}
	b, err := backup.ID(ctx)
	if err != nil {
		return l, err
	}
	if !bytes.Equal(a, b) {
		return l, fmt.Errorf("the backup is of another store: %w", auth.ErrConflict)
	}
	if err := l.changes(ctx, present, backup); err != nil {
		return l, err
	}
	now := time.Now()
	err = present.Keys(ctx, store.KeyFilter{}, func(k *auth.Key) error {
		why := stopped(k, now)
		if why == "" && k.NotAfter() == 0 {
			return nil
		}
		then, err := backup.KeyByID(ctx, k.ID)
		if errors.Is(err, auth.ErrNotFound) {
			return nil // it is lost, so it stays out
		}
		if err != nil {
			return err
		}
		if why == "" && later(then.NotAfter(), k.NotAfter()) {
			why = "ending"
		}
		if weaker(stopped(then, now), why) {
			l.Revived = append(l.Revived, Revival{k, why})
		}
		return nil
	})
	if err != nil {
		return l, err
	}
	if err := l.cutOffs(ctx, present, backup); err != nil {
		return l, err
	}
	if err := l.collect(ctx, present, backup); err != nil {
		return l, err
	}
	return l, present.Owners(ctx, func(o auth.Owner) error {
		if o.DisabledAt == 0 {
			return nil
		}
		then, err := backup.Owner(ctx, o.Name)
		if errors.Is(err, auth.ErrNotFound) || err == nil && then.DisabledAt != 0 {
			return nil
		}
		if err == nil {
			l.Owners = append(l.Owners, o)
		}
		return err
	})
}

// cutOffs collects what is cut off now and was not, or less, in the backup. A
// store of an earlier release has none.
func (l *Loss) cutOffs(ctx context.Context, present, backup *store.DB) error {
	then := map[auth.Parent]auth.CutOff{}
	if err := backup.CutOffs(ctx, func(c auth.CutOff) error { then[c.Parent()] = c; return nil }); err != nil {
		return err
	}
	return present.CutOffs(ctx, func(c auth.CutOff) error {
		if was, ok := then[c.Parent()]; !ok || c.IssuedBefore > was.IssuedBefore || c.KeptUntil == 0 && was.KeptUntil != 0 {
			l.CutOffs = append(l.CutOffs, c)
		}
		return nil
	})
}

// changes collects what the present audit log has beyond the backup's.
func (l *Loss) changes(ctx context.Context, present, backup *store.DB) error {
	last, err := backup.LastAudit(ctx)
	if err != nil {
		return err
	}
	same, err := present.AuditAt(ctx, last.ID)
	if err != nil {
		return err
	}
	from := last.ID
	if same != last { // the histories parted: go by the time instead
		from = 0
	}
	return present.AuditAfter(ctx, from, func(e store.AuditEntry) error {
		if from == 0 && e.At <= last.At || e.Action == "store.backup" {
			return nil
		}
		if l.Count++; l.Count <= MaxLostChanges {
			l.Changes = append(l.Changes, e)
		}
		return nil
	})
}

// later reports whether the end then comes after the end now; 0 is never.
func later(then, now int64) bool { return then == 0 || then > now }

// weaker reports whether what stopped a key then does not hold what stops it
// now: revoking is for good, anything else can be undone.
func weaker(then, now string) bool {
	switch now {
	case "":
		return false
	case "revoked":
		return then != "revoked"
	}
	return then == ""
}

// stopped says why a key by itself does not work at now, or "". Its owner is
// looked at on its own.
func stopped(k *auth.Key, now time.Time) string {
	switch end := k.NotAfter(); {
	case k.RevokedAt != 0:
		return "revoked"
	case k.DisabledAt != 0:
		return "disabled"
	case end == 0 || end > now.UnixMilli():
		return ""
	case k.ReplacedBy != "":
		return "replaced"
	}
	return "expired"
}

// Repeat stops in m's store, the restored one, what a loss would bring back to
// life. It returns how many keys and owners it stopped.
func (m *Manager) Repeat(ctx context.Context, l Loss) (keys, owners int, err error) {
	const reason = "repeated after a restore"
	for _, r := range l.Revived {
		switch r.Why {
		case "disabled":
			_, err = m.SetDisabled(ctx, []string{r.Key.ID}, true, reason)
		case "ending":
			_, err = m.Edit(ctx, []string{r.Key.ID}, func(s *KeySpec) { s.ExpiresAt = r.Key.NotAfter() })
		default:
			_, err = m.Revoke(ctx, []string{r.Key.ID}, reason)
		}
		if err != nil {
			return keys, owners, fmt.Errorf("stopping %s again: %w", r.Key.ID, err)
		}
		keys++
	}
	for _, o := range l.Owners {
		if _, err := m.SetOwnerDisabled(ctx, o.Name, true, reason); err != nil {
			return keys, owners, fmt.Errorf("disabling %s again: %w", o.Name, err)
		}
		owners++
	}
	var errs []error
	for _, c := range l.CutOffs {
		c.IssuedBefore = min(c.IssuedBefore, time.Now().Add(ahead/2).UnixMilli()) // a clock may have been set back since
		if _, err := m.CutOff(ctx, c, c.KeptUntil == 0); err != nil {
			errs = append(errs, fmt.Errorf("cutting off tokens of %s again: %w", c.Issuer, err))
		}
	}
	errs = append(errs, m.repeatTokens(ctx, l.LostTokens, reason))
	return keys, owners, errors.Join(errs...)
}
