-- Format version 2: settings of the daemon, and the results of scrubs.

CREATE TABLE setting (
    name TEXT PRIMARY KEY,              -- 'run': how the last run ended; 'weekly-scrub'
    value TEXT NOT NULL
) STRICT, WITHOUT ROWID;

CREATE TABLE scrub (                    -- the last one of each volume that ended
    volume INTEGER PRIMARY KEY REFERENCES volume (id) ON DELETE CASCADE,
    ended_ns INTEGER NOT NULL,
    result TEXT NOT NULL                -- JSON, as the API tells it
) STRICT;
