package caddymodule

import (
	"fmt"
	"path/filepath"
	"strings"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/caddyconfig/caddyfile"

	"github.com/caddy-auth/caddy-auth/internal/auth"
	"github.com/caddy-auth/caddy-auth/internal/store"
	"github.com/caddy-auth/caddy-auth/internal/store/postgres"
	"github.com/caddy-auth/caddy-auth/internal/store/sqlite"
)

// Backend is one SQL database; see its methods for the contract.
type Backend = store.Backend

// Store is a guest module in the namespace auth.stores. It describes a
// database; the app opens and closes it. Backend MUST NOT connect.
type Store interface {
	Backend() Backend
}

// keyKeeper is a backend that can keep a generated master key.
type keyKeeper interface {
	MasterKey() (auth.Secret, error)
	CreateMasterKey() (auth.Secret, error)
}

// SQLiteStore keeps everything in one file.
type SQLiteStore struct {
	// The database file. Default: auth.db in Caddy's data directory.
	// Placeholders such as {env.X} are replaced.
	Path string `json:"path,omitempty"`

	backend *sqlite.Backend
}

// CaddyModule returns the Caddy module information.
func (SQLiteStore) CaddyModule() caddy.ModuleInfo {
	return caddy.ModuleInfo{ID: "auth.stores.sqlite", New: func() caddy.Module { return new(SQLiteStore) }}
}

// Provision resolves the path. It touches no file.
func (s *SQLiteStore) Provision(caddy.Context) error {
	path := s.Path
	if path == "" {
		path = filepath.Join(caddy.AppDataDir(), "auth.db")
	}
	path, err := caddy.NewReplacer().ReplaceOrErr(path, true, true)
	if err != nil {
		return fmt.Errorf("store sqlite: path: %w", err)
	}
	s.backend = sqlite.New(path)
	return nil
}

// Backend implements Store.
func (s *SQLiteStore) Backend() Backend { return s.backend }

// UnmarshalCaddyfile sets up the store from Caddyfile tokens. Syntax:
//
//	store sqlite [<path>]
func (s *SQLiteStore) UnmarshalCaddyfile(d *caddyfile.Dispenser) error {
	d.Next() // its own name
	if d.NextArg() {
		s.Path = d.Val()
	}
	if d.NextArg() {
		return d.ArgErr()
	}
	if d.NextBlock(d.Nesting()) {
		return d.Errf("unrecognized subdirective of store sqlite: %s", d.Val())
	}
	return nil
}

// PostgresStore keeps everything in one PostgreSQL database, on its primary.
type PostgresStore struct {
	// The data source name: postgres://user:password@host:5432/database, with
	// libpq's parameters, several hosts with commas, or keywords and values.
	// Placeholders such as {env.X} and {file.X} are replaced: use one for the
	// password or for the whole, since what stands here is shown by the admin
	// API.
	DSN string `json:"dsn,omitempty"`

	backend *postgres.Backend
}

// CaddyModule returns the Caddy module information.
func (PostgresStore) CaddyModule() caddy.ModuleInfo {
	return caddy.ModuleInfo{ID: "auth.stores.postgres", New: func() caddy.Module { return new(PostgresStore) }}
}

// Provision reads the DSN. It connects to nothing.
func (s *PostgresStore) Provision(caddy.Context) error {
	dsn, err := caddy.NewReplacer().ReplaceOrErr(s.DSN, true, true)
	if err != nil {
		return fmt.Errorf("store postgres: %w", err)
	}
	s.backend, err = postgres.New(strings.TrimSpace(dsn))
	if err != nil {
		return hinted(fmt.Errorf("store postgres: %w", err))
	}
	return nil
}

// Backend implements Store.
func (s *PostgresStore) Backend() Backend { return s.backend }

// UnmarshalCaddyfile sets up the store from Caddyfile tokens. Syntax:
//
//	store postgres <dsn>
func (s *PostgresStore) UnmarshalCaddyfile(d *caddyfile.Dispenser) error {
	d.Next() // its own name
	if !d.Args(&s.DSN) || d.NextArg() {
		return d.ArgErr()
	}
	if d.NextBlock(d.Nesting()) {
		return d.Errf("unrecognized subdirective of store postgres: %s", d.Val())
	}
	return nil
}

// loadStore provisions the configured store, or the default one.
func (a *App) loadStore(ctx caddy.Context) (Backend, error) {
	if len(a.StoreRaw) == 0 {
		s := new(SQLiteStore)
		return s.provisioned(ctx)
	}
	mod, err := ctx.LoadModule(a, "StoreRaw")
	if err != nil {
		return nil, fmt.Errorf("loading the store: %w", err)
	}
	s, ok := mod.(Store)
	if !ok {
		return nil, fmt.Errorf("loading the store: %T is not a store", mod)
	}
	return s.Backend(), nil
}

func (s *SQLiteStore) provisioned(ctx caddy.Context) (Backend, error) {
	if err := s.Provision(ctx); err != nil {
		return nil, err
	}
	return s.backend, nil
}

var (
	_ Store                 = (*SQLiteStore)(nil)
	_ caddy.Provisioner     = (*SQLiteStore)(nil)
	_ caddyfile.Unmarshaler = (*SQLiteStore)(nil)
	_ keyKeeper             = (*sqlite.Backend)(nil)
	_ Store                 = (*PostgresStore)(nil)
	_ caddy.Provisioner     = (*PostgresStore)(nil)
	_ caddyfile.Unmarshaler = (*PostgresStore)(nil)
)
