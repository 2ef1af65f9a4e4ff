package caddymodule

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	caddycmd "github.com/caddyserver/caddy/v2/cmd"
	"github.com/spf13/cobra"

	"github.com/caddy-auth/caddy-auth/internal/auth"
)

func outboundCommand() caddycmd.Command {
	return caddycmd.Command{
		Name:  "outbound",
		Usage: "<command>",
		Short: "Looks at the gateway's own credentials toward upstreams",
		CobraFunc: func(cmd *cobra.Command) {
			group(cmd)
			targetFlags(cmd)
			leaf(cmd, "list", "Lists the outbounds of the configuration", outboundList, nil)
			leaf(cmd, "check [NAME]...", "Gets a token for each outbound, and tells what it is good for", outboundCheck, func(c *cobra.Command) {
				c.Long = `Reads the secret and asks the token endpoint for a token, as a gateway with this configuration and this
environment would. It prints when the token expires and its scopes, never the token or the secret, and gives nothing to
running gateways. A key in a header is only read: whether the upstream takes it shows in a request. Without a name all are
checked. Exits 1 if one fails.`
			})
		},
	}
}

// outbounds compiles the outbounds of the configuration. The caller releases
// them.
func (t *target) outbounds() (*ownCredentials, error) {
	if t.app == nil {
		return nil, usagef("outbounds are in the configuration: name it with --config")
	}
	if err := t.app.provisionOutbound(); err != nil {
		return nil, errors.Join(err, t.app.outbound.release())
	}
	return t.app.outbound, nil
}

type outboundView struct {
	Name   string   `json:"outbound"`
	Kind   string   `json:"kind"` // token or header
	Header string   `json:"header"`
	From   string   `json:"token_url,omitempty"`
	Client string   `json:"client_id,omitempty"`
	Auth   string   `json:"auth,omitempty"`
	Scopes []string `json:"scopes,omitempty"`
	File   string   `json:"secret_file,omitempty"`
}

func outboundList(_ context.Context, s *session) error {
	if err := s.wantArgs(0, 0, "no arguments"); err != nil {
		return err
	}
	t, err := findTarget(s.cmd)
	if err != nil {
		return err
	}
	if t.app == nil {
		return usagef("outbounds are in the configuration: name it with --config")
	}
	if len(t.app.Outbound) == 0 {
		s.note("no outbound in %s", t.from)
	}
	tab := tabwriter.NewWriter(s.out, 0, 4, 2, ' ', 0)
	for i, name := range slices.Sorted(maps.Keys(t.app.Outbound)) {
		c := t.app.Outbound[name]
		v := outboundView{Name: name, Kind: "token", Header: "Authorization", From: c.TokenURL, Client: c.ClientID, Auth: c.Auth, Scopes: c.Scopes, File: c.ClientSecretFile}
		if c.Header != nil {
			v = outboundView{Name: name, Kind: "header", Header: c.Header.Name, File: c.Header.File}
		} else if v.Auth == "" {
			v.Auth = "basic"
		}
		if s.json {
			if err := printJSON(s.out, v); err != nil {
				return err
			}
			continue
		}
		if i == 0 {
			fmt.Fprintln(tab, "NAME\tKIND\tHEADER\tTOKEN URL\tCLIENT\tSCOPES")
		}
		fmt.Fprintf(tab, "%s\t%s\t%s\t%s\t%s\t%s\n", v.Name, v.Kind, v.Header, v.From, v.Client, strings.Join(v.Scopes, " "))
	}
	return tab.Flush()
}

// outboundFinding is what checking one outbound found.
type outboundFinding struct {
	Name      string   `json:"outbound"`
	OK        bool     `json:"ok"`
	Detail    string   `json:"detail"`
	Hint      string   `json:"hint,omitempty"`
	Cause     string   `json:"cause,omitempty"`
	ExpiresIn int      `json:"expires_in,omitempty"` // seconds
	ExpiresAt moment   `json:"expires_at,omitempty"`
	Assumed   bool     `json:"expiry_assumed,omitempty"` // the server did not say
	Scopes    []string `json:"scopes,omitempty"`
	Missing   []string `json:"missing_scopes,omitempty"`
}

