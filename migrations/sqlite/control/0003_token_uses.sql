-- When a token was last let in, to within a minute or two. Not a column of `tokens`: a use is no change of a token.
CREATE TABLE token_uses (
    id TEXT PRIMARY KEY,
    used_ms INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
