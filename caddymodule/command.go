package caddymodule

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"regexp"
	"strconv"
	"strings"
	"syscall"

	"github.com/caddyserver/caddy/v2"
	caddycmd "github.com/caddyserver/caddy/v2/cmd"
	"github.com/spf13/cobra"
	"golang.org/x/term"

	"github.com/caddy-auth/caddy-auth/internal/auth"
	"github.com/caddy-auth/caddy-auth/internal/manage"
	"github.com/caddy-auth/caddy-auth/internal/store"
)

func init() {
	caddycmd.RegisterCommand(caddycmd.Command{
		Name:  "auth",
		Usage: "<command>",
		Short: "Runs and manages the auth gateway",
		CobraFunc: func(cmd *cobra.Command) {
			group(cmd)
			for _, c := range children() {
				sub := &cobra.Command{Use: c.Name + " " + c.Usage, Short: c.Short, Long: c.Long}
				c.CobraFunc(sub)
				cmd.AddCommand(sub)
			}
		},
	})
}

// children are the commands below "auth", which caddy-auth also has at the
// top level.
func children() []caddycmd.Command {
	return []caddycmd.Command{gatewayCommand(), keyCommand(), ownerCommand(), clientCommand(), tokenCommand(), assertionKeyCommand(), outboundCommand(), sessionCommand(), storeCommand(), explainCommand(), nodesCommand(), auditCommand(), leakedCommand(), doctorCommand()}
}

// Brand makes a binary caddy-auth: its name, and the commands at the top
// level. Call it before caddycmd.Main.
func Brand() {
	caddy.CustomBinaryName = "caddy-auth"
	caddy.CustomLongDescription = `caddy-auth is an API auth gateway: Caddy that refuses keys in URLs, verifies
keys in headers, and tells the upstream who is calling.

	$ caddy-auth gateway                          a gateway to try, with a ready key
	$ caddy-auth run --config Caddyfile           a gateway as configured
	$ caddy-auth key create --owner acme-billing  a key for it

All commands of Caddy work too.`
	for _, c := range children() {
		caddycmd.RegisterCommand(c)
	}
}

// Exit codes: 0 done, 1 refused or failed (any error gives it), 2 wrong usage.
const exitUsage = 2

// usageError is a mistake in how a command was called.
type usageError struct{ error }

func (e usageError) Unwrap() error { return e.error }

func usagef(format string, args ...any) error { return usageError{fmt.Errorf(format, args...)} }

// session is one run of a command.
type session struct {
	cmd  *cobra.Command
	args []string
	in   io.Reader
	out  io.Writer
	err  io.Writer
	json bool

	waitsOnly bool // it changes nothing, and waits for what others changed
}

// run makes a cobra RunE of a command: it prints errors and hints in our
// form and turns them into exit codes.
func run(f func(ctx context.Context, s *session) error) func(*cobra.Command, []string) error {
	return func(cmd *cobra.Command, args []string) error {
		ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
		defer stop()
		s := &session{cmd: cmd, args: args, in: cmd.InOrStdin(), out: cmd.OutOrStdout(), err: cmd.ErrOrStderr()}
		s.json, _ = cmd.Flags().GetBool("json")
		behalf, err := s.onBehalfOf()
		if err != nil {
			return finish(cmd, err)
		}
		return finish(cmd, f(store.OnBehalfOf(ctx, behalf), s))
	}
}

// userName matches the names of users that sudo may put into SUDO_USER.
var userName = regexp.MustCompile(`^[A-Za-z0-9._@-]{1,64}$`)

// onBehalfOf is for whom a command acts: who called sudo, and what the flag says.
func (s *session) onBehalfOf() (string, error) {
	var who []string
	if name := os.Getenv("SUDO_USER"); userName.MatchString(name) && "cli:"+name != actor() {
		who = append(who, "sudo:"+name)
	}
	if flag := s.cmd.Flags().Lookup("on-behalf-of"); flag != nil && flag.Changed {
		if err := manage.CheckClaim("--on-behalf-of", flag.Value.String()); err != nil {
			return "", usageError{err}
		}
		who = append(who, flag.Value.String())
	}
	return strings.Join(who, ", "), nil
}

// finish prints an error and returns what makes the process exit with its code.
func finish(cmd *cobra.Command, err error) error {
	cmd.SilenceErrors, cmd.SilenceUsage = true, true
	if err == nil {
		return nil
	}
	text := manage.Mask(singular(strings.ReplaceAll(err.Error(), "\n", "; "))) // an argument may have been a key
	fmt.Fprintf(cmd.ErrOrStderr(), "caddy-auth: error: %s\n", text)
	hint := auth.Hint(err)
	var usage usageError
	if errors.As(err, &usage) {
		if hint == "" {
			hint = "see: " + cmd.CommandPath() + " --help"
		}
	}
	if hint != "" {
		fmt.Fprintf(cmd.ErrOrStderr(), "hint: %s\n", hint)
	}
	if usage.error == nil && !errors.Is(err, auth.ErrInvalid) {
		return err
	}
	return caddycmd.WrapCommandFuncForCobra(func(caddycmd.Flags) (int, error) { return exitUsage, nil })(cmd, nil)
}

