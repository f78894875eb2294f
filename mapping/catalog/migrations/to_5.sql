-- To version 5: log rules instead of default and named log areas; what each processor had at a snapshot.
-- Foreign keys are not enforced while this runs, so that rows of other tables stay when the table they refer to
-- is replaced.

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

-- Redirected writes of a volume went to its default areas, and to the others when these were full.
CREATE TEMP TABLE old_default AS
    SELECT volume, device, row_number() OVER (PARTITION BY volume ORDER BY min(number)) - 1 AS rank
    FROM change_log JOIN change_log_extent USING (volume) WHERE log = number AND is_default
    GROUP BY volume, device;
INSERT INTO log_rule (volume, ordinal, others)
    SELECT volume, rank, rank = max(rank) OVER (PARTITION BY volume) FROM old_default
    WHERE volume IN (
        SELECT volume FROM change_log_extent AS extent
        WHERE device NOT IN (SELECT device FROM old_default WHERE old_default.volume = extent.volume)
    )
    ORDER BY volume, rank;
INSERT INTO log_rule_device (rule, ordinal, device)
    SELECT id, 0, device FROM log_rule JOIN old_default USING (volume) WHERE ordinal = rank;
DROP TABLE old_default;

-- Those after a snapshot with a named area went there, and elsewhere when it was full.
INSERT INTO log_rule (volume, epoch, ordinal, others)
    SELECT volume, epoch, 0, 1 FROM snapshot WHERE log IS NOT NULL ORDER BY id;
INSERT INTO log_rule_device (rule, ordinal, device)
    SELECT log_rule.id, 0, device FROM log_rule JOIN snapshot USING (volume, epoch)
    JOIN change_log_extent USING (volume, log) WHERE change_log_extent.ordinal = 0;

ALTER TABLE change_log DROP COLUMN is_default;

CREATE TABLE snapshot_new (
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
INSERT INTO snapshot_new
    SELECT id, uuid, cut, volume, name, epoch, instant_ns, stall_ns, durable_ns, origin, schedule, size,
        consistency, hook_trouble, kept
    FROM snapshot;
DELETE FROM sqlite_sequence WHERE name = 'snapshot_new';
INSERT INTO sqlite_sequence (name, seq) SELECT 'snapshot_new', seq FROM sqlite_sequence WHERE name = 'snapshot';
DROP TABLE snapshot;
ALTER TABLE snapshot_new RENAME TO snapshot;
