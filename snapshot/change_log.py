"""Change logs: what a partition's hosts have changed since one of its partition snapshots, until the next.

How it works      A change log belongs to one partition, and begins with one partition snapshot, or with the
                  volume. It is not stored: the engine derives it from the block maps. So a log without
                  blocks does not exist. When the snapshot that it begins with is deleted, the blocks of it
                  that other snapshots or the volume still need belong to the log before it.
                  Its name is VOLUME@SNAPSHOT#PARTITION, as that of the partition snapshot that it begins
                  with; VOLUME#PARTITION if it begins with the volume; VOLUME@epoch:N#PARTITION if its
                  snapshot is deleted, and kept for clones.
Errors            BadLogName.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from polyvol.mapping.ids import Epoch, VolumeId
from polyvol.snapshot.errors.partitions import BadLogName

if TYPE_CHECKING:
    from polyvol.engine import ChangeLogState

BEGIN_OF_VOLUME = Epoch(0)
"""The epoch that the first change log of each partition begins with."""
_NUMBER_DIGITS_MAX = 18
_NAME = re.compile(
    rf"(?P<volume>[^@#]+)(?:@(?P<snapshot>[^@#]+))?#(?P<partition>[0-9]{{1,{_NUMBER_DIGITS_MAX}}})"
)
_EPOCH = re.compile(rf"epoch:([0-9]{{1,{_NUMBER_DIGITS_MAX}}})")


@dataclass(frozen=True, slots=True, order=True)
class ChangeLogId:
    """The identity of a change log: its volume, its partition's number, and the epoch of the snapshot that it
    begins with (0: it begins with the volume). It stays the same as long as the log exists."""

    volume: VolumeId
    partition: int
    begin: Epoch


@dataclass(frozen=True, slots=True)
class ChangeLog:
    """What is in a change log now. Only the newest one of a partition grows. An older one loses the blocks
    that nothing needs any more, and gets those of the log after it when the snapshot of that is deleted.

    `identity` refers to its partition and to its partition snapshot. `processor` maintains it. `blocks`
    are in slots; `zeroes` became zero, `bases` went back to their base places: they need none. `runs`:
    how many runs of consecutive slots the blocks are in. `areas`: how many of the blocks are in each log
    area, by its number. `writes` and `written` (bytes) count what hosts wrote from its beginning to its
    end, in place too (None: it is unknown). `ended`: the epoch of the snapshot that ended it (None: it is
    the current one, or a rollback ended it)."""

    identity: ChangeLogId
    processor: int
    blocks: int
    zeroes: int
    bases: int
    runs: int
    areas: tuple[tuple[int, int], ...]
    writes: int | None
    written: int | None
    ended: Epoch | None


def change_log(volume: VolumeId, state: "ChangeLogState") -> ChangeLog:
    """The engine's answer as a record."""
    return ChangeLog(
        identity=ChangeLogId(volume, state["partition"], Epoch(state["begin"])),
        processor=state["processor"],
        blocks=state["blocks"],
        zeroes=state["zeroes"],
        bases=state["bases"],
        runs=state["runs"],
        areas=tuple(state["areas"]),
        writes=state["writes"],
        written=state["written_bytes"],
        ended=None if state["ended"] is None else Epoch(state["ended"]),
    )


def beginning(epoch: int, names: Mapping[int, str]) -> str | None:
    """The snapshot of this epoch as names of logs have it; `names`: of snapshots, by epoch. None for the
    beginning of the volume."""
    if epoch == BEGIN_OF_VOLUME:
        return None
    return names.get(epoch) or f"epoch:{epoch}"


def log_name(volume: str, begin: str | None, partition: int) -> str:
    """The name of a change log, and of the partition snapshot that it begins with; `begin` as `beginning`
    has it."""
    return f"{volume}#{partition}" if begin is None else f"{volume}@{begin}#{partition}"


def log_parts(text: str) -> tuple[str, str | None, int]:
    """The volume, the beginning and the partition that a log's name has; BadLogName."""
    found = _NAME.fullmatch(text)
    if found is None:
        raise BadLogName(text=text)
    return found["volume"], found["snapshot"], int(found["partition"])


def epoch_named(begin: str) -> Epoch | None:
    """The epoch in 'epoch:N'; None for the name of a snapshot."""
    found = _EPOCH.fullmatch(begin)
    return None if found is None else Epoch(int(found[1]))
