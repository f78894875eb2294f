-- The catalog, format version 7: the only truth about which devices, volumes and snapshots exist.
-- Sizes, offsets and lengths are bytes; *_ns are nanoseconds (instants: since 1970, UTC). Ids are never used
-- again (AUTOINCREMENT). The version is in PRAGMA user_version.

CREATE TABLE catalog (
    id INTEGER PRIMARY KEY CHECK (id = 1),
    uuid TEXT NOT NULL,                 -- named by the label of each device
    created_ns INTEGER NOT NULL,
    generation INTEGER NOT NULL DEFAULT 0,  -- one more with each start and each clean stop
    commits INTEGER NOT NULL DEFAULT 0      -- one more with each transaction; catalog.mark has it too
) STRICT;

CREATE TABLE table_sum (                -- a checksum of each other table
    name TEXT PRIMARY KEY,
    rows INTEGER NOT NULL,              -- how many it has
    sum INTEGER NOT NULL                -- of their digests, modulo 2^62
) STRICT, WITHOUT ROWID;

CREATE TABLE volume (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    uuid TEXT NOT NULL UNIQUE,
    name TEXT NOT NULL UNIQUE,
    size INTEGER NOT NULL CHECK (size > 0 AND size % 4096 = 0),
    partition_size INTEGER NOT NULL CHECK (partition_size > 0),
    state TEXT NOT NULL CHECK (state IN ('creating', 'ready', 'deleting')),
    when_full TEXT NOT NULL CHECK (when_full IN ('keep-writing', 'keep-snapshots')),
    next_epoch INTEGER NOT NULL DEFAULT 1,  -- greater than every epoch that was ever committed
    next_log INTEGER NOT NULL DEFAULT 1,    -- greater than every number of a log area that was ever given
    created_ns INTEGER NOT NULL,
    kept INTEGER NOT NULL DEFAULT 0 CHECK (kept IN (0, 1)),  -- deleted, and kept for its clones
    manifests INTEGER NOT NULL DEFAULT 0,  -- the processors of so many first partitions have manifests of their journals
    stopped TEXT,                       -- digests of its manifests, if it was not served since a clean stop
    relocation_rate INTEGER CHECK (relocation_rate >= 0),  -- bytes per second, 0: off; NULL: as there is opportunity
    log_limit INTEGER CHECK (log_limit >= 0)  -- bytes up to which its log areas grow, 0: not at all; NULL: by its size
) STRICT;

CREATE TABLE device (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    uuid TEXT NOT NULL UNIQUE,
    name TEXT NOT NULL UNIQUE,
    path TEXT NOT NULL,                 -- relative to the state directory if within it, else absolute
    kind TEXT NOT NULL CHECK (kind IN ('file', 'block')),
    adopted INTEGER NOT NULL CHECK (adopted IN (0, 1)),
    size INTEGER NOT NULL CHECK (size > 0),
    sparse INTEGER NOT NULL CHECK (sparse IN (0, 1)),
    direct INTEGER NOT NULL DEFAULT 0 CHECK (direct IN (0, 1)),  -- used past the page cache
    made_for INTEGER REFERENCES volume (id),  -- the volume it was made for and goes with, if any
    state TEXT NOT NULL CHECK (state IN ('adding', 'ready', 'removing')),
    created_ns INTEGER NOT NULL,
    generation INTEGER NOT NULL DEFAULT 0,  -- of the last label that is known to be on it
    runs TEXT NOT NULL DEFAULT '',      -- the run ids that its label may carry; '': it has none yet
    identity TEXT,                      -- what it is known by, if it was adopted (mapping/identity.py)
    made INTEGER NOT NULL DEFAULT 0 CHECK (made IN (0, 1))  -- its file was made when it was added
) STRICT;

CREATE TABLE partition (
    volume INTEGER NOT NULL REFERENCES volume (id),
    number INTEGER NOT NULL CHECK (number >= 0),
    processor INTEGER NOT NULL CHECK (processor BETWEEN 0 AND 255),
    PRIMARY KEY (volume, number)
) STRICT, WITHOUT ROWID;

