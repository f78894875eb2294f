"""Groups, their snapshots, holds, and rollback of a volume or a group."""
