package caddymodule

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/url"
	"os"
	"os/user"
	"path/filepath"
	"regexp"
	"slices"
	"strings"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/caddyconfig"
	"github.com/spf13/cobra"

	"github.com/caddy-auth/caddy-auth/internal/auth"
	"github.com/caddy-auth/caddy-auth/internal/manage"
	"github.com/caddy-auth/caddy-auth/internal/secret"
	"github.com/caddy-auth/caddy-auth/internal/store"
	"github.com/caddy-auth/caddy-auth/internal/store/postgres"
	"github.com/caddy-auth/caddy-auth/internal/store/sqlite"
	"github.com/caddy-auth/caddy-auth/internal/verifier"
)

// dataDir is the gateway command's default data directory, dataFile its
// database.
const (
	dataDir  = "caddy-auth-data"
	dataFile = "auth.db"
)

// target is the store a command works on, and where that was learnt.
type target struct {
	backend      Backend
	masters      []auth.Secret // newest first
	prefix       string
	environments []string // that sites accept; nil: not known
	from         string

	app     *App   // as configured; nil without a configuration
	path    string // of the configuration's file
	adapter string // of the file; "" if it is JSON
	config  []byte // as JSON
}

func targetFlags(cmd *cobra.Command) {
	f := cmd.PersistentFlags()
	f.StringP("config", "c", "", "the gateway's configuration file")
	f.StringP("adapter", "a", "", "the configuration's adapter, if its name does not tell")
	f.StringSlice("envfile", nil, "files with environment variables for the configuration")
	f.String("store", "", "the store itself: sqlite:PATH or postgres://user@host/database")
	f.String("redis", "", "the gateways' Redis, to tell them of changes: redis://host:port/db; a URL with a password as {env.X} or {file.X}")
}

// findTarget finds the store that the flags or the configuration name.
func findTarget(cmd *cobra.Command) (*target, error) {
	files, _ := cmd.Flags().GetStringSlice("envfile")
	for _, f := range files {
		if err := loadEnvFile(f); err != nil {
			return nil, err
		}
	}
	config, _ := cmd.Flags().GetString("config")
	adapter, _ := cmd.Flags().GetString("adapter")
	named, _ := cmd.Flags().GetString("store")
	if config == "" && named == "" {
		config = os.Getenv("CADDY_AUTH_CONFIG")
	}
	var t *target
	var err error
	switch {
	case config != "":
		if t, err = targetOfConfig(config, adapter); err != nil && named != "" {
			fmt.Fprintf(cmd.ErrOrStderr(), "note: the configuration is left out: %v\n", err)
			t, err = &target{prefix: DefaultKeyPrefix}, nil
		}
	case named != "":
		t = &target{prefix: DefaultKeyPrefix}
	default:
		t, err = discoverTarget(adapter)
	}
	if err != nil {
		return nil, err
	}
	if named != "" {
		if t.backend, err = parseStoreFlag("--store", named); err != nil {
			return nil, err
		}
		t.from = "--store"
	}
	return t, nil
}

var mentionsAuth = regexp.MustCompile(`(?m)^\s*auth\b`)

// discoverTarget looks in the usual places. Two finds are an error: changing
// the wrong store helps nobody.
func discoverTarget(adapter string) (*target, error) {
	var found []string
	for _, path := range []string{"Caddyfile", dataDir, "/etc/caddy-auth/Caddyfile", "/etc/caddy/Caddyfile"} {
		if path == dataDir {
			if _, err := os.Stat(filepath.Join(dataDir, dataFile)); err == nil {
				found = append(found, path)
			}
			continue
		}
		if text, err := os.ReadFile(path); err == nil && mentionsAuth.Match(text) {
			found = append(found, path)
		}
	}
	switch {
	case len(found) == 0:
		return nil, auth.WithHint(usagef("no configuration that uses auth, and no store, was found"),
			"name one with --config Caddyfile or --store sqlite:PATH, or run this where the gateway runs")
	case len(found) > 1:
		return nil, auth.WithHint(usagef("more than one store may be meant: %s", strings.Join(found, " and ")),
			"name one with --config or --store")
	case found[0] == dataDir:
		return &target{backend: sqlite.New(filepath.Join(dataDir, dataFile)), prefix: DefaultKeyPrefix, from: "./" + dataDir}, nil
	}
	return targetOfConfig(found[0], adapter)
}

