-- To version 4: what is missing, older or damaged can be told; restores that are not complete.

ALTER TABLE catalog ADD COLUMN generation INTEGER NOT NULL DEFAULT 0;
ALTER TABLE catalog ADD COLUMN commits INTEGER NOT NULL DEFAULT 0;
ALTER TABLE device ADD COLUMN generation INTEGER NOT NULL DEFAULT 0;
ALTER TABLE device ADD COLUMN runs TEXT NOT NULL DEFAULT '';
ALTER TABLE device ADD COLUMN identity TEXT;
ALTER TABLE device ADD COLUMN made INTEGER NOT NULL DEFAULT 0 CHECK (made IN (0, 1));
ALTER TABLE volume ADD COLUMN manifests INTEGER NOT NULL DEFAULT 0;
ALTER TABLE volume ADD COLUMN stopped TEXT;

CREATE TABLE table_sum (                -- a checksum of each other table
    name TEXT PRIMARY KEY,
    rows INTEGER NOT NULL,              -- how many it has
    sum INTEGER NOT NULL                -- of their digests, modulo 2^62
) STRICT, WITHOUT ROWID;

CREATE TABLE restore (                  -- volumes that a backup is being restored to; they are not exported
    volume INTEGER PRIMARY KEY REFERENCES volume (id) ON DELETE CASCADE,
    stream TEXT NOT NULL,               -- the backup stream's own number (a UUID)
    source TEXT NOT NULL,               -- where the stream is read from, for people
    snapshot TEXT NOT NULL,             -- the name of the snapshot that it makes
    snapshot_uuid TEXT NOT NULL,        -- of the snapshot that was backed up
    base INTEGER,                       -- the epoch of the snapshot that it follows; NULL: the volume was made for it
    begun_ns INTEGER NOT NULL,
    FOREIGN KEY (volume, base) REFERENCES snapshot (volume, epoch)
) STRICT;
