-- min_reader: 1
-- Times are unix milliseconds; 0 means never or not.
CREATE TABLE store_meta (
	name  TEXT PRIMARY KEY,
	value BLOB NOT NULL
) WITHOUT ROWID;

-- Secrets are sealed under the master key, with store id, name and id as
-- associated data.
CREATE TABLE secrets (
	name       TEXT NOT NULL,
	id         INTEGER NOT NULL,
	sealed     BLOB NOT NULL,
	created_at INTEGER NOT NULL,
	PRIMARY KEY (name, id)
) WITHOUT ROWID;

CREATE TABLE prefixes (
	prefix     TEXT PRIMARY KEY,
	created_at INTEGER NOT NULL
) WITHOUT ROWID;

CREATE TABLE owners (
	name            TEXT PRIMARY KEY,
	created_at      INTEGER NOT NULL,
	disabled_at     INTEGER NOT NULL DEFAULT 0,
	disabled_reason TEXT NOT NULL DEFAULT ''
) WITHOUT ROWID;

CREATE TABLE keys (
	id             TEXT PRIMARY KEY,
	fingerprint    BLOB NOT NULL UNIQUE,
	owner          TEXT NOT NULL REFERENCES owners (name),
	name           TEXT NOT NULL,
	hint           TEXT NOT NULL,
	environment    TEXT NOT NULL,
	scopes         TEXT NOT NULL,
	networks       TEXT NOT NULL,
	meta           TEXT NOT NULL,
	created_at     INTEGER NOT NULL,
	expires_at     INTEGER NOT NULL DEFAULT 0,
	disabled_at    INTEGER NOT NULL DEFAULT 0,
	revoked_at     INTEGER NOT NULL DEFAULT 0,
	revoked_reason TEXT NOT NULL DEFAULT '',
	replaced_by    TEXT NOT NULL DEFAULT '',
	replaced_at    INTEGER NOT NULL DEFAULT 0,
	overlap_until  INTEGER NOT NULL DEFAULT 0,
	last_used_at   INTEGER NOT NULL DEFAULT 0
);
CREATE INDEX keys_by_owner ON keys (owner, id);

-- One row for every change that can make a cached verdict wrong, written in
-- the change's own transaction. AUTOINCREMENT: numbers are never used again.
CREATE TABLE journal (
	seq          INTEGER PRIMARY KEY AUTOINCREMENT,
	id           BLOB NOT NULL,
	at           INTEGER NOT NULL,
	kind         TEXT NOT NULL,
	fingerprints BLOB NOT NULL,
	parent_kind  TEXT NOT NULL,
	parent_name  TEXT NOT NULL
);

CREATE TABLE audit (
	id     INTEGER PRIMARY KEY AUTOINCREMENT,
	at     INTEGER NOT NULL,
	actor  TEXT NOT NULL,
	action TEXT NOT NULL,
	target TEXT NOT NULL,
	detail TEXT NOT NULL
);
CREATE INDEX audit_by_target ON audit (target, id);
