package caddymodule

import (
	"context"
	"fmt"
	"net/url"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	caddycmd "github.com/caddyserver/caddy/v2/cmd"
	"github.com/spf13/cobra"

	"github.com/caddy-auth/caddy-auth/internal/auth"
	"github.com/caddy-auth/caddy-auth/internal/store"
)

func sessionCommand() caddycmd.Command {
	return caddycmd.Command{
		Name:  "session",
		Usage: "<command>",
		Short: "Lists and ends the sessions of people who signed in",
		CobraFunc: func(cmd *cobra.Command) {
			group(cmd)
			targetFlags(cmd)
			which := func(c *cobra.Command) {
				c.Flags().String("subject", "", "the person, as upstreams see them: LOGIN:SUB")
				c.Flags().String("login", "", "the login's name in the configuration")
			}
			leaf(cmd, "list", "Lists sessions, the oldest first; ended ones are kept for a day", sessionList, func(c *cobra.Command) {
				which(c)
				c.Flags().String("state", "active", "active, expired, ended or all")
				c.Flags().Int("limit", 0, "at most so many")
			})
			leaf(cmd, "show ID", "Shows a session", sessionShow, nil)
			leaf(cmd, "revoke ID... | --subject NAME | --login NAME", "Ends sessions; a gateway revokes their tokens at the provider", sessionRevoke, func(c *cobra.Command) {
				which(c)
				c.Flags().String("reason", "", "why, for the audit log")
				c.Flags().Bool("yes", false, "don't ask")
				waitFlags(c)
			})
		},
	}
}

type sessionView struct {
	ID            string            `json:"id"`
	Login         string            `json:"login"`
	Subject       string            `json:"subject"`
	State         auth.SessionState `json:"state"`
	Environment   string            `json:"env"`
	Scopes        []string          `json:"scopes"`
	Meta          map[string]string `json:"meta,omitempty"`
	CreatedAt     moment            `json:"created_at"`
	SeenAt        moment            `json:"seen_at"`
	IdleUntil     moment            `json:"idle_until"`
	ExpiresAt     moment            `json:"expires_at"`
	EndedAt       moment            `json:"ended_at"`
	Reason        string            `json:"reason,omitempty"`
	HasTokens     bool              `json:"has_tokens"`
	ProviderSID   string            `json:"sid,omitempty"`
	ProviderNamed string            `json:"sub"`
}

func viewSession(s *auth.Session, now time.Time) sessionView {
	v := sessionView{
		ID: s.ID, Login: s.Login, Subject: s.Subject, State: s.State(now.UnixMilli()), Environment: s.Environment, Scopes: append([]string{}, strings.Fields(s.Scopes)...),
		CreatedAt: moment(s.CreatedAt), SeenAt: moment(s.SeenAt), IdleUntil: moment(s.IdleUntil), ExpiresAt: moment(s.ExpiresAt), EndedAt: moment(s.RevokedAt),
		Reason: s.RevokedReason, HasTokens: s.HasTokens, ProviderSID: s.SID, ProviderNamed: s.Sub,
	}
	id := auth.Identity{Meta: s.Meta}
	for name := range auth.DecodeMeta(s.Meta) {
		if v.Meta == nil {
			v.Meta = map[string]string{}
		}
		v.Meta[name] = id.MetaValue(name)
	}
	return v
}

// sessionFilters are what --subject and --login select: a subject may have been
// copied from a header, where it is percent-encoded.
func (s *session) sessionFilters() []store.SessionFilter {
	subject, _ := s.cmd.Flags().GetString("subject")
	login, _ := s.cmd.Flags().GetString("login")
	subjects := []string{subject}
	if login != "" && subject != "" && !strings.HasPrefix(subject, login+":") {
		subjects = append(subjects, auth.PartOf(login, subject))
	}
	for _, one := range subjects {
		if plain, err := url.PathUnescape(one); err == nil && !slices.Contains(subjects, plain) {
			subjects = append(subjects, plain)
		}
	}
	var out []store.SessionFilter
	for _, one := range subjects {
		out = append(out, store.SessionFilter{Login: login, Subject: one})
	}
	return out
}

