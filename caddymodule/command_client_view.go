package caddymodule

import (
	"fmt"
	"strings"
	"text/tabwriter"

	"github.com/caddy-auth/caddy-auth/internal/auth"
	"github.com/caddy-auth/caddy-auth/internal/manage"
)

type madeClientView struct {
	ID     string   `json:"id"`
	Secret string   `json:"secret,omitempty"`
	Owner  string   `json:"owner"`
	Env    string   `json:"env"`
	Scopes []string `json:"scopes"`
}

// printMadeClient prints a client's secret alone, or everything as JSON. One
// that has no secret has its id there.
func (s *session) printMadeClient(sink *secretSink, made manage.MadeClient) error {
	c := made.Client
	if s.json {
		return printJSON(sink.out, madeClientView{c.ID, made.Secret.Reveal(), c.Owner, c.Environment, list(c.Scopes)})
	}
	line := c.ID
	if !made.Secret.Empty() {
		line = made.Secret.Reveal()
	}
	_, err := fmt.Fprintln(sink.out, line)
	return err
}

type clientView struct {
	ID            string            `json:"id"`
	Owner         string            `json:"owner"`
	Name          string            `json:"name"`
	Env           string            `json:"env"`
	Scopes        []string          `json:"scopes"`
	State         auth.KeyState     `json:"state"`
	AllowIP       []string          `json:"allow_ip"`
	Meta          map[string]string `json:"meta"`
	TokenLifetime string            `json:"token_lifetime,omitempty"`
	HasKeys       bool              `json:"has_keys"`
	CreatedAt     moment            `json:"created_at"`
	LastTokenAt   moment            `json:"last_token_at"`
	DisabledAt    moment            `json:"disabled_at"`
	RevokedAt     moment            `json:"revoked_at"`
	RevokedReason string            `json:"revoked_reason,omitempty"`
	Secrets       []secretView      `json:"secrets,omitempty"`
}

type secretView struct {
	Hint      string `json:"hint"`
	CreatedAt moment `json:"created_at"`
	EndsAt    moment `json:"ends_at"`
}

func viewClient(c *auth.Client) clientView {
	v := clientView{
		ID: c.ID, Owner: c.Owner, Name: c.Name, Env: c.Environment, Scopes: list(c.Scopes), State: c.State(), AllowIP: list(c.Networks), Meta: c.Meta,
		HasKeys: c.JWKS != "", CreatedAt: moment(c.CreatedAt), LastTokenAt: moment(c.LastTokenAt), DisabledAt: moment(c.DisabledAt),
		RevokedAt: moment(c.RevokedAt), RevokedReason: c.RevokedReason,
	}
	if c.TokenLifetime != 0 {
		v.TokenLifetime = c.TokenLifetime.String()
	}
	for _, one := range c.Secrets {
		v.Secrets = append(v.Secrets, secretView{one.Hint, moment(one.CreatedAt), moment(one.EndsAt)})
	}
	return v
}

// clientTable prints clients: JSON lines, or a table at the end.
type clientTable struct {
	s    *session
	tab  *tabwriter.Writer
	rows int
}

func (s *session) clientTable() *clientTable {
	return &clientTable{s: s, tab: tabwriter.NewWriter(s.out, 0, 4, 2, ' ', 0)}
}

func (t *clientTable) add(c *auth.Client) error {
	t.rows++
	if t.s.json {
		return printJSON(t.s.out, viewClient(c))
	}
	if t.rows == 1 {
		fmt.Fprintln(t.tab, "ID\tOWNER\tENV\tSCOPES\tSTATE\tCREATED\tLAST TOKEN")
	}
	_, err := fmt.Fprintf(t.tab, "%s\t%s\t%s\t%s\t%s\t%s\t%s\n", c.ID, c.Owner, c.Environment, orDash(strings.Join(c.Scopes, " ")), c.State(), day(c.CreatedAt), moment(c.LastTokenAt))
	return err
}

// printClient prints everything about one client.
func (s *session) printClient(c *auth.Client) error {
	v := viewClient(c)
	if s.json {
		return printJSON(s.out, v)
	}
	proves := "a secret"
	if v.HasKeys {
		proves = "signed assertions"
		if len(v.Secrets) > 0 {
			proves = "signed assertions or a secret"
		}
	}
	rows := [][2]string{
		{"id", v.ID},
		{"owner", v.Owner},
		{"name", orDash(v.Name)},
		{"env", v.Env},
		{"scopes", orDash(strings.Join(v.Scopes, " "))},
		{"allow_ip", orDash(strings.Join(v.AllowIP, " "))},
		{"meta", metaText(v.Meta)},
		{"token lifetime", orDash(v.TokenLifetime)},
		{"proves itself by", proves},
		{"state", string(v.State)},
		{"created", v.CreatedAt.String()},
		{"last token", v.LastTokenAt.String()},
		{"disabled", v.DisabledAt.String()},
		{"revoked", v.RevokedAt.String()},
		{"reason", orDash(v.RevokedReason)},
	}
	for _, one := range v.Secrets {
		rows = append(rows, [2]string{"secret", one.Hint + " ends: " + orNever(int64(one.EndsAt))})
	}
	tab := tabwriter.NewWriter(s.out, 0, 4, 2, ' ', 0)
	for _, row := range rows {
		fmt.Fprintf(tab, "%s\t%s\n", row[0], row[1])
	}
	return tab.Flush()
}
