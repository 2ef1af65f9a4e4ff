-- min_reader: 1
-- Gateways that follow the journal. Times are by the store's clock; seq and
-- row are the journal row that a gateway has applied, 0 and empty before that.
CREATE TABLE nodes (
	id            TEXT PRIMARY KEY,
	name          TEXT NOT NULL,
	version       TEXT NOT NULL,
	started_at    INTEGER NOT NULL,
	heartbeat_at  INTEGER NOT NULL,
	max_staleness INTEGER NOT NULL,
	seq           INTEGER NOT NULL,
	row           BLOB NOT NULL
) WITHOUT ROWID;

-- When and why a key was refused last.
ALTER TABLE keys ADD COLUMN refused_at INTEGER NOT NULL DEFAULT 0;
ALTER TABLE keys ADD COLUMN refused_reason TEXT NOT NULL DEFAULT '';

CREATE INDEX audit_by_time ON audit (at);
