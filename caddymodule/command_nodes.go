package caddymodule

import (
	"context"
	"fmt"
	"text/tabwriter"
	"time"

	caddycmd "github.com/caddyserver/caddy/v2/cmd"
	"github.com/spf13/cobra"

	"github.com/caddy-auth/caddy-auth/internal/auth"
	"github.com/caddy-auth/caddy-auth/internal/store"
)

// single sets a command up that has no children.
func single(cmd *cobra.Command, f func(context.Context, *session) error, flags func(*cobra.Command)) {
	quiet(cmd)
	targetFlags(cmd)
	cmd.Flags().Bool("json", false, "print JSON, lists with one object a line")
	if flags != nil {
		flags(cmd)
	}
	cmd.RunE = run(f)
}

func nodesCommand() caddycmd.Command {
	return caddycmd.Command{
		Name:  "nodes",
		Short: "Lists the gateways that follow the store, and how far each has come",
		Long: `Lists the gateways that follow the store: what they have applied of its journal, how many changes they
are behind, and when they were heard of last. A live gateway is one that --wait waits for. One that ended
cleanly is not listed; one that fell silent is "silent": it answers 503 by itself, unless the store is full or
read-only, so that nobody can write to it, a heartbeat least of all. With --wait it first waits
until every live gateway has applied all that was changed so far.`,
		CobraFunc: func(cmd *cobra.Command) { single(cmd, nodes, waitFlags) },
	}
}

type nodeView struct {
	ID           string `json:"id"`
	Name         string `json:"name"`
	Version      string `json:"version"`
	State        string `json:"state"`
	Applied      int64  `json:"applied"`
	Lag          int64  `json:"lag"`
	StartedAt    moment `json:"started_at"`
	HeartbeatAt  moment `json:"heartbeat_at"`
	LiveUntil    moment `json:"live_until"`
	MaxStaleness string `json:"max_staleness"`
}

func viewNode(m *store.Member, now, behind int64) nodeView {
	v := nodeView{
		ID: m.ID, Name: m.Name, Version: m.Version, State: "silent", Applied: m.Seq, Lag: behind,
		StartedAt: moment(m.StartedAt), HeartbeatAt: moment(m.HeartbeatAt), LiveUntil: moment(m.LiveUntil()), MaxStaleness: m.MaxStaleness.String(),
	}
	switch {
	case !m.Live(now):
	case m.Seq == 0:
		v.State = "starting"
	case !m.Known:
		v.State = "restoring" // it does not know yet that the store went back in time
	default:
		v.State = "live"
	}
	return v
}

func nodes(ctx context.Context, s *session) error {
	if err := s.wantArgs(0, 0, "no arguments"); err != nil {
		return err
	}
	o, err := s.open(ctx)
	if err != nil {
		return err
	}
	defer o.db.Close()
	s.waitsOnly = true
	if err := s.settle(ctx, o); err != nil {
		return err
	}
	fleet, err := o.db.Fleet(ctx, auth.Point{})
	if err != nil {
		return err
	}
	if len(fleet.Members) == 0 {
		s.note("no gateway follows this store")
	}
	tab := tabwriter.NewWriter(s.out, 0, 4, 2, ' ', 0)
	for i := range fleet.Members {
		behind, err := o.db.Behind(ctx, fleet.Members[i].Seq)
		if err != nil {
			return err
		}
		v := viewNode(&fleet.Members[i], fleet.Now, behind)
		if s.json {
			if err := printJSON(s.out, v); err != nil {
				return err
			}
			continue
		}
		if i == 0 {
			fmt.Fprintln(tab, "ID\tNAME\tVERSION\tSTATE\tAPPLIED\tLAG\tLAST HEARTBEAT\tSTARTED")
		}
		ago := (time.Duration(fleet.Now-fleet.Members[i].HeartbeatAt) * time.Millisecond).Round(100 * time.Millisecond)
		fmt.Fprintf(tab, "%s\t%s\t%s\t%s\t%d\t%d\t%s ago\t%s\n", v.ID, v.Name, v.Version, v.State, v.Applied, v.Lag, ago, v.StartedAt)
	}
	return tab.Flush()
}
