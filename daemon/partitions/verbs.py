"""The verbs of partitions and partition snapshots: list and show.

How it works      The engine has block maps and counters, the catalog has extents and names. Both are asked
                  for the partitions of the page only, so a page costs the same in a volume of any size. The
                  processors only clone the versions of these partitions; the rest is computed on the thread
                  of the request.
Errors            UnknownVolume, UnknownSnapshot, UnknownPartition, VolumeNotServed, BadRequest.
"""

from polyvol.daemon.consistent_read import reads
from polyvol.daemon.context import Context, devices_of, extent_views
from polyvol.daemon.devices.health import device_troubles, partition_trouble
from polyvol.daemon.partitions.naming import Naming, read_names
from polyvol.daemon.partitions.pages import checked, following
from polyvol.daemon.types.base import iso
from polyvol.daemon.types.partitions import (
    LogSizeView,
    PartitionDetailView,
    PartitionListView,
    PartitionSnapshotListView,
    PartitionSnapshotView,
    PartitionStateView,
    WritesView,
)
from polyvol.mapping.errors import UnknownSnapshot, UnknownVolume
from polyvol.mapping.extent import BLOCK_SIZE
from polyvol.mapping.partition import Partition, partition_count
from polyvol.mapping.records.snapshots import SnapshotRecord
from polyvol.mapping.records.volumes import Volume
from polyvol.snapshot.change_log import change_log, log_name
from polyvol.snapshot.errors.partitions import UnknownPartition
from polyvol.snapshot.partition_snapshot import PartitionSnapshot, Writes, partition_snapshot
from polyvol.snapshot.partition_state import PartitionState, partition_state
from polyvol.snapshot.snapshot import export_name


class Partitions:
    """The verbs of partitions and of their snapshots."""

    def __init__(self, context: Context) -> None:
        self._context = context

    def list_of(self, volume_name: str, first: int, count: int) -> PartitionListView:
        """A page of a volume's partitions, by number."""
        checked(first, count)
        context = self._context
        volume = context.find_served(volume_name, restoring=True)
        naming = read_names(context, Naming(volume))
        end = volume.partition_count
        with context.engine_asked(f"asking for the partitions of volume {volume.name}", volume):
            states = context.engine.partitions(volume.id, min(first, end), count)
        read_names(context, naming)
        return PartitionListView(
            volume=volume.name,
            uuid=str(volume.uuid),
            partition_count=end,
            partitions=self._views(naming, [partition_state(state) for state in states]),
            next=following(first, count, end),
        )

    @reads
    def _views(self, naming: Naming, states: list[PartitionState]) -> list[PartitionStateView]:
        """Partitions of the catalog, with these states; a partition that it does not have is left out, as
        during growth."""
        if not states:
            return []
        context, volume = self._context, naming.volume
        troubles = device_troubles(context)
        first, last = states[0].number, states[-1].number
        there = {
            partition.number: partition
            for partition in context.catalog.volumes.partitions(volume.id, first, last - first + 1)
        }
        views = []
        for state in states:
            partition = there.get(state.number)
            if partition is None:
                continue
            reason = partition_trouble(partition, troubles) if troubles else None
            views.append(_state_view(naming, partition, state, reason))
        return views

    def show(self, volume_name: str, number: int) -> PartitionDetailView:
        """One partition, with its change logs."""
        context = self._context
        volume = context.find_served(volume_name, restoring=True)
        refuse_unknown(volume, number)
        naming = read_names(context, Naming(volume))
        with context.engine_asked(f"asking for partition {number} of volume {volume.name}", volume):
            states = context.engine.partitions(volume.id, number, 1)
            logs = context.engine.change_logs(volume.id, number, 1, None)
        read_names(context, naming)
        views = self._views(naming, [partition_state(state) for state in states])
        parts = context.catalog.volumes.partitions(volume.id, number, 1)
        if not views or not parts:  # the volume was deleted in between
            raise UnknownVolume(name=volume.name)
        return PartitionDetailView(
            **{name: getattr(views[0], name) for name in PartitionStateView.__dataclass_fields__},
            volume=volume.name,
            offset=number * volume.partition_size,
            extents=extent_views(parts[0].extents, naming.devices),
            snapshots=len(self._shown_by(volume, number)),
            logs=[naming.log_view(change_log(volume.id, log)) for log in logs],
        )

    def of_snapshot(
        self, volume_name: str, snapshot: str, first: int, count: int
    ) -> PartitionSnapshotListView:
        """A page of the partition snapshots of a snapshot, by partition."""
        checked(first, count)
        context = self._context
        volume = context.find_served(volume_name, restoring=True)
        record = context.find_undeleted(volume, snapshot)
        what = f"asking for the partitions of {export_name(volume.name, snapshot)}"
        end = partition_count(record.size, volume.partition_size)
        with context.engine_asked(what, volume, record):
            states = context.engine.partition_snapshots(volume.id, record.epoch, min(first, end), count)
        name = record.name
        return PartitionSnapshotListView(
            volume=volume.name,
            uuid=str(record.uuid),
            partition_snapshots=[
                _snapshot_view(volume.name, name, partition_snapshot(volume.id, state)) for state in states
            ],
            next=following(first, count, end),
        )

    def snapshots_of(
        self, volume_name: str, number: int, first: int, count: int
    ) -> PartitionSnapshotListView:
        """A page of the snapshots of one partition, from epoch `first` on, by epoch."""
        checked(first, count)
        context = self._context
        volume = context.find_served(volume_name, restoring=True)
        refuse_unknown(volume, number)
        records = [record for record in self._shown_by(volume, number) if record.epoch >= first]
        views = []
        for record in records[:count]:
            what = f"asking for partition {number} of {export_name(volume.name, record.name)}"
            try:
                with context.engine_asked(what, volume, record):
                    states = context.engine.partition_snapshots(volume.id, record.epoch, number, 1)
            except UnknownSnapshot:
                continue  # it was deleted in between
            views += [
                _snapshot_view(volume.name, record.name, partition_snapshot(volume.id, state))
                for state in states
            ]
        return PartitionSnapshotListView(
            volume=volume.name,
            uuid=str(volume.uuid),
            partition_snapshots=views,
            next=records[count].epoch if len(records) > count else None,
        )

    @reads
    def _shown_by(self, volume: Volume, number: int) -> list[SnapshotRecord]:
        """The snapshots that have a partition of this number, by epoch."""
        begin = number * volume.partition_size
        return [
            record
            for record in self._context.catalog.snapshots.of(volume.id)
            if record.size > begin and not self._context.was_deleted(record)
        ]


