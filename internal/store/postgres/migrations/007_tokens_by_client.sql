-- min_reader: 1
-- How many tokens a client has is counted whenever it gets one.
CREATE INDEX access_tokens_by_client ON access_tokens (client, expires_at) WHERE key_id = '';
