package caddymodule

import (
	"context"
	"errors"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/caddyserver/caddy/v2"
	caddycmd "github.com/caddyserver/caddy/v2/cmd"
	"github.com/spf13/cobra"

	"github.com/caddy-auth/caddy-auth/internal/auth"
	"github.com/caddy-auth/caddy-auth/internal/manage"
	"github.com/caddy-auth/caddy-auth/internal/secret"
	"github.com/caddy-auth/caddy-auth/internal/store"
)

func keyCommand() caddycmd.Command {
	return caddycmd.Command{
		Name:  "key",
		Usage: "<command>",
		Short: "Manages API keys",
		Long:  "Manages the API keys in the gateway's store. Running gateways learn of changes within their poll interval.",
		CobraFunc: func(cmd *cobra.Command) {
			group(cmd)
			targetFlags(cmd)
			leaf(cmd, "create --owner NAME", "Makes a key and prints it once", keyCreate, func(c *cobra.Command) {
				c.Flags().String("owner", "", "whom the key speaks for")
				c.Flags().String("env", "", "its environment (default live)")
				specFlags(c)
				c.Flags().String("like", "", "take what is not given from this key")
				c.Flags().String("out", "", "write the key to this new file (0600) instead of standard output")
				waitFlags(c)
			})
			leaf(cmd, "list", "Lists keys", keyList, func(c *cobra.Command) {
				c.Flags().String("owner", "", "only this owner's")
				c.Flags().String("env", "", "only of this environment")
				c.Flags().String("scope", "", "only with this scope")
				c.Flags().String("state", "", "only in this state: active, replaced, disabled, owner_disabled, expired or revoked")
				c.Flags().String("created-before", "", "only older: a duration such as 90d, or a time")
				c.Flags().String("hint", "", "only with this in their hint")
				c.Flags().String("expiring", "", "only that work and end within a duration such as 14d")
				c.Flags().String("unused", "", "only that work and were not used for a duration such as 90d")
				c.Flags().Int("limit", 0, "at most so many")
				c.Flags().String("after", "", "only those after this id, to go on where a list with --limit ended")
			})
			leaf(cmd, "import FILE", "Imports keys that were made elsewhere, from CSV or JSON", keyImport, func(c *cobra.Command) {
				c.Long = importLong
				importFlags(c)
			})
			leaf(cmd, "show ID", "Shows a key and its history", keyShow, nil)
			leaf(cmd, "find", "Finds the key whose text is typed or piped in", keyFind, nil)
			leaf(cmd, "edit ID...", "Changes keys' name, scopes, networks, metadata or expiry", keyEdit, func(c *cobra.Command) {
				specFlags(c)
				waitFlags(c)
			})
			leaf(cmd, "disable ID...", "Stops keys from working until they are enabled", keySetDisabled(true), changeFlags)
			leaf(cmd, "enable ID...", "Lets disabled keys work again", keySetDisabled(false), changeFlags)
			leaf(cmd, "rotate ID...", "Makes a new key like each and lets the old one work on for a while", keyRotate, func(c *cobra.Command) {
				c.Flags().String("overlap", "24h", "how long the old key works on; 0s: not at all")
				specFlags(c)
				c.Flags().String("out", "", "write the keys to this new file (0600) instead of standard output")
				waitFlags(c)
			})
			leaf(cmd, "revoke ID...|--owner NAME|--stdin", "Ends keys for good", keyRevoke, func(c *cobra.Command) {
				c.Flags().String("owner", "", "revoke all keys of this owner")
				c.Flags().Bool("stdin", false, "revoke the keys whose texts are typed or piped in, one a line")
				changeFlags(c)
			})
		},
	}
}

func bulkFlags(c *cobra.Command) {
	c.Flags().String("reason", "", "why, for the audit log")
	c.Flags().BoolP("yes", "y", false, "don't ask")
}

// changeFlags are those of a change that may concern many.
func changeFlags(c *cobra.Command) {
	bulkFlags(c)
	waitFlags(c)
}

// specFlags are what describes a key, for commands that make or change one.
func specFlags(c *cobra.Command) {
	c.Flags().StringArray("scope", nil, "a scope it has; may be repeated")
	c.Flags().String("name", "", "what people call it")
	c.Flags().String("expires", "", "when it ends: a duration such as 90d, a time such as 2027-01-31 (its first instant, UTC) or 2027-01-31T12:00:00+01:00, or never")
	c.Flags().StringArray("allow-ip", nil, "an address or network it may be used from; may be repeated")
	c.Flags().StringArray("meta", nil, "name=value for upstreams; may be repeated")
}

