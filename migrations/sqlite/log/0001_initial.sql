-- The mutations of one index, in order. Only service processes append; the collector prunes bodies.

-- One row, moved by every append and never pruned.
CREATE TABLE head (
    one INTEGER PRIMARY KEY CHECK (one = 1),
    sequence INTEGER NOT NULL,
    mutation_id TEXT NOT NULL,
    created_ms INTEGER NOT NULL,
    chain BLOB NOT NULL,
    -- The bytes of all bodies ever appended: two of these give the bytes between them.
    bytes_through INTEGER NOT NULL,
    -- Bodies up to here are gone; their successor was proved before.
    pruned_through INTEGER NOT NULL
) STRICT;

INSERT INTO head VALUES (1, 0, '', 0, zeroblob(32), 0, 0);

CREATE TABLE mutations (
    sequence INTEGER PRIMARY KEY,
    mutation_id TEXT NOT NULL UNIQUE,
    action TEXT NOT NULL,
    created_ms INTEGER NOT NULL,
    rows INTEGER NOT NULL,
    -- A short hash of who asked, so that any process can name a caller's own mutations to it.
    caller BLOB NOT NULL,
    -- The metadata index that the mutation creates or deletes; 0 for other actions and for changes without effect.
    metadata_index INTEGER NOT NULL,
    bytes_through INTEGER NOT NULL,
    body_hash BLOB NOT NULL,
    -- sha256 over the chain of the row before, this header and the hash of the body.
    chain BLOB NOT NULL
) STRICT;

CREATE INDEX mutations_of_callers ON mutations (caller, sequence) WHERE caller <> x'';

-- A body lies in the row, or in the file that body_ref names.
CREATE TABLE bodies (
    sequence INTEGER PRIMARY KEY REFERENCES mutations (sequence),
    body BLOB,
    body_ref TEXT,
    CHECK ((body IS NULL) <> (body_ref IS NULL))
) STRICT;

CREATE TABLE idempotency (
    key TEXT PRIMARY KEY,
    sequence INTEGER NOT NULL,
    mutation_id TEXT NOT NULL,
    created_ms INTEGER NOT NULL,
    -- Of the action and the body: the key stands for one request.
    request_hash BLOB NOT NULL
) STRICT, WITHOUT ROWID;

CREATE INDEX idempotency_by_age ON idempotency (created_ms);

-- The accepted ones: they decide duplicates and the limit. state.db has the processed ones.
CREATE TABLE metadata_indexes (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    property TEXT NOT NULL,
    type TEXT NOT NULL,
    deleted INTEGER NOT NULL DEFAULT 0
) STRICT;

CREATE UNIQUE INDEX metadata_indexes_live ON metadata_indexes (property) WHERE deleted = 0;
