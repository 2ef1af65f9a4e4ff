// Package postgres is the store that many machines share: one PostgreSQL
// primary, by pgx. Changes take an advisory lock first, so that the journal's
// sequence is the order of commits (design 4.6).
package postgres

import (
	"context"
	"crypto/tls"
	"database/sql"
	"embed"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"regexp"
	"strconv"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgproto3"
	"github.com/jackc/pgx/v5/stdlib"

	"github.com/caddy-auth/caddy-auth/internal/auth"
	"github.com/caddy-auth/caddy-auth/internal/store"
)

//go:embed migrations/*.sql
var migrations embed.FS

// A gateway holds at most readers + 3 connections.
const (
	readers = 6
	// connectTimeout bounds an attempt at one host, so that a dead one leaves
	// time for the next.
	connectTimeout = 2 * time.Second
	// lockTimeout bounds the wait for the writer's lock, and how long a writer
	// that stopped in the middle can hold it.
	lockTimeout = 10 * time.Second
	// maxMessage is the most that is read for one message, in bytes: broken
	// answers can't make us read more.
	maxMessage = 16 << 20
	// changeLock is the advisory lock of all changes. It is the same for every
	// schema of a database: one path to a table must not bypass another's lock.
	changeLock = 0x63616464_79617574 // "caddyaut"
)

// Backend is one PostgreSQL database. It implements store.Backend.
type Backend struct {
	config *pgx.ConnConfig
	id     string // the whole DSN, for who compares configurations
}

var _ store.Backend = (*Backend)(nil)

var sessionAttrs = regexp.MustCompile(`target_session_attrs\s*=\s*'?([a-z-]*)`)

// New returns the backend for a DSN: a URL (postgres://user:password@host/db)
// or keywords and values, as libpq reads them, its PG* variables included. It
// connects to nothing. Its errors contain no part of the DSN.
func New(dsn string) (*Backend, error) {
	config, err := pgx.ParseConfig(dsn)
	if err != nil {
		return nil, auth.WithHint(auth.Invalidf("not a PostgreSQL DSN%s", reason(err)), "want postgres://host:5432/database?sslmode=verify-full, with user:password and an at sign before the host, and commas between several hosts")
	}
	if m := sessionAttrs.FindStringSubmatch(dsn); m != nil && m[1] != "read-write" && m[1] != "primary" {
		return nil, auth.Invalidf("target_session_attrs: the store is read from the primary only: leave it out, or say read-write")
	}
	config.ValidateConnect = pgconn.ValidateConnectTargetSessionAttrsReadWrite
	if config.ConnectTimeout == 0 {
		config.ConnectTimeout = connectTimeout
	}
	config.BuildFrontend = func(r io.Reader, w io.Writer) *pgproto3.Frontend {
		f := pgproto3.NewFrontend(r, w)
		f.SetMaxBodyLen(maxMessage)
		return f
	}
	if config.RuntimeParams["application_name"] == "" {
		config.RuntimeParams["application_name"] = "caddy-auth"
	}
	return &Backend{config: config, id: dsn}, nil
}

// reason is what the parser says is wrong, if that can hold no secret.
func reason(err error) string {
	_, text, _ := strings.Cut(err.Error(), "`: ")
	text, _, _ = strings.Cut(text, " (")
	for _, safe := range []string{"invalid port", "invalid keyword/value", "failed to configure TLS", "invalid connect_timeout", "cannot parse URL", "sslmode is invalid"} {
		if strings.Contains(text, safe) {
			return ": " + safe
		}
	}
	return ""
}

// Identity is different for different DSNs. It is a secret.
func (b *Backend) Identity() auth.Secret { return auth.NewSecret(b.id) }

// Describe implements store.Backend.
func (b *Backend) Describe() string {
	hosts := []string{address(b.config.Host, b.config.Port)}
	for _, f := range b.config.Fallbacks {
		if a := address(f.Host, f.Port); a != hosts[len(hosts)-1] { // with and without TLS
			hosts = append(hosts, a)
		}
	}
	text := fmt.Sprintf("postgres://%s@%s/%s", b.config.User, strings.Join(hosts, ","), b.config.Database)
	if path := b.config.RuntimeParams["search_path"]; path != "" {
		text += "?search_path=" + path
	}
	return text
}

func address(host string, port uint16) string {
	if strings.HasPrefix(host, "/") {
		return host
	}
	return net.JoinHostPort(host, strconv.Itoa(int(port)))
}

// Exposed says what the network could do to the connection, or "".
func (b *Backend) Exposed() string {
	worst := exposed(b.config.Host, b.config.TLSConfig)
	for _, f := range b.config.Fallbacks {
		worst = max(worst, exposed(f.Host, f.TLSConfig))
	}
	switch worst {
	case inClear:
		return "may be reached without TLS: its password and all that is read from it cross the network in clear"
	case unverified:
		return "is reached with TLS that does not check who answers"
	}
	return ""
}

const (
	safe = iota
	unverified
	inClear
)