CREATE TABLE partition_extent (
    volume INTEGER NOT NULL,
    partition INTEGER NOT NULL,
    ordinal INTEGER NOT NULL,           -- order of the extents' bytes within the partition
    device INTEGER NOT NULL REFERENCES device (id),
    offset INTEGER NOT NULL CHECK (offset >= 0 AND offset % 4096 = 0),
    length INTEGER NOT NULL CHECK (length > 0 AND length % 4096 = 0),
    PRIMARY KEY (volume, partition, ordinal),
    FOREIGN KEY (volume, partition) REFERENCES partition (volume, number)
) STRICT, WITHOUT ROWID;
CREATE INDEX partition_extent_device ON partition_extent (device, offset, length);

CREATE TABLE change_log (               -- log areas: space for change logs
    volume INTEGER NOT NULL REFERENCES volume (id),
    number INTEGER NOT NULL CHECK (number BETWEEN 1 AND 4095),
    PRIMARY KEY (volume, number)
) STRICT, WITHOUT ROWID;

CREATE TABLE change_log_extent (
    volume INTEGER NOT NULL,
    log INTEGER NOT NULL,
    ordinal INTEGER NOT NULL,
    device INTEGER NOT NULL REFERENCES device (id),
    offset INTEGER NOT NULL CHECK (offset >= 0 AND offset % 4096 = 0),
    length INTEGER NOT NULL CHECK (length > 0 AND length % 4194304 = 0),
    PRIMARY KEY (volume, log, ordinal),
    FOREIGN KEY (volume, log) REFERENCES change_log (volume, number)
) STRICT, WITHOUT ROWID;
CREATE INDEX change_log_extent_device ON change_log_extent (device, offset, length);

CREATE TABLE snapshot (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    uuid TEXT NOT NULL UNIQUE,
    cut TEXT NOT NULL,                  -- the same for all snapshots of one cut
    volume INTEGER NOT NULL REFERENCES volume (id),
    name TEXT NOT NULL,
    epoch INTEGER NOT NULL CHECK (epoch > 0),
    instant_ns INTEGER NOT NULL,
    stall_ns INTEGER NOT NULL,          -- the longest of the processors' write stalls
    durable_ns INTEGER NOT NULL,        -- from the start of the cut until it was flushed
    origin TEXT NOT NULL CHECK (origin IN ('hand', 'schedule')),
    schedule TEXT,                      -- the name of the schedule that made it, if one of polyvold's did
    size INTEGER NOT NULL DEFAULT 0,    -- the volume's at the cut
    consistency TEXT NOT NULL DEFAULT 'crash' CHECK (consistency IN ('application', 'crash')),
    hook_trouble TEXT,                  -- why it is crash-consistent although there are hooks
    kept INTEGER NOT NULL DEFAULT 0 CHECK (kept IN (0, 1)),  -- deleted, and kept for its clones
    UNIQUE (volume, name),
    UNIQUE (volume, epoch)
) STRICT;

CREATE TABLE snapshot_processor (       -- what each processor had at the cut; older snapshots have no rows
    snapshot INTEGER NOT NULL REFERENCES snapshot (id) ON DELETE CASCADE,
    processor INTEGER NOT NULL,
    partitions INTEGER NOT NULL CHECK (partitions > 0),  -- how many of the volume's it had
    PRIMARY KEY (snapshot, processor)
) STRICT, WITHOUT ROWID;

