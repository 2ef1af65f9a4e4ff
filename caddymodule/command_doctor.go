package caddymodule

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/caddyserver/caddy/v2"
	caddycmd "github.com/caddyserver/caddy/v2/cmd"
	"github.com/spf13/cobra"

	"github.com/caddy-auth/caddy-auth/internal/auth"
	"github.com/caddy-auth/caddy-auth/internal/redisx"
	"github.com/caddy-auth/caddy-auth/internal/store"
	"github.com/caddy-auth/caddy-auth/internal/store/sqlite"
)

func doctorCommand() caddycmd.Command {
	return caddycmd.Command{
		Name:  "doctor",
		Usage: "[--config FILE] [--routes]",
		Short: "Looks for what is wrong with the gateway's set-up",
		Long: `Checks the configuration, the logs, the store, its files, the master key,
Redis, issuers, login providers, token endpoints and the clock, and says what to do about each finding. It changes nothing
but one short-lived record in Redis. Exits 1 on a finding. With --routes it lists every route that answers, and what guards it.`,
		CobraFunc: func(cmd *cobra.Command) {
			quiet(cmd)
			targetFlags(cmd)
			cmd.Flags().Bool("json", false, "print JSON, one object a line")
			cmd.Flags().Bool("routes", false, "list each route that answers, and what guards it, and look at nothing else")
			cmd.RunE = run(doctor)
		},
	}
}

// Levels of what a doctor says. Only a finding makes it fail.
const (
	levelOK      = "ok"
	levelNote    = "note"
	levelWarning = "warning"
	levelFinding = "FINDING"
)

// examination collects what the doctor says.
type examination struct {
	s        *session
	t        *target
	findings int
}

func (e *examination) say(level, check, detail, hint string) {
	detail = singular(detail)
	if level == levelFinding {
		e.findings++
	}
	if e.s.json {
		out := map[string]any{"check": check, "level": strings.ToLower(level), "detail": detail}
		if hint != "" {
			out["hint"] = hint
		}
		_ = printJSON(e.s.out, out) // standard output may be closed
		return
	}
	fmt.Fprintf(e.s.out, "%-8s %-14s %s\n", level, check, detail)
	if hint != "" {
		fmt.Fprintf(e.s.out, "%-23s hint: %s\n", "", hint)
	}
}

func (e *examination) ok(check, format string, args ...any) {
	e.say(levelOK, check, fmt.Sprintf(format, args...), "")
}

// found reports an error with its own hint, or the one given.
func (e *examination) found(check string, err error, hint string) {
	if h := auth.Hint(err); h != "" {
		hint = h
	}
	e.say(levelFinding, check, strings.ReplaceAll(err.Error(), "\n", " "), hint)
}

func doctor(ctx context.Context, s *session) error {
	if err := s.wantArgs(0, 0, "no arguments"); err != nil {
		return err
	}
	t, err := findTarget(s.cmd)
	if err != nil {
		return err
	}
	e := &examination{s: s, t: t}
	if only, _ := s.cmd.Flags().GetBool("routes"); only {
		return e.listRoutes()
	}
	e.configuration()
	e.routes()
	e.files()
	e.store(ctx)
	e.redis(ctx)
	e.issuers(ctx)
	e.logins(ctx)
	e.outbound(ctx)
	if e.findings > 0 {
		return fmt.Errorf("%d findings", e.findings)
	}
	return nil
}

// configuration does what a load would, without starting anything.
func (e *examination) configuration() {
	if e.t.config == nil {
		e.say(levelNote, "configuration", "none was looked at", "name one with --config")
		return
	}
	var cfg caddy.Config
	err := json.Unmarshal(e.t.config, &cfg)
	if err == nil {
		silence(cfg.Logging)
		err = caddy.Validate(&cfg)
	}
	var text string
	if err != nil {
		text, _, _ = strings.Cut(err.Error(), unsafeRest)
	}
	_, logs, unsafe := strings.Cut(text, unsafeStart) // Caddy keeps only an error's text
	switch {
	case unsafe:
		e.found("logs", errors.New(unsafeStart+logs), "put format auth_redact into the global log block and into every log directive of a site")
	case err != nil:
		e.found("configuration", err, "see: caddy-auth validate --config "+e.t.from)
		return
	case e.t.app.UnsafeLogs != nil:
		e.say(levelFinding, "logs", "unsafe_logs is set: credentials may be printed", "use format auth_redact, then remove unsafe_logs")
	default:
		e.ok("logs", "every log of the HTTP server masks credentials")
	}
	e.ok("configuration", "%s would load", e.t.from)
}