// readSpec returns what changes a spec as the given flags say.
func readSpec(cmd *cobra.Command) (func(*manage.KeySpec), error) {
	f := cmd.Flags()
	var edits []func(*manage.KeySpec)
	if f.Changed("scope") {
		v, _ := f.GetStringArray("scope")
		v = nonEmpty(v)
		if err := auth.CheckNewScopes(v); err != nil {
			return nil, usageError{err}
		}
		edits = append(edits, func(s *manage.KeySpec) { s.Scopes = v })
	}
	if f.Changed("name") {
		v, _ := f.GetString("name")
		edits = append(edits, func(s *manage.KeySpec) { s.Name = v })
	}
	if f.Changed("allow-ip") {
		v, _ := f.GetStringArray("allow-ip")
		v = nonEmpty(v)
		edits = append(edits, func(s *manage.KeySpec) { s.Networks = v })
	}
	if f.Changed("meta") {
		pairs, _ := f.GetStringArray("meta")
		meta, err := readMeta(nonEmpty(pairs))
		if err != nil {
			return nil, usagef("--%w", err)
		}
		edits = append(edits, func(s *manage.KeySpec) { s.Meta = meta })
	}
	if f.Changed("expires") {
		v, _ := f.GetString("expires")
		at, err := parseExpiry(v)
		if err != nil {
			return nil, err
		}
		edits = append(edits, func(s *manage.KeySpec) { s.ExpiresAt = at })
	}
	return func(s *manage.KeySpec) {
		for _, e := range edits {
			e(s)
		}
	}, nil
}

// nonEmpty lets an empty value clear a list: --scope ”.
func nonEmpty(in []string) []string {
	return slices.DeleteFunc(slices.Clone(in), func(s string) bool { return s == "" })
}

// parseExpiry reads a duration from now, a time, or never.
func parseExpiry(s string) (int64, error) {
	if s == "never" {
		return 0, nil
	}
	if d, err := caddy.ParseDuration(s); err == nil {
		if d <= 0 {
			return 0, usagef("--expires %q: want a time to come", s)
		}
		return time.Now().Add(d).UnixMilli(), nil
	}
	for _, layout := range []string{time.RFC3339, "2006-01-02 15:04:05", "2006-01-02 15:04", time.DateOnly} {
		if t, err := time.Parse(layout, s); err == nil {
			return t.UnixMilli(), nil
		}
	}
	return 0, usagef("--expires %q: want a duration such as 90d, a time such as 2027-01-31T12:00:00Z (2027-01-31 is its first instant, UTC), or never", s)
}

func keyCreate(ctx context.Context, s *session) error {
	if err := s.wantArgs(0, 0, "no arguments: the owner goes behind --owner"); err != nil {
		return err
	}
	edit, err := readSpec(s.cmd)
	if err != nil {
		return err
	}
	owner, _ := s.cmd.Flags().GetString("owner")
	env, _ := s.cmd.Flags().GetString("env")
	like, _ := s.cmd.Flags().GetString("like")
	if owner == "" && like == "" {
		return usagef("--owner is missing")
	}
	if owner != "" {
		if err := manage.CheckOwner(owner); err != nil {
			return err
		}
	}
	o, err := s.open(ctx)
	if err != nil {
		return err
	}
	defer o.db.Close()
	var spec manage.KeySpec
	if like != "" {
		k, err := o.db.KeyByID(ctx, like)
		if err != nil {
			return err
		}
		spec = manage.SpecOf(k)
	}
	if owner != "" {
		spec.Owner = owner
	}
	if env != "" {
		spec.Environment = env
	}
	edit(&spec)
	err = s.printing(func(sink *secretSink) error {
		made, err := o.Create(ctx, spec)
		if err != nil {
			return err
		}
		if made.NewOwner {
			s.note("note: %s is a new owner; if that is a typo, revoke the key", made.Key.Owner)
		}
		s.remarkEnvironment(o.t, made.Key.Environment)
		return s.printMade(sink, made)
	})
	if err != nil {
		return err
	}
	return s.settle(ctx, o)
}

// printing runs make with somewhere to put secrets; if it fails before
// printing, a file that was made for them is removed.
func (s *session) printing(makeKeys func(*secretSink) error) error {
	sink, err := s.openSink()
	if err != nil {
		return err
	}
	counted := &countingWriter{w: sink.out}
	sink.out = counted
	err = makeKeys(sink)
	return errors.Join(err, sink.close(counted.n > 0))
}

func (s *session) remarkEnvironment(t *target, env string) {
	if t.environments != nil && !slices.Contains(t.environments, env) {
		s.note("note: no site in %s accepts the environment %s (they take %s)", t.from, env, strings.Join(t.environments, ", "))
	}
}

