"""Partitions and partition snapshots, as the API shows them. Sizes, offsets and lengths are bytes.

Of partition snapshots there may be a million, and objects that are not frozen are made three times as fast.
"""

from dataclasses import dataclass
from typing import Literal

from polyvol.daemon.types.devices import ExtentView
from polyvol.daemon.types.logs import ChangeLogView


@dataclass(frozen=True, kw_only=True)
class PartitionStateView:
    """A partition as it is now. `size`: bytes of the volume that it has; `devices` have its extents; `state`:
    'ok', or 'faulty' with a `reason` if a device that it lies on is missing or faulty. `slots`, `zeroes` and
    `bases`: how many blocks of its block map are in change logs, are zero, and are at their base place.
    `writes` counts writes, zeroes and trims, those in place too, and `written` the bytes that they covered,
    since it exists or was first served by a version that counts. `last_write`: the time of the last one;
    null: there was none, or it is not known (`last_write_known`). `write_seq`: the number of its latest
    mapping change in its processor's journal (0: none). `frozen_maps`: how many block maps of snapshots it
    has. `newest_snapshot`: the name of the newest one that shows it."""

    number: int
    processor: int
    size: int
    devices: list[str]
    state: Literal["ok", "faulty"]
    reason: str | None
    slots: int
    zeroes: int
    bases: int
    writes: int
    written: int
    last_write: str | None
    last_write_known: bool
    write_seq: int
    frozen_maps: int
    newest_snapshot: str | None


@dataclass(frozen=True, kw_only=True)
class PartitionListView:
    """Some partitions of a volume, by number. `next`: where the next page begins; null: this was the last."""

    volume: str
    uuid: str
    partition_count: int
    partitions: list[PartitionStateView]
    next: int | None


@dataclass(frozen=True, kw_only=True)
class PartitionDetailView(PartitionStateView):
    """A partition with what refers to it: `offset` is where it begins in the volume, `extents` hold its bytes
    in order, `snapshots` counts the snapshots that show it, and `logs` are its change logs, oldest first."""

    volume: str
    offset: int
    extents: list[ExtentView]
    snapshots: int
    logs: list[ChangeLogView]


@dataclass(kw_only=True, slots=True)
class WritesView:
    """How many writes, zeroes and trims there were, those in place too, and the bytes that they covered."""

    writes: int
    written: int


@dataclass(kw_only=True, slots=True)
class LogSizeView:
    """What a change log, named by its `id`, holds: `blocks` in slots, `zeroes`, and `bases` that went back to
    their base places."""

    id: str
    blocks: int
    zeroes: int
    bases: int


@dataclass(kw_only=True, slots=True)
class PartitionSnapshotView:
    """One partition as it was at a cut. `id`: VOLUME@SNAPSHOT#PARTITION. `size`: bytes that the snapshot has
    of it. `frozen`: it has a block map of its own (false: as the live one, because the partition was not
    written since). `slots`, `zeroes` and `bases`: how many blocks of its map are in change logs, are zero,
    and are at their base place; `blocks_mapped` counts the first two; `checksummed` have a checksum. `total`:
    what hosts had written to the partition until the cut, since it exists or was first served by a version
    that counts; null: it is not known, because the snapshot was taken before that. `last_write`: when they
    did last; null: they had not, or it is not known (`last_write_known`). `since`: what they had written
    since the snapshot before; null: it is not known. `write_seq`: the number of its latest mapping change in
    its processor's journal (0: none). `log`: the change log that begins with it; null: there is none, because
    the partition was not written until the next snapshot."""

    id: str
    snapshot: str
    partition: int
    processor: int
    epoch: int
    size: int
    frozen: bool
    slots: int
    zeroes: int
    bases: int
    blocks_mapped: int
    checksummed: int | None
    total: WritesView | None
    last_write: str | None
    last_write_known: bool
    since: WritesView | None
    write_seq: int
    log: LogSizeView | None


@dataclass(frozen=True, kw_only=True)
class PartitionSnapshotListView:
    """Some partition snapshots: those of one snapshot, by partition, or those of one partition, by epoch.
    `uuid`: of the snapshot, or of the volume. `next`: where the next page begins, a partition or an epoch;
    null: this was the last."""

    volume: str
    uuid: str
    partition_snapshots: list[PartitionSnapshotView]
    next: int | None


@dataclass(frozen=True, kw_only=True)
class SnapshotShareView:
    """How many partition snapshots of a snapshot one processor made."""

    processor: int
    partitions: int


@dataclass(frozen=True, kw_only=True)
class SnapshotPartsView:
    """The partition snapshots of a snapshot, counted. `shares`: by processor, null if that is unknown.
    `written`: how many of the partitions were written since, until the next snapshot: so many change logs
    begin with it; null while the volume is not served."""

    partitions: int
    written: int | None
    shares: list[SnapshotShareView] | None
