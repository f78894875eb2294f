"""The partition snapshots of snapshots, counted: by processor, and how many were written since.

How it works      The engine counts the change logs of each volume that is served, by one call: it looks at
                  all partitions, and longest at those that were written. How many partitions each processor
                  had at the cut is in the catalog.
"""

import contextlib
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Literal

from polyvol.daemon.context import Context
from polyvol.daemon.types.partitions import SnapshotPartsView, SnapshotShareView
from polyvol.mapping.ids import VolumeId
from polyvol.mapping.records.snapshots import SnapshotRecord
from polyvol.mapping.records.volumes import Volume
from polyvol.snapshot.snapshot import Snapshot


def count_logs(context: Context, volume: Volume, by: Literal["begin", "processor"]) -> Counter[int] | None:
    """How many change logs of a volume begin with each epoch, or are maintained by each processor; None while
    it is not served."""
    if context.is_served(volume):
        with contextlib.suppress(context.engine_error):  # it may be closed in the meantime
            counts: Counter[int] = Counter()
            for each in context.engine.change_log_counts(volume.id):
                counts[each[by]] += each["logs"]
            return counts
    return None


def parts_of(
    context: Context, records: Iterable[SnapshotRecord], volumes: Mapping[VolumeId, Volume]
) -> list[SnapshotPartsView]:
    """The partition snapshots of these snapshots, counted; `volumes`: by id."""
    written: dict[int, Counter[int] | None] = {}
    views = []
    for record in records:
        volume = volumes[record.volume]
        if volume.id not in written:
            written[volume.id] = count_logs(context, volume, by="begin")
        counts, snapshot = written[volume.id], Snapshot(volume, record)
        views.append(
            SnapshotPartsView(
                partitions=snapshot.partition_count,
                written=None if counts is None else counts[record.epoch],
                shares=None
                if snapshot.shares is None
                else [
                    SnapshotShareView(processor=share.processor, partitions=share.partitions)
                    for share in snapshot.shares
                ],
            )
        )
    return views
