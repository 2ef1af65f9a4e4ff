package sqlite

import (
	"context"
	"crypto/rand"
	"database/sql"
	"errors"
	"fmt"
	"io/fs"
	"net/url"
	"os"
	"path/filepath"

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
		return fmt.Errorf("making the backup: %w", notUsable(err))
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
func (b *Backend) Stage(ctx context.Context, backup string) (*Backend, error) {
	from := New(backup)
	if _, err := from.ensureFile(false); err != nil {
		return nil, err
	}
	dsn := from.dsn("_pragma=busy_timeout(5000)")
	if info, err := os.Stat(from.path + "-wal"); err != nil || info.Size() == 0 {
		if err := Verify(ctx, backup); err != nil {
			return nil, err
		}
		dsn = from.frozenDSN()
	}
	if err := os.MkdirAll(filepath.Dir(b.real()), 0o700); err != nil {
		return nil, fmt.Errorf("making the directory: %w", notUsable(err))
	}
	var random [6]byte
	if _, err := rand.Read(random[:]); err != nil {
		return nil, fmt.Errorf("reading random bytes: %w", err)
	}
	staged := New(fmt.Sprintf("%s.restoring-%x", b.real(), random))
	if err := from.copyTo(ctx, dsn, staged.path); err != nil {
		return nil, err
	}
	return staged, nil
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

// holdTries is how often Hold tries to find the write-ahead log empty.
const holdTries = 50

// Hold takes the writer's lock with everything in the main file, so that
// nobody changes the database until release, and the main file alone is all of
// it.
func (b *Backend) Hold(ctx context.Context) (release func() error, err error) {
	db, err := sql.Open("sqlite", b.dsn("_pragma=busy_timeout(5000)"))
	if err != nil {
		return nil, fmt.Errorf("opening a connection: %w", err)
	}
	db.SetMaxOpenConns(1)
	defer func() {
		if err != nil {
			_ = db.Close() // the first error is the one to report
		}
	}()
	for range holdTries {
		var busy, log, done int
		if err := db.QueryRowContext(ctx, `PRAGMA wal_checkpoint(TRUNCATE)`).Scan(&busy, &log, &done); err != nil {
			return nil, fmt.Errorf("emptying the write-ahead log: %w", b.Classify(err))
		}
		if _, err := db.ExecContext(ctx, `BEGIN IMMEDIATE`); err != nil {
			return nil, fmt.Errorf("taking the writer's lock: %w", b.Classify(err))
		}
		if info, err := os.Stat(b.real() + "-wal"); err != nil || info.Size() == 0 {
			return func() error {
				_, err := db.Exec(`ROLLBACK`)
				return errors.Join(err, db.Close())
			}, nil
		}
		if _, err := db.ExecContext(ctx, `ROLLBACK`); err != nil { // somebody wrote in between
			return nil, fmt.Errorf("giving the writer's lock back: %w", b.Classify(err))
		}
	}
	return nil, fmt.Errorf("%s is written to all the time: %w", b.path, auth.ErrUnavailable)
}

// PutInPlace makes a staged copy, which nobody has open any more, the
// database; the caller holds the present one, if it can be read. What was
// there stays as a file whose name is returned, also with an error, or "". At
// no moment is there no database. Gateways notice at their next look that the
// file is another.
func (b *Backend) PutInPlace(staged *Backend, stamp string) (aside string, err error) {
	if info, err := os.Stat(staged.path + "-wal"); err == nil && info.Size() > 0 {
		return "", fmt.Errorf("the staged copy is still in use: %w", auth.ErrConflict)
	}
	path := b.real()
	if _, err := os.Stat(path); err == nil {
		if aside, err = keepAside(path, path+".before-restore-"+stamp); err != nil {
			return "", fmt.Errorf("keeping the present database: %w", err)
		}
	}
	// The new file must not meet a log that is not its own.
	for _, suffix := range []string{"-shm", "-wal"} {
		if err := os.Remove(path + suffix); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return aside, fmt.Errorf("removing the old write-ahead log: %w", err)
		}
	}
	if err := os.Rename(staged.path, path); err != nil {
		return aside, fmt.Errorf("putting the backup in place (what was there is still there, and also %s): %w", aside, err)
	}
	return aside, syncFile(filepath.Dir(path))
}

// keepAside gives a database a second name, never one that is taken, together
// with a write-ahead log that is not empty.
func keepAside(path, name string) (string, error) {
	for n := 1; ; n++ {
		aside := name
		if n > 1 {
			aside = fmt.Sprintf("%s-%d", name, n)
		}
		err := os.Link(path, aside)
		if errors.Is(err, fs.ErrExist) && n < 1000 {
			continue
		}
		if err != nil {
			return "", err
		}
		if info, err := os.Stat(path + "-wal"); err == nil && info.Size() > 0 { // it could not be held
			if err := os.Link(path+"-wal", aside+"-wal"); err != nil {
				return "", errors.Join(err, os.Remove(aside))
			}
		}
		return aside, nil
	}
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
		return fmt.Errorf("writing the master key: %w", err)
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
