-- To version 4: what tells a damaged or an older catalog.

ALTER TABLE catalog ADD COLUMN generation INTEGER NOT NULL DEFAULT 0;
ALTER TABLE catalog ADD COLUMN commits INTEGER NOT NULL DEFAULT 0;

CREATE TABLE table_sum (                -- a checksum of each other table
    name TEXT PRIMARY KEY,
    rows INTEGER NOT NULL,              -- how many it has
    sum INTEGER NOT NULL                -- of their digests, modulo 2^62
) STRICT, WITHOUT ROWID;
