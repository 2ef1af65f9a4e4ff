package caddymodule

import (
	"context"
	"fmt"
	"text/tabwriter"
	"time"

	caddycmd "github.com/caddyserver/caddy/v2/cmd"
	"github.com/spf13/cobra"

	"github.com/caddy-auth/caddy-auth/internal/auth"
)

func assertionKeyCommand() caddycmd.Command {
	return caddycmd.Command{
		Name:  "assertion-key",
		Usage: "<command>",
		Short: "Manages the keys that assertions for upstreams are signed with",
		CobraFunc: func(cmd *cobra.Command) {
			group(cmd)
			targetFlags(cmd)
			leaf(cmd, "list", "Lists the keys and when each signs", assertionKeyList, nil)
			leaf(cmd, "rotate", "Makes new keys and ends those there are", assertionKeyRotate, func(c *cobra.Command) {
				c.Long = `Makes a new key for each algorithm that has one. It is published at once, in the gateways'
/.well-known/jwks.json, and signs from half of the overlap on, at most ten minutes from now: by then upstreams that
keep a key set have it. The old keys are published until the overlap ends. If a key is known to others, use
--overlap 0s, and let upstreams read the key set again.`
				c.Flags().String("overlap", "1h", "how long what the old keys signed is still taken; 0s: not at all")
				waitFlags(c)
			})
		},
	}
}

type assertionKeyView struct {
	ID             string `json:"kid"`
	Algorithm      string `json:"alg"`
	State          string `json:"state"`
	CreatedAt      moment `json:"created_at"`
	SignsFrom      moment `json:"signs_from"`
	PublishedUntil moment `json:"published_until"`
}

func viewAssertionKey(k auth.AssertionKey, now time.Time) assertionKeyView {
	state := "signs"
	switch at := now.UnixMilli(); {
	case k.PublishedUntil != 0 && at >= k.PublishedUntil:
		state = "ended"
	case k.SignsFrom > at:
		state = "next"
	case k.PublishedUntil != 0:
		state = "ending"
	}
	return assertionKeyView{k.ID, k.Algorithm, state, moment(k.CreatedAt), moment(k.SignsFrom), moment(k.PublishedUntil)}
}

func assertionKeyList(ctx context.Context, s *session) error {
	if err := s.wantArgs(0, 0, "no arguments"); err != nil {
		return err
	}
	o, err := s.open(ctx)
	if err != nil {
		return err
	}
	defer o.db.Close()
	keys, err := o.db.AssertionKeys(ctx, nil)
	if err != nil {
		return err
	}
	if len(keys) == 0 {
		s.note("no keys: the gateway makes one when identity_headers has an assertion")
	}
	return s.printAssertionKeys(keys)
}

func (s *session) printAssertionKeys(keys []auth.AssertionKey) error {
	tab := tabwriter.NewWriter(s.out, 0, 4, 2, ' ', 0)
	for i, k := range keys {
		v := viewAssertionKey(k, time.Now())
		if s.json {
			if err := printJSON(s.out, v); err != nil {
				return err
			}
			continue
		}
		if i == 0 {
			fmt.Fprintln(tab, "KID\tALG\tSTATE\tCREATED\tSIGNS FROM\tPUBLISHED UNTIL")
		}
		fmt.Fprintf(tab, "%s\t%s\t%s\t%s\t%s\t%s\n", v.ID, v.Algorithm, v.State, v.CreatedAt, v.SignsFrom, v.PublishedUntil)
	}
	return tab.Flush()
}

func assertionKeyRotate(ctx context.Context, s *session) error {
	if err := s.wantArgs(0, 0, "no arguments"); err != nil {
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
	ring, _, err := ringOf(ctx, o.db, o.t.masters, o.t.backend)
	if err != nil {
		return err
	}
	if _, err := o.db.AssertionKeys(ctx, ring); err != nil { // the right master key, before anything is sealed under it
		return err
	}
	made, err := o.RotateAssertionKeys(ctx, ring, overlap)
	if err != nil {
		return err
	}
	for _, k := range made {
		s.note("%s (%s) is published now and signs from %s", k.ID, k.Algorithm, moment(k.SignsFrom))
	}
	if s.json {
		if err := s.printAssertionKeys(made); err != nil {
			return err
		}
	}
	return s.settle(ctx, o)
}