func keyList(ctx context.Context, s *session) error {
	if err := s.wantArgs(0, 0, "no arguments, only flags"); err != nil {
		return err
	}
	f := s.cmd.Flags()
	var filter store.KeyFilter
	filter.Owner, _ = f.GetString("owner")
	filter.Environment, _ = f.GetString("env")
	filter.Scope, _ = f.GetString("scope")
	filter.Hint, _ = f.GetString("hint")
	filter.Limit, _ = f.GetInt("limit")
	if filter.Limit < 0 {
		return usagef("--limit %d: want a number above zero", filter.Limit)
	}
	state, _ := f.GetString("state")
	if filter.State = auth.KeyState(state); state != "" && !slices.Contains(auth.KeyStates(), filter.State) {
		return usagef("--state %q: want one of %v", state, auth.KeyStates())
	}
	var err error
	if filter.CreatedBefore, err = s.timeFlag("created-before"); err != nil {
		return err
	}
	if err := s.listFlags(&filter); err != nil {
		return err
	}
	o, err := s.open(ctx)
	if err != nil {
		return err
	}
	defer o.db.Close()
	table := s.keyTable()
	if err := o.db.Keys(ctx, filter, table.add); err != nil {
		return err
	}
	if err := table.end(); err != nil {
		return err
	}
	if filter.Limit > 0 && table.rows == filter.Limit {
		s.note("there may be more: --after %s", table.last)
	}
	return nil
}

// listFlags reads those about time and paging.
func (s *session) listFlags(filter *store.KeyFilter) error {
	f := s.cmd.Flags()
	if filter.After, _ = f.GetString("after"); filter.After != "" {
		if err := checkIDs([]string{filter.After}); err != nil {
			return err
		}
	}
	now := time.Now()
	for name, set := range map[string]func(d time.Duration){
		"expiring": func(d time.Duration) { filter.ExpiringBefore = now.Add(d).UnixMilli() },
		"unused":   func(d time.Duration) { filter.UnusedSince = now.Add(-d).UnixMilli() },
	} {
		text, _ := f.GetString(name)
		if text == "" {
			continue
		}
		d, err := caddy.ParseDuration(text)
		if err != nil || d <= 0 {
			return usagef("--%s %q: want a duration such as 14d", name, text)
		}
		set(d)
		if filter.State != "" && filter.State != auth.KeyActive {
			return usagef("--%s lists keys that work, --state %s others", name, filter.State)
		}
	}
	return nil
}

func keyShow(ctx context.Context, s *session) error {
	if err := s.wantArgs(1, 1, "one key id"); err != nil {
		return err
	}
	if err := checkIDs(s.args); err != nil {
		return err
	}
	o, err := s.open(ctx)
	if err != nil {
		return err
	}
	defer o.db.Close()
	k, err := o.db.KeyByID(ctx, s.args[0])
	if err != nil {
		return err
	}
	if err := s.printKey(k); err != nil || s.json {
		return err
	}
	story, err := o.story(ctx, k.ID)
	if err != nil {
		return err
	}
	return s.printStory(story)
}

func (s *session) printStory(story []store.AuditEntry) error {
	for _, e := range story {
		if err := s.printAudit(e); err != nil {
			return err
		}
	}
	return nil
}

func keyFind(ctx context.Context, s *session) error {
	return find(ctx, s, "key", func(o *opened) func(context.Context, auth.Secret) (*auth.Key, error) { return o.Find }, s.printKey)
}

// find shows what has each of the secrets that are typed or piped in, alone or in
// other text.
func find[T any](ctx context.Context, s *session, what string, by func(*opened) func(context.Context, auth.Secret) (T, error), show func(T) error) error {
	if err := s.wantArgs(0, 0, "no arguments: the "+what+" is typed or piped in, so that no history keeps it"); err != nil {
		return err
	}
	lines, err := s.readPasted(what + ": ")
	if err != nil {
		return err
	}
	o, err := s.open(ctx)
	if err != nil {
		return err
	}
	defer o.db.Close()
	unknown, why, err := findPasted(ctx, o, lines, by(o), show)
	if err != nil {
		return err
	}
	return unknownLines(what, unknown, len(lines), why, "was all of each "+what+" pasted?")
}

// checkIDs makes sure that arguments are ids and not secrets.
func checkIDs(args []string) error {
	for _, a := range args {
		if _, _, ok := secret.Parse(a); ok {
			return auth.WithHint(usagef("that is a key, want its id"), "its text is now in the shell's history: pipe it into `key find`, or revoke it with --stdin")
		}
		if !strings.HasPrefix(a, "key_") {
			return usagef("%q is no key id: they begin with key_", a)
		}
	}
	return nil
}

func (s *session) wantIDs() error {
	if err := s.wantArgs(1, -1, "one or more key ids"); err != nil {
		return err
	}
	return checkIDs(s.args)
}

func metaText(meta map[string]string) string {
	var parts []string
	for _, k := range slices.Sorted(maps.Keys(meta)) {
		parts = append(parts, k+"="+meta[k])
	}
	return orDash(strings.Join(parts, " "))
}
