package sqlite

import (
	"context"
	"crypto/rand"
	"database/sql"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/url"
	"os"
	"path/filepath"
	"slices"

	"github.com/caddy-auth/caddy-auth/internal/auth"
)

// Backup writes a consistent copy of the database to path, mode 0600, while
// others use it. It never overwrites.
func (b *Backend) Backup(ctx context.Context, path string) error {
	return b.copyTo(ctx, b.dsn("_pragma=busy_timeout(5000)"), path)
}

// copyTo copies what a connection sees, its write-ahead log included, to a new
// file.
func (b *Backend) copyTo(ctx context.Context, dsn, path string) (err error) {
	if path, err = filepath.Abs(path); err != nil { // SQLite would take file:x for a URI
		return fmt.Errorf("making the backup: %w", err)
	}
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if errors.Is(err, fs.ErrExist) {
		return auth.WithHint(fmt.Errorf("%s exists and is not overwritten: %w", path, auth.ErrConflict), "name another file, or remove it first")
	}
	if err != nil {
		return fmt.Errorf("making the backup: %w", notUsable(filepath.Dir(path), err))
	}
	defer func() {
		if err != nil {
			_ = os.Remove(path) // half a backup is none
		}
	}()
	if err := f.Close(); err != nil {
		return fmt.Errorf("making the backup: %w", err)
	}
	db, err := sql.Open("sqlite", dsn)
	if err != nil {
		return fmt.Errorf("opening a connection: %w", err)
	}
	defer db.Close()
	if _, err := db.ExecContext(ctx, `VACUUM INTO $1`, path); err != nil { // into an empty file it may
		return fmt.Errorf("copying %s: %w", b.path, b.Classify(err))
	}
	if info, err := os.Stat(path); err != nil || info.Size() == 0 {
		return fmt.Errorf("copying %s: nothing was written: %w", b.path, errors.Join(auth.ErrCorrupt, err))
	}
	if err := Verify(ctx, path); err != nil {
		return err
	}
	return syncFile(path)
}

// Verify looks for damage through a whole database file that nobody writes to.
func Verify(ctx context.Context, path string) error {
	b := New(path)
	db, err := sql.Open("sqlite", b.frozenDSN())
	if err != nil {
		return fmt.Errorf("opening %s: %w", path, err)
	}
	defer db.Close()
	return b.check(ctx, db)
}

// frozenDSN opens a file that nobody writes to, leaving no trace.
func (b *Backend) frozenDSN() string {
	u := url.URL{Scheme: "file", Opaque: (&url.URL{Path: b.path}).EscapedPath(), RawQuery: "mode=ro&immutable=1"}
	return u.String()
}

// Stage copies a backup beside the database, mode 0600, to be worked on and
// then put in place. A write-ahead log beside the backup belongs to it. The
// backup is not changed.
func (b *Backend) Stage(ctx context.Context, backup string) (_ *Backend, err error) {
	from := New(backup)
	if _, err := from.ensureFile(false); err != nil {
		return nil, err
	}
	if err := os.MkdirAll(filepath.Dir(b.real()), 0o700); err != nil {
		return nil, fmt.Errorf("making the directory: %w", notUsable(filepath.Dir(b.real()), err))
	}
	var random [6]byte
	if _, err := rand.Read(random[:]); err != nil {
		return nil, fmt.Errorf("reading random bytes: %w", err)
	}
	staged := New(fmt.Sprintf("%s.restoring-%x", b.real(), random))
	defer func() {
		if err != nil {
			err = errors.Join(err, staged.Discard())
		}
	}()
	for _, suffix := range []string{"", "-wal"} {
		err := copyFile(from.path+suffix, staged.path+suffix)
		if err != nil && (suffix == "" || !errors.Is(err, fs.ErrNotExist)) {
			return nil, fmt.Errorf("copying the backup: %w", err)
		}
	}
	return staged, staged.Check(ctx)
}

