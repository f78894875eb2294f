-- To version 6: how fast blocks of a volume are relocated.

ALTER TABLE volume ADD COLUMN relocation_rate INTEGER CHECK (relocation_rate >= 0);