// group sets a command up that only has children.
func group(cmd *cobra.Command) {
	quiet(cmd)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		if len(args) == 0 {
			return finish(cmd, usagef("%s: want a command", cmd.CommandPath()))
		}
		return finish(cmd, usagef("%s: unknown command %q", cmd.CommandPath(), args[0]))
	}
}

// quiet leaves the printing of errors, flag errors included, to finish.
func quiet(cmd *cobra.Command) {
	cmd.SilenceErrors, cmd.SilenceUsage = true, true
	cmd.SetFlagErrorFunc(func(cmd *cobra.Command, err error) error { return finish(cmd, usageError{err}) })
}

// leaf adds a command that does something.
func leaf(parent *cobra.Command, use, short string, f func(context.Context, *session) error, flags func(*cobra.Command)) {
	cmd := &cobra.Command{Use: use, Short: short, RunE: run(f)}
	quiet(cmd)
	cmd.Flags().Bool("json", false, "print JSON, lists with one object a line")
	if flags != nil {
		flags(cmd)
	}
	parent.AddCommand(cmd)
}

// wantArgs checks how many arguments there are.
func (s *session) wantArgs(least, most int, what string) error {
	if len(s.args) < least || most >= 0 && len(s.args) > most {
		return usagef("want %s", what)
	}
	return nil
}

// plural is one for 1, else many, with the number where it has %d.
func plural(n int, one, many string) string {
	if n == 1 {
		return one
	}
	return strings.ReplaceAll(many, "%d", strconv.Itoa(n))
}

// countedOnce is one of what commands count.
var countedOnce = regexp.MustCompile(`(^|[^0-9.,]\s|\()1 ((?:live |distinct |new )?)(outbound|key|gateway|owner|client|session|finding|change|secret|outbound|revocation|network|scope|byte|leak|node|token)s\b`)

// singular mends "1 keys" in a text for people.
func singular(text string) string {
	return countedOnce.ReplaceAllStringFunc(text, func(m string) string {
		if strings.HasSuffix(m, "s") {
			return m[:len(m)-1]
		}
		return m
	})
}

// note tells a person something that is no output.
func (s *session) note(format string, args ...any) {
	fmt.Fprintln(s.err, singular(fmt.Sprintf(format, args...)))
}

// confirm asks on a terminal before a change whose extent the operator did not spell
// out. Without a terminal it wants --yes, since it can't ask.
func (s *session) confirm(what string) error {
	if yes, _ := s.cmd.Flags().GetBool("yes"); !yes && !s.onTerminal() {
		return auth.WithHint(fmt.Errorf("this would %s: nothing was changed, since the command can't ask without a terminal", what), "say it with --yes")
	}
	return s.confirmNamed(what)
}

func (s *session) onTerminal() bool {
	f, ok := s.in.(*os.File)
	return ok && term.IsTerminal(int(f.Fd()))
}

// confirmNamed asks on a terminal before a change of several things that the
// operator has named one by one; elsewhere, and with --yes, it goes on.
func (s *session) confirmNamed(what string) error {
	if yes, _ := s.cmd.Flags().GetBool("yes"); yes || !s.onTerminal() {
		return nil
	}
	fmt.Fprintf(s.err, "%s? [y/N] ", singular(what))
	var answer string
	_, _ = fmt.Fscanln(s.in, &answer) // no answer is a no
	if strings.EqualFold(answer, "y") || strings.EqualFold(answer, "yes") {
		return nil
	}
	return errors.New("nothing was changed")
}

// secretSink is where secrets are printed: alone on standard output, or to a
// new file that only its owner can read. The file is made before anything is
// changed.
type secretSink struct {
	file *os.File
	out  io.Writer
}

func (s *session) openSink() (*secretSink, error) {
	path, _ := s.cmd.Flags().GetString("out")
	if path == "" {
		return &secretSink{out: s.out}, nil
	}
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if errors.Is(err, os.ErrExist) {
		return nil, auth.WithHint(fmt.Errorf("%s exists and is not overwritten", path), "name another file, or remove it first")
	}
	if err != nil {
		return nil, fmt.Errorf("opening the output file: %w", err)
	}
	return &secretSink{file: f, out: f}, nil
}

// close makes sure that the file is on the disk, or removes it if nothing came
// of it.
func (k *secretSink) close(used bool) error {
	if k.file == nil {
		return nil
	}
	if !used {
		return errors.Join(k.file.Close(), os.Remove(k.file.Name()))
	}
	return errors.Join(k.file.Sync(), k.file.Close())
}
