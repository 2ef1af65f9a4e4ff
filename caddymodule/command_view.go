package caddymodule

import (
	"encoding/json"
	"fmt"
	"io"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/caddy-auth/caddy-auth/internal/auth"
	"github.com/caddy-auth/caddy-auth/internal/manage"
)

// moment prints unix milliseconds as RFC 3339, or null for 0.
type moment int64

func (m moment) MarshalJSON() ([]byte, error) {
	if m == 0 {
		return []byte("null"), nil
	}
	return json.Marshal(m.String())
}

func (m moment) String() string {
	if m == 0 {
		return "-"
	}
	return time.UnixMilli(int64(m)).UTC().Format(time.RFC3339)
}

type keyView struct {
	ID            string            `json:"id"`
	Owner         string            `json:"owner"`
	Name          string            `json:"name"`
	Hint          string            `json:"hint"`
	Env           string            `json:"env"`
	Scopes        []string          `json:"scopes"`
	State         auth.KeyState     `json:"state"`
	AllowIP       []string          `json:"allow_ip"`
	Meta          map[string]string `json:"meta"`
	CreatedAt     moment            `json:"created_at"`
	ExpiresAt     moment            `json:"expires_at"`
	LastUsedAt    moment            `json:"last_used_at"`
	RefusedAt     moment            `json:"refused_at"`
	RefusedReason string            `json:"refused_reason,omitempty"`
	Format        string            `json:"format,omitempty"`
	DisabledAt    moment            `json:"disabled_at"`
	RevokedAt     moment            `json:"revoked_at"`
	RevokedReason string            `json:"revoked_reason,omitempty"`
	ReplacedBy    string            `json:"replaced_by,omitempty"`
	ReplacedAt    moment            `json:"replaced_at"`
}

func viewKey(k *auth.Key) keyView {
	return keyView{
		ID: k.ID, Owner: k.Owner, Name: k.Name, Hint: k.Hint, Env: k.Environment, Scopes: list(k.Scopes), State: k.State(time.Now()),
		AllowIP: list(k.Networks), Meta: k.Meta, CreatedAt: moment(k.CreatedAt), ExpiresAt: moment(k.NotAfter()), LastUsedAt: moment(k.LastUsedAt),
		RefusedAt: moment(k.RefusedAt), RefusedReason: k.RefusedReason, Format: k.Format,
		DisabledAt: moment(k.DisabledAt), RevokedAt: moment(k.RevokedAt), RevokedReason: k.RevokedReason,
		ReplacedBy: k.ReplacedBy, ReplacedAt: moment(k.ReplacedAt),
	}
}

// list makes JSON show an empty list as [].
func list(s []string) []string {
	if s == nil {
		return []string{}
	}
	return s
}

type madeView struct {
	ID        string   `json:"id"`
	Key       string   `json:"key"`
	Owner     string   `json:"owner"`
	Env       string   `json:"env"`
	Scopes    []string `json:"scopes"`
	ExpiresAt moment   `json:"expires_at"`
	Replaces  string   `json:"replaces,omitempty"`
}

// printMade prints a new key: its text alone, or everything as JSON.
func (s *session) printMade(sink *secretSink, made manage.Made) error {
	k := made.Key
	if s.json {
		return printJSON(sink.out, madeView{k.ID, made.Text.Reveal(), k.Owner, k.Environment, list(k.Scopes), moment(k.ExpiresAt), made.Replaces})
	}
	s.note("made %s for %s (%s), expires: %s", k.ID, k.Owner, k.Environment, orNever(k.ExpiresAt))
	_, err := fmt.Fprintln(sink.out, made.Text.Reveal())
	return err
}

func orNever(at int64) string {
	if at == 0 {
		return "never"
	}
	return moment(at).String()
}

func printJSON(w io.Writer, v any) error {
	enc := json.NewEncoder(w)
	enc.SetEscapeHTML(false)
	return enc.Encode(v)
}

// keyTable prints keys as they come: JSON lines, or a table at the end.
type keyTable struct {
	s    *session
	tab  *tabwriter.Writer
	rows int
	last string // the id of the last key
}

// tableFlush is how many rows are aligned with each other: a list of millions
// does not wait for its end.
const tableFlush = 1000

func (s *session) keyTable() *keyTable {
	return &keyTable{s: s, tab: tabwriter.NewWriter(s.out, 0, 4, 2, ' ', 0)}
}

func (t *keyTable) add(k *auth.Key) error {
	t.rows++
	t.last = k.ID
	if t.s.json {
		return printJSON(t.s.out, viewKey(k))
	}
	if t.rows%tableFlush == 0 {
		if err := t.tab.Flush(); err != nil {
			return err
		}
	}
	if t.rows == 1 {
		fmt.Fprintln(t.tab, "ID\tHINT\tOWNER\tENV\tSCOPES\tSTATE\tCREATED\tEXPIRES\tLAST USED")
	}
	_, err := fmt.Fprintf(t.tab, "%s\t%s\t%s\t%s\t%s\t%s\t%s\t%s\t%s\n", k.ID, k.Hint, k.Owner, k.Environment,
		orDash(strings.Join(k.Scopes, " ")), k.State(time.Now()), day(k.CreatedAt), day(k.NotAfter()), moment(k.LastUsedAt))
	return err
}

func (t *keyTable) end() error {
	if t.rows == 0 {
		t.s.note("no keys")
	}
	return t.tab.Flush()
}

func day(at int64) string {
	if at == 0 {
		return "-"
	}
	return time.UnixMilli(at).UTC().Format(time.DateOnly)
}

func orDash(s string) string {
	if s == "" {
		return "-"
	}
	return s
}

// printKey prints everything about one key.
func (s *session) printKey(k *auth.Key) error {
	v := viewKey(k)
	if s.json {
		return printJSON(s.out, v)
	}
	tab := tabwriter.NewWriter(s.out, 0, 4, 2, ' ', 0)
	for _, row := range [][2]string{
		{"id", v.ID},
		{"hint", v.Hint},
		{"owner", v.Owner},
		{"name", orDash(v.Name)},
		{"env", v.Env},
		{"scopes", orDash(strings.Join(v.Scopes, " "))},
		{"allow_ip", orDash(strings.Join(v.AllowIP, " "))},
		{"meta", metaText(v.Meta)},
		{"state", string(v.State)},
		{"created", v.CreatedAt.String()},
		{"expires", orNever(k.NotAfter())},
		{"last used", v.LastUsedAt.String()},
		{"last refused", strings.TrimSpace(v.RefusedAt.String() + " " + v.RefusedReason)},
		{"disabled", v.DisabledAt.String()},
		{"revoked", v.RevokedAt.String()},
		{"reason", orDash(v.RevokedReason)},
		{"replaced by", orDash(v.ReplacedBy)},
	} {
		fmt.Fprintf(tab, "%s\t%s\n", row[0], row[1])
	}
	return tab.Flush()
}
