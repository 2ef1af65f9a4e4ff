-- min_reader: 1
-- Patterns of keys that were made elsewhere and imported. Releases that don't
-- know them refuse those keys.
CREATE TABLE key_formats (
	name       TEXT PRIMARY KEY,
	pattern    TEXT NOT NULL,
	created_at INTEGER NOT NULL
) WITHOUT ROWID;

-- The pattern of an imported key; empty: a key of our own.
ALTER TABLE keys ADD COLUMN format TEXT NOT NULL DEFAULT '';

CREATE INDEX keys_imported ON keys (id) WHERE format <> '';
CREATE INDEX keys_by_expiry ON keys (expires_at) WHERE expires_at > 0;
CREATE INDEX journal_by_time ON journal (at);
