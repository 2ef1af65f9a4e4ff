package caddymodule

import (
	"context"
	"fmt"
	"io"
	"text/tabwriter"

	caddycmd "github.com/caddyserver/caddy/v2/cmd"
	"github.com/spf13/cobra"

	"github.com/caddy-auth/caddy-auth/internal/auth"
	"github.com/caddy-auth/caddy-auth/internal/manage"
	"github.com/caddy-auth/caddy-auth/internal/store"
)

func ownerCommand() caddycmd.Command {
	return caddycmd.Command{
		Name:  "owner",
		Usage: "<command>",
		Short: "Manages the owners of keys",
		CobraFunc: func(cmd *cobra.Command) {
			group(cmd)
			targetFlags(cmd)
			leaf(cmd, "list", "Lists owners", ownerList, nil)
			leaf(cmd, "show NAME", "Shows an owner, its keys and its clients", ownerShow, nil)
			leaf(cmd, "disable NAME", "Stops all keys, clients and tokens of an owner until it is enabled", ownerSetDisabled(true), changeFlags)
			leaf(cmd, "enable NAME", "Lets the keys, clients and tokens of an owner work again", ownerSetDisabled(false), changeFlags)
		},
	}
}

type ownerView struct {
	Owner          string `json:"owner"`
	Disabled       bool   `json:"disabled"`
	Keys           int    `json:"keys"`
	CreatedAt      moment `json:"created_at"`
	DisabledAt     moment `json:"disabled_at"`
	DisabledReason string `json:"disabled_reason,omitempty"`
}

func viewOwner(o auth.Owner) ownerView {
	return ownerView{o.Name, o.DisabledAt != 0, o.Keys, moment(o.CreatedAt), moment(o.DisabledAt), o.DisabledReason}
}

func ownerList(ctx context.Context, s *session) error {
	if err := s.wantArgs(0, 0, "no arguments"); err != nil {
		return err
	}
	o, err := s.open(ctx)
	if err != nil {
		return err
	}
	defer o.db.Close()
	tab := tabwriter.NewWriter(s.out, 0, 4, 2, ' ', 0)
	rows := 0
	err = o.db.Owners(ctx, func(o auth.Owner) error {
		rows++
		if s.json {
			return printJSON(s.out, viewOwner(o))
		}
		if rows == 1 {
			fmt.Fprintln(tab, "OWNER\tKEYS IN USE\tCREATED\tDISABLED\tREASON")
		}
		_, err := fmt.Fprintf(tab, "%s\t%d\t%s\t%s\t%s\n", o.Name, o.Keys, day(o.CreatedAt), moment(o.DisabledAt), orDash(o.DisabledReason))
		return err
	})
	if err != nil {
		return err
	}
	if rows == 0 {
		s.note("no owners")
	}
	return tab.Flush()
}

func ownerShow(ctx context.Context, s *session) error {
	if err := s.wantArgs(1, 1, "one owner's name"); err != nil {
		return err
	}
	o, err := s.open(ctx)
	if err != nil {
		return err
	}
	defer o.db.Close()
	owner, err := o.db.Owner(ctx, s.args[0])
	if err != nil {
		return err
	}
	if s.json {
		return printJSON(s.out, viewOwner(owner))
	}
	state := "enabled"
	if owner.DisabledAt != 0 {
		state = fmt.Sprintf("disabled since %s: %s", moment(owner.DisabledAt), orDash(owner.DisabledReason))
	}
	fmt.Fprintln(s.out, singular(fmt.Sprintf("%s, %s, %d keys in use", owner.Name, state, owner.Keys)))
	table := s.keyTable()
	if err := o.db.Keys(ctx, store.KeyFilter{Owner: owner.Name}, table.add); err != nil {
		return err
	}
	if err := table.end(); err != nil {
		return err
	}
	clients := s.clientTable()
	if err := o.db.Clients(ctx, store.ClientFilter{Owner: owner.Name}, clients.add); err != nil {
		return err
	}
	return clients.tab.Flush()
}

