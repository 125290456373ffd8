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
