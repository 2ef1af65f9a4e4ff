package sqlite

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/url"
	"os"
	"path/filepath"

	"github.com/caddy-auth/caddy-auth/internal/auth"
)

// Backup writes a consistent copy of the database to path, mode 0600, while
// others use it. It never overwrites.
func (b *Backend) Backup(ctx context.Context, path string) (err error) {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if errors.Is(err, fs.ErrExist) {
		return auth.WithHint(fmt.Errorf("%s exists and is not overwritten: %w", path, auth.ErrConflict), "name another file, or remove it first")
	}
	if err != nil {
		return fmt.Errorf("making the backup: %w", err)
	}
	defer func() {
		if err != nil {
			_ = os.Remove(path) // half a backup is none
		}
	}()
	if err := f.Close(); err != nil {
		return fmt.Errorf("making the backup: %w", err)
	}
	db, err := sql.Open("sqlite", b.dsn("_pragma=busy_timeout(5000)"))
	if err != nil {
		return fmt.Errorf("opening a connection: %w", err)
	}
	defer db.Close()
	if _, err := db.ExecContext(ctx, `VACUUM INTO $1`, path); err != nil { // into an empty file it may
		return fmt.Errorf("copying %s: %w", b.path, b.Classify(err))
	}
	if err := Verify(ctx, path); err != nil {
		return err
	}
	return syncFile(path)
}

// Verify looks for damage through a whole database file that nobody writes to.
func Verify(ctx context.Context, path string) error {
	b := New(path)
	u := url.URL{Scheme: "file", Opaque: (&url.URL{Path: b.path}).EscapedPath(), RawQuery: "mode=ro&immutable=1"}
	db, err := sql.Open("sqlite", u.String())
	if err != nil {
		return fmt.Errorf("opening %s: %w", path, err)
	}
	defer db.Close()
	return b.check(ctx, db)
}

// Stage copies a backup beside the database, mode 0600, to be worked on and
// then put in place. The backup is not touched.
func (b *Backend) Stage(ctx context.Context, backup string) (*Backend, error) {
	if err := Verify(ctx, backup); err != nil {
		return nil, err
	}
	if err := os.MkdirAll(filepath.Dir(b.path), 0o700); err != nil {
		return nil, fmt.Errorf("making the directory: %w", notUsable(err))
	}
	out, err := os.CreateTemp(filepath.Dir(b.path), filepath.Base(b.path)+".restoring-*")
	if err != nil {
		return nil, fmt.Errorf("making a copy of the backup: %w", notUsable(err))
	}
	staged := New(out.Name())
	in, err := os.Open(backup)
	if err == nil {
		_, err = io.Copy(out, in)
		err = errors.Join(err, in.Close())
	}
	if err = errors.Join(err, out.Sync(), out.Close()); err != nil {
		return nil, errors.Join(fmt.Errorf("making a copy of the backup: %w", err), staged.Discard())
	}
	return staged, nil
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

// PutInPlace makes a staged copy, which nobody has open any more, the
// database. What was there is moved to a file whose name it returns, or "".
// Gateways notice at their next look that the file is another.
func (b *Backend) PutInPlace(staged *Backend, stamp string) (aside string, err error) {
	if _, err := os.Stat(staged.path + "-wal"); err == nil {
		return "", fmt.Errorf("the staged copy is still in use: %w", auth.ErrConflict)
	}
	if _, err := os.Stat(b.path); err == nil {
		aside = b.path + ".before-restore-" + stamp
		// The log first: the old file without its log is not complete, and the
		// new one must not meet a log that is not its own.
		for _, suffix := range []string{"-shm", "-wal", ""} {
			if err := os.Rename(b.path+suffix, aside+suffix); err != nil && !errors.Is(err, fs.ErrNotExist) {
				return "", fmt.Errorf("moving the present database aside: %w", err)
			}
		}
	}
	if err := os.Rename(staged.path, b.path); err != nil {
		return aside, fmt.Errorf("putting the backup in place: %w", err)
	}
	return aside, syncFile(filepath.Dir(b.path))
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
