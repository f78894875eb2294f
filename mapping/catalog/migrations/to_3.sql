-- To version 3: devices that are used past the page cache.

ALTER TABLE device ADD COLUMN direct INTEGER NOT NULL DEFAULT 0 CHECK (direct IN (0, 1));
