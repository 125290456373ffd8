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

CREATE TABLE secrets (
    name TEXT PRIMARY KEY,
    value BLOB NOT NULL
) STRICT;
