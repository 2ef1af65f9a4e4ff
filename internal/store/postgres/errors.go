package postgres

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"net"
	"syscall"

	"github.com/jackc/pgx/v5/pgconn"

	"github.com/caddy-auth/caddy-auth/internal/auth"
)

// Classify implements store.Backend. What a primary can't write another may:
// no error of this store is auth.ErrNotWritable.
func (b *Backend) Classify(err error) error {
	if errors.Is(err, auth.ErrUnavailable) || errors.Is(err, auth.ErrCorrupt) || errors.Is(err, auth.ErrNotInitialized) || errors.Is(err, sql.ErrNoRows) {
		return err
	}
	var e *pgconn.PgError
	if errors.As(err, &e) {
		return b.classifyReply(e)
	}
	var connecting *pgconn.ConnectError
	switch {
	case errors.Is(err, pgconn.ErrReadOnlyConnection):
		return auth.WithHint(fmt.Errorf("no host is a primary: %w", auth.ErrUnavailable), "is one of them being promoted? All hosts can be named, with commas")
	case errors.As(err, &connecting): // its text names user and database, and no password
		return auth.WithHint(fmt.Errorf("connecting: %w: %w", auth.ErrUnavailable, err), b.connectHint(err))
	case errors.Is(err, context.Canceled):
		return err
	case errors.Is(err, context.DeadlineExceeded):
		return fmt.Errorf("no answer in time: %w: %w", auth.ErrUnavailable, err)
	}
	return fmt.Errorf("%w: %w", auth.ErrUnavailable, err) // the connection, or what came over it
}

// connectHint says what to look at when no connection could be made.
func (b *Backend) connectHint(err error) string {
	var name *net.DNSError
	if errors.As(err, &name) {
		return "is the host's name right, and does this machine's resolver know it?"
	}
	ask := fmt.Sprintf("pg_isready --host %s --port %d", b.config.Host, b.config.Port)
	if errors.Is(err, syscall.ECONNREFUSED) {
		return "is PostgreSQL running, and does it listen on that address and port (listen_addresses)? Ask it with: " + ask
	}
	return "can this machine reach it (firewall, pg_hba.conf, sslmode)? Ask it with: " + ask
}

// classifyReply sorts what the server itself said (PostgreSQL, appendix A).
func (b *Backend) classifyReply(e *pgconn.PgError) error {
	said := fmt.Errorf("%s (SQLSTATE %s)", e.Message, e.Code)
	unavailable := func(hint string) error {
		err := fmt.Errorf("%w: %w", said, auth.ErrUnavailable)
		if hint == "" {
			return err
		}
		return auth.WithHint(err, hint)
	}
	refused := func(hint string) error { return auth.WithHint(errors.Join(auth.ErrInvalid, said), hint) }
	switch e.Code {
	case "42P01", "3F000": // undefined table, schema
		return errors.Join(auth.ErrNotInitialized, said)
	case "3D000":
		return auth.WithHint(errors.Join(auth.ErrNotInitialized, said), "make the database first: createdb --owner "+b.config.User+" "+b.config.Database)
	case "42501":
		return refused("the role needs its own tables: let it own the schema, or grant it CREATE and USAGE there")
	case "53300":
		return unavailable("the server has no connection left: raise max_connections, or keep some for this role; a gateway needs up to 9")
	case "53100":
		return unavailable("the server's disk is full")
	case "25006":
		return unavailable("the server is read-only: is it a standby, or being promoted?")
	case "55P03":
		return unavailable("another change holds the lock; try again")
	case "57014":
		return unavailable("it took longer than it may: is statement_timeout set for this role?")
	case "XX001", "XX002":
		return auth.WithHint(errors.Join(auth.ErrCorrupt, said), "restore a backup")
	}
	if len(e.Code) < 2 {
		return said
	}
	switch e.Code[:2] {
	case "23":
		return errors.Join(auth.ErrConflict, said)
	case "28": // authorization: waiting does not mend it
		return refused("check user, password and pg_hba.conf")
	case "22", "42": // the statement itself, which waiting does not mend
		return said
	}
	return unavailable("")
}
