"""test_cut_is_one_instant: a snapshot is one instant on all processors, and of all volumes of its cut.

How it works      Clients in processes of their own write numbered blocks round-robin over all partitions,
                  each write after the last was acknowledged (support/round_robin.py), while snapshots are
                  taken as fast as they can be. Every snapshot must hold a prefix of each client's numbers,
                  with at least what was acknowledged before the cut began and at most what was issued
                  before it ended. One reader keeps the processors busy, one after the other, so
                  that they come to a cut at different times: a processor that would not stop writes is found
                  out within a hundred cuts.
"""

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest

from polyvol.engine import Engine, Handle
from tests.support import nbd
from tests.support.daemon import Daemon
from tests.support.round_robin import Layout, Progress, prefixes, writing

MIB = 1 << 20
PARTITIONS = 8
PROCESSORS = 4
KEPT = 4
"""Snapshots that are there at once, each read when the next are being written over."""


class EngineVolumes:
    """Volumes `v0`, `v1`... of 1 MiB partitions on an engine in this process, served on a unix socket."""

    def __init__(self, directory: Path, count: int) -> None:
        self.ids = [number + 1 for number in range(count)]
        self.engine = Engine(PROCESSORS)
        for number in self.ids:
            for device, (name, size) in enumerate((("data", PARTITIONS * MIB), ("log", 256 * MIB))):
                path = directory / f"{name}{number}"
                with path.open("wb") as file:
                    file.truncate(size)
                self.engine.open_device(number * 10 + device, str(path))
            self._add(directory, number)
        path = directory / "nbd.sock"
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(str(path))
            listener.listen(16)
            self.engine.listen(listener.detach())
        self.addresses = [nbd.uri(f"v{number}", path) for number in self.ids]

    def _add(self, directory: Path, number: int) -> None:
        data, log = number * 10, number * 10 + 1
        self.engine.add_volume(
            {
                "id": number,
                "uuid": f"00000000-0000-0000-0000-{number:012}",
                "name": f"v{number}",
                "size": PARTITIONS * MIB,
                "partition_size": MIB,
                "partitions": [
                    {
                        "processor": at % PROCESSORS,
                        "extents": [{"device": data, "offset": at * MIB, "length": MIB}],
                    }
                    for at in range(PARTITIONS)
                ],
                "logs": [{"number": 1, "extents": [{"device": log, "offset": 0, "length": 256 * MIB}]}],
                "log_rules": [],
                "directory": str(directory / f"volume{number}"),
                "manifests": {
                    "directory": str(directory / f"volume{number}"),
                    "partitions": 0,
                    "older": False,
                },
                "snapshots": [],
                "rollbacks": [],
                "source": None,
                "next_epoch": 1,
            }
        )
        self.engine.export(f"v{number}", "", number, None)

    def cut(self) -> dict[int, int]:
        """One cut over all volumes: their epochs. Not settled yet."""
        return self.engine.cut([{"volume": number, "log_rules": []} for number in self.ids])["epochs"]

    def drop(self, epochs: dict[int, int]) -> None:
        """The end of one cut's snapshots."""
        for number, epoch in epochs.items():
            self.engine.unexport(f"v{number}@{epoch}")
            self.engine.drop_snapshot(number, epoch)

    def last_numbers(self, layout: Layout, epochs: dict[int, int]) -> list[int]:
        """Check one cut's snapshots; each client's last number in them."""
        handles = [self.engine.open(f"v{number}@{epochs[number]}") for number in self.ids]
        try:
            what = f"the snapshots of epochs {list(epochs.values())}"
            return prefixes(layout, lambda volume, length, at: handles[volume].pread(length, at), what)
        finally:
            for handle in handles:
                handle.close()


class Reads:
    """Reads by libnbd, as `prefixes` wants them."""

    def __init__(self, handles: list[Any]) -> None:
        self._handles = handles

    def __call__(self, volume: int, length: int, offset: int) -> bytes:
        return bytes(self._handles[volume].pread(length, offset))


