-- What the worker found wrong with the log of the index: while there is a row, nothing is appended to it.
CREATE TABLE log_damage (
    one INTEGER PRIMARY KEY CHECK (one = 1),
    reason TEXT NOT NULL
) STRICT;
