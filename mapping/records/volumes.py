"""Volumes as the catalog knows them."""

from dataclasses import dataclass
from typing import Literal
from uuid import UUID

from polyvol.mapping.ids import Epoch, VolumeId
from polyvol.mapping.partition import partition_count

VolumeState = Literal["creating", "ready", "deleting"]
UNDER_WAY = {"creating": "made", "deleting": "deleted", "adding": "added", "removing": "removed"}
"""What is being done with a volume or device in a state other than 'ready', for people."""
WhenFull = Literal["keep-writing", "keep-snapshots"]
"""What gives way when the change logs are full: snapshots that a schedule made, or writes that need room."""

LOG_LIMIT_FACTOR = 2
"""Up to how many times a volume's size its log areas grow, unless it has a limit of its own. So with what
lies at base places a volume takes three times its size at most. All of it can be overwritten twice, before
and after a snapshot, while an older one is kept."""
CLONE_LOG_LIMIT_FACTOR = 3
"""The same of a clone: it has no base places, so its own contents are in its log areas too."""


@dataclass(frozen=True, slots=True)
class CloneSource:
    """What a clone was made from: the snapshot of this epoch of the volume of this id."""

    volume: VolumeId
    epoch: Epoch


@dataclass(frozen=True, slots=True)
class Volume:
    """A volume. `next_epoch` and `next_log` are greater than every one that was ever committed. `source`: if
    it is a clone. `kept`: it is deleted, and kept for its clones. `restoring`: a backup is being restored to
    it, so what it holds is incomplete, and it is not exported. `manifests`: the processors of its first so
    many partitions have manifests; 0 if no version that makes them has served it. `stopped`: see
    daemon/volumes/manifest_digests.py. `relocation_rate`: at most so many bytes per second of its blocks are
    relocated, 0: none; None: 'auto'. `log_limit`: all its log areas together grow by themselves up to so many
    bytes; 0: not at all; None: LOG_LIMIT_FACTOR times its size (CLONE_LOG_LIMIT_FACTOR for a clone)."""

    id: VolumeId
    uuid: UUID
    name: str
    size: int
    partition_size: int
    state: VolumeState
    when_full: WhenFull
    next_epoch: Epoch
    next_log: int
    created_ns: int
    kept: bool = False
    source: CloneSource | None = None
    restoring: bool = False
    manifests: int = 0
    stopped: str | None = None
    relocation_rate: int | None = None
    log_limit: int | None = None

    @property
    def is_relocated(self) -> bool:
        """Whether its blocks are brought back to their base places; a clone has none."""
        return self.relocation_rate != 0 and self.source is None

    @property
    def log_bound(self) -> int:
        """Up to how many bytes its log areas, all together, grow by themselves; 0: they do not."""
        if self.log_limit is not None:
            return self.log_limit
        return self.size * (CLONE_LOG_LIMIT_FACTOR if self.source is not None else LOG_LIMIT_FACTOR)

    @property
    def partition_count(self) -> int:
        """How many partitions it has."""
        return partition_count(self.size, self.partition_size)

    @property
    def shown_name(self) -> str:
        """The name that people know it by. One that is kept has it followed by '#' and its id, so that
        another volume may have the name."""
        return self.name.partition("#")[0]
