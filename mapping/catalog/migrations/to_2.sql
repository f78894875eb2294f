-- To version 2: sizes and consistency of snapshots, groups, schedules, hooks, copies, rollbacks, clones.

ALTER TABLE snapshot ADD COLUMN size INTEGER NOT NULL DEFAULT 0;
ALTER TABLE snapshot ADD COLUMN consistency TEXT NOT NULL DEFAULT 'crash'
    CHECK (consistency IN ('application', 'crash'));
ALTER TABLE snapshot ADD COLUMN hook_trouble TEXT;
ALTER TABLE snapshot ADD COLUMN kept INTEGER NOT NULL DEFAULT 0 CHECK (kept IN (0, 1));
ALTER TABLE volume ADD COLUMN kept INTEGER NOT NULL DEFAULT 0 CHECK (kept IN (0, 1));
UPDATE snapshot SET size = (SELECT size FROM volume WHERE volume.id = snapshot.volume);

CREATE TABLE volume_group (             -- a named set of volumes
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    uuid TEXT NOT NULL UNIQUE,
    name TEXT NOT NULL UNIQUE,
    created_ns INTEGER NOT NULL
) STRICT;

CREATE TABLE volume_group_member (
    volume_group INTEGER NOT NULL REFERENCES volume_group (id) ON DELETE CASCADE,
    volume INTEGER NOT NULL REFERENCES volume (id) ON DELETE CASCADE,
    PRIMARY KEY (volume_group, volume)
) STRICT, WITHOUT ROWID;

CREATE TABLE group_snapshot (           -- its members are the snapshots of its cut, whoever is in the group now
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    cut TEXT NOT NULL UNIQUE,
    volume_group INTEGER NOT NULL REFERENCES volume_group (id),
    name TEXT NOT NULL,
    UNIQUE (volume_group, name)
) STRICT;

CREATE TABLE schedule (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    name TEXT NOT NULL UNIQUE,
    volume INTEGER REFERENCES volume (id) ON DELETE CASCADE,
    volume_group INTEGER REFERENCES volume_group (id) ON DELETE CASCADE,
    every_s INTEGER CHECK (every_s > 0),
    cron TEXT,
    keep TEXT NOT NULL,                 -- JSON: rule -> how many
    prefix TEXT NOT NULL,
    paused INTEGER NOT NULL CHECK (paused IN (0, 1)),
    last_ns INTEGER NOT NULL,           -- what was due until then is done, or was given up
    error TEXT,                         -- of the last run, if it failed
    created_ns INTEGER NOT NULL,
    CHECK ((volume IS NULL) != (volume_group IS NULL)),
    CHECK ((every_s IS NULL) != (cron IS NULL))
) STRICT;

CREATE TABLE hook (                     -- what is run around the cuts of a volume, or of a schedule
    id INTEGER PRIMARY KEY,
    volume INTEGER UNIQUE REFERENCES volume (id) ON DELETE CASCADE,
    schedule INTEGER UNIQUE REFERENCES schedule (id) ON DELETE CASCADE,
    quiesce TEXT,
    thaw TEXT,
    timeout_s INTEGER NOT NULL CHECK (timeout_s > 0),
    shell INTEGER NOT NULL CHECK (shell IN (0, 1)),
    CHECK ((volume IS NULL) != (schedule IS NULL))
) STRICT;

CREATE TABLE thaw_owed (                -- a quiesce command was begun, and its thaw command has not ended yet
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    call TEXT NOT NULL                  -- JSON: how the thaw command is run
) STRICT;

CREATE TABLE snapshot_copy (            -- snapshots that were restored from a backup
    snapshot INTEGER PRIMARY KEY REFERENCES snapshot (id) ON DELETE CASCADE,
    uuid TEXT NOT NULL                  -- of the snapshot that was backed up
) STRICT;

CREATE TABLE rollback (                 -- epochs above `at` go on from what the snapshot of `to_epoch` shows
    volume INTEGER NOT NULL REFERENCES volume (id) ON DELETE CASCADE,
    at INTEGER NOT NULL,
    to_epoch INTEGER NOT NULL,
    size INTEGER NOT NULL,              -- of the volume then
    to_size INTEGER NOT NULL,           -- of the snapshot
    PRIMARY KEY (volume, at)
) STRICT, WITHOUT ROWID;

CREATE TABLE clone (                    -- volumes that were made from a snapshot
    volume INTEGER PRIMARY KEY REFERENCES volume (id) ON DELETE CASCADE,
    source INTEGER NOT NULL,            -- the snapshot's volume
    epoch INTEGER NOT NULL,             -- and its epoch
    FOREIGN KEY (source, epoch) REFERENCES snapshot (volume, epoch)
) STRICT;
CREATE INDEX clone_source ON clone (source, epoch);
