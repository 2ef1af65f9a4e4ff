// Package sqlite is the embedded store: one file, one writer, several
// readers, in write-ahead mode with synchronous=FULL, by a driver in pure Go.
package sqlite

import (
	"context"
	"database/sql"
	"embed"
	"errors"
	"fmt"
	"io/fs"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"modernc.org/sqlite"
	sqlitelib "modernc.org/sqlite/lib"

	"github.com/caddy-auth/caddy-auth/internal/auth"
	"github.com/caddy-auth/caddy-auth/internal/store"
)

//go:embed migrations/*.sql
var migrations embed.FS

const readers = 4

// Backend is a database file. It implements store.Backend.
type Backend struct{ path string }

var _ store.Backend = (*Backend)(nil)

// New returns the backend for a file. It touches nothing.
func New(path string) *Backend {
	if abs, err := filepath.Abs(path); err == nil {
		path = abs
	}
	return &Backend{path: path}
}

// Path is the absolute path of the database file.
func (b *Backend) Path() string { return b.path }

// Describe implements store.Backend.
func (b *Backend) Describe() string { return "sqlite:" + b.path }

// Migrations implements store.Backend.
func (b *Backend) Migrations() fs.FS {
	sub, err := fs.Sub(migrations, "migrations")
	if err != nil {
		panic(err) // the directory is embedded above
	}
	return sub
}

// Connect implements store.Backend. A new file gets mode 0600, a new
// directory 0700.
func (b *Backend) Connect(ctx context.Context, create bool) (*store.Conns, error) {
	opened, err := b.ensureFile(create)
	if err != nil {
		return nil, err
	}
	c := &store.Conns{Current: func() error { return b.current(opened) }}
	const reading = "_pragma=busy_timeout(5000)&_pragma=query_only(1)"
	const writing = "_pragma=busy_timeout(5000)&_pragma=foreign_keys(1)&_pragma=journal_mode(WAL)&_pragma=synchronous(FULL)&_txlock=immediate"
	for _, o := range []struct {
		db        **sql.DB
		dsn       string
		max, idle int
	}{
		{&c.Write, writing, 1, 1},
		{&c.Read, reading, readers, readers},
		{&c.Fresh, reading, 1, 0}, // a new connection each time: no page is remembered
	} {
		db, err := sql.Open("sqlite", b.dsn(o.dsn))
		if err != nil {
			return nil, fmt.Errorf("opening a connection: %w", err)
		}
		db.SetMaxOpenConns(o.max)
		db.SetMaxIdleConns(o.idle)
		*o.db = db
	}
	c.Note = c.Write
	if !create {
		return c, nil
	}
	if err := b.check(ctx, c.Read); err != nil {
		for _, db := range []*sql.DB{c.Write, c.Read, c.Fresh} {
			_ = db.Close() // the check's error is the one to report
		}
		return nil, err
	}
	return c, nil
}

// ensureFile returns what is at the path, creating it if create says so.
func (b *Backend) ensureFile(create bool) (os.FileInfo, error) {
	info, err := os.Stat(b.path)
	if errors.Is(err, fs.ErrNotExist) {
		if !create {
			return nil, auth.WithHint(fmt.Errorf("there is no file %s: %w", b.path, auth.ErrNotInitialized), "make it with: caddy-auth store init")
		}
		if _, err := os.Stat(b.MasterKeyPath()); err == nil { // a new store would call every good key bad
			return nil, auth.WithHint(fmt.Errorf("%s is missing, but its master key is there: %w", b.path, auth.ErrNotInitialized),
				"put the database back, for example with caddy-auth store restore; to begin with a new one, remove "+b.MasterKeyPath())
		}
		if err := os.MkdirAll(filepath.Dir(b.path), 0o700); err != nil {
			return nil, fmt.Errorf("making its directory: %w", notUsable(filepath.Dir(b.path), err))
		}
		f, err := os.OpenFile(b.path, os.O_CREATE|os.O_RDWR, 0o600)
		if err != nil {
			return nil, fmt.Errorf("making the file: %w", notUsable(filepath.Dir(b.path), err))
		}
		if err := errors.Join(f.Close(), Adopt(b.path, b.path)); err != nil {
			return nil, fmt.Errorf("making the file: %w", err)
		}
		info, err = os.Stat(b.path)
		if err != nil {
			return nil, fmt.Errorf("making the file: %w", err)
		}
	} else if err != nil {
		return nil, notUsable(b.path, err)
	}
	if info.IsDir() {
		return nil, auth.Invalidf("%s is a directory, want a file", b.path)
	}
	f, err := os.Open(b.path)
	if err != nil {
		return nil, notUsable(b.path, err)
	}
	if err := f.Close(); err != nil {
		return nil, err
	}
	return info, nil
}

// notUsable marks an error of the file system that waiting does not mend, and says
// what would.
func notUsable(path string, err error) error {
	joined := errors.Join(auth.ErrInvalid, err)
	if !errors.Is(err, fs.ErrPermission) {
		return joined
	}
	for at := path; ; at = filepath.Dir(at) { // what is there, and belongs to somebody else
		if _, err := os.Stat(at); errors.Is(err, fs.ErrNotExist) && at != filepath.Dir(at) {
			continue
		}
		owner := Owner(at)
		if owner == "" {
			return auth.WithHint(joined, at+" must be readable and writable for "+me())
		}
		files := at
		if info, err := os.Stat(at); err == nil && !info.IsDir() {
			files += "*" // its log and its master key too
			if dir := filepath.Dir(at); Owner(dir) != "" {
				files = dir + " " + files
			}
		}
		return auth.WithHint(joined, fmt.Sprintf("%s belongs to %s, and this process runs as %s: run it as %[2]s, or give it away: sudo chown %[3]s: %[4]s", at, owner, me(), files))
	}
}

