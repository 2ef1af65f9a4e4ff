package caddymodule

import (
	"context"
	"fmt"
	"net/http"
	"os"
	"slices"
	"strings"
	"text/tabwriter"

	caddycmd "github.com/caddyserver/caddy/v2/cmd"
	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/caddy-auth/caddy-auth/internal/auth"
	"github.com/caddy-auth/caddy-auth/internal/jwt"
	"github.com/caddy-auth/caddy-auth/internal/manage"
	"github.com/caddy-auth/caddy-auth/internal/secret"
)

func explainCommand() caddycmd.Command {
	return caddycmd.Command{
		Name:  "explain",
		Usage: "[METHOD] URL [-H 'Name: value']... [--stdin | --key ID]",
		Short: "Explains what a gateway with this configuration answers, and which line decides",
		Long: `Explains what a gateway with this configuration answers to a request: each check in order, the verdict, and the
line of the Caddyfile that decided. The configuration's own routes and auth handlers judge the request; nothing is
proxied and nothing is written. The credential is read from standard input with --stdin (a key or a token), or
is assumed to be the key with an id. It needs the store, not a running gateway; for a token, its issuer too.`,
		CobraFunc: func(cmd *cobra.Command) {
			single(cmd, explain, func(c *cobra.Command) {
				f := c.Flags()
				f.String("url", "", "the whole URL, as a client writes it, if it is no argument")
				f.String("method", "", "the method, GET by default")
				f.StringArrayP("header", "H", nil, "a header of the request, without credentials")
				f.Bool("stdin", false, "read the credential from standard input")
				f.String("as", "", "the header for it: a name, or bearer for Authorization: Bearer; by default what goes with it")
				f.String("key", "", "judge the request as if it came with the key of this id")
				f.String("from", "", "the client's address, for keys bound to networks")
				f.SetNormalizeFunc(func(_ *pflag.FlagSet, name string) pflag.NormalizedName {
					if plain, ok := map[string]string{"key-stdin": "stdin", "key-id": "key"}[name]; ok {
						name = plain
					}
					return pflag.NormalizedName(name)
				})
			})
		},
	}
}

func explain(ctx context.Context, s *session) error {
	if err := s.wantArgs(0, 2, "a method and a URL, or a URL: a key is never an argument"); err != nil {
		return err
	}
	t, err := findTarget(s.cmd)
	if err != nil {
		return err
	}
	if t.app == nil || t.path == "" {
		return auth.WithHint(usagef("there is no configuration to explain"), "name it with --config Caddyfile")
	}
	q, err := s.question(t)
	if err != nil {
		return err
	}
	if err := checkFileOwner(t.backend); err != nil {
		return err
	}
	text, err := os.ReadFile(t.path)
	if err != nil {
		return fmt.Errorf("reading the configuration: %w", err)
	}
	out, err := Explain(ctx, text, t.path, t.adapter, q)
	if err != nil {
		return err
	}
	if s.json {
		return printJSON(s.out, out)
	}
	return s.printExplanation(q, out)
}

// question reads the flags and, if it is asked for, the credential.
func (s *session) question(t *target) (q Question, err error) {
	f := s.cmd.Flags()
	q.URL, _ = f.GetString("url")
	q.Method, _ = f.GetString("method")
	q.Key, _ = f.GetString("key")
	q.From, _ = f.GetString("from")
	for _, arg := range s.args {
		if strings.Contains(arg, "://") {
			q.URL = arg
		} else {
			q.Method = arg
		}
	}
	if q.URL == "" {
		return q, usagef("want a URL")
	}
	if q.Method == "" {
		q.Method = http.MethodGet
	}
	if manage.Mask(q.URL) != q.URL {
		return q, auth.WithHint(usagef("--url holds a key, which others can read in the command line"), "a key in a URL is answered 400 credential_in_query wherever it stands")
	}
	fromStdin, _ := f.GetBool("stdin")
	if fromStdin && q.Key != "" {
		return q, usagef("either --stdin or --key")
	}
	if q.Key != "" {
		if err := checkIDs([]string{q.Key}); err != nil {
			return q, err
		}
	}
	q.Header = http.Header{}
	given, _ := f.GetStringArray("header")
	for _, line := range given {
		name, value, ok := strings.Cut(line, ":")
		name = http.CanonicalHeaderKey(strings.TrimSpace(name))
		if !ok || name == "" {
			return q, usagef("-H %q: want 'Name: value'", manage.Mask(line))
		}
		if carriesCredentials(t, name) {
			return q, auth.WithHint(usagef("-H %s: a credential on the command line can be read by others", name), "use --stdin, or --key with the key's id")
		}
		q.Header.Add(name, strings.TrimSpace(value))
	}
	if !fromStdin {
		return q, nil
	}
	secrets, err := s.readPasted("key or token: ")
	if err != nil {
		return q, err
	}
	if len(secrets) != 1 {
		return q, usagef("want one key or token on standard input, not %d", len(secrets))
	}
	as, _ := f.GetString("as")
	q.present(t, as, secrets[0].text.Reveal())
	return q, nil
}

func keyHeaders(t *target) []string {
	if len(t.app.KeyHeaders) > 0 {
		return t.app.KeyHeaders
	}
	return []string{DefaultKeyHeader}
}

func carriesCredentials(t *target, name string) bool {
	return slices.Contains([]string{"Authorization", "Proxy-Authorization", "Cookie"}, name) ||
		slices.ContainsFunc(keyHeaders(t), func(h string) bool { return strings.EqualFold(h, name) })
}

// present puts a credential where clients would.
func (q *Question) present(t *target, as, text string) {
	if as == "" {
		as = "bearer"
		if !jwt.Looks(text) && len(t.app.Introspection) == 0 && secret.KindOf(text) != secret.AccessToken {
			as = keyHeaders(t)[0]
		}
	}
	if strings.EqualFold(as, "bearer") {
		q.Header.Set("Authorization", "Bearer "+text)
		return
	}
	q.Header.Set(as, text)
}

func (s *session) printExplanation(q Question, e *Explanation) error {
	fmt.Fprintf(s.out, "%s %s\n", q.Method, printable(q.URL))
	tab := tabwriter.NewWriter(s.out, 0, 4, 2, ' ', 0)
	for i, step := range e.Steps {
		fmt.Fprintf(tab, "%2d\t%s\t%s\t%s\t%s\n", i+1, step.Check, step.Result, printable(step.Detail), step.Where)
	}
	if err := tab.Flush(); err != nil {
		return err
	}
	for _, n := range e.Notes {
		s.note("note: %s", n)
	}
	verdict := fmt.Sprintf("%d", e.Status)
	switch {
	case e.Code != "":
		verdict += " " + e.Code
	case strings.HasPrefix(e.Reaches, "abort"):
		verdict = e.Reaches
	case e.Reaches != "":
		verdict = "it passes and reaches " + e.Reaches
	}
	fmt.Fprintln(s.out, verdict)
	switch {
	case e.Decided == nil:
		fmt.Fprintln(s.out, "no auth directive had a say: is there a site for this host, and auth on its route?")
	case e.Decided.Where != "":
		fmt.Fprintf(s.out, "decided by %s, %s\n", e.Decided.Check, e.Decided.Where)
	default:
		fmt.Fprintf(s.out, "decided by %s\n", e.Decided.Check)
	}
	return nil
}
