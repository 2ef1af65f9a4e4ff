package caddymodule

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"strings"
	"syscall"

	"github.com/caddyserver/caddy/v2"
	caddycmd "github.com/caddyserver/caddy/v2/cmd"
	"github.com/spf13/cobra"
	"golang.org/x/term"

	"github.com/caddy-auth/caddy-auth/internal/auth"
	"github.com/caddy-auth/caddy-auth/internal/manage"
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
}

// run makes a cobra RunE of a command: it prints errors and hints in our
// form and turns them into exit codes.
func run(f func(ctx context.Context, s *session) error) func(*cobra.Command, []string) error {
	return func(cmd *cobra.Command, args []string) error {
		ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
		defer stop()
		s := &session{cmd: cmd, args: args, in: cmd.InOrStdin(), out: cmd.OutOrStdout(), err: cmd.ErrOrStderr()}
		s.json, _ = cmd.Flags().GetBool("json")
		return finish(cmd, f(ctx, s))
	}
}

// finish prints an error and returns what makes the process exit with its code.
func finish(cmd *cobra.Command, err error) error {
	cmd.SilenceErrors, cmd.SilenceUsage = true, true
	if err == nil {
		return nil
	}
	text := manage.Mask(strings.ReplaceAll(err.Error(), "\n", "; ")) // an argument may have been a key
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

// note tells a person something that is no output.
func (s *session) note(format string, args ...any) {
	fmt.Fprintf(s.err, format+"\n", args...)
}

// readSecrets reads lines that are secrets: without echo from a terminal, else
// all of standard input.
func (s *session) readSecrets(prompt string) ([]auth.Secret, error) {
	if f, ok := s.in.(*os.File); ok && term.IsTerminal(int(f.Fd())) {
		fmt.Fprint(s.err, prompt)
		line, err := term.ReadPassword(int(f.Fd()))
		fmt.Fprintln(s.err)
		if err != nil {
			return nil, fmt.Errorf("reading from the terminal: %w", err)
		}
		return []auth.Secret{auth.NewSecret(strings.TrimSpace(string(line)))}, nil
	}
	const most = 1 << 20
	text, err := io.ReadAll(io.LimitReader(s.in, most))
	if err != nil {
		return nil, fmt.Errorf("reading standard input: %w", err)
	}
	var out []auth.Secret
	for line := range strings.Lines(string(text)) {
		if line = strings.TrimSpace(line); line != "" {
			out = append(out, auth.NewSecret(line))
		}
	}
	if len(out) == 0 {
		return nil, usagef("nothing on standard input, want one key a line")
	}
	return out, nil
}

// confirm asks on a terminal before a change that concerns many; elsewhere,
// and with --yes, it goes on.
func (s *session) confirm(what string) error {
	f, ok := s.in.(*os.File)
	if yes, _ := s.cmd.Flags().GetBool("yes"); yes || !ok || !term.IsTerminal(int(f.Fd())) {
		return nil
	}
	fmt.Fprintf(s.err, "%s? [y/N] ", what)
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
