-- To version 7: up to what size the log areas of a volume grow by themselves. Those that exist grow only when somebody
-- says so, because an area that was added cannot be removed, and an upgrade is no reason to take the room for it.

ALTER TABLE volume ADD COLUMN log_limit INTEGER CHECK (log_limit >= 0);
UPDATE volume SET log_limit = 0;