func ownerSetDisabled(disabled bool) func(context.Context, *session) error {
	word := "enabled"
	if disabled {
		word = "disabled"
	}
	return func(ctx context.Context, s *session) error {
		if err := s.wantArgs(1, 1, "one owner's name"); err != nil {
			return err
		}
		name := s.args[0]
		if err := manage.CheckOwner(name); err != nil {
			return err
		}
		o, err := s.open(ctx)
		if err != nil {
			return err
		}
		defer o.db.Close()
		owner, err := o.db.Owner(ctx, name)
		if err != nil {
			return err
		}
		if disabled {
			if err := s.confirmNamed(fmt.Sprintf("disable %s and its %d keys", name, owner.Keys)); err != nil {
				return err
			}
		}
		reason, _ := s.cmd.Flags().GetString("reason")
		changed, err := o.SetOwnerDisabled(ctx, name, disabled, reason)
		if err != nil {
			return err
		}
		if !changed {
			s.note("%s was %s already", name, word)
		} else {
			s.note("%s %s, with %d keys", word, name, owner.Keys)
		}
		if s.json {
			if owner, err = o.db.Owner(ctx, name); err != nil {
				return err
			}
			if err := printJSON(s.out, viewOwner(owner)); err != nil {
				return err
			}
		}
		return s.settle(ctx, o)
	}
}

func storeCommand() caddycmd.Command {
	return caddycmd.Command{
		Name:  "store",
		Usage: "<command>",
		Short: "Makes, migrates, copies, backs up and restores the gateway's store",
		CobraFunc: func(cmd *cobra.Command) {
			group(cmd)
			targetFlags(cmd)
			leaf(cmd, "init", "Makes the store, if there is none", storeInit, behalfFlag)
			leaf(cmd, "migrate", "Brings the store up to date with this release", storeMigrate, behalfFlag)
			leaf(cmd, "copy --to STORE", "Moves everything to another store, a file or PostgreSQL", storeCopy, copyFlags)
			leaf(cmd, "rotate-secrets", "Makes the store's secrets anew, sealed under the present master key", storeRotateSecrets, func(c *cobra.Command) {
				c.Flags().BoolP("yes", "y", false, "don't ask")
				waitFlags(c)
			})
			leaf(cmd, "backup --out FILE", "Copies the store while it is used", storeBackup, backupFlags)
			leaf(cmd, "restore FILE", "Puts a backup in the store's place and says what that undoes", storeRestore, restoreFlags)
		},
	}
}

// storeTarget is the store that a command may make or migrate.
func (s *session) storeTarget() (*target, error) {
	if err := s.wantArgs(0, 0, "no arguments"); err != nil {
		return nil, err
	}
	t, err := findTarget(s.cmd)
	if err != nil {
		return nil, err
	}
	s.note("using %s (from %s)", t.backend.Describe(), t.from)
	return t, checkFileOwner(t.backend)
}

func storeInit(ctx context.Context, s *session) error {
	t, err := s.storeTarget()
	if err != nil {
		return err
	}
	db, _, made, err := openAndInit(ctx, t.backend, t.masters, actor(), t.prefix)
	if err != nil {
		return err
	}
	defer db.Close()
	if made {
		s.note("made the store")
	} else {
		s.note("the store was there already")
	}
	if s.json {
		return printJSON(s.out, map[string]any{"store": t.backend.Describe(), "made": made})
	}
	return nil
}

func storeMigrate(ctx context.Context, s *session) error {
	t, err := s.storeTarget()
	if err != nil {
		return err
	}
	db, err := store.Open(ctx, t.backend, store.Migrate)
	if err != nil {
		return err
	}
	defer db.Close()
	s.note("the store is up to date")
	if s.json {
		return printJSON(s.out, map[string]any{"store": t.backend.Describe(), "migrated": true})
	}
	return nil
}

// countingWriter knows whether anything was written.
type countingWriter struct {
	w io.Writer
	n int
}

func (c *countingWriter) Write(b []byte) (int, error) {
	n, err := c.w.Write(b)
	c.n += n
	return n, err
}