@contextmanager
def busy(handle: Handle) -> Iterator[None]:
    """Have one processor after the other copy much, so that it comes late to a cut."""
    stop = threading.Event()

    def read() -> None:
        buffer = bytearray(MIB)
        while not stop.is_set():
            for partition in range(PARTITIONS):
                handle.pread_into(buffer, partition * MIB)

    thread = threading.Thread(target=read)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


def cut_for(seconds: float, volumes: EngineVolumes, layout: Layout, progress: Progress) -> int:
    """Take snapshots and check each, when it is new and again when it is old; how many there were."""
    kept: list[tuple[dict[int, int], list[int]]] = []
    taken = 0
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        before = progress.acknowledged()
        epochs = volumes.cut()
        after = progress.issued()
        for number, epoch in epochs.items():
            volumes.engine.settle(number, epoch)
            volumes.engine.export(f"v{number}@{epoch}", "", number, epoch)
        last = volumes.last_numbers(layout, epochs)
        within = all(low <= now <= high for low, now, high in zip(before, last, after, strict=True))
        assert within, f"acknowledged before {before}, in the snapshot {last}, issued after {after}"
        taken += 1
        kept.append((epochs, last))
        if len(kept) > KEPT:
            old, held = kept.pop(0)
            assert volumes.last_numbers(layout, old) == held, "a snapshot has changed"
            volumes.drop(old)
    return taken


def check_engine(directory: Path, layout: Layout, seconds: float) -> None:
    volumes = EngineVolumes(directory, layout.volumes)
    try:
        reader = volumes.engine.open("v1")
        with writing(layout, volumes.addresses, directory) as progress, busy(reader):
            taken = cut_for(seconds, volumes, layout, progress)
            written = progress.acknowledged()
        assert taken > 3 * seconds, f"only {taken} snapshots in {seconds} s"
        assert min(written) > 30 * seconds, f"the clients wrote only {written} blocks"
        reader.close()
    finally:
        volumes.engine.stop()


@pytest.mark.slow
def test_every_snapshot_is_one_instant(short_dir: Path) -> None:
    check_engine(short_dir, Layout(3, 1, PARTITIONS, MIB), 3)


@pytest.mark.slow
def test_a_cut_is_one_instant_of_two_volumes(short_dir: Path) -> None:
    check_engine(short_dir, Layout(3, 2, PARTITIONS, MIB), 3)


@pytest.mark.slow
@pytest.mark.alone
@pytest.mark.parametrize("volumes", [1, 2])
def test_every_snapshot_is_one_instant_at_length(short_dir: Path, volumes: int) -> None:
    check_engine(short_dir, Layout(6, volumes, PARTITIONS, MIB), 8)


@pytest.mark.slow
def test_what_the_daemon_snapshots_is_one_instant(daemon: Daemon) -> None:
    """The same from outside: the control socket takes the cuts, libnbd reads the snapshots."""
    layout = Layout(3, 2, PARTITIONS, MIB)
    names = [
        daemon.make_volume(f"v{number}", size="8M", processors=2, partition_size="1M") for number in (1, 2)
    ]
    with writing(layout, [daemon.uri(name) for name in names], daemon.directory) as progress:
        for turn in range(30):
            before = progress.acknowledged()
            daemon.api.post("snapshots", body={"volumes": names, "name": f"s{turn}"})
            after = progress.issued()
            with ExitStack() as stack:
                handles = [stack.enter_context(nbd.connect(daemon.uri(f"{name}@s{turn}"))) for name in names]
                reads = Reads(handles)
                last = prefixes(layout, reads, f"snapshot s{turn}")
            within = all(low <= now <= high for low, now, high in zip(before, last, after, strict=True))
            assert within, f"acknowledged before {before}, in the snapshot {last}, issued after {after}"
