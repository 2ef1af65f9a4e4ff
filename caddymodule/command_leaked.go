package caddymodule

import (
	"context"
	"errors"
	"fmt"
	"text/tabwriter"

	caddycmd "github.com/caddyserver/caddy/v2/cmd"
	"github.com/spf13/cobra"

	"github.com/caddy-auth/caddy-auth/internal/auth"
	"github.com/caddy-auth/caddy-auth/internal/store"
)

func leakedCommand() caddycmd.Command {
	return caddycmd.Command{
		Name:  "leaked",
		Usage: "<command>",
		Short: "Lists and revokes keys that were seen in URLs",
		Long: `Lists and revokes keys that gateways have seen, and refused, in URLs while they were live. To have gateways
revoke such keys by themselves, put "leaked revoke" into the configuration.`,
		CobraFunc: func(cmd *cobra.Command) {
			group(cmd)
			targetFlags(cmd)
			since := func(c *cobra.Command) {
				c.Flags().String("since", "", "only seen from then on: a duration such as 24h, or a time")
			}
			leaf(cmd, "list", "Lists keys that were seen in URLs", leakedList, since)
			leaf(cmd, "revoke", "Revokes all keys that were seen in URLs and still work", leakedRevoke, func(c *cobra.Command) {
				since(c)
				bulkFlags(c)
				waitFlags(c)
			})
		},
	}
}

// leak is a key that was seen in URLs.
type leak struct {
	key   *auth.Key
	last  int64
	times int
}

// leaks finds the keys that were seen in URLs, the first seen first.
func (o *opened) leaks(ctx context.Context, since int64) ([]*leak, error) {
	byID := map[string]*leak{}
	var ids []string
	err := o.db.FindAudit(ctx, store.AuditFilter{Since: since, Action: "key.leaked"}, func(e store.AuditEntry) error {
		l := byID[e.Target]
		if l == nil {
			l = &leak{}
			byID[e.Target], ids = l, append(ids, e.Target)
		}
		l.last, l.times = e.At, l.times+1
		return nil
	})
	if err != nil {
		return nil, err
	}
	var out []*leak
	for _, id := range ids {
		k, err := o.db.KeyByID(ctx, id)
		if errors.Is(err, auth.ErrNotFound) { // made after the backup that was restored
			continue
		}
		if err != nil {
			return nil, err
		}
		byID[id].key = k
		out = append(out, byID[id])
	}
	return out, nil
}

// openLeaks opens the store and finds what the flags ask for.
func (s *session) openLeaks(ctx context.Context) (*opened, []*leak, error) {
	if err := s.wantArgs(0, 0, "no arguments, only flags"); err != nil {
		return nil, nil, err
	}
	since, err := s.timeFlag("since")
	if err != nil {
		return nil, nil, err
	}
	o, err := s.open(ctx)
	if err != nil {
		return nil, nil, err
	}
	found, err := o.leaks(ctx, since)
	if err != nil {
		return nil, nil, errors.Join(err, o.db.Close())
	}
	return o, found, nil
}

type leakView struct {
	keyView
	LeakedAt    moment `json:"leaked_at"`
	LeakedTimes int    `json:"leaked_times"`
}

func leakedList(ctx context.Context, s *session) error {
	o, found, err := s.openLeaks(ctx)
	if err != nil {
		return err
	}
	defer o.db.Close()
	if err := s.noteOtherLeaks(ctx, o); err != nil {
		return err
	}
	if len(found) == 0 {
		s.note("no live key was seen in a URL")
	}
	tab := tabwriter.NewWriter(s.out, 0, 4, 2, ' ', 0)
	for i, l := range found {
		v := leakView{viewKey(l.key), moment(l.last), l.times}
		if s.json {
			if err := printJSON(s.out, v); err != nil {
				return err
			}
			continue
		}
		if i == 0 {
			fmt.Fprintln(tab, "ID\tHINT\tOWNER\tSTATE\tLAST SEEN\tTIMES")
		}
		fmt.Fprintf(tab, "%s\t%s\t%s\t%s\t%s\t%d\n", v.ID, v.Hint, v.Owner, v.State, v.LeakedAt, v.LeakedTimes)
	}
	return tab.Flush()
}

// noteOtherLeaks tells of tokens and secrets that were seen in URLs, and how each
// is ended.
func (s *session) noteOtherLeaks(ctx context.Context, o *opened) error {
	since, err := s.timeFlag("since")
	if err != nil {
		return err
	}
	seen := map[string]bool{}
	for action, end := range map[string]string{
		"client_secret.leaked": "a secret of %[1]s was seen in a URL; end it with: caddy-auth client rotate %[1]s --overlap 0s",
		"token.leaked":         "the token %[1]s was seen in a URL; end it with: caddy-auth token revoke --stdin, or its client",
	} {
		err := o.db.FindAudit(ctx, store.AuditFilter{Since: since, Action: action}, func(e store.AuditEntry) error {
			if !seen[e.Target] {
				seen[e.Target] = true
				s.note(end, e.Target)
			}
			return nil
		})
		if err != nil {
			return err
		}
	}
	return nil
}

func leakedRevoke(ctx context.Context, s *session) error {
	o, found, err := s.openLeaks(ctx)
	if err != nil {
		return err
	}
	defer o.db.Close()
	if err := s.noteOtherLeaks(ctx, o); err != nil {
		return err
	}
	var ids []string
	for _, l := range found {
		if l.key.RevokedAt == 0 {
			ids = append(ids, l.key.ID)
		}
	}
	if len(ids) == 0 {
		s.note("no key that was seen in a URL is left to revoke")
		return s.settle(ctx, o)
	}
	if err := s.confirm(fmt.Sprintf("revoke %d keys that were seen in URLs for good", len(ids))); err != nil {
		return err
	}
	reason, _ := s.cmd.Flags().GetString("reason")
	if reason == "" {
		reason = "sent in a URL"
	}
	changed, err := o.Revoke(ctx, ids, reason)
	if err != nil {
		return err
	}
	if err := s.report("revoked", changed, len(ids)); err != nil {
		return err
	}
	return s.settle(ctx, o)
}