func copyFile(from, to string) error {
	in, err := os.Open(from)
	if err != nil {
		return err
	}
	defer in.Close()
	out, err := os.OpenFile(to, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	_, err = io.Copy(out, in)
	return errors.Join(err, out.Sync(), out.Close())
}

// real is the path behind symbolic links.
func (b *Backend) real() string {
	if path, err := filepath.EvalSymlinks(b.path); err == nil {
		return path
	}
	return b.path
}

// Discard removes a staged copy.
func (b *Backend) Discard() error {
	var errs []error
	for _, suffix := range []string{"", "-wal", "-shm"} {
		if err := os.Remove(b.path + suffix); err != nil && !errors.Is(err, fs.ErrNotExist) {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

// Replace puts the content of a staged copy into the database, in one
// transaction: nobody sees anything but the old or the new, and a change that
// waited for the writer's lock is made to the new. ready is called when nobody
// else can change the database any more, and may refuse. What was there is
// kept in a new file, whose name is returned. Gateways notice the new epoch.
func (b *Backend) Replace(ctx context.Context, staged *Backend, stamp string, ready func() error) (aside string, err error) {
	db, err := sql.Open("sqlite", b.dsn("_pragma=busy_timeout(5000)&_pragma=synchronous(FULL)&_txlock=deferred"))
	if err != nil {
		return "", fmt.Errorf("opening a connection: %w", err)
	}
	defer db.Close()
	conn, err := db.Conn(ctx) // what is attached, and the transaction, belong to one connection
	if err != nil {
		return "", fmt.Errorf("opening a connection: %w", b.Classify(err))
	}
	defer conn.Close()
	run := func(doing, query string, args ...any) error {
		if _, err := conn.ExecContext(ctx, query, args...); err != nil {
			return fmt.Errorf("%s: %w", doing, b.Classify(err))
		}
		return nil
	}
	if err := run("opening the copy", `ATTACH $1 AS restored`, staged.path); err != nil {
		return "", err
	}
	if err := run("beginning", `BEGIN`); err != nil { // IMMEDIATE would lock the copy as well
		return "", err
	}
	defer func() {
		if err != nil {
			_, _ = conn.ExecContext(context.WithoutCancel(ctx), `ROLLBACK`)
		}
	}()
	if err := run("taking the writer's lock", `DELETE FROM main.store_meta WHERE 0`); err != nil {
		return "", err
	}
	if err := ready(); err != nil {
		return "", err
	}
	for n := 1; ; n++ { // another connection reads what is committed, which stays as it is
		if aside = fmt.Sprintf("%s.before-restore-%s-%d", b.real(), stamp, n); n == 1 {
			aside = fmt.Sprintf("%s.before-restore-%s", b.real(), stamp)
		}
		err := b.Backup(ctx, aside)
		if err == nil {
			break
		}
		if !errors.Is(err, auth.ErrConflict) {
			return "", fmt.Errorf("keeping what is there: %w", err)
		}
	}
	tables, err := commonTables(ctx, conn)
	if err != nil {
		return aside, b.Classify(err)
	}
	if err := run("putting the backup in place", `PRAGMA defer_foreign_keys=ON`); err != nil {
		return aside, err
	}
	for _, t := range tables {
		if t == "nodes" { // who follows the store now, whatever was then
			continue
		}
		if err := run("putting the backup in place", `DELETE FROM main."`+t+`"`); err != nil {
			return aside, err
		}
		if err := run("putting the backup in place", `INSERT INTO main."`+t+`" SELECT * FROM restored."`+t+`"`); err != nil {
			return aside, err
		}
	}
	return aside, run("putting the backup in place", `COMMIT`)
}

// commonTables lists the tables, which must be the same in both databases.
func commonTables(ctx context.Context, conn *sql.Conn) ([]string, error) {
	list := func(schema string) (names []string, err error) {
		rows, err := conn.QueryContext(ctx, `SELECT name, sql FROM `+schema+`.sqlite_master WHERE type = 'table' AND (name NOT LIKE 'sqlite_%' OR name = 'sqlite_sequence') ORDER BY name`)
		if err != nil {
			return nil, err
		}
		defer rows.Close()
		for rows.Next() {
			var name string
			var text sql.NullString
			if err := rows.Scan(&name, &text); err != nil {
				return nil, err
			}
			names = append(names, name, text.String)
		}
		return names, rows.Err()
	}
	here, err := list("main")
	if err != nil {
		return nil, err
	}
	there, err := list("restored")
	if err != nil {
		return nil, err
	}
	if !slices.Equal(here, there) {
		return nil, auth.WithHint(fmt.Errorf("the backup has another schema: %w", auth.ErrConflict), "restore it to another place with --store, run store migrate there, and back that up")
	}
	var names []string
	for i := 0; i < len(here); i += 2 {
		names = append(names, here[i])
	}
	return names, nil
}

// PutInPlace makes a staged copy, which nobody has open any more, the database
// where there is none, or none that can be read: what is there is moved to a
// file whose name is returned.
func (b *Backend) PutInPlace(staged *Backend, stamp string) (aside string, err error) {
	path := b.real()
	if _, err := os.Lstat(path); err == nil {
		aside = path + ".before-restore-" + stamp
		for n := 2; ; n++ {
			if _, err := os.Lstat(aside); errors.Is(err, fs.ErrNotExist) {
				break
			}
			aside = fmt.Sprintf("%s.before-restore-%s-%d", path, stamp, n)
		}
		for _, suffix := range []string{"-shm", "-wal", ""} {
			if err := os.Rename(path+suffix, aside+suffix); err != nil && !errors.Is(err, fs.ErrNotExist) {
				return aside, fmt.Errorf("moving the damaged database aside: %w", err)
			}
		}
	}
	if err := os.Link(staged.path, path); err != nil { // never over another file
		return aside, fmt.Errorf("putting the backup in place: %w", err)
	}
	return aside, errors.Join(os.Remove(staged.path), syncFile(filepath.Dir(path)))
}

// CopyMasterKey copies a generated master key file, mode 0600, never
// overwriting.
func CopyMasterKey(from, to string) error {
	text, err := os.ReadFile(from)
	if err != nil {
		return fmt.Errorf("reading the master key: %w", err)
	}
	f, err := os.OpenFile(to, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return fmt.Errorf("writing the master key: %w", err)
	}
	_, err = f.Write(text)
	if err := errors.Join(err, f.Sync(), f.Close()); err != nil {
		return errors.Join(fmt.Errorf("writing the master key: %w", err), os.Remove(to))
	}
	return nil
}

func syncFile(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return fmt.Errorf("making sure of %s: %w", path, err)
	}
	return errors.Join(f.Sync(), f.Close())
}
