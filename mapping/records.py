"""What the catalog says of volumes, change logs and snapshots: plain records, made only by the catalog."""

from dataclasses import dataclass
from typing import Literal
from uuid import UUID

from polyvol.mapping.extent import Extent
from polyvol.mapping.group import Consistency

VolumeState = Literal["creating", "ready", "deleting"]
UNDER_WAY = {"creating": "made", "deleting": "deleted", "adding": "added", "removing": "removed"}
"""What is being done with a volume or device in a state other than 'ready', for people."""
WhenFull = Literal["keep-writing", "keep-snapshots"]
"""What gives way when the change logs are full: snapshots that a schedule made, or writes that need room."""
Origin = Literal["hand", "schedule"]
"""Who made a snapshot."""


@dataclass(frozen=True, slots=True)
class CloneSource:
    """What a clone was made from: the snapshot of this epoch of the volume of this id."""

    volume: int
    epoch: int


@dataclass(frozen=True, slots=True)
class Volume:
    """A volume. `next_epoch` and `next_log` are greater than every one that was ever committed. `source`: if
    it is a clone. `kept`: it is deleted, and kept for its clones. `restoring`: a backup is being restored to
    it, so what it holds is incomplete, and it is not exported. `manifests`: the processors of its first so
    many partitions have manifests; 0 if no version that makes them has served it. `stopped`: see
    daemon/volumes/manifest_digests.py."""

    id: int
    uuid: UUID
    name: str
    size: int
    partition_size: int
    state: VolumeState
    when_full: WhenFull
    next_epoch: int
    next_log: int
    created_ns: int
    kept: bool = False
    source: CloneSource | None = None
    restoring: bool = False
    manifests: int = 0
    stopped: str | None = None

    @property
    def shown_name(self) -> str:
        """The name that people know it by. One that is kept has it followed by '#' and its id, so that
        another volume may have the name."""
        return self.name.partition("#")[0]


@dataclass(frozen=True, slots=True)
class Rollback:
    """A volume was rolled back to its snapshot of epoch `to`, when it had `size` bytes and the snapshot
    `to_size`: what is written in epochs above `at` goes on from there."""

    at: int
    to: int
    size: int
    to_size: int


@dataclass(frozen=True, slots=True)
class RestoreRecord:
    """A restore that was begun and is not complete. `stream`: the backup stream's own number; `source`: where
    it is read from, for people; `snapshot`: what the volume's snapshot will be named, a copy of
    `snapshot_uuid`; `base`: the epoch of the volume's snapshot that it follows (None: the volume was made for
    the restore); `begun_ns` since 1970, UTC."""

    volume: int
    stream: UUID
    source: str
    snapshot: str
    snapshot_uuid: UUID
    base: int | None
    begun_ns: int


@dataclass(frozen=True, slots=True)
class ChangeLog:
    """A change log of a volume: `number` is never used again; `default`: used where none is named."""

    number: int
    default: bool
    extents: tuple[Extent, ...]


@dataclass(frozen=True, slots=True)
class SnapshotRecord:
    """A snapshot of one volume. `cut` is shared by all snapshots of one cut; times are nanoseconds:
    `instant_ns` since 1970 (UTC), `stall_ns` the longest write stall, `stalls` those of the processors,
    and `durable_ns` from the start of the cut until all of it was flushed. `log`: the change log named.
    `schedule`: the name of the schedule that made it, if polyvold's own did; `holds`: tags that keep it.
    `size`: the volume's at the cut, bytes; `hook_trouble`: why it is crash-consistent although there were
    hooks; `copy_of`: it was restored from a backup of the snapshot with this UUID; `kept`: it is deleted, and
    kept for its clones."""

    uuid: UUID
    cut: UUID
    volume: int
    name: str
    epoch: int
    log: int | None
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


@dataclass(frozen=True, slots=True)
class DroppedSnapshot:
    """A snapshot of `instant_ns` that was dropped at `dropped_ns` (since 1970, UTC) to make room for writes;
    `freed` bytes, None where nobody knows."""

    name: str
    instant_ns: int
    dropped_ns: int
    freed: int | None
