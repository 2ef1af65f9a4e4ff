package caddymodule

import (
	"context"
	"errors"
	"fmt"
	"os"

	"github.com/spf13/cobra"

	"github.com/caddy-auth/caddy-auth/internal/auth"
	"github.com/caddy-auth/caddy-auth/internal/store"
	"github.com/caddy-auth/caddy-auth/internal/store/sqlite"
)

// shownChanges is how many lost changes are printed for people.
const shownChanges = 50

func backupFlags(cmd *cobra.Command) {
	cmd.Flags().String("out", "", "the file to write; it must not exist")
	cmd.Flags().Bool("with-master-key", false, "also copy the generated master key, to FILE.master-key")
}

func restoreFlags(cmd *cobra.Command) {
	cmd.Flags().Bool("yes", false, "don't ask")
	cmd.Flags().Bool("repeat-revocations", false, "stop again what was stopped since the backup")
	cmd.Flags().Bool("dry-run", false, "only say what would be lost")
	waitFlags(cmd)
}

// sqliteTarget is the target, which must be a file.
func (s *session) sqliteTarget() (*target, *sqlite.Backend, error) {
	t, err := findTarget(s.cmd)
	if err != nil {
		return nil, nil, err
	}
	s.note("using %s (from %s)", t.backend.Describe(), t.from)
	b, ok := t.backend.(*sqlite.Backend)
	if !ok {
		return nil, nil, auth.WithHint(auth.Invalidf("%s is no SQLite store", t.backend.Describe()), "use the database's own tools to back it up")
	}
	return t, b, checkFileOwner(b)
}

func storeBackup(ctx context.Context, s *session) error {
	out, _ := s.cmd.Flags().GetString("out")
	if err := s.wantArgs(0, 0, "no arguments"); err != nil {
		return err
	}
	if out == "" {
		return usagef("want --out FILE")
	}
	t, b, err := s.sqliteTarget()
	if err != nil {
		return err
	}
	withKey, _ := s.cmd.Flags().GetBool("with-master-key")
	if withKey && len(t.masters) > 0 {
		return usagef("--with-master-key: the master key comes from the configuration and is kept there")
	}
	if _, err := os.Lstat(out + ".master-key"); withKey && err == nil {
		return auth.WithHint(fmt.Errorf("%s.master-key exists and is not overwritten", out), "name another file, or remove it first")
	}
	db, err := store.Open(ctx, b, store.Existing)
	if err != nil {
		return err
	}
	defer db.Close()
	if err := b.Backup(ctx, out); err != nil {
		return err
	}
	info, err := os.Stat(out)
	if err != nil {
		return fmt.Errorf("looking at the backup: %w", err)
	}
	s.note("wrote %s, %d bytes, mode 0600", out, info.Size())
	where := "configuration"
	switch {
	case withKey:
		if err := sqlite.CopyMasterKey(b.MasterKeyPath(), out+".master-key"); err != nil {
			return errors.Join(err, os.Remove(out)) // all or nothing, so that it can be run again
		}
		where = out + ".master-key"
		s.note("the master key is beside it, in %s: whoever has both has the secrets; move them apart", where)
	case len(t.masters) == 0:
		where = b.MasterKeyPath()
		s.note("the master key is NOT in it: keep a copy of %s elsewhere, without it no key can be recognized", where)
	default:
		s.note("the master key is NOT in it: it comes from the configuration")
	}
	// A backup is worth a line in the audit log, but not worth failing for.
	if err := db.Note(ctx, actor(), "store.backup", "store", map[string]any{"bytes": info.Size()}); err != nil {
		s.note("note: the backup is not in the audit log: %v", err)
	}
	if s.json {
		return printJSON(s.out, map[string]any{"backup": out, "bytes": info.Size(), "master_key": where, "master_key_included": withKey})
	}
	return nil
}
