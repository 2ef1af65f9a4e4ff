package caddymodule

import (
	"context"
	"errors"
	"fmt"
	"os"
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

func clientCommand() caddycmd.Command {
	return caddycmd.Command{
		Name:  "client",
		Usage: "<command>",
		Short: "Manages OAuth clients, which get tokens at auth_token",
		Long: `Manages the OAuth clients in the gateway's store. A client proves to be who it says with a secret, or with
assertions that it signs (private_key_jwt), and gets short-lived tokens at the token endpoint. Ending a client ends
its tokens. Running gateways learn of changes within their poll interval.`,
		CobraFunc: func(cmd *cobra.Command) {
			group(cmd)
			targetFlags(cmd)
			leaf(cmd, "create --owner NAME", "Makes a client and prints its secret once", clientCreate, func(c *cobra.Command) {
				c.Flags().String("owner", "", "whose client it is")
				c.Flags().String("env", "", "the environment of its tokens (default live)")
				clientFlags(c)
				c.Flags().String("out", "", "write the secret to this new file (0600) instead of standard output")
				waitFlags(c)
			})
			leaf(cmd, "list", "Lists clients", clientList, func(c *cobra.Command) {
				c.Flags().String("owner", "", "only this owner's")
				c.Flags().String("env", "", "only of this environment")
				c.Flags().String("scope", "", "only that may have this scope")
				c.Flags().String("state", "", "only in this state: active, disabled, owner_disabled or revoked")
			})
			leaf(cmd, "show ID", "Shows a client and its history", clientShow, nil)
			leaf(cmd, "find", "Finds the client whose secret is typed or piped in", clientFind, nil)
			leaf(cmd, "edit ID...", "Changes clients; tokens they have lose what their client loses", clientEdit, func(c *cobra.Command) {
				clientFlags(c)
				waitFlags(c)
			})
			leaf(cmd, "disable ID...", "Stops clients and their tokens until they are enabled", clientSetDisabled(true), changeFlags)
			leaf(cmd, "enable ID...", "Lets disabled clients work again", clientSetDisabled(false), changeFlags)
			leaf(cmd, "rotate ID", "Makes a new secret for a client and lets the others work on for a while", clientRotate, func(c *cobra.Command) {
				c.Flags().String("overlap", "24h", "how long the other secrets work on; 0s: not at all")
				c.Flags().String("out", "", "write the secret to this new file (0600) instead of standard output")
				waitFlags(c)
			})
			leaf(cmd, "revoke ID...", "Ends clients and their tokens for good", clientRevoke, changeFlags)
		},
	}
}

// clientFlags are what describes a client.
func clientFlags(c *cobra.Command) {
	c.Flags().StringArray("scope", nil, "a scope it may have; may be repeated")
	c.Flags().String("name", "", "what people call it")
	c.Flags().StringArray("allow-ip", nil, "an address or network it and its tokens may be used from; may be repeated")
	c.Flags().StringArray("meta", nil, "name=value for upstreams; may be repeated")
	c.Flags().String("token-lifetime", "", "how long its tokens live, such as 15m; default: the gateway's default")
	c.Flags().String("jwks", "", "a file with its public keys (a JWK set): it signs assertions instead of sending a secret")
}

// readClientSpec returns what changes a spec as the given flags say.
func readClientSpec(cmd *cobra.Command) (func(*manage.ClientSpec), error) {
	f := cmd.Flags()
	asKey, err := readSpec(cmd) // what clients and keys have in common
	if err != nil {
		return nil, err
	}
	edits := []func(*manage.ClientSpec){func(s *manage.ClientSpec) {
		k := manage.KeySpec{Name: s.Name, Scopes: s.Scopes, Networks: s.Networks, Meta: s.Meta}
		asKey(&k)
		s.Name, s.Scopes, s.Networks, s.Meta = k.Name, k.Scopes, k.Networks, k.Meta
	}}
	if f.Changed("token-lifetime") {
		v, _ := f.GetString("token-lifetime")
		d, err := caddy.ParseDuration(v)
		if v != "" && (err != nil || d <= 0) {
			return nil, usagef("--token-lifetime %q: want a duration such as 15m", v)
		}
		edits = append(edits, func(s *manage.ClientSpec) { s.TokenLifetime = d })
	}
	if f.Changed("jwks") {
		path, _ := f.GetString("jwks")
		var set []byte
		if path != "" {
			var err error
			if set, err = os.ReadFile(path); err != nil {
				return nil, fmt.Errorf("reading the key set: %w", err)
			}
		}
		edits = append(edits, func(s *manage.ClientSpec) { s.JWKS = strings.TrimSpace(string(set)) })
	}
	return func(s *manage.ClientSpec) {
		for _, e := range edits {
			e(s)
		}
	}, nil
}

func clientCreate(ctx context.Context, s *session) error {
	if err := s.wantArgs(0, 0, "no arguments: the owner goes behind --owner"); err != nil {
		return err
	}
	edit, err := readClientSpec(s.cmd)
	if err != nil {
		return err
	}
	var spec manage.ClientSpec
	spec.Owner, _ = s.cmd.Flags().GetString("owner")
	spec.Environment, _ = s.cmd.Flags().GetString("env")
	if spec.Owner == "" {
		return usagef("--owner is missing")
	}
	edit(&spec)
	o, err := s.open(ctx)
	if err != nil {
		return err
	}
	defer o.db.Close()
	err = s.printing(func(sink *secretSink) error {
		made, err := o.CreateClient(ctx, spec)
		if err != nil {
			return err
		}
		if made.NewOwner {
			s.note("note: %s is a new owner; if that is a typo, revoke the client", spec.Owner)
		}
		if len(made.Client.Scopes) == 0 {
			s.note("note: the client may have no scopes; give it some with: caddy-auth client edit %s --scope ...", made.Client.ID)
		}
		s.remarkEnvironment(o.t, made.Client.Environment)
		s.note("made %s for %s (%s)", made.Client.ID, made.Client.Owner, made.Client.Environment)
		return s.printMadeClient(sink, made)
	})
	if err != nil {
		return err
	}
	return s.settle(ctx, o)
}

func clientList(ctx context.Context, s *session) error {
	if err := s.wantArgs(0, 0, "no arguments, only flags"); err != nil {
		return err
	}
	f := s.cmd.Flags()
	var filter store.ClientFilter
	filter.Owner, _ = f.GetString("owner")
	filter.Environment, _ = f.GetString("env")
	filter.Scope, _ = f.GetString("scope")
	state, _ := f.GetString("state")
	states := []auth.KeyState{auth.KeyActive, auth.KeyDisabled, auth.KeyOwnerDisabled, auth.KeyRevoked}
	if filter.State = auth.KeyState(state); state != "" && !slices.Contains(states, filter.State) {
		return usagef("--state %q: want one of %v", state, states)
	}
	o, err := s.open(ctx)
	if err != nil {
		return err
	}
	defer o.db.Close()
	table := s.clientTable()
	if err := o.db.Clients(ctx, filter, table.add); err != nil {
		return err
	}
	if table.rows == 0 {
		s.note("no clients")
	}
	return table.tab.Flush()
}

func clientShow(ctx context.Context, s *session) error {
	if err := s.wantClientIDs(1); err != nil {
		return err
	}
	o, err := s.open(ctx)
	if err != nil {
		return err
	}
	defer o.db.Close()
	c, err := o.db.Client(ctx, s.args[0])
	if err != nil {
		return err
	}
	if err := s.printClient(c); err != nil || s.json {
		return err
	}
	story, err := o.storyOfClient(ctx, c)
	if err != nil {
		return err
	}
	return s.printStory(story)
}

func clientFind(ctx context.Context, s *session) error {
	return find(ctx, s, "secret", func(o *opened) func(context.Context, auth.Secret) (*auth.Client, error) { return o.FindClient }, s.printClient)
}

func clientEdit(ctx context.Context, s *session) error {
	if err := s.wantClientIDs(-1); err != nil {
		return err
	}
	edit, err := readClientSpec(s.cmd)
	if err != nil {
		return err
	}
	if !slices.ContainsFunc([]string{"scope", "name", "allow-ip", "meta", "token-lifetime", "jwks"}, s.cmd.Flags().Changed) {
		return usagef("nothing to change: give --scope, --name, --allow-ip, --meta, --token-lifetime or --jwks")
	}
	return s.changeClients(ctx, "edited", func(o *opened) ([]*auth.Client, error) { return o.EditClients(ctx, s.args, edit) })
}

func clientSetDisabled(disabled bool) func(context.Context, *session) error {
	word := "enabled"
	if disabled {
		word = "disabled"
	}
	return func(ctx context.Context, s *session) error {
		if err := s.wantClientIDs(-1); err != nil {
			return err
		}
		reason, _ := s.cmd.Flags().GetString("reason")
		return s.changeClients(ctx, word, func(o *opened) ([]*auth.Client, error) {
			return o.SetClientsDisabled(ctx, s.args, disabled, reason)
		})
	}
}

func clientRevoke(ctx context.Context, s *session) error {
	if err := s.wantClientIDs(-1); err != nil {
		return err
	}
	reason, _ := s.cmd.Flags().GetString("reason")
	return s.changeClients(ctx, "revoked", func(o *opened) ([]*auth.Client, error) {
		if len(s.args) > 1 {
			if err := s.confirmNamed(fmt.Sprintf("revoke %d clients for good", len(s.args))); err != nil {
				return nil, err
			}
		}
		return o.RevokeClients(ctx, s.args, reason)
	})
}

// changeClients changes clients and says which.
func (s *session) changeClients(ctx context.Context, word string, change func(*opened) ([]*auth.Client, error)) error {
	o, err := s.open(ctx)
	if err != nil {
		return err
	}
	defer o.db.Close()
	changed, err := change(o)
	if err != nil {
		return err
	}
	for _, c := range changed {
		if s.json {
			if err := printJSON(s.out, viewClient(c)); err != nil {
				return err
			}
			continue
		}
		s.note("%s %s (%s)", word, c.ID, c.Owner)
	}
	if len(changed) < len(s.args) {
		s.note("%d of %d were %s already", len(s.args)-len(changed), len(s.args), word)
	}
	return s.settle(ctx, o)
}

func clientRotate(ctx context.Context, s *session) error {
	if err := s.wantClientIDs(1); err != nil {
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
	err = s.printing(func(sink *secretSink) error {
		made, err := o.RotateClient(ctx, s.args[0], overlap)
		if err != nil {
			return err
		}
		if made.OldEnds != 0 {
			s.note("%s has a new secret; the others work until %s", made.Client.ID, moment(made.OldEnds))
		}
		return s.printMadeClient(sink, made)
	})
	if _, some := o.Wrote(); err != nil && !some {
		return err
	}
	return errors.Join(err, s.settle(ctx, o))
}

// overlap reads --overlap.
func (s *session) overlap() (time.Duration, error) {
	text, _ := s.cmd.Flags().GetString("overlap")
	d, err := caddy.ParseDuration(text)
	if err != nil || d < 0 {
		return 0, usagef("--overlap %q: want a duration such as 24h", text)
	}
	return d, nil
}

// wantClientIDs makes sure that the arguments are ids of clients; most is how
// many, -1: any number.
func (s *session) wantClientIDs(most int) error {
	what := "one or more client ids"
	if most == 1 {
		what = "one client id"
	}
	if err := s.wantArgs(1, most, what); err != nil {
		return err
	}
	for _, a := range s.args {
		if _, _, ok := secret.Parse(a); ok {
			return auth.WithHint(usagef("that is a secret, want a client's id"), "its text is now in the shell's history: rotate it")
		}
		if !strings.HasPrefix(a, "client_") {
			return usagef("%q is no client id: they begin with client_", a)
		}
	}
	return nil
}
