package store

import (
	"cmp"
	"context"
	"crypto/sha256"
	"database/sql"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"path"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/caddy-auth/caddy-auth/internal/auth"
)

// A migration's min_reader is the oldest schema version whose releases can
// still use a database that has it: a release that only adds says its
// predecessor's, one that removes says its own.
type migration struct {
	version   int
	name      string
	minReader int
	sum       string
	text      string
}

const queryMigrationsTable = `CREATE TABLE IF NOT EXISTS schema_migrations (
	version    INTEGER PRIMARY KEY,
	name       TEXT NOT NULL,
	sha256     TEXT NOT NULL,
	min_reader INTEGER NOT NULL,
	applied_at BIGINT NOT NULL
)`

func loadMigrations(files fs.FS) ([]migration, error) {
	names, err := fs.Glob(files, "*.sql")
	if err != nil {
		return nil, fmt.Errorf("listing migrations: %w", err)
	}
	var out []migration
	for _, n := range names {
		text, err := fs.ReadFile(files, n)
		if err != nil {
			return nil, fmt.Errorf("reading migration %s: %w", n, err)
		}
		number, rest, _ := strings.Cut(strings.TrimSuffix(path.Base(n), ".sql"), "_")
		version, err := strconv.Atoi(number)
		if err != nil {
			return nil, fmt.Errorf("migration %s has no number: %w", n, err)
		}
		first, _, _ := strings.Cut(string(text), "\n")
		minReader, err := strconv.Atoi(strings.TrimPrefix(first, "-- min_reader: "))
		if err != nil {
			return nil, fmt.Errorf("migration %s does not say its min_reader: %w", n, err)
		}
		sum := sha256.Sum256(text)
		out = append(out, migration{version, rest, minReader, hex.EncodeToString(sum[:]), string(text)})
	}
	slices.SortFunc(out, func(a, b migration) int { return cmp.Compare(a.version, b.version) })
	return out, nil
}

// migrate checks the schema and, if mode allows, brings it up to date.
func (d *DB) migrate(ctx context.Context, c *Conns, mode Mode) error {
	known, err := loadMigrations(d.backend.Migrations())
	if err != nil {
		return err
	}
	applied, err := d.appliedMigrations(ctx, c.Read)
	if err != nil {
		return err
	}
	if err := checkApplied(known, applied); err != nil {
		return err
	}
	if len(applied) == 0 && mode != Create {
		return auth.WithHint(auth.ErrNotInitialized, "make it with: caddy-auth store init")
	}
	var pending []migration
	for _, m := range known {
		if _, ok := applied[m.version]; !ok {
			pending = append(pending, m)
		}
	}
	if len(pending) == 0 {
		return nil
	}
	if mode == Existing {
		return auth.WithHint(fmt.Errorf("its schema is %d migration(s) behind this release: %w", len(pending), auth.ErrConflict),
			"bring it up to date with: caddy-auth store migrate")
	}
	for _, m := range pending {
		if err := d.apply(ctx, c.Write, m); err != nil {
			return err
		}
	}
	return nil
}

func (d *DB) appliedMigrations(ctx context.Context, db *sql.DB) (map[int]migration, error) {
	applied := map[int]migration{}
	rows, err := db.QueryContext(ctx, `SELECT version, name, sha256, min_reader FROM schema_migrations`)
	if err != nil {
		if kind := d.backend.Classify(err); errors.Is(kind, auth.ErrNotInitialized) {
			return applied, nil
		}
		return nil, fmt.Errorf("reading its schema version: %w", d.backend.Classify(err))
	}
	defer rows.Close()
	for rows.Next() {
		var m migration
		if err := rows.Scan(&m.version, &m.name, &m.sum, &m.minReader); err != nil {
			return nil, fmt.Errorf("reading its schema version: %w", d.backend.Classify(err))
		}
		applied[m.version] = m
	}
	if err := rows.Err(); err != nil {
		return nil, fmt.Errorf("reading its schema version: %w", d.backend.Classify(err))
	}
	return applied, nil
}

func checkApplied(known []migration, applied map[int]migration) error {
	ours := known[len(known)-1].version
	byVersion := map[int]migration{}
	for _, m := range known {
		byVersion[m.version] = m
	}
	for _, a := range applied {
		if a.minReader > ours {
			return auth.WithHint(
				fmt.Errorf("its schema (%d) needs a release that knows schema %d, this one knows %d: %w", a.version, a.minReader, ours, auth.ErrTooNew),
				"install the release that migrated it, or restore the backup made before")
		}
		if k, ok := byVersion[a.version]; ok && k.sum != a.sum {
			return fmt.Errorf("migration %03d_%s was changed after it was applied: %w", a.version, a.name, auth.ErrConflict)
		}
	}
	return nil
}

func (d *DB) apply(ctx context.Context, db *sql.DB, m migration) error {
	doing := fmt.Sprintf("applying migration %03d_%s", m.version, m.name)
	tx, err := d.backend.BeginWrite(ctx, db)
	if err != nil {
		return fmt.Errorf("%s: %w", doing, d.backend.Classify(err))
	}
	defer func() { _ = tx.Rollback() }() // after a commit it does nothing
	steps := []func() error{
		func() error { _, err := tx.ExecContext(ctx, queryMigrationsTable); return err },
		func() error { // another process may have been quicker
			var n int
			err := tx.QueryRowContext(ctx, `SELECT COUNT(*) FROM schema_migrations WHERE version = $1`, m.version).Scan(&n)
			if err != nil || n > 0 {
				return err
			}
			if _, err := tx.ExecContext(ctx, m.text); err != nil {
				return err
			}
			_, err = tx.ExecContext(ctx, `INSERT INTO schema_migrations (version, name, sha256, min_reader, applied_at) VALUES ($1, $2, $3, $4, $5)`,
				m.version, m.name, m.sum, m.minReader, Millis(time.Now()))
			return err
		},
		tx.Commit,
	}
	for _, step := range steps {
		if err := step(); err != nil {
			return fmt.Errorf("%s: %w", doing, d.backend.Classify(err))
		}
	}
	return nil
}
