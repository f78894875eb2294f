"""What the engine's calls on partitions, their snapshots and their change logs answer with (engine.pyi).

Sizes and offsets are bytes; *_ns are nanoseconds.
"""

from typing import Literal, TypedDict


class WriteCounts(TypedDict):
    """Writes, zeroes and trims, those in place too, and the bytes that they covered."""

    writes: int
    written_bytes: int


class ChangeLogSize(TypedDict):
    """What a change log holds: `blocks` in slots, and blocks that need none: `zeroes`, and `bases`, which
    went back to their base places."""

    blocks: int
    zeroes: int
    bases: int


class PartitionSnapshotState(TypedDict):
    """One partition as it was at a cut. `size`: bytes that the snapshot has of it. `frozen`: the snapshot has
    a map of its own (False: the partition has not been written since, and it shares the live one). `slots`,
    `zeroes` and `bases` count the blocks of its map by their kind of place. `writes` and `written_bytes`:
    since the partition exists, or was first served by a version that counts (None: the snapshot was taken
    before); `last_write_ns`: since 1970, right to a few milliseconds (0: never; None: it is not known).
    `write_seq` is the number, in its processor's journal, of its
    latest mapping change (0: none). `checksummed`: blocks with a checksum. `since`: since the snapshot before
    it on its line, or since the partition exists (None: it is not known). `log`: the change log that begins
    with it (None: there is none, because nothing that is still seen was redirected since)."""

    partition: int
    processor: int
    epoch: int
    size: int
    frozen: bool
    slots: int
    zeroes: int
    bases: int
    writes: int | None
    written_bytes: int | None
    last_write_ns: int | None
    write_seq: int
    checksummed: int
    since: WriteCounts | None
    log: ChangeLogSize | None


class PartitionState(TypedDict):
    """One partition now: its map and its counters as in `PartitionSnapshotState`; `versions`: how many maps
    of it are frozen; `newest_snapshot`: the epoch of the newest snapshot that shows it (0: none does)."""

    partition: int
    processor: int
    slots: int
    zeroes: int
    bases: int
    writes: int
    written_bytes: int
    last_write_ns: int | None
    write_seq: int
    versions: int
    newest_snapshot: int


class ChangeLogState(TypedDict):
    """One change log: that of a partition, which begins with the snapshot of epoch `begin` (0: with the
    volume). `blocks` in slots; `zeroes`, and `bases`, which went back to their base places, need none.
    `runs` of consecutive slots; `areas`: number of each log area with how many of the blocks are there.
    `writes` and `written_bytes`: from its beginning to its end (None: it is not known). `ended`: the
    epoch of the next snapshot (None: blocks are added)."""

    partition: int
    processor: int
    begin: int
    blocks: int
    zeroes: int
    bases: int
    runs: int
    areas: list[tuple[int, int]]
    writes: int | None
    written_bytes: int | None
    ended: int | None


class ChangeLogCount(TypedDict):
    """How many change logs a processor has that begin with the snapshot of epoch `begin` (0: with the
    volume)."""

    begin: int
    processor: int
    logs: int


class ChangeLogRun(TypedDict):
    """Blocks of a change log that lie together: `blocks` of the partition from `block` on, in log area
    `area`, on `device` from byte `offset` on."""

    block: int
    blocks: int
    area: int
    device: int
    offset: int


class Location(TypedDict):
    """Where a byte of a volume, or of a snapshot, is. `kind`: at its base place, nowhere because it is zero,
    in a change log, or where the snapshot has it that the volume is a clone of ('source'; its place is found
    there). `area` (a log area's number) and `begin` (the change log's) are for 'log' alone; `device` and
    `device_offset`, the byte's, for 'base' and 'log'."""

    partition: int
    processor: int
    block: int
    kind: Literal["base", "zero", "log", "source"]
    area: int | None
    device: int | None
    device_offset: int | None
    begin: int | None


class RecordedCut(TypedDict):
    """A snapshot's cut, as a processor has recorded it: when (ns since 1970), and how many partitions of the
    volume the processor had (0: it does not say)."""

    epoch: int
    instant_ns: int
    partitions: int


class RecordedCuts(TypedDict):
    """The cuts that a processor has recorded, of the snapshots that exist. Those of epochs from
    `recorded_from` on must be there; an older version may have dropped the others."""

    processor: int
    recorded_from: int
    cuts: list[RecordedCut]
