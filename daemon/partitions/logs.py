"""The verbs of change logs: list and show.

How it works      The engine derives the logs of some partitions from their block maps. A page looks at
                  `count` partitions, in steps that grow while few logs are found, and ends early once it has
                  LOGS_MAX of them: so it is bounded however many snapshots there are.
Errors            UnknownVolume, UnknownSnapshot, UnknownPartition, UnknownChangeLog, BadLogName,
                  VolumeNotServed, BadRequest.
"""

from typing import TYPE_CHECKING

from polyvol.daemon.consistent_read import reads
from polyvol.daemon.context import Context
from polyvol.daemon.partitions.naming import Naming, read_names
from polyvol.daemon.partitions.pages import COUNT_MAX, checked, following
from polyvol.daemon.partitions.verbs import refuse_unknown
from polyvol.daemon.types.logs import ChangeLogDetailView, ChangeLogListView
from polyvol.mapping.errors import UnknownSnapshot
from polyvol.mapping.ids import Epoch
from polyvol.mapping.records.snapshots import SnapshotRecord
from polyvol.mapping.records.volumes import Volume
from polyvol.snapshot.change_log import BEGIN_OF_VOLUME, change_log, epoch_named, log_parts
from polyvol.snapshot.errors.partitions import UnknownChangeLog

if TYPE_CHECKING:
    from polyvol.engine import ChangeLogState

LOGS_MAX = 10_000
"""After how many logs a page ends, with the logs of its last partition."""
_STEP_MIN = 16


class PartitionLogs:
    """The verbs of change logs."""

    def __init__(self, context: Context) -> None:
        self._context = context

    def list_of(
        self, volume_name: str, snapshot: str | None, partition: int | None, first: int, count: int
    ) -> ChangeLogListView:
        """A page of the change logs of a volume: of partition `first` and the next ones, so many, or of one
        `partition`; of all, or of those that begin with a snapshot."""
        checked(first, count)
        context = self._context
        volume, record, begin = self._find(volume_name, snapshot)
        if partition is not None:
            refuse_unknown(volume, partition)
            first, count = partition, 1
        naming = read_names(context, Naming(volume))
        end = min(first + count, volume.partition_count)
        what = f"asking for the change logs of volume {volume.name}"
        with context.engine_asked(what, volume, *([] if record is None else [record])):
            states, end = self._some(volume, first, end, begin)
        read_names(context, naming)
        more = partition is None and end < volume.partition_count
        return ChangeLogListView(
            volume=volume.name,
            uuid=str(volume.uuid),
            logs=[naming.log_view(change_log(volume.id, state)) for state in states],
            next=end if more else None,
        )

    def show(self, name: str, first: int, count: int) -> ChangeLogDetailView:
        """One change log, with a page of its runs."""
        checked(first, count)
        context = self._context
        volume_name, snapshot, partition = log_parts(name)
        volume, record, begin = self._find(volume_name, snapshot)
        refuse_unknown(volume, partition)
        begin = BEGIN_OF_VOLUME if begin is None else begin
        naming = read_names(context, Naming(volume))
        with context.engine_asked(
            f"asking for change log {name}", volume, *([] if record is None else [record])
        ):
            states = context.engine.change_logs(volume.id, partition, 1, begin)
            runs, total = context.engine.change_log_runs(volume.id, partition, begin, first, count)
        if not states:
            refuse_unknown(volume, partition, record)  # not before: the volume may have grown since
            raise UnknownChangeLog(name=name, volume=volume.name, why=_why_none(partition, snapshot))
        read_names(context, naming)
        return ChangeLogDetailView(
            log=naming.log_view(change_log(volume.id, states[0])),
            uuid=str(volume.uuid),
            runs=[
                naming.run_view(run["block"], run["blocks"], run["area"], run["device"], run["offset"])
                for run in runs
            ],
            next=following(first, count, total),
        )

    def _some(
        self, volume: Volume, first: int, end: int, begin: Epoch | None
    ) -> "tuple[list[ChangeLogState], int]":
        """Logs of the partitions from `first` on, and the partition that comes after them."""
        found: list[ChangeLogState] = []
        step = _STEP_MIN
        while first < end and len(found) < LOGS_MAX:
            step = min(step, end - first, COUNT_MAX)
            some = self._context.engine.change_logs(volume.id, first, step, begin)
            found += some
            first += step
            left = LOGS_MAX - len(found)
            step = min(4 * step, max(_STEP_MIN, left * step // len(some)) if some else 4 * step)
        return found, first

    @reads
    def _find(
        self, volume_name: str, snapshot: str | None
    ) -> tuple[Volume, SnapshotRecord | None, Epoch | None]:
        """A volume, and the snapshot that is named as `beginning` names it, with its epoch."""
        volume = self._context.find_served(volume_name, restoring=True)
        if snapshot is None:
            return volume, None, None
        epoch = epoch_named(snapshot)
        if epoch is not None:
            if self._context.catalog.snapshots.at(volume.id, epoch) is None:
                raise UnknownSnapshot(volume=volume.name, name=snapshot)
            return volume, None, epoch
        record = self._context.find_undeleted(volume, snapshot)
        return volume, record, record.epoch


def _why_none(partition: int, snapshot: str | None) -> str:
    if snapshot is None:
        return f"what was written to partition {partition} before its first snapshot is at its base places"
    return f"partition {partition} was not written from this snapshot until the next one"
