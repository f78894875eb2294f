"""system: a volume on an engine in this process, for the model and for tests of what the engine promises.

How it works      Two devices hold 1 MiB partitions on three processors, one partition lying on both; two
                  log areas are on a third device: the volume's own, which is small, and one for rules of
                  snapshots. A
                  restart stops the engine and starts another on the same files; a killed one gets its
                  journals back as they were before the stop could write checkpoints. What the engine counts
                  of partitions, and says of their snapshots and change logs, is compared along the way.
Owner and locks   One thread cuts, deletes and restarts; any may read and write.
"""

import errno
import shutil
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Self

from polyvol.engine import Engine, Handle
from tests.engine.counted import Counted
from tests.support.model import BLOCK, errno_of, same

if TYPE_CHECKING:
    from polyvol.engine import ExtentSpec, LogRule, LogSpec, PartitionSpec, SnapshotSpec, VolumeSpec

MIB = 1 << 20
PARTITION = MIB
SIZE = 5 * MIB + 3 * BLOCK
LOG_BYTES = 16 * MIB
NAMED_BYTES = 12 * MIB
PROCESSORS = 3
VOLUME = 7
NAMED_AREA = 2
GROWN_BYTES = 4 * MIB
GROWN_MAX = 8


def first(*logs: int | None) -> "list[LogRule]":
    """The rule to use these logs, then any other; no rule if there is none."""
    numbers = [log for log in logs if log is not None]
    return [{"partitions": None, "processors": None, "logs": numbers, "any": True}] if numbers else []


def _copy(directory: Path, to: Path) -> None:
    """Copy the files that an engine may be changing, all as they were at one instant."""
    before: dict[str, bytes] | None = None
    while (found := _contents(directory)) != before:
        before = found
    to.mkdir()
    for name, contents in found.items():
        (to / name).write_bytes(contents)


def _contents(directory: Path) -> dict[str, bytes]:
    found = {}
    for path in directory.iterdir():
        with suppress(FileNotFoundError):  # removed meanwhile: it is missing in the next pass too
            found[path.name] = path.read_bytes()
    return found


