-- min_reader: 1
-- Sessions of people who logged in. Releases that don't know them refuse them.
-- Rows go a while after the session has ended. tokens are what the provider
-- gave, sealed as the store's secrets are; empty: none.
CREATE TABLE sessions (
	id             TEXT COLLATE "C" PRIMARY KEY,
	fingerprint    BYTEA NOT NULL,
	login          TEXT COLLATE "C" NOT NULL, -- its name in the configuration
	subject        TEXT COLLATE "C" NOT NULL, -- as upstreams see it
	sub            TEXT COLLATE "C" NOT NULL, -- as the provider calls them
	sid            TEXT COLLATE "C" NOT NULL, -- what the provider calls its own session
	environment    TEXT NOT NULL,
	scopes         TEXT NOT NULL,
	meta           TEXT NOT NULL,
	created_at     BIGINT NOT NULL,
	seen_at        BIGINT NOT NULL,
	idle_until     BIGINT NOT NULL,
	expires_at     BIGINT NOT NULL,
	revoked_at     BIGINT NOT NULL DEFAULT 0,
	revoked_reason TEXT NOT NULL DEFAULT '',
	tokens         BYTEA NOT NULL DEFAULT '',
	tokens_version BIGINT NOT NULL DEFAULT 0,
	leased_by      TEXT NOT NULL DEFAULT '', -- who refreshes the tokens
	leased_until   BIGINT NOT NULL DEFAULT 0
);
CREATE UNIQUE INDEX sessions_by_fingerprint ON sessions (fingerprint);
CREATE INDEX sessions_by_subject ON sessions (subject);
CREATE INDEX sessions_by_sub ON sessions (login, sub);
CREATE INDEX sessions_by_sid ON sessions (login, sid) WHERE sid <> '';
CREATE INDEX sessions_by_expiry ON sessions (expires_at);
