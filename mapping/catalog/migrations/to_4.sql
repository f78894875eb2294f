-- To version 4: what is missing, older or damaged can be told.

ALTER TABLE catalog ADD COLUMN generation INTEGER NOT NULL DEFAULT 0;
ALTER TABLE device ADD COLUMN generation INTEGER NOT NULL DEFAULT 0;
ALTER TABLE device ADD COLUMN runs TEXT NOT NULL DEFAULT '';
ALTER TABLE device ADD COLUMN identity TEXT;