// silence makes logs write nothing, and nowhere, without changing how they
// would: their encoders are what is examined.
func silence(l *caddy.Logging) {
	if l == nil {
		return
	}
	l.Sink = nil
	for _, log := range l.Logs {
		var w struct{ Output string }
		if json.Unmarshal(log.WriterRaw, &w) == nil && w.Output == "discard" {
			continue
		}
		log.WriterRaw, log.Level = json.RawMessage(`{"output":"stderr"}`), "FATAL"
	}
}

// files looks at who can read what holds keys.
func (e *examination) files() {
	b, isFile := e.t.backend.(*sqlite.Backend)
	if !isFile {
		return
	}
	before := e.findings
	if err := checkFileOwner(b); err != nil {
		e.found("files", err, "")
	}
	for _, f := range []struct {
		path string
		bad  fs.FileMode
		hint string
	}{
		{b.Path(), 0o077, "chmod 600 "},
		{b.MasterKeyPath(), 0o077, "chmod 600 "},
		{filepath.Dir(b.Path()), 0o022, "chmod go-w "},
	} {
		info, err := os.Stat(f.path)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			e.found("files", err, "")
			continue
		}
		if mode := info.Mode().Perm(); mode&f.bad != 0 {
			e.say(levelFinding, "files", fmt.Sprintf("%s has mode %04o: others can get at keys", f.path, mode), f.hint+f.path)
		}
	}
	if e.findings == before {
		e.ok("files", "only their owner can use %s and its master key", b.Path())
	}
}

func (e *examination) store(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, openTimeout)
	defer cancel()
	db, err := store.Open(ctx, e.t.backend, store.Existing)
	if errors.Is(err, auth.ErrNotInitialized) {
		err = e.notMade(err)
	}
	if err != nil {
		e.found("store", err, "")
		return
	}
	defer db.Close()
	if ok, err := db.Initialized(ctx); err != nil || !ok {
		if err == nil {
			err = e.notMade(fmt.Errorf("%s: %w", db.Describe(), auth.ErrNotInitialized))
		}
		e.found("store", err, "")
		return
	}
	if c, ok := e.t.backend.(interface{ Check(context.Context) error }); ok {
		if err := c.Check(ctx); err != nil {
			e.found("store", err, "")
			return
		}
	}
	look, err := db.Look(ctx, 0)
	if err != nil {
		e.found("store", err, "")
		return
	}
	e.ok("store", "%s is whole, journal at %d", db.Describe(), look.Head)
	if err := db.Usable(ctx); err != nil {
		e.found("store", err, "")
	}
	if b, ok := e.t.backend.(interface{ Exposed() string }); ok && b.Exposed() != "" {
		e.say(levelFinding, "store", b.Exposed(), "add sslmode=verify-full")
	}
	if _, ok := e.t.backend.(keyKeeper); !ok && len(e.t.masters) == 0 {
		e.say(levelFinding, "master key", "there is none: whoever can read the database has the secrets in it", "set master_key, then: caddy-auth store rotate-secrets")
	}
	e.expiring(ctx, db)
	e.sessions(ctx, db)
	if ring, open, err := ringOf(ctx, db, e.t.masters, e.t.backend); err != nil {
		e.found("master key", err, "")
	} else if open {
		e.say(levelFinding, "master key", "the store's secrets are not sealed under it yet", "caddy-auth store rotate-secrets")
	} else if _, err := db.Minter(ctx, ring); err != nil {
		e.found("master key", err, "")
	} else if _, err := db.Envelope(ctx, ring); err != nil && !errors.Is(err, auth.ErrNotFound) {
		e.found("master key", err, "the next start of a gateway makes a new secret for shared records")
	} else {
		e.ok("master key", "opens the store's secrets")
	}
	e.clock(ctx, db)
}

