"""history: requests of hosts and their answers, and the possible contents of a volume after a power loss.

How it works      Every sector is written by one thread at a time, so its contents follow each other; a
                  content is a tag (the operation that wrote it) or zeroes. An operation notes two clocks when
                  it is issued and when it is acknowledged: the log's length, which orders it against what the
                  daemon did, and a count that orders it against other operations. A moment is a length of the
                  log.
Invariants        HI1 at a moment, a sector holds the newest content that a flush acknowledged by then covers
                  (one issued after the write was acknowledged), or that was written with FUA and acknowledged
                  by then, or any later content issued by then; HI2 a snapshot exists from when it was
                  reported until its deletion is issued, does not exist once that was acknowledged, and always
                  holds the same bytes.
Errors            Lost: a sentence that says what is wrong.
"""

import os
import struct
import threading
import zlib
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

SECTOR = 512
NEVER = 1 << 62
TAG = struct.Struct("<QQ")
ZEROES = bytes(SECTOR)


class Lost(AssertionError):
    """A promise was broken: data or an object is missing or wrong."""


@dataclass(slots=True)
class Change:
    """A write, trim or zeroing (`tag` 0) of some sectors. NEVER: not acknowledged."""

    tag: int
    first: int
    count: int
    fua: bool
    issued: int
    issued_at: int
    acknowledged: int = NEVER
    acknowledged_at: int = NEVER


@dataclass(slots=True)
class Flush:
    """A FLUSH that was acknowledged."""

    issued: int
    acknowledged_at: int


@dataclass(slots=True)
class Snapshot:
    """A snapshot, `content` compressed; None: it was never read."""

    name: str
    issued_at: int
    issued: int = 0
    reported: int = NEVER
    reported_at: int = NEVER
    deleting_at: int = NEVER
    deleted_at: int = NEVER
    content: bytes | None = None


@dataclass
class History:
    """All of it, for one volume of `sectors` sectors, made at `made_at`. `base`: what it held before, if not
    zeroes. `relocated`: how many bytes polyvold has relocated."""

    sectors: int
    made_at: int = NEVER
    base: bytes | None = None
    changes: list[Change] = field(default_factory=list)
    flushes: list[Flush] = field(default_factory=list)
    snapshots: list[Snapshot] = field(default_factory=list)
    relocated: int = 0


class Clock:
    """The two clocks."""

    def __init__(self, log: Path | None) -> None:
        self._log = None if log is None else os.open(log, os.O_RDONLY)
        self._count = 0
        self._lock = threading.Lock()

    def now(self) -> tuple[int, int]:
        """The count, and the log's length."""
        with self._lock:
            self._count += 1
            return self._count, 0 if self._log is None else os.fstat(self._log).st_size


def content(tag: int, sector: int) -> bytes:
    """What a sector holds once it was written."""
    return TAG.pack(tag, sector) * (SECTOR // TAG.size) if tag else ZEROES


def contents(tag: int, first: int, count: int) -> bytes:
    """What a run of sectors holds once it was written."""
    return b"".join(content(tag, sector) for sector in range(first, first + count))


class Expected:
    """What a volume may hold at a moment."""

    def __init__(self, history: History) -> None:
        self._history = history
        self._base = history.base or bytes(history.sectors * SECTOR)
        self._by_sector: list[list[Change]] = [[] for _ in range(history.sectors)]
        for change in history.changes:
            for sector in range(change.first, change.first + change.count):
                self._by_sector[sector].append(change)

    def check_live(self, data: bytes, at: int, *, everything: bool = False) -> None:
        """HI1 for the whole live volume; Lost. `everything`: the host went on running, so that all that was
        acknowledged is there."""
        flushed = (
            NEVER
            if everything
            else max(
                (flush.issued for flush in self._history.flushes if flush.acknowledged_at <= at), default=0
            )
        )
        for sector, changes in enumerate(self._by_sector):
            found = data[sector * SECTOR : (sector + 1) * SECTOR]
            if not self._may_be(found, sector, changes, flushed, at):
                raise Lost(_wrong(found, sector, changes, flushed, at))

    def check_instant(self, one: Snapshot, data: bytes) -> None:
        """What a snapshot holds: everything acknowledged before it was asked for, nothing issued after it was
        reported; Lost."""
        for sector, changes in enumerate(self._by_sector):
            found = data[sector * SECTOR : (sector + 1) * SECTOR]
            before = [change for change in changes if change.issued < one.reported]
            if not self._may_be(found, sector, before, one.issued, NEVER, only_flushed=True):
                raise Lost(f"snapshot {one.name}: {_wrong(found, sector, before, one.issued, NEVER)}")

    def check_names(self, names: set[str], at: int) -> None:
        """HI2 for the names of the snapshots that there are; Lost."""
        for one in self._history.snapshots:
            if one.reported_at <= at < one.deleting_at and one.name not in names:
                raise Lost(f"snapshot {one.name}, reported, is gone")
            if one.deleted_at <= at and one.name in names:
                raise Lost(f"snapshot {one.name}, deleted, is there again")
            if at < one.issued_at and one.name in names:
                raise Lost(f"snapshot {one.name} is there before it was asked for")

    def check_snapshot(self, name: str, data: bytes) -> None:
        """HI2 for a snapshot's bytes; Lost."""
        for one in self._history.snapshots:
            if one.name == name and one.content is not None:
                pinned = unpacked(one.content)
                if data != pinned:
                    raise Lost(f"snapshot {name} has changed: {_difference(pinned, data)}")
                return

    def _may_be(
        self,
        found: bytes,
        sector: int,
        changes: list[Change],
        flushed: int,
        at: int,
        *,
        only_flushed: bool = False,
    ) -> bool:
        for change in reversed(changes):
            if change.issued_at > at:
                continue
            if found == content(change.tag, sector):
                return True
            fua = change.fua and change.acknowledged_at <= at and not only_flushed
            if change.acknowledged < flushed or fua:
                return False
        return found == self._base[sector * SECTOR : (sector + 1) * SECTOR]

    def volume_is_promised(self, at: int) -> bool:
        """Whether the volume must be there."""
        return self._history.made_at <= at


def _wrong(found: bytes, sector: int, changes: list[Change], flushed: int, at: int) -> str:
    possible = []
    for change in reversed(changes):
        if change.issued_at > at:
            continue
        covered = change.acknowledged < flushed or (change.fua and change.acknowledged_at <= at)
        possible.append(f"{change.tag}{' (durable)' if covered else ''}")
        if covered:
            break
    may_hold = ", ".join(possible) or "what it held before"
    return f"sector {sector} holds {_described(found)}; it may hold {may_hold}"


def _described(found: bytes) -> str:
    tag, sector = TAG.unpack_from(found)
    if found == content(tag, sector):
        return f"write {tag} of sector {sector}" if tag else "zeroes"
    return f"something never written ({found[:32].hex()}...)"


def _difference(pinned: bytes, data: bytes) -> str:
    for sector in range(len(pinned) // SECTOR):
        was, now = (each[sector * SECTOR : (sector + 1) * SECTOR] for each in (pinned, data))
        if was != now:
            return f"sector {sector} held {_described(was)} and holds {_described(now)}"
    return f"it was {len(pinned)} bytes and is {len(data)}"


def packed(data: bytes) -> bytes:
    """A snapshot's bytes, to keep."""
    return zlib.compress(data, 1)


@lru_cache(maxsize=64)
def unpacked(data: bytes) -> bytes:
    """The bytes again."""
    return zlib.decompress(data)
