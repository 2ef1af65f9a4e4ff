package caddymodule

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/caddyserver/caddy/v2"
	caddycmd "github.com/caddyserver/caddy/v2/cmd"
	"github.com/spf13/cobra"

	"github.com/caddy-auth/caddy-auth/internal/auth"
	"github.com/caddy-auth/caddy-auth/internal/secret"
	"github.com/caddy-auth/caddy-auth/internal/store"
)

func auditCommand() caddycmd.Command {
	return caddycmd.Command{
		Name:  "audit",
		Usage: "[KEY-ID|OWNER|store]",
		Short: "Shows who changed what and when",
		Long: `Shows who changed what and when, oldest first: every change made by command line or gateway, and every live
key that was seen in a URL. With a key's id it is the key's story: from its making over changes of it and of its
owner to when it was used and refused last.`,
		CobraFunc: func(cmd *cobra.Command) {
			single(cmd, audit, func(c *cobra.Command) {
				c.Flags().String("since", "", "only from then on: a duration such as 24h, or a time")
				c.Flags().String("until", "", "only before then: a duration such as 1h, or a time")
				c.Flags().String("actor", "", "only by this actor, for example cli:root or gateway")
				c.Flags().String("action", "", "only actions that begin so, for example key.revoke or owner.")
				c.Flags().Int("limit", 0, "only the newest so many")
			})
		},
	}
}

type auditView struct {
	At     moment          `json:"at"`
	Actor  string          `json:"actor"`
	Action string          `json:"action"`
	Target string          `json:"target"`
	Detail json.RawMessage `json:"detail"`
}

func audit(ctx context.Context, s *session) error {
	if err := s.wantArgs(0, 1, "one key id or owner, or nothing"); err != nil {
		return err
	}
	f, err := s.auditFilter()
	if err != nil {
		return err
	}
	target := ""
	if len(s.args) == 1 {
		if target, err = auditTarget(s.args[0]); err != nil {
			return err
		}
	}
	o, err := s.open(ctx)
	if err != nil {
		return err
	}
	defer o.db.Close()
	found := 0
	show := func(e store.AuditEntry) error { found++; return s.printAudit(e) }
	if strings.HasPrefix(target, "key_") {
		story, err := o.story(ctx, target)
		if err != nil {
			return err
		}
		for _, e := range f.newest(story) {
			if err := show(e); err != nil {
				return err
			}
		}
	} else {
		f.Target = target
		if err := o.db.FindAudit(ctx, f.AuditFilter, show); err != nil {
			return err
		}
	}
	if found == 0 {
		s.note("nothing was found")
	}
	return nil
}

// auditTarget is what an argument names in the audit log.
func auditTarget(arg string) (string, error) {
	if _, _, ok := secret.Parse(arg); ok {
		return "", checkIDs([]string{arg})
	}
	if arg == "store" || strings.HasPrefix(arg, "key_") || strings.HasPrefix(arg, "owner:") {
		return arg, nil
	}
	return "owner:" + arg, nil
}

type auditFilter struct{ store.AuditFilter }

func (s *session) auditFilter() (f auditFilter, err error) {
	flags := s.cmd.Flags()
	f.Actor, _ = flags.GetString("actor")
	f.Action, _ = flags.GetString("action")
	f.Limit, _ = flags.GetInt("limit")
	if f.Limit < 0 {
		return f, usagef("--limit %d: want a number above zero", f.Limit)
	}
	for name, at := range map[string]*int64{"since": &f.Since, "until": &f.Until} {
		if *at, err = s.timeFlag(name); err != nil {
			return f, err
		}
	}
	return f, nil
}

// timeFlag reads a flag that is a duration back from now or a time; 0 if it is
// not given.
func (s *session) timeFlag(name string) (int64, error) {
	text, _ := s.cmd.Flags().GetString(name)
	if text == "" {
		return 0, nil
	}
	if d, err := caddy.ParseDuration(text); err == nil && d > 0 {
		return time.Now().Add(-d).UnixMilli(), nil
	}
	if n, err := strconv.ParseInt(text, 10, 64); err == nil && n > 1e9 && n < 1e11 { // as tokens have it
		return n * 1000, nil
	}
	for _, layout := range []string{time.RFC3339, "2006-01-02 15:04:05", "2006-01-02 15:04", time.DateOnly} {
		if t, err := time.Parse(layout, text); err == nil {
			return t.UnixMilli(), nil
		}
	}
	return 0, usagef("--%s %q: want a duration such as 90d, a time (UTC) such as 2026-01-31 or 2026-01-31T14:00:00Z, or unix seconds", name, text)
}

// newest applies the filter to entries that were not found with it.
func (f auditFilter) newest(all []store.AuditEntry) []store.AuditEntry {
	out := slices.DeleteFunc(all, func(e store.AuditEntry) bool {
		return e.At < f.Since || f.Until != 0 && e.At >= f.Until || f.Actor != "" && e.Actor != f.Actor || !strings.HasPrefix(e.Action, f.Action)
	})
	if f.Limit > 0 && len(out) > f.Limit {
		out = out[len(out)-f.Limit:]
	}
	return out
}

// since leaves the entries from a time on.
func since(entries []store.AuditEntry, at int64) []store.AuditEntry {
	return slices.DeleteFunc(entries, func(e store.AuditEntry) bool { return e.At < at })
}

// storyOfClient is what happened to a client, its owner's changes included.
func (o *opened) storyOfClient(ctx context.Context, c *auth.Client) ([]store.AuditEntry, error) {
	story, err := o.db.AuditOf(ctx, c.ID)
	if err != nil {
		return nil, err
	}
	ofOwner, err := o.db.AuditOf(ctx, "owner:"+c.Owner)
	story = append(story, since(ofOwner, c.CreatedAt)...)
	slices.SortStableFunc(story, func(a, b store.AuditEntry) int { return cmp.Compare(a.At, b.At) })
	return story, err
}

// story is all that is known of a key, oldest first: what was done to it and,
// while it existed, to its owner, and when it was used and refused last.
func (o *opened) story(ctx context.Context, id string) ([]store.AuditEntry, error) {
	k, err := o.db.KeyByID(ctx, id)
	if err != nil {
		return nil, err
	}
	story, err := o.db.AuditOf(ctx, k.ID)
	if err != nil {
		return nil, err
	}
	ofOwner, err := o.db.AuditOf(ctx, "owner:"+k.Owner) // it concerns the key too
	if err != nil {
		return nil, err
	}
	story = append(story, since(ofOwner, k.CreatedAt)...)
	last := func(action string, at int64, detail string) {
		if at != 0 {
			story = append(story, store.AuditEntry{At: at, Actor: "gateway", Action: action, Target: k.ID, Detail: detail})
		}
	}
	last("key.last_used", k.LastUsedAt, "{}")
	last("key.last_refused", k.RefusedAt, fmt.Sprintf(`{"reason":%q}`, k.RefusedReason))
	if end := k.NotAfter(); end != 0 && k.State(time.Now()) == auth.KeyExpired {
		last("key.expired", end, "{}")
	}
	slices.SortStableFunc(story, func(a, b store.AuditEntry) int { return cmp.Compare(a.At, b.At) })
	return story, nil
}

func (s *session) printAudit(e store.AuditEntry) error {
	if s.json {
		return printJSON(s.out, auditView{moment(e.At), e.Actor, e.Action, e.Target, json.RawMessage(e.Detail)})
	}
	_, err := fmt.Fprintf(s.out, "%s  %s by %s  %s  %s\n", moment(e.At), e.Action, e.Actor, e.Target, e.Detail)
	return err
}
