package caddymodule

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"
	"text/tabwriter"

	caddycmd "github.com/caddyserver/caddy/v2/cmd"
	"github.com/spf13/cobra"

	"github.com/caddy-auth/caddy-auth/internal/auth"
	"github.com/caddy-auth/caddy-auth/internal/verifier"
)

func tokenCommand() caddycmd.Command {
	return caddycmd.Command{
		Name:  "token",
		Usage: "<command>",
		Short: "Ends tokens before they expire",
		CobraFunc: func(cmd *cobra.Command) {
			group(cmd)
			targetFlags(cmd)
			leaf(cmd, "revoke --stdin | --issuer NAME (--jti ID | --subject NAME [--issued-before TIME])", "Ends one token, or those of a subject that were issued so far", tokenRevoke, func(c *cobra.Command) {
				c.Flags().Bool("stdin", false, "tokens of this gateway, typed or piped in, one a line")
				c.Flags().String("issuer", "", "the issuer's name in the configuration")
				c.Flags().String("jti", "", "the token's jti, as the token, X-Auth-Credential-Id or the decision log has it")
				c.Flags().String("subject", "", "the subject, as the token calls it or as upstreams see it")
				c.Flags().String("issued-before", "", "only tokens issued before then, a time or a duration back from now; by default: now")
				c.Flags().String("reason", "", "why, for the audit log")
				waitFlags(c)
			})
			leaf(cmd, "list", "Lists what was ended, as long as it matters", tokenList, func(c *cobra.Command) {
				c.Flags().String("issuer", "", "only of this issuer")
			})
		},
	}
}

type cutOffView struct {
	KeptUntil    moment `json:"kept_until"` // null: for ever
	Issuer       string `json:"issuer"`
	JTI          string `json:"jti,omitempty"`
	Subject      string `json:"subject,omitempty"`
	IssuedBefore moment `json:"issued_before"` // null: whenever it was issued
	RevokedAt    moment `json:"revoked_at"`
	Reason       string `json:"reason,omitempty"`
}

func viewCutOff(c auth.CutOff) cutOffView {
	v := cutOffView{Issuer: c.Issuer, JTI: c.JTI, Subject: c.Subject, RevokedAt: moment(c.CreatedAt), KeptUntil: moment(c.KeptUntil), Reason: c.Reason}
	if c.IssuedBefore != auth.AnyTime {
		v.IssuedBefore = moment(c.IssuedBefore)
	}
	return v
}

func tokenRevoke(ctx context.Context, s *session) error {
	if err := s.wantArgs(0, 0, "no arguments, only flags: a token is never an argument"); err != nil {
		return err
	}
	flags := s.cmd.Flags()
	if own, _ := flags.GetBool("stdin"); own {
		return ownTokensRevoke(ctx, s)
	}
	var c auth.CutOff
	c.Issuer, _ = flags.GetString("issuer")
	c.JTI, _ = flags.GetString("jti")
	c.Subject, _ = flags.GetString("subject")
	c.Reason, _ = flags.GetString("reason")
	if c.Issuer == "" || (c.JTI == "") == (c.Subject == "") {
		return usagef("want --stdin, or --issuer and either --jti or --subject")
	}
	if err := verifier.CheckIssuerName(c.Issuer); err != nil {
		return usageError{err}
	}
	var err error
	if c.IssuedBefore, err = s.timeFlag("issued-before"); err != nil {
		return err
	}
	if c.JTI != "" && c.IssuedBefore != 0 {
		return usagef("--issued-before goes with --subject: a token with a jti is one token")
	}
	o, err := s.open(ctx)
	if err != nil {
		return err
	}
	defer o.db.Close()
	if err := s.checkIssuer(o.t, c.Issuer); err != nil {
		return err
	}
	// A JWT of an issuer that is configured can't live longer than cut-offs are kept.
	jwt := false
	if o.t.app != nil {
		_, jwt = o.t.app.Issuers[c.Issuer]
		if _, opaque := o.t.app.Introspection[c.Issuer]; opaque && c.Subject != "" {
			s.note("note: tokens of %s that do not say when they were issued (iat) are refused from now on, new ones of this subject too", c.Issuer)
		}
	}
	changed, err := o.CutOff(ctx, c, !jwt)
	if err != nil {
		return err
	}
	what := "the token " + c.JTI
	if c.Subject != "" {
		what = "all tokens of " + c.Subject + " issued so far"
		if c.IssuedBefore != 0 {
			what = "all tokens of " + c.Subject + " issued before " + moment(c.IssuedBefore).String()
		}
	}
	if changed {
		s.note("revoked %s, issuer %s", what, c.Issuer)
	} else {
		s.note("%s, issuer %s: revoked already", what, c.Issuer)
	}
	if s.json {
		out := map[string]any{"issuer": c.Issuer, "changed": changed}
		if c.JTI != "" {
			out["jti"] = c.JTI
		} else {
			out["subject"] = c.Subject
		}
		if err := printJSON(s.out, out); err != nil {
			return err
		}
	}
	return s.settle(ctx, o)
}

