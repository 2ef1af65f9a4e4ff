package store

import (
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/caddy-auth/caddy-auth/internal/auth"
)

const clientColumns = `c.id, c.owner, c.name, c.environment, c.scopes, c.networks, c.meta, c.token_lifetime, c.jwks, c.created_at, c.disabled_at, c.revoked_at,
	c.revoked_reason, c.last_token_at, o.disabled_at`

const queryClients = `SELECT ` + clientColumns + ` FROM clients c JOIN owners o ON o.name = c.owner `

// nullableClient scans a client that an outer join may have left out.
type nullableClient struct {
	id, owner, name, environment, scopes, networks, meta, jwks, revokedReason     sql.NullString
	tokenLifetime, createdAt, disabledAt, revokedAt, lastTokenAt, ownerDisabledAt sql.NullInt64
}

func (c *nullableClient) dest() []any {
	return []any{
		&c.id, &c.owner, &c.name, &c.environment, &c.scopes, &c.networks, &c.meta, &c.tokenLifetime, &c.jwks, &c.createdAt, &c.disabledAt, &c.revokedAt,
		&c.revokedReason, &c.lastTokenAt, &c.ownerDisabledAt,
	}
}

// client returns what was scanned; nil: the join left it out.
func (c *nullableClient) client() (*auth.Client, error) {
	if !c.id.Valid {
		return nil, nil
	}
	out := &auth.Client{
		ID: c.id.String, Owner: c.owner.String, Name: c.name.String, Environment: c.environment.String,
		Scopes: strings.Fields(c.scopes.String), Networks: strings.Fields(c.networks.String),
		TokenLifetime: time.Duration(c.tokenLifetime.Int64) * time.Millisecond, JWKS: c.jwks.String,
		CreatedAt: c.createdAt.Int64, DisabledAt: c.disabledAt.Int64, RevokedAt: c.revokedAt.Int64, RevokedReason: c.revokedReason.String,
		LastTokenAt: c.lastTokenAt.Int64, OwnerDisabled: c.ownerDisabledAt.Int64 != 0,
	}
	if err := json.Unmarshal([]byte(c.meta.String), &out.Meta); err != nil {
		return nil, fmt.Errorf("metadata of %s: %w", out.ID, auth.ErrCorrupt)
	}
	return out, nil
}

// Client returns a client with its secrets. A missing one is auth.ErrNotFound.
func (d *DB) Client(ctx context.Context, id string) (*auth.Client, error) {
	return d.oneClient(ctx, d.current().Read, id)
}

// Client returns a client as the transaction sees it. A missing one is
// auth.ErrNotFound.
func (tx *Tx) Client(ctx context.Context, id string) (*auth.Client, error) {
	return tx.d.oneClient(ctx, tx.tx, id)
}

// rowQuerier is a connection or a transaction that is also asked for one row.
type rowQuerier interface {
	querier
	QueryRowContext(ctx context.Context, query string, args ...any) *sql.Row
}

func (d *DB) oneClient(ctx context.Context, src rowQuerier, id string) (*auth.Client, error) {
	var row nullableClient
	if err := src.QueryRowContext(ctx, queryClients+`WHERE c.id = $1`, id).Scan(row.dest()...); err != nil {
		if errors.Is(err, sql.ErrNoRows) {
			return nil, fmt.Errorf("client %s: %w", id, auth.ErrNotFound)
		}
		return nil, d.wrap("reading a client", err)
	}
	c, err := row.client()
	if err != nil {
		return nil, d.wrap("reading a client", err)
	}
	return c, d.readSecretsOf(ctx, src, c)
}

func (d *DB) readSecretsOf(ctx context.Context, src querier, c *auth.Client) error {
	rows, err := src.QueryContext(ctx, `SELECT fingerprint, hint, created_at, ends_at FROM client_secrets WHERE client = $1 ORDER BY created_at, fingerprint`, c.ID)
	if err != nil {
		return d.wrap("reading a client's secrets", err)
	}
	defer rows.Close()
	for rows.Next() {
		var s auth.ClientSecret
		var fp []byte
		if err := rows.Scan(&fp, &s.Hint, &s.CreatedAt, &s.EndsAt); err != nil {
			return d.wrap("reading a client's secrets", err)
		}
		if copy(s.Fingerprint[:], fp) != len(s.Fingerprint) {
			return fmt.Errorf("a secret of %s: %w", c.ID, auth.ErrCorrupt)
		}
		c.Secrets = append(c.Secrets, s)
	}
	return d.wrap("reading a client's secrets", rows.Err())
}

