"""test_devices: disks that fail, that are missing, that come back, and bytes that change on them.

How it works      A disk that fails on demand is nbdkit's error filter behind nbdfuse and a loop device: as
                  long as a trigger file exists, its reads or writes end with EIO. A missing one is a file
                  that was renamed. Changed bytes are written to a change log's file behind the daemon.
Errors            The test with a disk is skipped where /dev/fuse or loop devices are missing.
"""

import errno
import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.support.daemon import Daemon
from tests.support.fuse import disk_file, loop_device, needed
from tests.support.nbd import NbdError, connect
from tests.support.proc import Argument, Background, check, listens

MIB = 1 << 20
BLOCK = 4096


class FailingDisk:
    """A disk whose reads or writes fail on demand."""

    def __init__(self, path: Path, triggers: Path) -> None:
        self.path = path
        self._triggers = triggers

    def fail(self, call: str) -> None:
        """From now on `pread` or `pwrite` fail."""
        (self._triggers / call).touch()

    def work(self) -> None:
        """Everything works again."""
        for trigger in self._triggers.iterdir():
            trigger.unlink()

    def forget_cache(self) -> None:
        """Have the next reads go to the disk."""
        check("blockdev", "--flushbufs", self.path)


@contextmanager
def failing_disk(directory: Path) -> Iterator[FailingDisk]:
    needed()
    triggers = directory / "triggers"
    triggers.mkdir()
    socket = directory / "disk.sock"
    errors = [f"error-{call}-{what}" for call in ("pread", "pwrite") for what in ("rate=100%",)]
    errors += [f"error-{call}-file={triggers / call}" for call in ("pread", "pwrite")]
    command: list[Argument] = [
        "nbdkit",
        "--foreground",
        "--unix",
        socket,
        "--filter=error",
        "memory",
        "64M",
        "error=EIO",
    ]
    with Background(*command, *errors, log=directory / "nbdkit.log") as server:
        server.wait_until(lambda: listens(socket), "nbdkit's socket", 20)
        with (
            disk_file(f"nbd+unix:///?socket={socket}", directory, name="failing") as file,
            loop_device(file, direct=True) as path,
        ):
            yield FailingDisk(path, triggers)


def errno_of(action: Any, *arguments: object) -> int:
    """The errno that libnbd's call ends with; 0 if it succeeds."""
    try:
        action(*arguments)
    except NbdError as error:
        return int(error.errnum or -1)
    return 0


def two_partitions(daemon: Daemon, first: str, second: str, *, log: str = "512M") -> None:
    """Volume v of two partitions, one on each device."""
    daemon.add_devices("log", size=log)
    options = ["--partition-size", "1M", "--device", first, "--device", second, "--log-device", "log"]
    daemon.ok("volume", "create", "v", "--size", "2M", *options)


def shown(daemon: Daemon, noun: str, name: str) -> dict[str, Any]:
    options = ["--partitions"] if noun == "volume" else []
    view: dict[str, Any] = daemon.json(noun, "show", name, *options)
    return view


def test_a_disk_that_fails_is_shown_and_comes_back_without_a_restart(daemon: Daemon, short_dir: Path) -> None:
    with failing_disk(short_dir) as disk:
        try:
            fails_and_comes_back(daemon, disk)
        finally:
            disk.work()
            daemon.stop()  # it holds the disk


def fails_and_comes_back(daemon: Daemon, disk: FailingDisk) -> None:
    daemon.add_devices("good", size="64M")
    daemon.ok("device", "add", disk.path, "--name", "bad")
    two_partitions(daemon, "good", "bad")
    with connect(daemon.uri("v")) as host:
        host.pwrite(b"a" * 2 * MIB, 0)
        host.flush()
        disk.fail("pread")
        disk.forget_cache()
        assert errno_of(host.pread, BLOCK, MIB) == errno.EIO
        assert host.pread(BLOCK, 0) == b"a" * BLOCK
        view = shown(daemon, "device", "bad")
        assert (view["state"], view["reason"][:10]) == ("faulty", "reading at")
        assert "input/output error" in view["reason"]
        volume = shown(daemon, "volume", "v")
        assert (volume["state"], [part["state"] for part in volume["partitions"]]) == (
            "degraded",
            ["ok", "faulty"],
        )
        assert "faulty" in daemon.ok("status")
        assert "device bad" in daemon.refused("device", "retry", "bad")
        disk.work()
        assert host.pread(BLOCK, MIB) == b"a" * BLOCK, "it is tried each time"
        daemon.ok("device", "retry", "bad")
        assert shown(daemon, "volume", "v")["state"] == "serving"
        # A write that cannot be made durable.
        host.pwrite(b"b" * BLOCK, MIB)
        disk.fail("pwrite")
        assert errno_of(host.flush) == errno.EIO
        disk.work()
        host.pwrite(b"c" * BLOCK, 0)
        assert errno_of(host.flush) == errno.EIO, "never answered by a later one as success"
        assert "syncing failed" in shown(daemon, "device", "bad")["reason"]
        daemon.ok("device", "retry", "bad")
        host.pwrite(b"d" * BLOCK, MIB)
        host.flush()
        assert host.pread(BLOCK, MIB) == b"d" * BLOCK
    assert shown(daemon, "volume", "v")["state"] == "serving"