// parseStoreFlag reads sqlite:PATH or a PostgreSQL URL, in which a password is
// a placeholder: others can read command lines.
func parseStoreFlag(flag, text string) (Backend, error) {
	s, err := caddy.NewReplacer().ReplaceOrErr(text, true, true)
	if err != nil {
		return nil, usagef("%s: %w", flag, err)
	}
	if path, ok := strings.CutPrefix(s, "sqlite:"); ok && path != "" {
		return sqlite.New(path), nil
	}
	if !strings.HasPrefix(s, "postgres://") && !strings.HasPrefix(s, "postgresql://") {
		return nil, usagef("%s: want sqlite:PATH, or postgres://user@host/database with the password as {env.X} or {file.X}, or the whole as {env.X}", flag)
	}
	if tellsPassword(text) {
		return nil, auth.WithHint(usagef("%s: the password stands in the command line, where others can read it", flag),
			"put it into the environment: PGPASSWORD, postgres://user:{env.X}@host/database, or the whole as {env.X}")
	}
	b, err := postgres.New(s)
	if err != nil {
		return nil, usageError{fmt.Errorf("%s: %w", flag, err)}
	}
	return b, nil
}

// tellsPassword reports whether a PostgreSQL URL on the command line holds a
// password that is no placeholder.
func tellsPassword(text string) bool {
	const dummy = "placeholder"
	u, err := url.Parse(placeholder.ReplaceAllString(text, dummy))
	if err != nil {
		return true // what can't be read may hold one
	}
	if password, ok := u.User.Password(); ok && password != "" && password != dummy {
		return true
	}
	for name, values := range u.Query() {
		if strings.Contains(strings.ToLower(name), "password") && slices.ContainsFunc(values, func(v string) bool { return v != "" && v != dummy }) {
			return true
		}
	}
	return false
}

// targetOfConfig adapts a configuration and reads the app out of it. Nothing
// is started.
func targetOfConfig(path, adapter string) (*target, error) {
	text, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("reading the configuration: %w", err)
	}
	base := strings.ToLower(filepath.Base(path))
	if adapter == "" && (strings.HasPrefix(base, "caddyfile") || strings.HasSuffix(base, ".caddyfile")) {
		adapter = "caddyfile"
	}
	if adapter != "" {
		a := caddyconfig.GetAdapter(adapter)
		if a == nil {
			return nil, usagef("unknown adapter %q", adapter)
		}
		if text, _, err = a.Adapt(text, map[string]any{"filename": path}); err != nil {
			return nil, auth.WithHint(fmt.Errorf("adapting %s: %w", path, err), "in an emergency name the store itself: --store sqlite:PATH")
		}
	}
	var config struct {
		Apps map[string]json.RawMessage `json:"apps"`
	}
	if err := json.Unmarshal(text, &config); err != nil {
		return nil, auth.WithHint(fmt.Errorf("reading %s: %w", path, err), "is it JSON? Otherwise name its --adapter")
	}
	app := new(App)
	if raw := config.Apps["auth"]; raw != nil {
		if err := json.Unmarshal(raw, app); err != nil {
			return nil, fmt.Errorf("reading the auth app in %s: %w", path, err)
		}
	}
	prefix, err := expandText(app.KeyPrefix)
	if err != nil { // what mends a configuration must not need it whole
		prefix = ""
	}
	t := &target{prefix: prefix, from: path, path: path, adapter: adapter, app: app, config: text, environments: acceptedEnvironments(config.Apps["http"])}
	if t.prefix == "" {
		t.prefix = DefaultKeyPrefix
	}
	ctx, cancel := caddy.NewContext(caddy.Context{Context: context.Background()})
	defer cancel()
	if t.backend, err = app.loadStore(ctx); err != nil {
		return nil, err
	}
	// Only what makes keys needs the master key, so a missing one is no error yet.
	t.masters, err = app.resolveMasterKeys()
	if err != nil {
		t.masters = []auth.Secret{auth.NewSecret("unusable")} // refused when it is used
	}
	return t, nil
}

