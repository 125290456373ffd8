-- What the row of a token was when it was last written: one that differs opens nothing. A token of an older program has
-- none.
CREATE TABLE token_sums (
    id TEXT PRIMARY KEY,
    checksum INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