@pytest.mark.slow
def test_a_volume_is_served_as_far_as_its_devices_are_there(daemon: Daemon) -> None:
    daemon.add_devices("a", "b", size="64M")
    two_partitions(daemon, "a", "b")
    with connect(daemon.uri("v")) as host:
        host.pwrite(b"a" * 2 * MIB, 0)
    path, away = daemon.directory / "b.img", daemon.directory / "away.img"
    daemon.stop()
    path.rename(away)
    daemon.start()
    volume = shown(daemon, "volume", "v")
    assert (volume["state"], volume["partitions"][1]["state"]) == ("degraded", "faulty")
    with connect(daemon.uri("v")) as host:
        assert host.pread(MIB, 0) == b"a" * MIB
        assert errno_of(host.pread, BLOCK, MIB) == errno.EIO
        assert errno_of(host.pwrite, b"x" * BLOCK, MIB) == errno.EIO
        host.flush()  # the daemon was stopped cleanly: nothing is in doubt
        daemon.ok("snapshot", "create", "v", "--name", "s")
        host.pwrite(b"b" * BLOCK, 0)
        host.flush()
        assert "does not exist" in daemon.refused("device", "retry", "b")
        words = daemon.refused("device", "retry", "b", "--path", daemon.directory / "a.img")
        assert "is device a already" in words
        daemon.ok("device", "retry", "b", "--path", away)
        assert host.pread(BLOCK, MIB) == b"a" * BLOCK
        host.pwrite(b"c" * BLOCK, MIB)
        host.flush()
    assert shown(daemon, "volume", "v")["state"] == "serving"
    daemon.restart()
    assert shown(daemon, "device", "b")["path"] == str(away)
    with connect(daemon.uri("v@s")) as snapshot:
        assert snapshot.pread(2 * MIB, 0) == b"a" * 2 * MIB


@pytest.mark.slow
def test_a_flush_after_a_kill_is_honest_about_a_device_that_went_missing(daemon: Daemon) -> None:
    daemon.add_devices("a", "b", size="64M")
    two_partitions(daemon, "a", "b")
    with connect(daemon.uri("v")) as host:
        host.pwrite(b"a" * 2 * MIB, 0)
        daemon.kill()
    (daemon.directory / "b.img").rename(daemon.directory / "away.img")
    daemon.start()
    with connect(daemon.uri("v")) as host:
        assert host.pread(BLOCK, 0) == b"a" * BLOCK
        assert errno_of(host.flush) == errno.EIO
        (daemon.directory / "away.img").rename(daemon.directory / "b.img")
        daemon.ok("device", "add", daemon.directory / "b.img")
        host.flush()
        assert host.pread(BLOCK, MIB) == b"a" * BLOCK


def test_a_device_that_became_shorter_reads_as_an_error(daemon: Daemon) -> None:
    daemon.add_devices("a", "b", size="64M")
    two_partitions(daemon, "a", "b")
    path = daemon.directory / "b.img"
    with connect(daemon.uri("v")) as host:
        host.pwrite(b"a" * 2 * MIB, 0)
        with path.open("r+b") as file:
            file.truncate(MIB + BLOCK)  # the label area and one block
        assert host.pread(BLOCK, MIB) == b"a" * BLOCK
        assert errno_of(host.pread, BLOCK, MIB + BLOCK) == errno.EIO
        assert host.pread(BLOCK, 0) == b"a" * BLOCK
        words = daemon.refused("device", "retry", "b")
        assert "device b cannot be used" in words
    assert daemon.end() == 1, "what was written to it cannot be made durable"


