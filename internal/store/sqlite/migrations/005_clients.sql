-- min_reader: 1
-- OAuth clients. Releases that don't know them refuse their tokens.
CREATE TABLE clients (
	id             TEXT PRIMARY KEY,
	owner          TEXT NOT NULL REFERENCES owners (name),
	name           TEXT NOT NULL,
	environment    TEXT NOT NULL,
	scopes         TEXT NOT NULL,
	networks       TEXT NOT NULL,
	meta           TEXT NOT NULL,
	token_lifetime INTEGER NOT NULL, -- milliseconds; 0: the gateway's default
	jwks           TEXT NOT NULL,    -- public keys; empty: none
	created_at     INTEGER NOT NULL,
	disabled_at    INTEGER NOT NULL DEFAULT 0,
	revoked_at     INTEGER NOT NULL DEFAULT 0,
	revoked_reason TEXT NOT NULL DEFAULT '',
	last_token_at  INTEGER NOT NULL DEFAULT 0
) WITHOUT ROWID;
CREATE INDEX clients_by_owner ON clients (owner, id);

CREATE TABLE client_secrets (
	fingerprint BLOB PRIMARY KEY,
	client      TEXT NOT NULL REFERENCES clients (id),
	hint        TEXT NOT NULL,
	created_at  INTEGER NOT NULL,
	ends_at     INTEGER NOT NULL DEFAULT 0 -- of a replaced one
) WITHOUT ROWID;
CREATE INDEX client_secrets_by_client ON client_secrets (client);

-- Tokens of our own. client, key, or both are set. Rows go when the token has
-- expired.
CREATE TABLE access_tokens (
	fingerprint BLOB PRIMARY KEY,
	id          TEXT NOT NULL,
	client      TEXT NOT NULL,
	key_id      TEXT NOT NULL,
	scopes      TEXT NOT NULL,
	issued_at   INTEGER NOT NULL,
	expires_at  INTEGER NOT NULL,
	revoked_at  INTEGER NOT NULL DEFAULT 0
) WITHOUT ROWID;
CREATE INDEX access_tokens_by_expiry ON access_tokens (expires_at);
CREATE INDEX access_tokens_by_key ON access_tokens (key_id) WHERE key_id <> '';

-- Client assertions (RFC 7523) that were used, until they expire: each is good
-- once. jti is a hash.
CREATE TABLE client_assertions (
	client     TEXT NOT NULL,
	jti        BLOB NOT NULL,
	expires_at INTEGER NOT NULL,
	PRIMARY KEY (client, jti)
) WITHOUT ROWID;
CREATE INDEX client_assertions_by_expiry ON client_assertions (expires_at);

-- Keys that assertions for upstreams are signed with, sealed as secrets are.
CREATE TABLE assertion_keys (
	id              TEXT PRIMARY KEY,
	algorithm       TEXT NOT NULL,
	sealed          BLOB NOT NULL,
	created_at      INTEGER NOT NULL,
	signs_from      INTEGER NOT NULL,
	published_until INTEGER NOT NULL DEFAULT 0
) WITHOUT ROWID;
