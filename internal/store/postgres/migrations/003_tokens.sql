-- min_reader: 1
-- Tokens of other issuers that were ended before they expire: one by its jti
-- (kind token), or those of a subject that were issued before a time.
CREATE TABLE token_cutoffs (
	issuer        TEXT COLLATE "C" NOT NULL,
	kind          TEXT COLLATE "C" NOT NULL,
	name          TEXT COLLATE "C" NOT NULL,
	issued_before BIGINT NOT NULL,
	created_at    BIGINT NOT NULL,
	kept_until    BIGINT NOT NULL, -- 0: for ever
	reason        TEXT NOT NULL DEFAULT '',
	PRIMARY KEY (issuer, kind, name)
);
