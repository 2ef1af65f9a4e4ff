-- min_reader: 1
-- A session says what judged its person: digests of the login's configuration,
-- and of the provider and client that its tokens are of. Sessions without one
-- have ended. Gateways of older releases write none.
ALTER TABLE sessions ADD COLUMN judged_by TEXT NOT NULL DEFAULT '';
ALTER TABLE sessions ADD COLUMN authority TEXT NOT NULL DEFAULT '';
CREATE INDEX sessions_by_authority ON sessions (authority, id);
