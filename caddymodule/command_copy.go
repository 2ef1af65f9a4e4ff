package caddymodule

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/caddy-auth/caddy-auth/internal/auth"
	"github.com/caddy-auth/caddy-auth/internal/secret"
	"github.com/caddy-auth/caddy-auth/internal/store"
	"github.com/caddy-auth/caddy-auth/internal/store/sqlite"
)

func copyFlags(c *cobra.Command) {
	behalfFlag(c)
	c.Flags().String("from", "", "the store to copy: sqlite:PATH or postgres://... (default: the configuration's)")
	c.Flags().String("to", "", "where to: a file that is not there, or an empty PostgreSQL database")
	c.Flags().Bool("prepare", false, "only copy, so that the run that ends changes at the source is short; may be repeated")
	c.Flags().Bool("undo", false, "take changes at the source again, if the copy at --to never became a store")
	c.Flags().Bool("lost", false, "with --undo: what is at --to is lost for good, and was never used")
	c.Flags().BoolP("yes", "y", false, "don't ask")
}

type tallyView struct {
	Table  string `json:"table"`
	Rows   int64  `json:"rows"`
	SHA256 string `json:"sha256"`
}

func storeCopy(ctx context.Context, s *session) error {
	from, to, err := s.copyTargets()
	if err != nil {
		return err
	}
	prepare, _ := s.cmd.Flags().GetBool("prepare")
	src, err := store.Open(ctx, from, store.Existing)
	if err != nil {
		return err
	}
	defer src.Close()
	if ok, err := src.Initialized(ctx); err != nil || !ok {
		if err == nil {
			err = fmt.Errorf("%s: %w", src.Describe(), auth.ErrNotInitialized)
		}
		return err
	}
	if undo, _ := s.cmd.Flags().GetBool("undo"); undo {
		return s.undoCopy(ctx, src, to)
	}
	if err := checkOpenKey(ctx, src, to); err != nil {
		return err
	}
	if !prepare {
		if err := s.confirmNamed(fmt.Sprintf("copy %s to %s and end all changes at %[1]s", from.Describe(), to.Describe())); err != nil {
			return err
		}
	}
	dst, err := store.Open(ctx, to, store.Create)
	if err != nil {
		return err
	}
	defer dst.Close()
	keyFile, err := s.copyMasterKey(from, to)
	if err != nil {
		return err
	}
	began, shown := time.Now(), s.progress()
	tallies, err := store.Copy(ctx, src, dst, actor(), !prepare, shown.show)
	shown.end()
	if err != nil {
		if errors.Is(err, auth.ErrConflict) || errors.Is(err, auth.ErrMoved) {
			return err
		}
		return auth.WithHint(err, "run it again: it goes on where it ended")
	}
	took := time.Since(began)
	return s.copied(ctx, src, dst, tallies, took, prepare, keyFile)
}

// undoCopy opens a source again whose copy came to nothing. A copy that is a
// store may have been changed: two that take changes would be worse than none.
func (s *session) undoCopy(ctx context.Context, src *store.DB, to Backend) error {
	moved, err := src.MovedTo(ctx)
	if err != nil {
		return err
	}
	if moved == "" {
		return fmt.Errorf("%s was not moved: %w", src.Describe(), auth.ErrConflict)
	}
	if lost, _ := s.cmd.Flags().GetBool("lost"); !lost {
		if moved != to.Describe() {
			return auth.WithHint(fmt.Errorf("%s was moved to %s, not to %s: %w", src.Describe(), moved, to.Describe(), auth.ErrConflict), "say with --to where it was moved to")
		}
		if err := abandonCopy(ctx, src, to); err != nil {
			return err
		}
	}
	if err := s.confirmNamed(fmt.Sprintf("take changes at %s again, and never use what is at %s", src.Describe(), moved)); err != nil {
		return err
	}
	if err := store.Unmove(ctx, src, actor()); err != nil {
		return err
	}
	s.note("%s takes changes again; never use what is left at %s", src.Describe(), moved)
	if s.json {
		return printJSON(s.out, map[string]any{"store": src.Describe(), "moved": false})
	}
	return nil
}

// abandonCopy makes sure that a copy is no store and becomes none.
func abandonCopy(ctx context.Context, src *store.DB, to Backend) error {
	const hint = "if it is lost for good, say --lost"
	dst, err := store.Open(ctx, to, store.Existing)
	if err != nil {
		return auth.WithHint(fmt.Errorf("whether the copy was used can't be seen: %w", err), hint)
	}
	defer dst.Close()
	if done, err := dst.Initialized(ctx); err != nil {
		return err
	} else if done {
		return auth.WithHint(fmt.Errorf("%s is a complete store, which may have been changed: %w", to.Describe(), auth.ErrConflict), "to go back, copy it to a new place")
	}
	id, err := src.ID(ctx)
	if err != nil {
		return err
	}
	return store.Abandon(ctx, dst, id)
}

// copyTargets reads where to copy from and to.
func (s *session) copyTargets() (from, to Backend, err error) {
	if err := s.wantArgs(0, 0, "no arguments"); err != nil {
		return nil, nil, err
	}
	where, _ := s.cmd.Flags().GetString("to")
	source, _ := s.cmd.Flags().GetString("from")
	if where == "" {
		return nil, nil, usagef("want --to sqlite:PATH or --to postgres://...")
	}
	if to, err = parseStoreFlag("--to", where); err != nil {
		return nil, nil, err
	}
	if source != "" {
		from, err = parseStoreFlag("--from", source)
	} else {
		var t *target
		if t, err = findTarget(s.cmd); err == nil {
			from = t.backend
		}
	}
	if err != nil {
		return nil, nil, err
	}
	if from.Describe() == to.Describe() {
		return nil, nil, usagef("--from and --to name the same store")
	}
	if err := checkFileOwner(from); err != nil {
		return nil, nil, err
	}
	if f, ok := to.(*sqlite.Backend); ok {
		if _, err := os.Stat(f.Path()); err == nil {
			if err := checkFileOwner(to); err != nil {
				return nil, nil, err
			}
		}
	}
	s.note("copying %s to %s", from.Describe(), to.Describe())
	return from, to, nil
}

