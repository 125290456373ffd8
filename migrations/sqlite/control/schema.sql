-- The catalogue of one data folder. Only service processes write it.

CREATE TABLE indexes (
    id TEXT PRIMARY KEY,
    account TEXT NOT NULL,
    name TEXT NOT NULL,
    description TEXT NOT NULL,
    preset TEXT NOT NULL,
    created_us INTEGER NOT NULL,
    modified_us INTEGER NOT NULL,
    -- Zero while the index lives. The row outlives the index: its name then answers "deleted", not "unknown".
    deleted_us INTEGER NOT NULL DEFAULT 0
) STRICT;

CREATE UNIQUE INDEX indexes_live ON indexes (account, name) WHERE deleted_us = 0;
CREATE INDEX indexes_named ON indexes (account, name, created_us);

-- The embeddings a record of the index has. A Vectorize index has one, named ''.
CREATE TABLE slots (
    index_id TEXT NOT NULL REFERENCES indexes (id),
    name TEXT NOT NULL,
    dimensions INTEGER NOT NULL,
    metric TEXT NOT NULL,
    PRIMARY KEY (index_id, name)
) STRICT, WITHOUT ROWID;

-- What the rows of an index were when they were last written, so that a flipped bit is damage and not a deletion.
-- An index of an older program has none.
CREATE TABLE index_sums (
    id TEXT PRIMARY KEY,
    checksum INTEGER NOT NULL
) STRICT, WITHOUT ROWID;

CREATE TABLE secrets (
    name TEXT PRIMARY KEY,
    value BLOB NOT NULL
) STRICT;

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

-- When a token was last let in, to within a minute or two. Not a column of `tokens`: a use is no change of a token.
CREATE TABLE token_uses (
    id TEXT PRIMARY KEY,
    used_ms INTEGER NOT NULL
) STRICT, WITHOUT ROWID;

-- What the row of a token was when it was last written: one that differs opens nothing. A token of an older program has
-- none.
CREATE TABLE token_sums (
    id TEXT PRIMARY KEY,
    checksum INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
