-- The checksum is bound to the index from now on, so that the state of another cannot take its place: the worker that
-- takes the index next makes the sums anew.
DELETE FROM sums;