// checkOpenKey refuses to copy secrets that no master key seals to where there
// must be one.
func checkOpenKey(ctx context.Context, src *store.DB, to Backend) error {
	if _, ok := to.(keyKeeper); !ok {
		return nil
	}
	ring, err := secret.NewRing(ringPurpose, openKey[:])
	if err != nil {
		return err
	}
	if _, err := src.Minter(ctx, ring); err != nil {
		return nil // a master key seals them
	}
	return auth.WithHint(fmt.Errorf("the secrets in %s are sealed under no master key: %w", src.Describe(), auth.ErrConflict),
		"set master_key and run store rotate-secrets first")
}

// copyMasterKey takes the key file of a SQLite store along to another file, and
// returns the file that has the key.
func (s *session) copyMasterKey(from, to Backend) (string, error) {
	src, ok := from.(*sqlite.Backend)
	if !ok {
		return "", nil
	}
	if _, err := src.MasterKey(); errors.Is(err, auth.ErrNotInitialized) {
		return "", nil // it comes from the configuration
	} else if err != nil {
		return "", err
	}
	dst, ok := to.(*sqlite.Backend)
	if !ok {
		return src.MasterKeyPath(), nil
	}
	if _, err := os.Lstat(dst.MasterKeyPath()); err == nil { // of an earlier run
		return dst.MasterKeyPath(), nil
	}
	return dst.MasterKeyPath(), sqlite.CopyMasterKey(src.MasterKeyPath(), dst.MasterKeyPath())
}

// copied says what was copied and what is to be done now.
func (s *session) copied(ctx context.Context, src, dst *store.DB, tallies []store.Tally, took time.Duration, prepare bool, keyFile string) error {
	views := make([]tallyView, 0, len(tallies))
	var rows int64
	for _, t := range tallies {
		views = append(views, tallyView(t))
		rows += t.Rows
	}
	if s.json {
		if err := printJSON(s.out, map[string]any{
			"from": src.Describe(), "to": dst.Describe(), "moved": !prepare, "rows": rows, "seconds": took.Seconds(), "tables": views,
		}); err != nil {
			return err
		}
	} else {
		for _, t := range views {
			fmt.Fprintf(s.out, "%-12s %9d rows, sha256 %s, the same on both sides\n", t.Table, t.Rows, t.SHA256)
		}
	}
	if prepare {
		s.note("%d rows in %s; nothing has changed at %s: run it again without --prepare to move", rows, took.Round(time.Millisecond), src.Describe())
		return nil
	}
	fleet, err := dst.Fleet(ctx, auth.Point{})
	if err != nil {
		return err
	}
	live, least := 0, time.Duration(0)
	for _, m := range fleet.Members {
		if m.Live(fleet.Now) {
			if live++; least == 0 || m.MaxStaleness < least {
				least = m.MaxStaleness
			}
		}
	}
	s.note("%d rows in %s; %s takes no changes any more", rows, took.Round(time.Millisecond), src.Describe())
	switch {
	case live > 0:
		s.note("now: name %s in the configuration and reload the %d gateways within %s: then they stop trusting the old store and answer 503", dst.Describe(), live, least)
	default:
		s.note("now: name %s in the configuration", dst.Describe())
	}
	if _, ok := dst.Backend().(keyKeeper); !ok && keyFile != "" {
		s.note("the master key is in %s: keep it, and say master_key {file.%s}", keyFile, keyFile)
	}
	return nil
}

// confirmRotation asks whether every gateway can open what is about to be
// sealed under another master key.
func (s *session) confirmRotation(ctx context.Context, o *opened) error {
	fleet, err := o.db.Fleet(ctx, auth.Point{})
	if err != nil {
		return err
	}
	var names []string
	for _, m := range fleet.Members {
		if m.Live(fleet.Now) {
			names = append(names, m.Name)
		}
	}
	if len(names) == 0 {
		return nil
	}
	return s.confirmNamed(fmt.Sprintf("seal all secrets under the first master key, which %d gateways must have by now (%s), or they answer 503", len(names), strings.Join(names, ", ")))
}

func storeRotateSecrets(ctx context.Context, s *session) error {
	if err := s.wantArgs(0, 0, "no arguments"); err != nil {
		return err
	}
	o, err := s.open(ctx)
	if err != nil {
		return err
	}
	defer o.db.Close()
	ring, _, err := ringOf(ctx, o.db, o.t.masters, o.t.backend)
	if err != nil {
		return err
	}
	if err := s.confirmRotation(ctx, o); err != nil {
		return err
	}
	bell := cliBell{o.t, s.cmd, o}
	before, unheard := bell.channel(ctx) // gateways still listen where the old secret says
	if err := o.RotateSecrets(ctx, ring); err != nil {
		return err
	}
	if unheard == nil && before != "" {
		unheard = bell.ring(ctx, before)
	}
	if unheard != nil {
		s.note("note: the doorbell was not rung; gateways see the change at their next poll_interval")
	}
	s.note("the store's secrets are new, and all are sealed under the first master key; keys that were made before go on working")
	s.note("new keys are made with the new secret in %s, when every gateway knows it", store.MintingDelay)
	if s.json {
		if err := printJSON(s.out, map[string]any{"store": o.db.Describe(), "rotated": true}); err != nil {
			return err
		}
	}
	return s.settle(ctx, o)
}
