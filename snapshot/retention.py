"""Retention: which snapshots may go, and in which order. Pure."""

from collections.abc import Iterable

from polyvol.mapping.records import SnapshotRecord


def droppable(snapshots: Iterable[SnapshotRecord]) -> list[SnapshotRecord]:
    """Those that may be dropped to make room for writes, oldest first: made by a schedule, and not held."""
    may_go = (each for each in snapshots if each.origin == "schedule" and not each.holds)
    return sorted(may_go, key=lambda each: each.epoch)
