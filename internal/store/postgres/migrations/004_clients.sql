-- min_reader: 1
-- OAuth clients. Releases that don't know them refuse their tokens.
CREATE TABLE clients (
	id             TEXT COLLATE "C" PRIMARY KEY,
	owner          TEXT COLLATE "C" NOT NULL REFERENCES owners (name),
	name           TEXT NOT NULL,
	environment    TEXT NOT NULL,
	scopes         TEXT NOT NULL,
	networks       TEXT NOT NULL,
	meta           TEXT NOT NULL,
	token_lifetime BIGINT NOT NULL, -- milliseconds; 0: the gateway's default
	jwks           TEXT NOT NULL,    -- public keys; empty: none
	created_at     BIGINT NOT NULL,
	disabled_at    BIGINT NOT NULL DEFAULT 0,
	revoked_at     BIGINT NOT NULL DEFAULT 0,
	revoked_reason TEXT NOT NULL DEFAULT '',
	last_token_at  BIGINT NOT NULL DEFAULT 0
);
CREATE INDEX clients_by_owner ON clients (owner, id);

CREATE TABLE client_secrets (
	fingerprint BYTEA PRIMARY KEY,
	client      TEXT COLLATE "C" NOT NULL REFERENCES clients (id),
	hint        TEXT NOT NULL,
	created_at  BIGINT NOT NULL,
	ends_at     BIGINT NOT NULL DEFAULT 0 -- of a replaced one
);
CREATE INDEX client_secrets_by_client ON client_secrets (client);

-- Tokens of our own. client, key, or both are set. Rows go when the token has
-- expired.
CREATE TABLE access_tokens (
	fingerprint BYTEA PRIMARY KEY,
	id          TEXT NOT NULL,
	client      TEXT COLLATE "C" NOT NULL,
	key_id      TEXT COLLATE "C" NOT NULL,
	scopes      TEXT NOT NULL,
	issued_at   BIGINT NOT NULL,
	expires_at  BIGINT NOT NULL,
	revoked_at  BIGINT NOT NULL DEFAULT 0
);
CREATE INDEX access_tokens_by_expiry ON access_tokens (expires_at);
CREATE INDEX access_tokens_by_key ON access_tokens (key_id) WHERE key_id <> '';

-- Client assertions (RFC 7523) that were used, until they expire: each is good
-- once. jti is a hash.
CREATE TABLE client_assertions (
	client     TEXT COLLATE "C" NOT NULL,
	jti        BYTEA NOT NULL,
	expires_at BIGINT NOT NULL,
	PRIMARY KEY (client, jti)
);
CREATE INDEX client_assertions_by_expiry ON client_assertions (expires_at);

-- Keys that assertions for upstreams are signed with, sealed as secrets are.
CREATE TABLE assertion_keys (
	id              TEXT COLLATE "C" PRIMARY KEY,
	algorithm       TEXT NOT NULL,
	sealed          BYTEA NOT NULL,
	created_at      BIGINT NOT NULL,
	signs_from      BIGINT NOT NULL,
	published_until BIGINT NOT NULL DEFAULT 0
);