class EngineSystem:
    """One volume `v` of SIZE bytes; its snapshots are named after their epochs."""

    def __init__(self, directory: Path, *, sparse: bool = True, log_bytes: int = LOG_BYTES) -> None:
        self.directory = directory
        self.size = SIZE
        self.keeps_trimmed = not sparse
        self._sparse = sparse
        self._log_bytes = log_bytes
        self._snapshots: dict[int, int | None] = {}
        self._next_epoch = 1
        self._grown: list[LogSpec] = []
        self._counted = Counted(VOLUME, PARTITION)
        for name, size in (
            ("a", 4 * MIB),
            ("b", 4 * MIB),
            ("log", log_bytes + NAMED_BYTES),
            ("more", GROWN_MAX * GROWN_BYTES),
        ):
            with (directory / name).open("wb") as file:
                file.truncate(size)
        self._start()

    def spec(self) -> "VolumeSpec":
        """The volume as a catalog would know it."""
        places = [
            (0, [(1, 0, MIB)]),
            (1, [(2, 0, MIB // 2), (1, MIB, MIB // 2)]),
            (2, [(2, MIB, MIB)]),
            (0, [(1, 2 * MIB, MIB)]),
            (1, [(2, 2 * MIB, MIB)]),
            (2, [(2, 3 * MIB, SIZE - 5 * MIB)]),
        ]
        partitions: list[PartitionSpec] = [
            {
                "processor": processor,
                "extents": [
                    {"device": device, "offset": offset, "length": length}
                    for device, offset, length in extents
                ],
            }
            for processor, extents in places
        ]
        named_at = self._log_bytes
        logs: list[LogSpec] = [
            {"number": 1, "extents": [{"device": 3, "offset": 0, "length": self._log_bytes}]},
            {"number": NAMED_AREA, "extents": [{"device": 3, "offset": named_at, "length": NAMED_BYTES}]},
        ]
        snapshots: list[SnapshotSpec] = [
            {"epoch": epoch, "log_rules": first(log), "size": SIZE} for epoch, log in self._snapshots.items()
        ]
        return {
            "id": VOLUME,
            "uuid": "07070707-0707-0707-0707-070707070707",
            "name": "v",
            "size": SIZE,
            "partition_size": PARTITION,
            "partitions": partitions,
            "logs": [*logs, *self._grown],
            "log_rules": self._rules(),
            "directory": str(self.directory / "volume"),
            "manifests": {"directory": str(self.directory / "volume"), "partitions": 0, "older": False},
            "snapshots": snapshots,
            "rollbacks": [],
            "source": None,
            "next_epoch": self._next_epoch,
        }

    def _start(self) -> None:
        self.engine = Engine(PROCESSORS)
        for device, name in ((1, "a"), (2, "b"), (3, "log"), (4, "more")):
            self.engine.open_device(device, str(self.directory / name), sparse=self._sparse)
        self.engine.add_volume(self.spec())
        self.engine.export("v", "", VOLUME, None)
        for epoch in self._snapshots:
            self.engine.export(f"v@{epoch}", "", VOLUME, epoch)
        self.live: Handle = self.engine.open("v")

    def read(self, length: int, offset: int) -> bytes:
        return self.live.pread(length, offset)

    def write(self, data: bytes, offset: int, *, fua: bool = False) -> None:
        self._counted.begin(offset, len(data))
        self.live.pwrite(data, offset, fua=fua)
        self._counted.end(offset, len(data))

    def zero(self, length: int, offset: int, *, no_hole: bool, fast: bool, fua: bool) -> None:
        self._counted.begin(offset, length)
        self.live.zero(length, offset, no_hole=no_hole, fast=fast, fua=fua)
        self._counted.end(offset, length)

    def trim(self, length: int, offset: int, *, fua: bool) -> None:
        self._counted.begin(offset, length)
        self.live.trim(length, offset, fua=fua)
        self._counted.end(offset, length)

    def flush(self) -> None:
        self.live.flush()

    def statuses(self) -> Iterable[tuple[int, bool]]:
        self._counted.check(self.engine)
        at = 0
        for status in self.live.block_status(self.size, 0):
            assert status["offset"] == at
            at += status["length"]
            yield status["length"], status["zero"]

    def read_snapshot(self, name: str) -> bytes:
        self._counted.check_snapshot(self.engine, int(name))
        handle = self.engine.open(f"v@{name}")
        try:
            assert handle.read_only
            assert errno_of(lambda: handle.pwrite(b"x", 0)) == errno.EPERM
            whole = handle.pread(self.size, 0)
            same(f"an odd read of snapshot {name}", handle.pread(9000, 4097), whole[4097:13097], 4097)
            return whole
        finally:
            handle.close()

    def cut(self, *, own_rule: bool = False) -> str:
        log, ended = NAMED_AREA if own_rule else None, self._counted.ended()
        report = self.engine.cut([{"volume": VOLUME, "log_rules": first(log)}])
        epoch = report["epochs"][VOLUME]
        assert epoch >= self._next_epoch, "an epoch was used twice"
        self._next_epoch = epoch + 1
        self.engine.settle(VOLUME, epoch)
        self.engine.flush(VOLUME)
        self.engine.export(f"v@{epoch}", "", VOLUME, epoch)
        self._snapshots[epoch] = log
        self._counted.cut(self.engine, epoch, ended)
        return str(epoch)

    def delete(self, name: str) -> None:
        epoch = int(name)
        self.engine.unexport(f"v@{name}")
        del self._snapshots[epoch]
        self.engine.drop_snapshot(VOLUME, epoch)
        self._counted.deleted(epoch)

    def restart(self, *, kill: bool = False) -> None:
        self.live.close()
        volume, saved = self.directory / "volume", self.directory / "saved"
        if kill:
            _copy(volume, saved)
        self.engine.stop()
        if kill:
            shutil.rmtree(volume)
            saved.rename(volume)
        self._start()
        if kill:
            self._counted.killed(self.engine)

    def grow(self) -> None:
        """Add a change log of 4 MiB, unless there are many."""
        count = len(self._grown)
        if count == GROWN_MAX:
            return
        extent: ExtentSpec = {"device": 4, "offset": count * GROWN_BYTES, "length": GROWN_BYTES}
        log: LogSpec = {"number": 3 + count, "extents": [extent]}
        self._grown.append(log)
        self.engine.add_log(VOLUME, log, {"log_rules": self._rules(), "snapshots": []})

    def _rules(self) -> "list[LogRule]":
        return first(1, *(log["number"] for log in self._grown))

    def used_bytes(self) -> int:
        """What the block maps refer to in the change logs."""
        return sum(log["used_bytes"] for log in self.engine.volume_stats(VOLUME)["logs"])

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.engine.stop()