func exposed(host string, conf *tls.Config) int {
	ip := net.ParseIP(host)
	switch {
	case strings.HasPrefix(host, "/") || strings.EqualFold(host, "localhost") || ip != nil && ip.IsLoopback():
		return safe
	case conf == nil:
		return inClear
	case conf.InsecureSkipVerify: // verify-ca too: it takes any name
		return unverified
	}
	return safe
}

// Migrations implements store.Backend.
func (b *Backend) Migrations() fs.FS {
	sub, err := fs.Sub(migrations, "migrations")
	if err != nil {
		panic(err) // the directory is embedded above
	}
	return sub
}

// Connect implements store.Backend. It makes tables, never the database.
func (b *Backend) Connect(ctx context.Context, create bool) (*store.Conns, error) {
	c := &store.Conns{}
	for _, o := range []struct {
		db  **sql.DB
		max int
	}{{&c.Write, 1}, {&c.Note, 1}, {&c.Fresh, 1}, {&c.Read, readers}} {
		db := stdlib.OpenDB(*b.config, stdlib.OptionAfterConnect(settle))
		db.SetMaxOpenConns(o.max)
		db.SetMaxIdleConns(o.max)
		*o.db = db
	}
	if err := c.Read.PingContext(ctx); err != nil {
		for _, db := range []*sql.DB{c.Write, c.Note, c.Fresh, c.Read} {
			_ = db.Close() // the first error is the one to report
		}
		return nil, b.Classify(err)
	}
	return c, nil
}

// settle makes sure that what is committed stays, which a role may have turned
// off, and that nobody waits for long. What is stronger is left. It is not said
// at connecting, since PgBouncer would refuse that.
func settle(ctx context.Context, conn *pgx.Conn) error {
	_, err := conn.Exec(ctx, `SELECT set_config(name, CASE name WHEN 'synchronous_commit' THEN 'on' ELSE $1 END, false) FROM pg_settings
		WHERE name = 'synchronous_commit' AND setting = 'off'
		OR name IN ('lock_timeout', 'idle_in_transaction_session_timeout') AND (setting = '0' OR setting::bigint > $1::bigint)`,
		strconv.FormatInt(lockTimeout.Milliseconds(), 10))
	return err
}

// BeginWrite implements store.Backend. The lock is the first statement: each
// one after it sees what every change before this one committed. The role's
// own default isolation would not do: a snapshot taken before the lock would
// miss them.
func (b *Backend) BeginWrite(ctx context.Context, db *sql.DB) (*sql.Tx, error) {
	tx, err := b.BeginNote(ctx, db)
	if err != nil {
		return nil, err
	}
	if _, err := tx.ExecContext(ctx, `SELECT pg_advisory_xact_lock($1)`, int64(changeLock)); err != nil {
		return nil, errors.Join(err, tx.Rollback())
	}
	return tx, nil
}

// BeginNote implements store.Backend.
func (b *Backend) BeginNote(ctx context.Context, db *sql.DB) (*sql.Tx, error) {
	return db.BeginTx(ctx, &sql.TxOptions{Isolation: sql.LevelReadCommitted})
}

// BeginRead implements store.Backend. A connection can end up at a server that
// became a copy, or at one behind a proxy: what is read there may be old.
func (b *Backend) BeginRead(ctx context.Context, db *sql.DB) (*sql.Tx, error) {
	tx, err := db.BeginTx(ctx, &sql.TxOptions{Isolation: sql.LevelRepeatableRead, ReadOnly: true})
	if err != nil {
		return nil, err
	}
	var standby bool
	if err := tx.QueryRowContext(ctx, `SELECT pg_is_in_recovery()`).Scan(&standby); err != nil {
		return nil, errors.Join(err, tx.Rollback())
	}
	if standby {
		return nil, errors.Join(errStandby, tx.Rollback())
	}
	return tx, nil
}

// Values implements store.Backend: round trips count.
func (b *Backend) Values() int { return 8000 }

// Renumber implements store.Backend.
func (b *Backend) Renumber(ctx context.Context, tx *sql.Tx) error {
	for _, t := range []struct{ table, column string }{{"journal", "seq"}, {"audit", "id"}} {
		query := fmt.Sprintf(`SELECT setval(pg_get_serial_sequence('%[1]s', '%[2]s'), MAX(%[2]s)) FROM %[1]s HAVING MAX(%[2]s) IS NOT NULL`, t.table, t.column)
		if _, err := tx.ExecContext(ctx, query); err != nil {
			return err
		}
	}
	return nil
}

var errStandby = auth.WithHint(fmt.Errorf("it is a standby, which may lag behind: %w", auth.ErrUnavailable), "name the primary, or all hosts with commas")

// Now implements store.Backend: the server's clock.
func (b *Backend) Now(ctx context.Context, tx *sql.Tx) (int64, error) {
	var ms int64
	err := tx.QueryRowContext(ctx, `SELECT (extract(epoch FROM clock_timestamp()) * 1000)::bigint`).Scan(&ms)
	return ms, err
}
