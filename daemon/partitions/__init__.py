"""Partitions, their snapshots and their change logs, as users see them."""