CREATE TABLE log_rule (                 -- which log areas change logs may use; the first that is for a partition decides
    id INTEGER PRIMARY KEY,
    volume INTEGER NOT NULL REFERENCES volume (id),
    epoch INTEGER,                      -- of the snapshot that the change logs begin with; NULL: the volume's own rule
    ordinal INTEGER NOT NULL,           -- order of the rules
    first_partition INTEGER CHECK (first_partition >= 0),
    last_partition INTEGER CHECK (last_partition >= first_partition),
    processor INTEGER CHECK (processor BETWEEN 0 AND 255),  -- it is for its partitions; without all three, for the rest
    others INTEGER NOT NULL CHECK (others IN (0, 1)),       -- after its devices, any other log area
    CHECK ((first_partition IS NULL) = (last_partition IS NULL)),
    CHECK (first_partition IS NULL OR processor IS NULL),
    UNIQUE (volume, epoch, ordinal),
    FOREIGN KEY (volume, epoch) REFERENCES snapshot (volume, epoch) ON DELETE CASCADE
) STRICT;

CREATE TABLE log_rule_device (          -- the log areas of the volume on these devices
    rule INTEGER NOT NULL REFERENCES log_rule (id) ON DELETE CASCADE,
    ordinal INTEGER NOT NULL,           -- order in which they are used
    device INTEGER NOT NULL REFERENCES device (id),
    PRIMARY KEY (rule, ordinal),
    UNIQUE (rule, device)
) STRICT, WITHOUT ROWID;

CREATE TABLE clone (                    -- volumes that were made from a snapshot
    volume INTEGER PRIMARY KEY REFERENCES volume (id) ON DELETE CASCADE,
    source INTEGER NOT NULL,            -- the snapshot's volume
    epoch INTEGER NOT NULL,             -- and its epoch
    FOREIGN KEY (source, epoch) REFERENCES snapshot (volume, epoch)
) STRICT;
CREATE INDEX clone_source ON clone (source, epoch);

CREATE TABLE snapshot_stall (
    snapshot INTEGER NOT NULL REFERENCES snapshot (id) ON DELETE CASCADE,
    processor INTEGER NOT NULL,
    stall_ns INTEGER NOT NULL,
    PRIMARY KEY (snapshot, processor)
) STRICT, WITHOUT ROWID;

CREATE TABLE snapshot_hold (            -- a snapshot with a hold is not deleted, by nobody
    snapshot INTEGER NOT NULL REFERENCES snapshot (id) ON DELETE CASCADE,
    tag TEXT NOT NULL,
    PRIMARY KEY (snapshot, tag)
) STRICT, WITHOUT ROWID;

CREATE TABLE snapshot_copy (            -- snapshots that were restored from a backup
    snapshot INTEGER PRIMARY KEY REFERENCES snapshot (id) ON DELETE CASCADE,
    uuid TEXT NOT NULL                  -- of the snapshot that was backed up
) STRICT;

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

CREATE TABLE snapshot_dropped (         -- snapshots that were dropped to make room for writes, the latest ones
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    volume INTEGER NOT NULL REFERENCES volume (id),
    name TEXT NOT NULL,
    instant_ns INTEGER NOT NULL,        -- of the snapshot
    dropped_ns INTEGER NOT NULL,
    freed INTEGER                       -- bytes; unknown after a crash
) STRICT;
CREATE INDEX snapshot_dropped_volume ON snapshot_dropped (volume, id);

CREATE TABLE setting (
    name TEXT PRIMARY KEY,              -- 'run': how the last run ended; 'weekly-scrub'
    value TEXT NOT NULL
) STRICT, WITHOUT ROWID;

CREATE TABLE scrub (                    -- the last one of each volume that ended
    volume INTEGER PRIMARY KEY REFERENCES volume (id) ON DELETE CASCADE,
    ended_ns INTEGER NOT NULL,
    result TEXT NOT NULL                -- JSON, as the API tells it
) STRICT;

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

CREATE TABLE rollback (                 -- epochs above `at` go on from what the snapshot of `to_epoch` shows
    volume INTEGER NOT NULL REFERENCES volume (id) ON DELETE CASCADE,
    at INTEGER NOT NULL,
    to_epoch INTEGER NOT NULL,
    size INTEGER NOT NULL,              -- of the volume then
    to_size INTEGER NOT NULL,           -- of the snapshot
    PRIMARY KEY (volume, at)
) STRICT, WITHOUT ROWID;
