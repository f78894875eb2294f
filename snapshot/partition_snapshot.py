"""Partition snapshots: one partition of a volume as it was at a cut.

How it works      Each exists from the cut on, at no cost as long as its partition is not written. It refers
                  to its partition, to its block map and to the change log that begins with it. The engine
                  has the maps and the counters; these records are made for each request. They are named
                  tuples, because there may be a million of them.
Invariants        PS1 of a record only these change after the cut: `frozen`, when the partition is written for
                  the first time; `log_size`, as its change log grows, shrinks or is joined; `since`, when
                  the snapshot before it is deleted.
"""

from typing import TYPE_CHECKING, NamedTuple

from polyvol.mapping.ids import Epoch, VolumeId
from polyvol.snapshot.change_log import ChangeLogId

if TYPE_CHECKING:
    from polyvol.engine import PartitionSnapshotState


class PartitionSnapshotId(NamedTuple):
    """The identity of a partition snapshot: its volume, the epoch of its snapshot, and its partition."""

    volume: VolumeId
    epoch: Epoch
    partition: int

    @property
    def log(self) -> ChangeLogId:
        """The change log that begins with it, if there is one."""
        return ChangeLogId(self.volume, self.partition, self.epoch)


class Writes(NamedTuple):
    """How many writes, zeroes and trims, those in place too, and how many bytes they covered."""

    writes: int
    written: int


class LogSize(NamedTuple):
    """What a change log holds: `blocks` in slots, and blocks that need none: `zeroes`, and `bases`, which
    went back to their base places."""

    blocks: int
    zeroes: int
    bases: int


class PartitionSnapshot(NamedTuple):
    """One partition at a cut.

    `identity` refers to the snapshot and to the partition, `processor` owned it. `size`: bytes that the
    snapshot has of it. `frozen`: it has a block map of its own (False: the partition was not written since,
    and the snapshot shares the live map). `slots`, `zeroes` and `bases`: how many blocks of its map are in
    slots, are zero, and are at their base place; `checksummed` have a checksum. `total`: what hosts had
    written to the partition until the cut, since it exists or was first served by a version that counts
    (None: unknown, because the snapshot was taken before that); `last_write_ns`: when they did last (since
    1970; 0: never; None: unknown). `since`: what they had written since the snapshot before it on its line
    (None: unknown). `write_seq`: the number of its
    latest mapping change in its processor's journal (0: none). `log_size`: what the change log that begins
    with it holds now (None: there is none, because the partition was not written until the next
    snapshot)."""

    identity: PartitionSnapshotId
    processor: int
    size: int
    frozen: bool
    slots: int
    zeroes: int
    bases: int
    checksummed: int | None
    total: Writes | None
    last_write_ns: int | None
    since: Writes | None
    write_seq: int
    log_size: LogSize | None


def counted(writes: int | None, written: int | None) -> Writes | None:
    """What was counted; None if nothing was."""
    return None if writes is None or written is None else Writes(writes, written)


def partition_snapshot(volume: VolumeId, state: "PartitionSnapshotState") -> PartitionSnapshot:
    """The engine's answer as a record."""
    since, log = state["since"], state["log"]
    return PartitionSnapshot(
        PartitionSnapshotId(volume, Epoch(state["epoch"]), state["partition"]),
        state["processor"],
        state["size"],
        state["frozen"],
        state["slots"],
        state["zeroes"],
        state["bases"],
        state["checksummed"],
        counted(state["writes"], state["written_bytes"]),
        state["last_write_ns"],
        None if since is None else Writes(since["writes"], since["written_bytes"]),
        state["write_seq"],
        None if log is None else LogSize(log["blocks"], log["zeroes"], log["bases"]),
    )