func outboundCheck(ctx context.Context, s *session) error {
	t, err := findTarget(s.cmd)
	if err != nil {
		return err
	}
	own, err := t.outbounds()
	if err != nil {
		return err
	}
	defer func() { _ = own.release() }() // nothing was kept
	names := s.args
	if len(names) == 0 {
		names = slices.Sorted(maps.Keys(own.sources))
	}
	for _, name := range names {
		if own.sources[name] == nil {
			return usagef("there is no outbound %q in %s, only %q", name, t.from, slices.Sorted(maps.Keys(own.sources)))
		}
	}
	if len(names) == 0 {
		s.note("no outbound in %s", t.from)
	}
	failed := 0
	for _, name := range names {
		f := own.sources[name].check(ctx, t.app.Outbound[name].Scopes)
		if !f.OK {
			failed++
		}
		if err := s.printFinding(f); err != nil {
			return err
		}
	}
	if failed > 0 {
		return fmt.Errorf("%d of %d outbounds can't be used", failed, len(names))
	}
	return nil
}

func (s *session) printFinding(f outboundFinding) error {
	if s.json {
		return printJSON(s.out, f)
	}
	level := levelOK
	if !f.OK {
		level = levelFinding
	}
	_, err := fmt.Fprintf(s.out, "%-8s %-14s %s\n", level, f.Name, f.Detail)
	if f.Hint != "" {
		fmt.Fprintf(s.out, "%-23s hint: %s\n", "", f.Hint)
	}
	return err
}

// check gets a token, or looks at a key.
func (s *source) check(ctx context.Context, asked []string) outboundFinding {
	f := outboundFinding{Name: s.name, OK: true}
	if s.tokens == nil {
		f.Detail = "a key in " + s.header
		if s.file != nil {
			f.Detail += ", from " + s.file.Path()
		}
		return f
	}
	began := time.Now()
	g, err := s.ask.Ask(ctx)
	if err != nil {
		f.OK, f.Detail, f.Hint = false, strings.ReplaceAll(err.Error(), "\n", " "), auth.Hint(err)
		f.Cause = causeOf(err)
		return f
	}
	life := g.Expires.Sub(g.Issued)
	f.ExpiresIn, f.ExpiresAt, f.Assumed, f.Scopes = int(life.Seconds()), moment(g.Expires.UnixMilli()), !g.Told, g.Scopes
	for _, scope := range asked {
		if !slices.Contains(g.Scopes, scope) {
			f.Missing = append(f.Missing, scope)
		}
	}
	scopes := strings.Join(g.Scopes, " ")
	if scopes == "" {
		scopes = "none that it says"
	}
	f.Detail = fmt.Sprintf("a token in %s, good for %s (until %s), scopes: %s", time.Since(began).Round(time.Millisecond), life.Round(time.Second), f.ExpiresAt, scopes)
	if f.Assumed {
		f.Detail += "; the server does not say how long it lives, so that is assumed"
	}
	if len(f.Missing) > 0 {
		f.Detail += "; not given: " + strings.Join(f.Missing, " ")
		f.Hint = "the server gives this client fewer scopes than are asked for"
	}
	return f
}

// outbound gets a token for each outbound.
func (e *examination) outbound(ctx context.Context) {
	if e.t.app == nil || len(e.t.app.Outbound) == 0 {
		return
	}
	own, err := e.t.outbounds()
	if err != nil {
		return // the configuration's finding
	}
	defer func() { _ = own.release() }() // nothing was kept
	for _, name := range slices.Sorted(maps.Keys(own.sources)) {
		f := own.sources[name].check(ctx, e.t.app.Outbound[name].Scopes)
		if !f.OK {
			e.found("outbound", fmt.Errorf("%s: %s", name, f.Detail), f.Hint)
			continue
		}
		level := levelOK
		if f.Hint != "" {
			level = levelNote
		}
		e.say(level, "outbound", name+": "+f.Detail, f.Hint)
	}
}
