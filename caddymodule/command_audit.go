package caddymodule

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
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
		Usage: "[KEY-ID|CLIENT-ID|OWNER|store]",
		Short: "Shows who changed what and when",
		Long: `Shows who changed what and when, oldest first: every change made by command line or gateway, and every live
key that was seen in a URL. With a key's id it is the key's story: from its making over changes of it and of its
owner to when it was used and refused last. With an owner it is all that was done to the owner, and to the owner's keys
and clients.`,
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
	At         moment          `json:"at"`
	Actor      string          `json:"actor"`
	OnBehalfOf string          `json:"on_behalf_of,omitempty"` // as the actor claimed
	Action     string          `json:"action"`
	Target     string          `json:"target"`
	Detail     json.RawMessage `json:"detail"`
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
	if tell := o.storyTeller(target); tell != nil {
		story, err := tell(ctx, target)
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
		if found == 0 && target != "" {
			if whole, err := o.db.AuditOf(ctx, target); err != nil || len(whole) == 0 {
				return auth.WithHint(errors.Join(err, fmt.Errorf("the audit log has nothing about %s: %w", target, auth.ErrNotFound)), "see all of it with: caddy-auth audit")
			}
		}
	}
	if found == 0 {
		s.note("nothing was found")
	}
	return nil
}

// storyTeller returns what tells the story of a target, or nil if its own rows are
// all there is.
func (o *opened) storyTeller(target string) func(context.Context, string) ([]store.AuditEntry, error) {
	switch {
	case strings.HasPrefix(target, "key_"):
		return o.story
	case strings.HasPrefix(target, "client_"):
		return func(ctx context.Context, id string) ([]store.AuditEntry, error) {
			c, err := o.db.Client(ctx, id)
			if err != nil {
				return nil, err
			}
			return o.storyOfClient(ctx, c)
		}
	case strings.HasPrefix(target, "owner:"):
		return o.storyOfOwner
	}
	return nil
}

// storyOfOwner is what was done to an owner, and to every key and client of theirs.
func (o *opened) storyOfOwner(ctx context.Context, target string) ([]store.AuditEntry, error) {
	name := strings.TrimPrefix(target, "owner:")
	if _, err := o.db.Owner(ctx, name); err != nil {
		return nil, auth.WithHint(err, "see: caddy-auth owner list; a key's story begins with its id, and audit alone shows everything")
	}
	theirs := map[string]bool{target: true}
	var story []store.AuditEntry
	if err := o.db.Keys(ctx, store.KeyFilter{Owner: name}, func(k *auth.Key) error {
		theirs[k.ID] = true
		if begin, ok := imported(k); ok {
			story = append(story, begin)
		}
		return nil
	}); err != nil {
		return nil, err
	}
	if err := o.db.Clients(ctx, store.ClientFilter{Owner: name}, func(c *auth.Client) error { theirs[c.ID] = true; return nil }); err != nil {
		return nil, err
	}
	err := o.db.FindAudit(ctx, store.AuditFilter{}, func(e store.AuditEntry) error {
		if theirs[e.Target] {
			story = append(story, e)
		}
		return nil
	})
	slices.SortStableFunc(story, func(a, b store.AuditEntry) int { return cmp.Compare(a.At, b.At) })
	return story, err
}

// imported is the beginning of an imported key: the audit log has one row for all
// that were imported together.
func imported(k *auth.Key) (store.AuditEntry, bool) {
	if k.Format == "" {
		return store.AuditEntry{}, false
	}
	return store.AuditEntry{At: k.CreatedAt, Actor: "import", Action: "key.import", Target: k.ID, Detail: fmt.Sprintf(`{"format":%q,"owner":%q}`, k.Format, k.Owner)}, true
}

// auditTarget is what an argument names in the audit log.
func auditTarget(arg string) (string, error) {
	if _, _, ok := secret.Parse(arg); ok {
		return "", checkIDs([]string{arg})
	}
	if arg == "store" || strings.Contains(arg, ":") || slices.ContainsFunc([]string{"key_", "client_", "ses_", "at_"}, func(p string) bool { return strings.HasPrefix(arg, p) }) {
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
	if begin, ok := imported(k); ok {
		story = append([]store.AuditEntry{begin}, story...)
	}
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
	behalf, detail := store.SplitBehalf(e.Detail)
	if s.json {
		return printJSON(s.out, auditView{moment(e.At), e.Actor, behalf, e.Action, e.Target, json.RawMessage(detail)})
	}
	actor := e.Actor
	if behalf != "" {
		actor += " for " + printable(behalf)
	}
	_, err := fmt.Fprintf(s.out, "%s  %s by %s  %s  %s\n", moment(e.At), e.Action, actor, e.Target, detail)
	return err
}
