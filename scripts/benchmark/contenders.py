"""contenders: the servers that are measured, all on one file that the page cache has.

How it works      nbdkit, qemu-nbd, the limit and polyvol's volume `plain` (which adopts it as its base) serve
                  the same file, so the page cache serves them all alike; nobody writes while another is
                  measured. polyvol's volume `many` has a copy of its own, 100 snapshots and 1,000 random
                  writes after each but the last of them, which leaves about every third block in a change
                  log. All servers run from the start to the end, and sleep while others have their turn.
Owner and locks   `started` ends every process that it started, by id, whatever happens.
Errors            AssertionError with the server's own output when it does not start.
"""

import os
import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from polyvol.daemon.cli.client import Client
from scripts.benchmark.cases import LIMIT, NBDKIT, POLYVOL, POLYVOL_OVERWRITE, POLYVOL_SNAPSHOTS, QEMU
from scripts.benchmark.load import Export, examples, write_some
from scripts.benchmark.quiet import favour
from tests.support.daemon import Daemon
from tests.support.proc import Argument, Background

DATA_BYTES = 1 << 30
LOG_SIZE = "16G"
SNAPSHOTS = 100
WRITES_BETWEEN_SNAPSHOTS = 1000
_PATTERN_BYTES = 16 << 20
_FRESH = "fresh"


@dataclass
class Contender:
    """A server in the table. `cut_first`: take a snapshot before each turn, delete it afterwards."""

    name: str
    pid: int
    export: Export
    client: Client | None = None
    cut_first: bool = False

    @contextmanager
    def turn(self) -> Iterator[Export]:
        """What it serves, ready for a turn."""
        if self.client is None or not self.cut_first:
            yield self.export
            return
        self.client.post("snapshots", body={"volumes": [self.export.name], "name": _FRESH})
        try:
            yield self.export
        finally:
            self.client.delete("volumes", self.export.name, "snapshots", _FRESH)


@contextmanager
def started(directory: Path, *, snapshots: bool) -> Iterator[dict[str, Contender]]:
    """Every contender by name, serving, in this directory; the one with 100 snapshots only if asked for."""
    data = directory / "data.img"
    fill(data)
    with ExitStack() as stack:

        def serve(name: str, word: str, *command: Argument) -> Contender:
            socket = directory / f"{word}.sock"
            process = stack.enter_context(Background(*command, log=directory / f"{word}.log"))
            process.wait_until(socket.exists, f"{name}'s socket")
            favour(process.pid)
            return Contender(name, process.pid, Export(socket, ""))

        socket = directory / "qemu.sock"
        qemu = ("qemu-nbd", "-t", "-e", "16", "-f", "raw", "--cache=writeback", "-k", socket, data)
        found = [
            serve(NBDKIT, "nbdkit", "nbdkit", "-f", "-U", directory / "nbdkit.sock", "file", data),
            serve(QEMU, "qemu", *qemu),
            serve(LIMIT, "limit", examples() / "limit", directory / "limit.sock", data),
        ]
        daemon = stack.enter_context(Daemon(directory))
        favour(daemon.pid)
        found += _plain(daemon, data)
        if snapshots:
            found.append(_with_snapshots(daemon, data))
        settle(directory)
        yield {contender.name: contender for contender in found}


def _plain(daemon: Daemon, data: Path) -> list[Contender]:
    export = _adopt(daemon, "plain", data)
    client = Client(daemon.state_dir)
    return [
        Contender(POLYVOL, daemon.pid, export),
        Contender(POLYVOL_OVERWRITE, daemon.pid, export, client, cut_first=True),
    ]


def _with_snapshots(daemon: Daemon, data: Path) -> Contender:
    copy = daemon.directory / "copy.img"
    shutil.copyfile(data, copy)
    export = _adopt(daemon, "many", copy)
    client = Client(daemon.state_dir)
    for number in range(SNAPSHOTS):
        client.post("snapshots", body={"volumes": [export.name], "name": f"s{number}"})
        if number + 1 < SNAPSHOTS:
            write_some(export, WRITES_BETWEEN_SNAPSHOTS, seed=number)
    return Contender(POLYVOL_SNAPSHOTS, daemon.pid, export)


def _adopt(daemon: Daemon, volume: str, base: Path) -> Export:
    daemon.ok("device", "add", base, "--name", volume, "--adopt")
    daemon.add_devices(f"{volume}-log", size=LOG_SIZE)
    daemon.ok("volume", "create", volume, "--base", volume, "--log-device", f"{volume}-log")
    return Export(daemon.nbd_socket, volume)


def fill(path: Path) -> None:
    """A file of DATA_BYTES without holes and without zeroes; in the page cache afterwards."""
    pattern = os.urandom(_PATTERN_BYTES)
    with path.open("wb") as file:
        for _ in range(DATA_BYTES // _PATTERN_BYTES):
            file.write(pattern)


def settle(directory: Path) -> None:
    """Write out what is dirty in the directory's files, so that no turn pays for the one before."""
    for path in directory.rglob("*"):
        if path.is_file() and not path.is_symlink():
            file = os.open(path, os.O_RDONLY)
            try:
                os.fdatasync(file)
            finally:
                os.close(file)
