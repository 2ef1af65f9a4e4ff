-- min_reader: 1
-- Tokens of other issuers that were ended before they expire: one by its jti
-- (kind token), or those of a subject that were issued before a time.
CREATE TABLE token_cutoffs (
	issuer        TEXT NOT NULL,
	kind          TEXT NOT NULL,
	name          TEXT NOT NULL,
	issued_before INTEGER NOT NULL,
	created_at    INTEGER NOT NULL,
	kept_until    INTEGER NOT NULL, -- 0: for ever
	reason        TEXT NOT NULL DEFAULT '',
	PRIMARY KEY (issuer, kind, name)
) WITHOUT ROWID;
