"""Snapshots of volumes as the catalog knows them."""

from dataclasses import dataclass
from typing import Literal
from uuid import UUID

from polyvol.mapping.ids import Epoch, VolumeId
from polyvol.mapping.records.log_rules import LogRule

Origin = Literal["hand", "schedule"]
"""Who made a snapshot."""
Consistency = Literal["application", "crash"]
"""What a snapshot shows: what an application made ready for it, or what a power loss would have left."""


@dataclass(frozen=True, slots=True)
class SnapshotRecord:
    """A snapshot of one volume. `cut` is shared by all snapshots of one cut; times are nanoseconds:
    `instant_ns` since 1970 (UTC), `stall_ns` the longest write stall, `stalls` those of the processors,
    and `durable_ns` from the start of the cut until all of it was flushed.
    `schedule`: the name of the schedule that made it, if polyvold's own did; `holds`: tags that keep it.
    `size`: the volume's at the cut, bytes; `hook_trouble`: why it is crash-consistent although there were
    hooks; `copy_of`: it was restored from a backup of the snapshot with this UUID; `kept`: it is deleted, and
    kept for its clones. `log_rules`: those of the change logs that begin with it; none: the volume's.
    `shares`: how many partitions of the volume each processor had at the cut, as (processor, partitions);
    none: it was taken by a version that did not record it."""

    uuid: UUID
    cut: UUID
    volume: VolumeId
    name: str
    epoch: Epoch
    instant_ns: int
    stall_ns: int
    durable_ns: int
    stalls: tuple[tuple[int, int], ...]
    origin: Origin = "hand"
    schedule: str | None = None
    holds: tuple[str, ...] = ()
    size: int = 0
    consistency: Consistency = "crash"
    hook_trouble: str | None = None
    copy_of: UUID | None = None
    kept: bool = False
    log_rules: tuple[LogRule, ...] = ()
    shares: tuple[tuple[int, int], ...] = ()

    @property
    def shown_name(self) -> str:
        """The name that people know it by: one that is kept has it followed by '#' and its epoch."""
        return self.name.partition("#")[0]


@dataclass(frozen=True, slots=True)
class DroppedSnapshot:
    """A snapshot of `instant_ns` that was dropped at `dropped_ns` (since 1970, UTC) to make room for writes;
    `freed` bytes, None where nobody knows."""

    name: str
    instant_ns: int
    dropped_ns: int
    freed: int | None