func sessionList(ctx context.Context, s *session) error {
	if err := s.wantArgs(0, 0, "no arguments, only flags"); err != nil {
		return err
	}
	state, _ := s.cmd.Flags().GetString("state")
	limit, _ := s.cmd.Flags().GetInt("limit")
	if err := oneOf("--state", state, "active", "expired", "ended", "all"); err != nil {
		return usageError{err}
	}
	if limit < 0 {
		return usagef("--limit: want a number above zero")
	}
	o, err := s.open(ctx)
	if err != nil {
		return err
	}
	defer o.db.Close()
	tab := tabwriter.NewWriter(s.out, 0, 4, 2, ' ', 0)
	if !s.json {
		fmt.Fprintln(tab, "ID\tSUBJECT\tSTATE\tCREATED\tSEEN\tENDS")
	}
	now, left := time.Now(), limit
	for _, f := range s.sessionFilters() {
		err := o.db.Sessions(ctx, f, func(one *auth.Session) error {
			v := viewSession(one, now)
			if state != "all" && string(v.State) != state || limit > 0 && left == 0 {
				return nil
			}
			left--
			if s.json {
				return printJSON(s.out, v)
			}
			fmt.Fprintf(tab, "%s\t%s\t%s\t%s\t%s\t%s\n", v.ID, printable(v.Subject), v.State, v.CreatedAt, v.SeenAt, moment(one.NotAfter()))
			return nil
		})
		if err != nil {
			return err
		}
	}
	return tab.Flush()
}

func sessionShow(ctx context.Context, s *session) error {
	if err := s.wantArgs(1, 1, "one session's id"); err != nil {
		return err
	}
	if err := checkSessionIDs(s.args); err != nil {
		return err
	}
	o, err := s.open(ctx)
	if err != nil {
		return err
	}
	defer o.db.Close()
	one, err := o.db.Session(ctx, s.args[0])
	if err != nil {
		return err
	}
	v := viewSession(one, time.Now())
	if s.json {
		return printJSON(s.out, v)
	}
	tab := tabwriter.NewWriter(s.out, 0, 4, 2, ' ', 0)
	row := func(name string, value any) { fmt.Fprintf(tab, "%s\t%s\n", name, printable(fmt.Sprint(value))) }
	row("id", v.ID)
	row("subject", v.Subject)
	row("login", v.Login)
	row("state", v.State)
	row("environment", v.Environment)
	row("scopes", strings.Join(v.Scopes, " "))
	for name := range auth.DecodeMeta(one.Meta) {
		row("meta "+name, v.Meta[name])
	}
	row("created", v.CreatedAt)
	row("seen", v.SeenAt)
	row("idle until", v.IdleUntil)
	row("expires", v.ExpiresAt)
	if one.RevokedAt != 0 {
		row("ended", fmt.Sprintf("%s (%s)", v.EndedAt, v.Reason))
	}
	row("tokens of the provider", map[bool]string{true: "held, sealed", false: "none"}[v.HasTokens])
	return tab.Flush()
}

// checkSessionIDs refuses what is no id: a cookie's value must not be an
// argument.
func checkSessionIDs(ids []string) error {
	for _, id := range ids {
		if !strings.HasPrefix(id, "ses_") || len(id) != len("ses_")+36 {
			return usagef("%q is no session's id: want ses_ and 36 characters, as session list shows them", printable(id[:min(len(id), 8)])+"...")
		}
	}
	return nil
}

func sessionRevoke(ctx context.Context, s *session) error {
	subject, _ := s.cmd.Flags().GetString("subject")
	login, _ := s.cmd.Flags().GetString("login")
	reason, _ := s.cmd.Flags().GetString("reason")
	if len(s.args) > 0 == (subject+login != "") {
		return usagef("want sessions' ids, or --subject or --login")
	}
	for name, value := range map[string]string{"subject": subject, "login": login} {
		if s.cmd.Flags().Changed(name) && value == "" { // a variable that was not set
			return usagef("--%s is empty", name)
		}
	}
	if err := checkSessionIDs(s.args); err != nil {
		return err
	}
	o, err := s.open(ctx)
	if err != nil {
		return err
	}
	defer o.db.Close()
	filters := []store.SessionFilter{{IDs: s.args}}
	what := fmt.Sprintf("end %d sessions", len(s.args))
	if len(s.args) == 0 {
		filters, what = s.sessionFilters(), "end all sessions of "+printable(subject)
		if subject == "" {
			what = "end all sessions of everybody who signed in by " + login
		}
	}
	for _, id := range s.args {
		if _, err := o.db.Session(ctx, id); err != nil {
			return err
		}
	}
	ask := s.confirmNamed
	if subject == "" && len(s.args) == 0 {
		ask = s.confirm
	}
	if len(s.args) != 1 {
		if err := ask(what); err != nil {
			return err
		}
	}
	ended := 0
	for _, f := range filters {
		n, err := o.EndSessions(ctx, f, reason)
		if err != nil {
			return err
		}
		ended += n
	}
	s.note("ended %d sessions; a gateway revokes their tokens at the provider", ended)
	if ended == 0 {
		s.note("note: nobody has such a session; see: session list --state all")
	}
	if s.json {
		if err := printJSON(s.out, map[string]any{"ended": ended}); err != nil {
			return err
		}
	}
	return s.settle(ctx, o)
}
