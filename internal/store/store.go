package store

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"io/fs"
	"sync"
	"time"

	"github.com/caddy-auth/caddy-auth/internal/auth"
)

// Mode says what Open may do to a database.
type Mode int

// Modes of Open.
const (
	// Existing opens a store as it is and fails if it is missing or needs a migration.
	Existing Mode = iota
	// Migrate also brings an existing store up to date.
	Migrate
	// Create also makes a missing store. It must still be initialized.
	Create
)

// Backend is one SQL database. Implementations MUST be safe for concurrent
// use and MUST NOT keep connections other than those they hand out.
type Backend interface {
	// Describe names the database for people; it contains no password.
	Describe() string
	// Connect opens connections. With create it may make the database.
	// A missing database is auth.ErrNotInitialized.
	Connect(ctx context.Context, create bool) (*Conns, error)
	// Migrations holds files named NNN_name.sql.
	Migrations() fs.FS
	// BeginWrite starts a transaction whose journal row commits in sequence order.
	BeginWrite(ctx context.Context, db *sql.DB) (*sql.Tx, error)
	// BeginNote starts a small write whose order does not matter: where that is
	// possible it does not wait for a change that is under way.
	BeginNote(ctx context.Context, db *sql.DB) (*sql.Tx, error)
	// BeginRead starts a read-only transaction that sees one snapshot of the
	// newest there is. A copy that lags is auth.ErrUnavailable.
	BeginRead(ctx context.Context, db *sql.DB) (*sql.Tx, error)
	// Renumber makes numbers that the database gives out go on above those of
	// rows that were written with one.
	Renumber(ctx context.Context, tx *sql.Tx) error
	// Values is how many values one statement should write or ask for at most.
	Values() int
	// Now is the store's clock in unix milliseconds, the same for everybody who
	// uses the store.
	Now(ctx context.Context, tx *sql.Tx) (int64, error)
	// Classify wraps a driver's error in the auth error kind it means. Only a
	// store of which everybody reads the newest there is may say
	// auth.ErrNotWritable.
	Classify(err error) error
}

// Conns are the connections to one opened database.
type Conns struct {
	Read  *sql.DB // several readers
	Write *sql.DB // the one writer
	Note  *sql.DB // heartbeats; may be Write
	Fresh *sql.DB // reads that must not see anything remembered from before
	// Current returns auth.ErrReplaced if the database is no longer the one
	// that was opened. Nil: it can't be replaced.
	Current func() error

	lookup *sql.Stmt
}

func (c *Conns) close() error {
	var errs []error
	if c.lookup != nil {
		errs = append(errs, c.lookup.Close())
	}
	for _, db := range []*sql.DB{c.Read, c.Write, c.Note, c.Fresh} {
		if db != nil {
			errs = append(errs, db.Close())
		}
	}
	return errors.Join(errs...)
}

// DB is an open store.
type DB struct {
	backend Backend

	mu    sync.RWMutex // guards conns
	conns *Conns
}

// Open connects to a store and checks, or brings about, that this release can
// use it. Errors: auth.ErrNotInitialized, auth.ErrTooNew, auth.ErrCorrupt,
// auth.ErrUnavailable, auth.ErrConflict (it needs a migration).
func Open(ctx context.Context, backend Backend, mode Mode) (*DB, error) {
	d := &DB{backend: backend}
	conns, err := d.connect(ctx, mode)
	if err != nil {
		return nil, err
	}
	d.conns = conns
	return d, nil
}

func (d *DB) connect(ctx context.Context, mode Mode) (*Conns, error) {
	conns, err := d.backend.Connect(ctx, mode == Create)
	if err != nil {
		return nil, fmt.Errorf("opening %s: %w", d.backend.Describe(), err)
	}
	if err := d.migrate(ctx, conns, mode); err != nil {
		return nil, errors.Join(fmt.Errorf("opening %s: %w", d.backend.Describe(), err), conns.close())
	}
	conns.lookup, err = conns.Read.PrepareContext(ctx, queryLookup)
	if err != nil {
		return nil, errors.Join(d.wrap("preparing the lookup", err), conns.close())
	}
	return conns, nil
}

// Warm opens every connection there may be, so that none is missing when the
// database gives out no more.
func (d *DB) Warm(ctx context.Context) error {
	c := d.current()
	var held []*sql.Conn
	defer func() {
		for _, conn := range held {
			_ = conn.Close() // it goes back to its pool
		}
	}()
	for _, db := range []*sql.DB{c.Fresh, c.Note, c.Write, c.Read} {
		if db == c.Note && c.Note == c.Write {
			continue // it can't be held twice
		}
		for range db.Stats().MaxOpenConnections {
			conn, err := db.Conn(ctx)
			if err != nil {
				return d.wrap("opening connections", err)
			}
			held = append(held, conn)
		}
	}
	return nil
}

// Reopen drops every connection and opens the database anew, as it is. Calls
// under way on the old connections finish or fail.
func (d *DB) Reopen(ctx context.Context) error {
	conns, err := d.connect(ctx, Existing)
	if err != nil {
		return err
	}
	d.mu.Lock()
	old := d.conns
	d.conns = conns
	d.mu.Unlock()
	if err := old.close(); err != nil {
		return fmt.Errorf("closing the old connections: %w", err)
	}
	return nil
}

// Close closes all connections.
func (d *DB) Close() error { return d.current().close() }

// Describe names the store for people.
func (d *DB) Describe() string { return d.backend.Describe() }

// Backend is what the store is on.
func (d *DB) Backend() Backend { return d.backend }

func (d *DB) current() *Conns {
	d.mu.RLock()
	defer d.mu.RUnlock()
	return d.conns
}

// wrap says what failed and on which database, and gives the error its kind.
// A missing row is auth.ErrNotFound.
func (d *DB) wrap(doing string, err error) error {
	if err == nil {
		return nil
	}
	if errors.Is(err, sql.ErrNoRows) {
		return fmt.Errorf("%s: %w", doing, auth.ErrNotFound)
	}
	return fmt.Errorf("%s in %s: %w", doing, d.backend.Describe(), d.backend.Classify(err))
}

// Millis is t as the store writes it.
func Millis(t time.Time) int64 { return t.UnixMilli() }
