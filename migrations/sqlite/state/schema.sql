-- What the mutations of one index have come to. Only the worker that holds the lease writes it.

-- One row. Publishing compares epoch and applied with what it read, and sets all of it at once.
CREATE TABLE progress (
    one INTEGER PRIMARY KEY CHECK (one = 1),
    -- Raised by whoever takes the index; a transaction under an older epoch fails.
    epoch INTEGER NOT NULL,
    owner TEXT NOT NULL,
    -- The number of the manifest: moves when segments, columns or the sealed sequence do.
    layout INTEGER NOT NULL,
    applied INTEGER NOT NULL,
    applied_id TEXT NOT NULL,
    applied_ms INTEGER NOT NULL,
    -- The chain hash of the last applied mutation: a second witness of the log.
    applied_chain BLOB NOT NULL,
    applied_bytes INTEGER NOT NULL,
    sealed_through INTEGER NOT NULL,
    next_label INTEGER NOT NULL,
    vectors INTEGER NOT NULL,
    -- The sum of the hashes of all live rows, in any order, modulo 2^64.
    digest INTEGER NOT NULL,
    -- A list cursor from before this sequence is expired: rows it could show are gone.
    list_horizon INTEGER NOT NULL,
    -- The layout at which parts and tombstones were last forgotten: who follows an older one must open it anew.
    collected_layout INTEGER NOT NULL
) STRICT;

INSERT INTO progress VALUES (1, 0, '', 0, 0, '', 0, zeroblob(32), 0, 0, 1, 0, 0, 0, 0);

-- Every version of a vector that is live or that a list cursor may still see. Live rows have removed = 0.
CREATE TABLE vectors (
    id TEXT NOT NULL,
    label INTEGER NOT NULL,
    added INTEGER NOT NULL,
    removed INTEGER NOT NULL DEFAULT 0,
    removed_ms INTEGER NOT NULL DEFAULT 0,
    PRIMARY KEY (id, label)
) STRICT, WITHOUT ROWID;

CREATE INDEX vectors_removed ON vectors (removed_ms, removed) WHERE removed > 0;

-- Labels that are no longer live, or never were, by the sequence that decided it.
CREATE TABLE tombstones (
    sequence INTEGER NOT NULL,
    label INTEGER NOT NULL,
    PRIMARY KEY (sequence, label)
) STRICT, WITHOUT ROWID;

-- The tail: where the rows of applied mutations lie. A row's label is first_label + its place.
CREATE TABLE parts (
    sequence INTEGER PRIMARY KEY,
    first_label INTEGER NOT NULL,
    rows INTEGER NOT NULL,
    bytes INTEGER NOT NULL,
    source TEXT NOT NULL
) STRICT;

CREATE TABLE outcomes (
    sequence INTEGER PRIMARY KEY,
    state TEXT NOT NULL,
    applied_ms INTEGER NOT NULL,
    inserted INTEGER NOT NULL,
    replaced INTEGER NOT NULL,
    ignored INTEGER NOT NULL,
    deleted INTEGER NOT NULL,
    missing INTEGER NOT NULL,
    error TEXT NOT NULL
) STRICT;

-- How often applying a mutation was begun without an end; counted before each try.
CREATE TABLE attempts (
    sequence INTEGER PRIMARY KEY,
    tries INTEGER NOT NULL
) STRICT;

CREATE TABLE segments (
    name TEXT PRIMARY KEY,
    rows INTEGER NOT NULL,
    first_label INTEGER NOT NULL,
    last_label INTEGER NOT NULL,
    first_sequence INTEGER NOT NULL,
    last_sequence INTEGER NOT NULL,
    as_of INTEGER NOT NULL,
    bytes INTEGER NOT NULL,
    checksum TEXT NOT NULL,
    published_ms INTEGER NOT NULL
) STRICT;

-- Column files that were back-filled; those made with a segment are in its own list.
CREATE TABLE columns (
    segment TEXT NOT NULL,
    metadata_index INTEGER NOT NULL,
    file TEXT NOT NULL,
    checksum TEXT NOT NULL,
    PRIMARY KEY (segment, metadata_index)
) STRICT, WITHOUT ROWID;

-- Segment folders that a publish replaced, to be unlinked after the grace period.
CREATE TABLE garbage (
    name TEXT PRIMARY KEY,
    epoch INTEGER NOT NULL,
    freed_ms INTEGER NOT NULL
) STRICT;

CREATE TABLE metadata_indexes (
    id INTEGER PRIMARY KEY,
    property TEXT NOT NULL,
    type TEXT NOT NULL
) STRICT;

CREATE TABLE namespaces (
    name TEXT PRIMARY KEY
) STRICT, WITHOUT ROWID;

-- What the rows of the other tables come to, in any order, modulo 2^64: damage to a row of them shows. One row, made by
-- the worker that takes the index, and moved by every transaction with what it writes.
CREATE TABLE sums (
    one INTEGER PRIMARY KEY CHECK (one = 1),
    -- Of vectors, removed ones included; progress has the digest of those that are live.
    versions INTEGER NOT NULL,
    tombstones INTEGER NOT NULL,
    -- Of parts, segments, columns and metadata_indexes.
    manifest INTEGER NOT NULL,
    -- Of outcomes, garbage and namespaces.
    rest INTEGER NOT NULL,
    -- Of the row of progress and of this one.
    checksum INTEGER NOT NULL
) STRICT;

-- What the worker found wrong with the log of the index: while there is a row, nothing is appended to it.
CREATE TABLE log_damage (
    one INTEGER PRIMARY KEY CHECK (one = 1),
    reason TEXT NOT NULL
) STRICT;
