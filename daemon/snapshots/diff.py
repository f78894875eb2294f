"""The verbs of what changed: between two snapshots of a volume, or one and now.

How it works      The engine compares the two block maps, which takes as long as there is change, and gives
                  the extents page by page. A snapshot that is deleted between two pages ends the list with
                  an error; one that was made again by the same name shows by its UUID.
Errors            UnknownVolume, UnknownSnapshot, VolumeNotServed, BadRequest.
"""

from polyvol.daemon.consistent_read import reads
from polyvol.daemon.context import Context
from polyvol.daemon.errors import BadRequest
from polyvol.daemon.types.diffs import ChangedExtent, DiffTotalView, DiffView
from polyvol.mapping.records.snapshots import SnapshotRecord
from polyvol.mapping.records.volumes import Volume

PAGE_EXTENTS_MAX = 16384
"""The most that one page holds."""


class Diffs:
    """The verbs of what changed."""

    def __init__(self, context: Context) -> None:
        self._context = context

    def extents(self, volume_name: str, since: str, until: str | None, start: int, limit: int) -> DiffView:
        """A page of what changed from snapshot `since` to `until` (None: now), from byte `start` on."""
        if start < 0 or not 1 <= limit <= PAGE_EXTENTS_MAX:
            raise BadRequest(why=f"start is 0 or more, and limit from 1 to {PAGE_EXTENTS_MAX}")
        context = self._context
        volume, older, newer = self._find(volume_name, since, until)
        compared = [older] if newer is None else [older, newer]
        with context.engine_asked(
            f"comparing {volume.name}@{since} with {until or 'now'}", volume, *compared
        ):
            found, following = context.engine.changes(
                volume.id, older.epoch, None if newer is None else newer.epoch, start, limit
            )
        return DiffView(
            volume=volume.name,
            since=since,
            since_uuid=str(older.uuid),
            until=until,
            until_uuid=None if newer is None else str(newer.uuid),
            extents=[ChangedExtent(offset=offset, length=length) for offset, length in found],
            next=following,
        )

    def total(self, volume_name: str, since: str, until: str | None) -> DiffTotalView:
        """How much changed from snapshot `since` to `until` (None: now)."""
        context = self._context
        volume, older, newer = self._find(volume_name, since, until)
        compared = [older] if newer is None else [older, newer]
        with context.engine_asked(
            f"comparing {volume.name}@{since} with {until or 'now'}", volume, *compared
        ):
            extents, size = context.engine.change_total(
                volume.id, older.epoch, None if newer is None else newer.epoch
            )
        return DiffTotalView(
            volume=volume.name, since=since, until=until, size=volume.size, extents=extents, bytes=size
        )

    @reads
    def _find(
        self, volume_name: str, since: str, until: str | None
    ) -> tuple[Volume, SnapshotRecord, SnapshotRecord | None]:
        volume = self._context.find_served(volume_name, restoring=True)
        older = self._context.find_undeleted(volume, since)
        return volume, older, None if until is None else self._context.find_undeleted(volume, until)