// acceptedEnvironments collects what the sites' auth handlers accept; nil if
// there are none or one accepts any.
func acceptedEnvironments(httpApp json.RawMessage) []string {
	var out []string
	anything := false
	for _, h := range append(handlersNamed(httpApp, "auth"), handlersNamed(httpApp, "auth_login")...) {
		environments := asList(h["environments"])
		for _, e := range environments {
			name, _ := e.(string)
			if name, _ = expandText(name); name == "" {
				name = verifier.AnyEnvironment // not known here
			}
			anything = anything || name == verifier.AnyEnvironment
			out = append(out, name)
		}
		if len(environments) == 0 {
			out = append(out, auth.EnvironmentLive)
		}
	}
	if anything {
		return nil
	}
	return slices.Compact(slices.Sorted(slices.Values(out)))
}

// opened is an open store and the manager for it.
type opened struct {
	*manage.Manager
	db *store.DB
	t  *target
}

// open opens the store that a command works on. It never makes or migrates one.
func (s *session) open(ctx context.Context) (*opened, error) {
	if _, err := s.waitTimeout(); err != nil {
		return nil, err
	}
	t, err := findTarget(s.cmd)
	if err != nil {
		return nil, err
	}
	s.note("using %s (from %s)", t.backend.Describe(), t.from)
	if _, err := t.redis(s.cmd); err != nil {
		return nil, err
	}
	if err := checkFileOwner(t.backend); err != nil {
		return nil, err
	}
	db, err := store.Open(ctx, t.backend, store.Existing)
	if err != nil {
		return nil, err
	}
	if err := db.Usable(ctx); err != nil && !errors.Is(err, auth.ErrMoved) { // what was moved can still be read
		return nil, errors.Join(err, db.Close())
	}
	if ok, err := db.Initialized(ctx); err != nil || !ok {
		if err == nil {
			err = auth.WithHint(fmt.Errorf("%s: %w", t.backend.Describe(), auth.ErrNotInitialized), "make it with: caddy-auth store init")
		}
		return nil, errors.Join(err, db.Close())
	}
	return s.manage(t, db), nil
}

// manage returns what changes a store that is open.
func (s *session) manage(t *target, db *store.DB) *opened {
	o := &opened{manage.New(db, actor(), t.prefix, t.minter(db)), db, t}
	o.SetBell(cliBell{t, s.cmd, o})
	return o
}

func (t *target) minter(db *store.DB) func(context.Context) (*secret.Minter, error) {
	return func(ctx context.Context) (*secret.Minter, error) {
		ring, _, err := ringOf(ctx, db, t.masters, t.backend)
		if err != nil {
			return nil, err
		}
		return db.Minter(ctx, ring)
	}
}

// actor is who the audit log says made a change.
func actor() string {
	if u, err := user.Current(); err == nil {
		return "cli:" + u.Username
	}
	return "cli"
}

// checkFileOwner refuses to touch a database of another user: files made
// beside it would shut the gateway out.
func checkFileOwner(b Backend) error {
	f, ok := b.(*sqlite.Backend)
	if !ok {
		return nil
	}
	owner := sqlite.Owner(f.Path())
	if owner == "" {
		return nil
	}
	return auth.WithHint(fmt.Errorf("%s belongs to the user %s", f.Path(), owner),
		"run it as that user: sudo -u "+owner+" "+strings.Join(os.Args, " "))
}

// loadEnvFile sets the variables of a file of NAME=value lines that are not
// set yet.
func loadEnvFile(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return fmt.Errorf("reading the envfile: %w", err)
	}
	defer f.Close()
	lines := bufio.NewScanner(f)
	for n := 1; lines.Scan(); n++ {
		line := strings.TrimPrefix(strings.TrimSpace(lines.Text()), "export ")
		if line == "" || line[0] == '#' {
			continue
		}
		name, value, ok := strings.Cut(line, "=")
		if !ok || name == "" {
			return usagef("%s:%d: want NAME=value", path, n)
		}
		if k := len(value); k >= 2 && (value[0] == '"' || value[0] == '\'') && value[k-1] == value[0] {
			value = value[1 : k-1]
		}
		if _, set := os.LookupEnv(name); !set {
			if err := os.Setenv(name, value); err != nil {
				return fmt.Errorf("%s:%d: %w", path, n, err)
			}
		}
	}
	return lines.Err()
}