// ClientFilter selects clients. Zero fields select everything.
type ClientFilter struct {
	Owner       string
	Environment string
	Scope       string
	State       auth.KeyState
}

// Clients calls each for the clients that filter selects, without their
// secrets, the oldest first, until it returns an error.
func (d *DB) Clients(ctx context.Context, f ClientFilter, each func(*auth.Client) error) error {
	return d.each(ctx, "listing clients", queryClients+`ORDER BY c.id`, func(rows *sql.Rows) error {
		var row nullableClient
		if err := rows.Scan(row.dest()...); err != nil {
			return err
		}
		c, err := row.client()
		if err != nil {
			return err
		}
		if f.Owner != "" && c.Owner != f.Owner || f.Environment != "" && c.Environment != f.Environment ||
			f.Scope != "" && !slices.Contains(c.Scopes, f.Scope) || f.State != "" && c.State() != f.State {
			return nil
		}
		return each(c)
	})
}

// InsertClient adds a client without its secrets. Its owner must exist.
func (tx *Tx) InsertClient(ctx context.Context, c *auth.Client) error {
	meta, err := json.Marshal(c.Meta)
	if err != nil {
		return fmt.Errorf("writing a client: %w", err)
	}
	return tx.exec(ctx, "writing a client", `INSERT INTO clients (id, owner, name, environment, scopes, networks, meta, token_lifetime, jwks, created_at)
		VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10)`,
		c.ID, c.Owner, c.Name, c.Environment, strings.Join(c.Scopes, " "), strings.Join(c.Networks, " "), string(meta), c.TokenLifetime.Milliseconds(), c.JWKS, c.CreatedAt)
}

// UpdateClient writes every field of a client that can change.
func (tx *Tx) UpdateClient(ctx context.Context, c *auth.Client) error {
	meta, err := json.Marshal(c.Meta)
	if err != nil {
		return fmt.Errorf("writing a client: %w", err)
	}
	return tx.exec(ctx, "writing a client", `UPDATE clients SET name = $2, scopes = $3, networks = $4, meta = $5, token_lifetime = $6, jwks = $7,
		disabled_at = $8, revoked_at = $9, revoked_reason = $10 WHERE id = $1`,
		c.ID, c.Name, strings.Join(c.Scopes, " "), strings.Join(c.Networks, " "), string(meta), c.TokenLifetime.Milliseconds(), c.JWKS,
		c.DisabledAt, c.RevokedAt, c.RevokedReason)
}

// InsertClientSecret adds a secret to a client.
func (tx *Tx) InsertClientSecret(ctx context.Context, clientID string, s auth.ClientSecret) error {
	return tx.exec(ctx, "writing a client's secret", `INSERT INTO client_secrets (fingerprint, client, hint, created_at, ends_at) VALUES ($1, $2, $3, $4, $5)`,
		s.Fingerprint[:], clientID, s.Hint, s.CreatedAt, s.EndsAt)
}

// EndClientSecrets lets a client's secrets of now work until a time; those
// that end earlier stay so. Those that had ended by now go.
func (tx *Tx) EndClientSecrets(ctx context.Context, clientID string, until int64) error {
	if err := tx.exec(ctx, "removing a client's old secrets", `DELETE FROM client_secrets WHERE client = $1 AND ends_at <> 0 AND ends_at <= $2`, clientID, tx.now); err != nil {
		return err
	}
	return tx.exec(ctx, "ending a client's secrets", `UPDATE client_secrets SET ends_at = $2 WHERE client = $1 AND (ends_at = 0 OR ends_at > $2)`, clientID, until)
}

// EndClientSecret lets one secret work until a time.
func (tx *Tx) EndClientSecret(ctx context.Context, fp auth.Fingerprint, until int64) error {
	return tx.exec(ctx, "ending a client's secret", `UPDATE client_secrets SET ends_at = $2 WHERE fingerprint = $1`, fp[:], until)
}
