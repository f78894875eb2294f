"""test_week: a week of hourly and daily snapshots of a database, with relocation, in simulated time.

How it works      A real engine, and the daemon's relocation worker with a clock that the test sets. Each hour
                  hosts write single blocks, most of them in a few places, then a snapshot is taken, and
                  those are deleted that are kept neither as one of the last 24 nor as one of a day. Then
                  hosts are idle, for longer at night. Snapshots are compared with bytes in memory.
"""

import random
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

import pytest

from polyvol.daemon import relocation_progress
from polyvol.daemon.relocation_progress import RelocationProgress
from polyvol.daemon.space import relocation
from polyvol.daemon.space.relocation import RelocationWorker
from polyvol.engine import Engine, EngineError
from tests.support.model import BLOCK

if TYPE_CHECKING:
    from polyvol.engine import ExtentSpec, VolumeSpec

MIB = 1 << 20
SIZE = 32 * MIB
LOG = 32 * MIB
VOLUME = 1
HOURS = 7 * 24
PER_HOUR = SIZE * 5 // 100 // 24 // BLOCK
"""Blocks that hosts write in an hour, so that it is 5 % of the volume in a day."""
NIGHT = range(1, 5)


class Week:
    """A volume, what it and its snapshots hold, and its relocation."""

    def __init__(self, directory: Path, clock: "Clock") -> None:
        self.random = random.Random(7)
        self.clock = clock
        for name, size in (("base", SIZE), ("log", LOG)):
            with (directory / name).open("wb") as file:
                file.truncate(size)
        self.engine = Engine(2)
        self.engine.open_device(1, str(directory / "base"))
        self.engine.open_device(2, str(directory / "log"))
        self.engine.add_volume(spec(directory))
        self.engine.export("v", "", VOLUME, None)
        self.live = self.engine.open("v")
        self.bytes = bytearray(self.random.randbytes(SIZE))
        for begin in range(0, SIZE, MIB):
            self.live.pwrite(bytes(self.bytes[begin : begin + MIB]), begin)
        self.snapshots: dict[int, tuple[int, bytes]] = {}
        """By epoch: the hour, and what it holds."""
        self.volume: Any = SimpleNamespace(id=VOLUME, relocation_rate=None, source=None, is_relocated=True)
        context = SimpleNamespace(
            engine=self.engine,
            engine_error=EngineError,
            relocations={},
            uses={},
            refusing=set(),
            is_served=lambda _: True,
            catalog=SimpleNamespace(volumes=SimpleNamespace(all=lambda: [self.volume])),
        )
        self.worker = RelocationWorker(cast("Any", context))
        self._relocations: dict[int, RelocationProgress] = context.relocations

    @property
    def progress(self) -> RelocationProgress:
        """What was relocated."""
        return self._relocations[VOLUME]

    def write(self) -> None:
        """What hosts write in an hour: four of five blocks in a tenth of the volume."""
        blocks = SIZE // BLOCK
        for _ in range(PER_HOUR):
            often = self.random.random() < 0.8
            block = self.random.randrange(blocks // 10 if often else blocks) * 7919 % blocks
            data = self.random.randbytes(BLOCK)
            self.live.pwrite(data, block * BLOCK)
            self.bytes[block * BLOCK : (block + 1) * BLOCK] = data

    def cut(self, hour: int) -> None:
        """Take a snapshot, and delete those that are not kept."""
        epoch = self.engine.cut([{"volume": VOLUME, "log_rules": []}])["epochs"][VOLUME]
        self.engine.settle(VOLUME, epoch)
        self.engine.export(f"v@{epoch}", "", VOLUME, epoch)
        self.snapshots[epoch] = (hour, bytes(self.bytes))
        for old, (taken, _) in list(self.snapshots.items()):
            if taken <= hour - 24 and taken % 24 != 0:
                self.delete(old)

    def delete(self, epoch: int) -> None:
        """Delete a snapshot."""
        self.engine.unexport(f"v@{epoch}")
        self.engine.drop_snapshot(VOLUME, epoch)
        del self.snapshots[epoch]

    def rest(self, seconds: float) -> None:
        """Hosts are idle; the worker looks as often as it does, until it has nothing to do."""
        until = self.clock.now + seconds
        while self.clock.now < until:
            self.clock.now += relocation.LOOK_S
            if self.worker._is_due(self.volume):
                self.worker._move(self.volume)
            elif self.progress.state == relocation_progress.NOTHING_TO_MOVE:
                self.clock.now += 5.0

    def check(self) -> None:
        """All is as it was written."""
        assert read(self.engine, "v") == self.bytes
        for epoch, (hour, held) in self.snapshots.items():
            assert read(self.engine, f"v@{epoch}") == held, f"the snapshot of hour {hour}"

    @property
    def used(self) -> int:
        """Bytes in use in the log area."""
        return self.engine.space(VOLUME)["used_bytes"]


class Clock:
    """Time that passes when the test says so."""

    def __init__(self) -> None:
        self.now = 0.0

    def monotonic(self) -> float:
        """Seconds."""
        return self.now


def spec(directory: Path) -> "VolumeSpec":
    """Two partitions, on a processor each."""
    half = SIZE // 2
    extents: list[list[ExtentSpec]] = [
        [{"device": 1, "offset": number * half, "length": half}] for number in range(2)
    ]
    return {
        "id": VOLUME,
        "uuid": "07070707-0707-0707-0707-070707070707",
        "name": "v",
        "size": SIZE,
        "partition_size": half,
        "partitions": [{"processor": number, "extents": extents[number]} for number in range(2)],
        "logs": [{"number": 1, "extents": [{"device": 2, "offset": 0, "length": LOG}]}],
        "log_rules": [],
        "directory": str(directory / "volume"),
        "manifests": {"directory": str(directory / "volume"), "partitions": 0, "older": False},
        "snapshots": [],
        "rollbacks": [],
        "source": None,
        "next_epoch": 1,
    }


def read(engine: Engine, export: str) -> bytes:
    """All of an export."""
    handle = engine.open(export)
    try:
        return b"".join(handle.pread(MIB, begin) for begin in range(0, SIZE, MIB))
    finally:
        handle.close()


@contextmanager
def week(directory: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Week]:
    """A volume in simulated time; the engine is stopped."""
    clock = Clock()
    for module in (relocation, relocation_progress):
        monkeypatch.setattr(module, "time", clock)
    found = Week(directory, clock)
    try:
        yield found
    finally:
        found.live.close()
        found.engine.stop()


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_week_of_snapshots_copies_no_more_than_hosts_write(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with week(tmp_path, monkeypatch) as volume:
        for hour in range(HOURS):
            volume.write()
            volume.clock.now += relocation.LOOK_S
            volume.worker._is_due(volume.volume)  # sees that hosts were active
            volume.progress.live_before = -SIZE  # the first contents give no credit
            volume.cut(hour)
            volume.rest(600 if hour % 24 in NIGHT else 20)
            if hour % 24 == 23:
                volume.check()
        written = volume.engine.volume_stats(VOLUME)["write_bytes"] - SIZE  # without the first contents
        amplification = volume.progress.moved / written
        assert 0.1 < amplification < 1.0
        assert len(volume.snapshots) == 24 + 6
        for epoch in list(volume.snapshots):
            volume.delete(epoch)
        volume.rest(600)
        volume.check()
        assert volume.used == 0, "all blocks are home"