// notMade says how a store is made that is not there yet.
func (e *examination) notMade(err error) error {
	which := "--store " + e.t.backend.Describe()
	if e.t.path != "" {
		which = "--config " + e.t.path
	}
	if _, isFile := e.t.backend.(*sqlite.Backend); isFile && strings.Contains(auth.Hint(err), "put the database back") {
		return err
	}
	return auth.WithHint(err, "make it with: caddy-auth store init "+which+", or start the gateway")
}

// soon is how long before the end of a key it is told.
const soon = 14 * 24 * time.Hour

// expiring tells how many keys that work end soon.
func (e *examination) expiring(ctx context.Context, db *store.DB) {
	n := 0
	err := db.Keys(ctx, store.KeyFilter{ExpiringBefore: time.Now().Add(soon).UnixMilli()}, func(*auth.Key) error { n++; return nil })
	switch {
	case err != nil:
		e.found("keys", err, "")
	case n > 0:
		e.say(levelNote, "keys", fmt.Sprintf("%d keys end within 14 days", n), "see them with: caddy-auth key list --expiring 14d")
	}
}

// maxAhead is how far the store's newest entry may be in the future.
const maxAhead = 5 * time.Second

func (e *examination) clock(ctx context.Context, db *store.DB) {
	last, err := db.LastAudit(ctx)
	if err != nil {
		e.found("clock", err, "")
		return
	}
	if ahead := time.Until(time.UnixMilli(last.At)); ahead > maxAhead {
		e.say(levelFinding, "clock", fmt.Sprintf("the store's newest entry was written %s in the future: this clock is slow, or the writer's was fast", ahead.Round(time.Second)),
			"synchronize the clocks (timedatectl): expiry of keys depends on them")
		return
	}
	e.ok("clock", "not behind the store's newest entry of %s", moment(last.At))
}

func (e *examination) redis(ctx context.Context) {
	if e.t.app == nil || e.t.app.Redis == nil {
		e.say(levelNote, "redis", "none is configured: every gateway asks the store for what it does not know", "")
		return
	}
	c := e.t.app.Redis
	opts, _, err := c.options()
	if err != nil {
		e.found("redis", err, "")
		return
	}
	client := redisx.New(opts)
	defer client.Close()
	roundTrip, err := client.RoundTrip(ctx)
	if err != nil {
		e.found("redis", slowHint(err), "gateways verify without it meanwhile; is the address right, is it running, are user and password right?")
		return
	}
	name := c.prefix() + "doctor"
	began := time.Now()
	if err := client.Set(ctx, name, []byte("x"), time.Second); err != nil {
		e.found("redis", err, aclHint(c)+", and the server must take writes")
		return
	}
	if _, err := client.Get(ctx, name); err != nil {
		e.found("redis", err, aclHint(c))
		return
	}
	took := time.Since(began) / 2
	if err := client.Publish(ctx, name); err != nil {
		e.found("redis", err, aclHint(c)+"; without the doorbell changes are seen at every poll_interval")
		return
	}
	e.ok("redis", "%s takes and gives records, %s a call", opts.Describe(), took.Round(10*time.Microsecond))
	if timeout := cmp.Or(opts.Timeout, redisx.DefaultTimeout); 2*roundTrip > timeout {
		e.say(levelWarning, "redis", fmt.Sprintf("an answer takes %s, and timeout is %s: where it takes a little longer, gateways do without it", roundTrip.Round(time.Millisecond/10), timeout),
			fmt.Sprintf("put timeout %s into the redis block", suggestTimeout(roundTrip)))
	}
	if opts.TLS == nil && !opts.Local() {
		e.say(levelFinding, "redis", "is reached without TLS: its password crosses the network in clear", "use rediss://")
	}
}

func aclHint(c *RedisConfig) string {
	more := ""
	if c.Cluster {
		more = " +cluster|slots +asking"
	}
	return "the ACL user needs" + more + " +set +getrange +ping +publish +subscribe, ~" + c.prefix() + "* and &" + c.prefix() + "*"
}
