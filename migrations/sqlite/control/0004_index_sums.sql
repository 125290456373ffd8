-- What the rows of an index were when they were last written, so that a flipped bit is damage and not a deletion.
-- An index of an older program has none.
CREATE TABLE index_sums (
    id TEXT PRIMARY KEY,
    checksum INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
