-- The workers on one data folder. A worker whose counter stands still is dead to the others.

CREATE TABLE workers (
    id TEXT PRIMARY KEY,
    pid INTEGER NOT NULL,
    beats INTEGER NOT NULL
) STRICT;