def refuse_unknown(volume: Volume, number: int, snapshot: SnapshotRecord | None = None) -> None:
    """UnknownPartition if a volume, or a snapshot of it, has no partition of this number."""
    size = volume.size if snapshot is None else snapshot.size
    name = f"volume {volume.name}"
    if snapshot is not None:
        name = f"snapshot {export_name(volume.name, snapshot.name)}"
    last = partition_count(size, volume.partition_size) - 1
    if number > last:
        raise UnknownPartition(name=name, volume=volume.name, partition=number, last=last)


def _state_view(
    naming: Naming, partition: Partition, state: PartitionState, reason: str | None
) -> PartitionStateView:
    return PartitionStateView(
        number=state.number,
        processor=state.processor,
        size=(state.slots + state.zeroes + state.bases) * BLOCK_SIZE,
        devices=devices_of(partition.extents, naming.devices),
        state="ok" if reason is None else "faulty",
        reason=reason,
        slots=state.slots,
        zeroes=state.zeroes,
        bases=state.bases,
        writes=state.total.writes,
        written=state.total.written,
        last_write=_time(state.last_write_ns),
        last_write_known=state.last_write_ns is not None,
        write_seq=state.write_seq,
        frozen_maps=state.frozen_maps,
        newest_snapshot=naming.begin(state.newest_snapshot),
    )


def _snapshot_view(volume: str, snapshot: str, part: PartitionSnapshot) -> PartitionSnapshotView:
    number, log = part.identity.partition, part.log_size
    name = log_name(volume, snapshot, number)
    return PartitionSnapshotView(
        id=name,
        snapshot=snapshot,
        partition=number,
        processor=part.processor,
        epoch=part.identity.epoch,
        size=part.size,
        frozen=part.frozen,
        slots=part.slots,
        zeroes=part.zeroes,
        bases=part.bases,
        blocks_mapped=part.slots + part.zeroes,
        checksummed=part.checksummed,
        total=_writes(part.total),
        last_write=_time(part.last_write_ns),
        last_write_known=part.last_write_ns is not None,
        since=_writes(part.since),
        write_seq=part.write_seq,
        log=None
        if log is None
        else LogSizeView(id=name, blocks=log.blocks, zeroes=log.zeroes, bases=log.bases),
    )


def _writes(writes: Writes | None) -> WritesView | None:
    return None if writes is None else WritesView(writes=writes.writes, written=writes.written)


def _time(instant_ns: int | None) -> str | None:
    return iso(instant_ns) if instant_ns else None