// Check looks for damage through the whole database while others use it.
func (b *Backend) Check(ctx context.Context) error {
	if _, err := b.ensureFile(false); err != nil {
		return err
	}
	db, err := sql.Open("sqlite", b.dsn("_pragma=busy_timeout(5000)&_pragma=query_only(1)"))
	if err != nil {
		return fmt.Errorf("opening a connection: %w", err)
	}
	defer db.Close()
	return b.check(ctx, db)
}

// check looks for damage through the whole file. It is done where a gateway
// starts, not for every command.
func (b *Backend) check(ctx context.Context, db *sql.DB) error {
	var result string
	if err := db.QueryRowContext(ctx, `PRAGMA quick_check(1)`).Scan(&result); err != nil {
		return b.Classify(err)
	}
	if result != "ok" {
		return auth.WithHint(fmt.Errorf("%s: %s: %w", b.path, result, auth.ErrCorrupt), "restore a backup; the damaged file was not touched")
	}
	return nil
}

// current compares the file at the path with the one that was opened.
func (b *Backend) current(opened os.FileInfo) error {
	now, err := os.Stat(b.path)
	if err != nil {
		return fmt.Errorf("the database file is gone: %w", errors.Join(auth.ErrUnavailable, err))
	}
	if !os.SameFile(opened, now) {
		return fmt.Errorf("%s is another file than the one that was opened: %w", b.path, auth.ErrReplaced)
	}
	return nil
}

// BeginWrite implements store.Backend: the writer's lock is taken at once, so
// sequence order is commit order.
func (b *Backend) BeginWrite(ctx context.Context, db *sql.DB) (*sql.Tx, error) {
	return db.BeginTx(ctx, nil)
}

// BeginNote implements store.Backend: there is one writer's lock for all.
func (b *Backend) BeginNote(ctx context.Context, db *sql.DB) (*sql.Tx, error) {
	return b.BeginWrite(ctx, db)
}

// Values implements store.Backend: a statement takes time in the square of its
// values, and no round trip.
func (b *Backend) Values() int { return 100 }

// Renumber implements store.Backend: AUTOINCREMENT looks at every row.
func (b *Backend) Renumber(context.Context, *sql.Tx) error { return nil }

// BeginRead implements store.Backend: any read transaction is a snapshot.
func (b *Backend) BeginRead(ctx context.Context, db *sql.DB) (*sql.Tx, error) {
	return db.BeginTx(ctx, &sql.TxOptions{ReadOnly: true})
}

// Now implements store.Backend: all who use a file share one machine's clock.
func (b *Backend) Now(context.Context, *sql.Tx) (int64, error) { return store.Millis(time.Now()), nil }

// Classify implements store.Backend.
func (b *Backend) Classify(err error) error {
	var e *sqlite.Error
	if !errors.As(err, &e) {
		if errors.Is(err, context.DeadlineExceeded) || errors.Is(err, sql.ErrConnDone) || strings.Contains(err.Error(), "database is closed") {
			return errors.Join(auth.ErrUnavailable, err)
		}
		return err
	}
	switch e.Code() & 0xff {
	case sqlitelib.SQLITE_CORRUPT, sqlitelib.SQLITE_NOTADB:
		return auth.WithHint(fmt.Errorf("%s: %w: %w", b.path, auth.ErrCorrupt, err), "restore a backup; the damaged file was not touched")
	case sqlitelib.SQLITE_ERROR:
		if strings.Contains(err.Error(), "no such table") {
			return errors.Join(auth.ErrNotInitialized, err)
		}
		return err
	case sqlitelib.SQLITE_CONSTRAINT:
		return errors.Join(auth.ErrConflict, err)
	case sqlitelib.SQLITE_READONLY:
		return auth.WithHint(fmt.Errorf("%s: %w, %w: %w", b.path, auth.ErrUnavailable, auth.ErrNotWritable, err), "the file and its directory must be writable")
	case sqlitelib.SQLITE_FULL:
		return auth.WithHint(fmt.Errorf("%s: %w, %w: %w", b.path, auth.ErrUnavailable, auth.ErrNotWritable, err), "the disk is full")
	}
	if e.Code()&0xff == sqlitelib.SQLITE_IOERR && b.onReadOnly() { // remounted under open connections
		return auth.WithHint(fmt.Errorf("%s: %w, %w: %w", b.path, auth.ErrUnavailable, auth.ErrNotWritable, err), "its file system is read-only")
	}
	return fmt.Errorf("%s: %w: %w", b.path, auth.ErrUnavailable, err)
}

func (b *Backend) dsn(params string) string {
	u := url.URL{Scheme: "file", Opaque: (&url.URL{Path: b.path}).EscapedPath(), RawQuery: params}
	return u.String() + "&mode=rw"
}

// onReadOnly reports whether the file system takes no writes at all. It tries
// another file: closing the database's would drop SQLite's locks, and what the
// system says of permissions need not be true after an error.
func (b *Backend) onReadOnly() bool {
	f, err := os.CreateTemp(filepath.Dir(b.path), filepath.Base(b.path)+".probe-*")
	if err != nil {
		return errors.Is(err, syscall.EROFS)
	}
	_ = errors.Join(f.Close(), os.Remove(f.Name())) // it could be made: that is the answer
	return false
}
