package caddymodule

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/caddy-auth/caddy-auth/internal/auth"
)

func keyEdit(ctx context.Context, s *session) error {
	if err := s.wantIDs(); err != nil {
		return err
	}
	edit, err := readSpec(s.cmd)
	if err != nil {
		return err
	}
	if !slices.ContainsFunc([]string{"scope", "name", "expires", "allow-ip", "meta"}, s.cmd.Flags().Changed) {
		return usagef("nothing to change: give --scope, --name, --expires, --allow-ip or --meta")
	}
	o, err := s.open(ctx)
	if err != nil {
		return err
	}
	defer o.db.Close()
	changed, err := o.Edit(ctx, s.args, edit)
	if err != nil {
		return err
	}
	if err := s.report("edited", changed, len(s.args)); err != nil {
		return err
	}
	return s.settle(ctx, o)
}

func keySetDisabled(disabled bool) func(context.Context, *session) error {
	word := "enabled"
	if disabled {
		word = "disabled"
	}
	return func(ctx context.Context, s *session) error {
		if err := s.wantIDs(); err != nil {
			return err
		}
		o, err := s.open(ctx)
		if err != nil {
			return err
		}
		defer o.db.Close()
		reason, _ := s.cmd.Flags().GetString("reason")
		changed, err := o.SetDisabled(ctx, s.args, disabled, reason)
		if err != nil {
			return err
		}
		if err := s.report(word, changed, len(s.args)); err != nil {
			return err
		}
		return s.settle(ctx, o)
	}
}

// report says which keys were changed.
func (s *session) report(word string, changed []*auth.Key, asked int) error {
	for _, k := range changed {
		if s.json {
			if err := printJSON(s.out, viewKey(k)); err != nil {
				return err
			}
			continue
		}
		s.note("%s %s (%s, %s)", word, k.ID, k.Hint, k.Owner)
	}
	if len(changed) < asked {
		s.note("%d of %d were %s already", asked-len(changed), asked, word)
	}
	return nil
}

func keyRotate(ctx context.Context, s *session) error {
	if err := s.wantIDs(); err != nil {
		return err
	}
	edit, err := readSpec(s.cmd)
	if err != nil {
		return err
	}
	overlap, err := s.overlap()
	if err != nil {
		return err
	}
	o, err := s.open(ctx)
	if err != nil {
		return err
	}
	defer o.db.Close()
	ids := slices.Compact(slices.Sorted(slices.Values(s.args)))
	if err := o.CheckRotate(ctx, ids, edit); err != nil {
		return err
	}
	err = s.printing(func(sink *secretSink) error {
		for _, id := range ids {
			made, err := o.Rotate(ctx, id, overlap, edit)
			if err != nil {
				return err
			}
			s.note("%s replaces %s, which works until %s", made.Key.ID, id, moment(made.OldEnds))
			if err := s.printMade(sink, made); err != nil {
				return err
			}
		}
		return nil
	})
	if _, some := o.Wrote(); err != nil && !some {
		return err
	}
	return errors.Join(err, s.settle(ctx, o))
}

func keyRevoke(ctx context.Context, s *session) error {
	owner, _ := s.cmd.Flags().GetString("owner")
	stdin, _ := s.cmd.Flags().GetBool("stdin")
	reason, _ := s.cmd.Flags().GetString("reason")
	ways := 0
	for _, given := range []bool{owner != "", stdin, len(s.args) > 0} {
		if given {
			ways++
		}
	}
	if ways != 1 {
		return usagef("want key ids, or --owner NAME, or --stdin")
	}
	if err := checkIDs(s.args); err != nil {
		return err
	}
	var lines []pastedLine
	if stdin {
		var err error
		if lines, err = s.readPasted("key: "); err != nil {
			return err
		}
	}
	o, err := s.open(ctx)
	if err != nil {
		return err
	}
	defer o.db.Close()
	if owner != "" {
		return s.revokeOwner(ctx, o, owner, reason)
	}
	ids := s.args
	// In a leak, one line that is no key must not save the others.
	unknown, why, err := findPasted(ctx, o, lines, o.Find, func(k *auth.Key) error {
		if !slices.Contains(ids, k.ID) {
			ids = append(ids, k.ID)
		}
		return nil
	})
	if err != nil {
		return err
	}
	if stdin && len(ids) == 0 {
		return unknownLines("key", unknown, len(lines), why, "nothing was changed; was all of each key pasted?")
	}
	if len(ids) > 1 {
		if err := s.confirmNamed(fmt.Sprintf("revoke %d keys for good", len(ids))); err != nil {
			return err
		}
	}
	changed, err := o.Revoke(ctx, ids, reason)
	if err != nil {
		return err
	}
	if err := s.report("revoked", changed, len(ids)); err != nil {
		return err
	}
	if err := s.settle(ctx, o); err != nil {
		return err
	}
	return unknownLines("key", unknown, len(lines), nil, fmt.Sprintf("the keys in the others are revoked (%d)", len(ids)))
}

func (s *session) revokeOwner(ctx context.Context, o *opened, owner, reason string) error {
	have, err := o.db.Owner(ctx, owner)
	if err != nil {
		return err
	}
	if err := s.confirm(fmt.Sprintf("revoke all keys of %s for good (in use: %d)", owner, have.Keys)); err != nil {
		return err
	}
	n, err := o.RevokeOwner(ctx, owner, reason)
	if err != nil {
		return err
	}
	s.note("revoked %d keys of %s", n, owner)
	if s.json {
		if err := printJSON(s.out, map[string]any{"owner": owner, "revoked": n}); err != nil {
			return err
		}
	}
	return s.settle(ctx, o)
}
