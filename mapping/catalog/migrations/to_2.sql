-- Snapshots that were restored from a backup say which snapshot they are a copy of.
CREATE TABLE snapshot_copy (
    snapshot INTEGER PRIMARY KEY REFERENCES snapshot (id) ON DELETE CASCADE,
    uuid TEXT NOT NULL                  -- of the snapshot that was backed up
) STRICT;
