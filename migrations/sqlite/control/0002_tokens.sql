-- API tokens. What a client holds is never stored: only the SHA-256 of it.
CREATE TABLE tokens (
    id TEXT PRIMARY KEY,
    name TEXT NOT NULL,
    hash BLOB NOT NULL,
    -- The secret before the last rotation goes on working until then; no bytes and zero when it does not.
    previous_hash BLOB NOT NULL,
    previous_until_ms INTEGER NOT NULL,
    -- JSON: a list of [scope, account, pattern of index names].
    grants TEXT NOT NULL,
    created_ms INTEGER NOT NULL,
    -- Zero means never, in these three.
    rotated_ms INTEGER NOT NULL,
    expires_ms INTEGER NOT NULL,
    revoked_ms INTEGER NOT NULL
) STRICT;

-- One row, moved with every change above: a process compares it instead of reading all tokens again.
CREATE TABLE token_changes (
    count INTEGER NOT NULL
) STRICT;

INSERT INTO token_changes VALUES (0);