def change(path: Path, old: bytes) -> None:
    """Change a byte wherever a block of these bytes is in a file."""
    data = path.read_bytes()
    at = data.index(old)
    with path.open("r+b") as file:
        file.seek(at + 7)
        file.write(bytes([old[7] ^ 1]))


@pytest.mark.slow
def test_a_changed_byte_is_never_read_and_a_scrub_finds_it(daemon: Daemon) -> None:
    daemon.add_devices("a", "b", size="64M")
    two_partitions(daemon, "a", "b", log="128M")
    log = daemon.directory / "log.img"
    blocks = [bytes([number]) * BLOCK for number in range(1, 9)]
    with connect(daemon.uri("v")) as host:
        daemon.ok("snapshot", "create", "v", "--name", "s1")
        host.pwrite(b"".join(blocks), MIB)
        daemon.ok("snapshot", "create", "v", "--name", "s2")
        host.pwrite(b"n" * BLOCK, MIB)
        host.flush()
        assert daemon.ok("scrub", "v") == "scrub of volume v done: 36 KiB read, 0 bad blocks\n"
        change(log, blocks[0])
        change(log, blocks[3])
        view = json.loads(daemon.cli("scrub", "v", "--json").out)
        assert [(bad["partition"], bad["block"], bad["seen_by"]) for bad in view["bad"]] == [
            (1, 0, ["v@s2"]),
            (1, 3, ["v", "v@s2"]),
        ]
        assert errno_of(host.pread, BLOCK, MIB + 3 * BLOCK) == errno.EIO
        assert errno_of(host.pwrite, b"x", MIB + 3 * BLOCK) == errno.EIO
        assert host.pread(BLOCK, MIB + 4 * BLOCK) == blocks[4]
        volume = shown(daemon, "volume", "v")
        assert volume["state"] == "degraded"
        assert [(bad["partition"], bad["block"], bad["device"]) for bad in volume["bad_blocks"]] == [
            (1, 0, "log"),
            (1, 3, "log"),
        ]
        host.pwrite(b"h" * BLOCK, MIB + 3 * BLOCK)
        assert host.pread(BLOCK, MIB + 3 * BLOCK) == b"h" * BLOCK
    with connect(daemon.uri("v@s2")) as snapshot:
        assert errno_of(snapshot.pread, BLOCK, MIB + 3 * BLOCK) == errno.EIO
        assert snapshot.pread(BLOCK, MIB + 2 * BLOCK) == blocks[2]
    daemon.ok("snapshot", "delete", "v@s2")
    assert shown(daemon, "volume", "v")["state"] == "serving"


@pytest.mark.slow
def test_a_scrub_does_not_hold_up_hosts_nor_report_what_they_write(daemon: Daemon) -> None:
    daemon.make_volume(size="64M", partition_size="4M")
    stop = threading.Event()
    slowest: list[float] = [0.0]

    def write() -> None:
        with connect(daemon.uri("v")) as host:
            number = 0
            while not stop.is_set():
                start = time.monotonic()
                host.pwrite(bytes([number % 251]) * 65536, number % 128 * 65536)
                slowest[0] = max(slowest[0], time.monotonic() - start)
                number += 1
                if number % 256 == 0:
                    host.flush()

    daemon.ok("snapshot", "create", "v", "--name", "s0")
    writer = threading.Thread(target=write)
    writer.start()
    try:
        for number in range(1, 4):
            words = daemon.ok("scrub", "v", "--rate", "1G")
            assert "0 bad blocks" in words
            daemon.ok("snapshot", "create", "v", "--name", f"s{number}")
            daemon.ok("snapshot", "delete", f"v@s{number - 1}")
    finally:
        stop.set()
        writer.join(30)
    assert not writer.is_alive()
    assert slowest[0] < 2


@pytest.mark.parametrize("arguments", [("--rate", "1K"), ("--stop",)])
def test_scrubs_that_cannot_be_are_refused(daemon: Daemon, arguments: tuple[str, ...]) -> None:
    daemon.make_volume(size="1M")
    daemon.refused("scrub", "v", *arguments, rc=2 if "--rate" in arguments else 1)