// ownTokensRevoke ends tokens that this gateway issued.
func ownTokensRevoke(ctx context.Context, s *session) error {
	for _, other := range []string{"issuer", "jti", "subject", "issued-before"} {
		if s.cmd.Flags().Changed(other) {
			return usagef("--stdin is for tokens of this gateway, --%s for those of other issuers", other)
		}
	}
	lines, err := s.readPasted("token: ")
	if err != nil {
		return err
	}
	o, err := s.open(ctx)
	if err != nil {
		return err
	}
	defer o.db.Close()
	reason, _ := s.cmd.Flags().GetString("reason")
	some := false
	unknown, why, err := findPasted(ctx, o, lines, o.FindToken, func(t *auth.AccessToken) error {
		some = true
		changed, err := o.RevokeOwnToken(ctx, t.Fingerprint, t.ID, t.ClientID, reason)
		if err != nil {
			return err
		}
		word := "revoked"
		if !changed {
			word = "had ended already:"
		}
		s.note("%s %s", word, t.ID)
		if s.json {
			return printJSON(s.out, map[string]any{"id": t.ID, "client_id": t.ClientID, "key_id": t.KeyID, "changed": changed})
		}
		return nil
	})
	if err != nil {
		return err
	}
	const gone = "tokens that have expired are not kept; "
	if !some {
		return unknownLines("token", unknown, len(lines), why, gone+"nothing was changed")
	}
	if err := s.settle(ctx, o); err != nil {
		return err
	}
	return unknownLines("token", unknown, len(lines), nil, gone+"those in the others are revoked")
}

// checkIssuer refuses an issuer that the configuration does not know: a name
// that is mistyped would end nothing.
func (s *session) checkIssuer(t *target, name string) error {
	if t.app == nil {
		s.note("note: without a configuration nobody checks that %s is the name of an issuer", name)
		return nil
	}
	known := slices.Sorted(maps.Keys(t.app.Issuers))
	known = append(known, slices.Sorted(maps.Keys(t.app.Introspection))...)
	if slices.Contains(known, name) {
		return nil
	}
	hint := "the configuration has " + strings.Join(known, ", ")
	if len(known) == 0 {
		hint = "the configuration has no issuers; to end tokens all the same, name the store with --store and no --config"
	}
	return auth.WithHint(fmt.Errorf("issuer %s: %w", name, auth.ErrNotFound), hint)
}

func tokenList(ctx context.Context, s *session) error {
	if err := s.wantArgs(0, 0, "no arguments, only flags"); err != nil {
		return err
	}
	issuer, _ := s.cmd.Flags().GetString("issuer")
	o, err := s.open(ctx)
	if err != nil {
		return err
	}
	defer o.db.Close()
	tab := tabwriter.NewWriter(s.out, 0, 4, 2, ' ', 0)
	if !s.json {
		fmt.Fprintln(tab, "ISSUER\tWHAT\tISSUED BEFORE\tREVOKED\tREASON")
	}
	err = o.db.CutOffs(ctx, func(c auth.CutOff) error {
		if issuer != "" && c.Issuer != issuer {
			return nil
		}
		v := viewCutOff(c)
		if s.json {
			return printJSON(s.out, v)
		}
		what := "jti " + v.JTI
		if v.Subject != "" {
			what = "subject " + v.Subject
		}
		fmt.Fprintf(tab, "%s\t%s\t%s\t%s\t%s\n", v.Issuer, printable(what), v.IssuedBefore, v.RevokedAt, v.Reason)
		return nil
	})
	if err != nil {
		return err
	}
	return tab.Flush()
}

// printable keeps what others chose from steering a terminal.
func printable(s string) string {
	return strings.Map(func(r rune) rune {
		if r < 0x20 || r == 0x7f || r >= 0x80 && r < 0xa0 {
			return '?'
		}
		return r
	}, s)
}
