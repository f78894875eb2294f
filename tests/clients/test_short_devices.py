"""test_short_devices: what lay beyond the end of a device that became shorter is never zeros to any client.

How it works      A file full of bytes other than zero is a device, is cut, and then read, written, mapped,
                  copied and backed up by every client. A disk is a loop device over such a file.
Errors            The tests with a disk are skipped where loop devices are missing.
"""

import errno
import os
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from tests.support import nbd
from tests.support.daemon import Daemon
from tests.support.fuse import loop_device, needed
from tests.support.proc import Argument, check, run, wait_until

MIB = 1 << 20
BLOCK = 4096
SIZE = 8 * MIB
CUT = 5 * MIB
LOST = 6 * MIB
"""An offset beyond the cut."""


@pytest.fixture
def image(daemon: Daemon) -> Path:
    """A file without a block of zeros, and volume `v` with snapshot `s` on it."""
    path = daemon.directory / "base.img"
    path.write_bytes(contents())
    make_volume(daemon, path)
    return path


def contents() -> bytes:
    """What the devices hold."""
    return b"".join(bytes([1 + number % 255]) * BLOCK for number in range(SIZE // BLOCK))


def make_volume(daemon: Daemon, path: Path) -> None:
    """Volume `v` on an adopted file or disk, in partitions of 1 MiB, and its snapshot `s`."""
    daemon.ok("device", "add", path, "--adopt", "--name", "base")
    daemon.ok("volume", "create", "v", "--base", "base", "--partition-size", "1M")
    daemon.ok("snapshot", "create", "v", "--name", "s")


def state_of(daemon: Daemon) -> Any:
    return daemon.json("device", "show", "base")


def errno_of(call: Callable[..., object], *arguments: object) -> int:
    try:
        call(*arguments)
    except nbd.NbdError as error:
        return int(error.errnum or -1)
    return 0


@pytest.mark.slow
def test_no_copy_of_a_device_that_became_shorter_succeeds(
    daemon: Daemon, image: Path, short_dir: Path
) -> None:
    daemon.ok("backup", "v@s", "-o", short_dir / "whole.pv")
    daemon.ok("volume", "clone", "v@s", "c", "--log-device", log_device(daemon))
    daemon.ok("snapshot", "create", "c", "--name", "s")
    os.truncate(image, CUT)
    for export in ("v", "v@s", "c", "c@s"):
        address, out = daemon.uri(export), short_dir / "out"
        copies: tuple[list[Argument], ...] = (
            ["nbdcopy", address, out],
            ["nbdcopy", "--allocated", "--connections=1", address, out],
            ["qemu-img", "convert", "-f", "raw", "-O", "raw", address, out],
            ["qemu-img", "convert", "-f", "raw", "-O", "qcow2", "-W", address, out],
        )
        for copy in copies:
            assert run(*copy).rc != 0, copy
            out.unlink(missing_ok=True)
        for look in (["nbdinfo", "--map", address], ["qemu-img", "map", "-f", "raw", address]):
            told = run(*look)
            assert told.rc != 0, told.out
            assert "zero" not in told.out, told.out
    for snapshot in ("v@s", "c@s"):
        for more in ([], ["--raw"]):
            said = daemon.refused("backup", snapshot, "-o", short_dir / "lost.pv", *more)
            assert snapshot in said
            assert "input/output error" in said
            assert not (short_dir / "lost.pv").exists()
            (short_dir / "lost.pv.partial").unlink(missing_ok=True)
    piped = daemon.cli("backup", "v@s", "-o", "-")
    assert piped.rc == 1
    # What was backed up before is what there is.
    daemon.ok("restore", short_dir / "whole.pv", "back", "--device", log_device(daemon, "more"))
    assert nbd.read_all(daemon.uri("back@s")) == contents()
    assert daemon.end() == 1, "what it holds cannot be made durable"


def log_device(daemon: Daemon, name: str = "log") -> str:
    """A device with room."""
    daemon.add_devices(name, size="512M")
    return name


def test_a_host_is_told_eio_and_the_file_stays_short(daemon: Daemon, image: Path) -> None:
    daemon.ok("snapshot", "delete", "v@s")  # or all would go to the change log
    with nbd.connect(daemon.uri("v")) as host:
        host.pwrite(b"a" * BLOCK, LOST)
        os.truncate(image, CUT)
        for number, call in enumerate(changes(host)):
            assert errno_of(call) == errno.EIO, number
            assert image.stat().st_size == CUT, number
        assert errno_of(host.flush) == errno.EIO
        assert host.pread(CUT, 0) == contents()[:CUT]
        assert errno_of(host.pread, BLOCK, LOST) == errno.EIO
        assert errno_of(lambda: host.pread(2 * BLOCK, CUT - BLOCK)) == errno.EIO
        assert errno_of(nbd.allocation, host, MIB, LOST) == errno.EIO
        assert nbd.allocation(host, SIZE - MIB, MIB) == [(CUT - MIB, 0)]
    view = state_of(daemon)
    assert view["state"] == "faulty"
    assert "it was found with 5 MiB and must have 8 MiB" in view["reason"]
    assert daemon.volume("v")["state"] == "degraded"
    assert "cannot be used" in daemon.refused("volume", "create", "w", "--base", "base")
    assert "snapshot" in daemon.refused("snapshot", "create", "v", "--name", "t")
    assert daemon.end() == 1


def changes(host: Any) -> Iterator[Callable[[], object]]:
    """Every way to change bytes beyond the cut, or before it."""
    yield lambda: host.pwrite(b"b" * BLOCK, LOST)
    yield lambda: host.pwrite(b"b" * BLOCK, SIZE - BLOCK)
    yield lambda: host.pwrite(b"b" * 100, LOST + 7)
    yield lambda: host.pwrite(b"b" * 2 * MIB, CUT)
    yield lambda: host.pwrite(b"b" * BLOCK, 0)
    yield lambda: host.trim(MIB, LOST)
    yield lambda: host.zero(MIB, LOST)
    yield lambda: host.zero(2 * MIB, CUT)
    yield lambda: host.zero(1000, LOST + 1)


@pytest.mark.slow
def test_what_was_short_once_stays_so_until_it_is_retried(daemon: Daemon, image: Path) -> None:
    os.truncate(image, CUT)
    said = daemon.refused("device", "retry", "base")
    assert "has 5 MiB, and had 8 MiB" in said
    wait_until(lambda: "it was found" in daemon.said(), "the daemon's own look", 30)
    os.truncate(image, SIZE)  # by somebody who knows nothing
    for end in (daemon.end, daemon.kill):
        for export in ("v", "v@s"):
            with nbd.connect(daemon.uri(export)) as host:
                assert errno_of(host.pread, BLOCK, LOST) == errno.EIO, export
                copy = run("nbdcopy", daemon.uri(export), "null:")
                assert copy.rc != 0, export
        end()
        assert "it was found" in check_says(daemon)
        daemon.start()
        view = state_of(daemon)
        assert (view["state"], "it was found" in view["reason"]) == ("missing", True)
    image.write_bytes(contents())  # from elsewhere
    daemon.ok("device", "retry", "base")
    assert state_of(daemon)["state"] == "ok"
    assert nbd.read_all(daemon.uri("v@s")) == contents()
    with nbd.connect(daemon.uri("v")) as host:
        host.pwrite(b"a" * BLOCK, LOST)
        assert errno_of(host.flush) == errno.EIO, "what may be lost is told once"
        host.flush()
    daemon.restart()
    assert state_of(daemon)["state"] == "ok"


def check_says(daemon: Daemon) -> str:
    """What `polyvol check` says of a stopped daemon's state; it finds something."""
    found = daemon.cli("check")
    assert found.rc != 0
    return found.out + found.err


@pytest.mark.slow
def test_a_device_found_short_at_a_start_is_remembered(daemon: Daemon, image: Path) -> None:
    daemon.stop()
    os.truncate(image, CUT)
    daemon.start()
    assert state_of(daemon)["state"] == "missing"
    daemon.kill()
    os.truncate(image, SIZE)
    daemon.start()
    view = state_of(daemon)
    assert (view["state"], "it was found" in view["reason"]) == ("missing", True)
    with nbd.connect(daemon.uri("v@s")) as host:
        assert errno_of(host.pread, BLOCK, LOST) == errno.EIO
    daemon.ok("device", "retry", "base")
    daemon.ok("snapshot", "delete", "v@s")
    daemon.ok("volume", "delete", "v", "--yes")
    daemon.ok("device", "remove", "base")


def test_a_storage_device_that_became_shorter_takes_no_more(daemon: Daemon) -> None:
    daemon.add_devices("small", "log", size="128M")
    path = daemon.directory / "small.img"
    daemon.ok("volume", "create", "v", "--size", "64M", "--device", "small", "--log-device", "log")
    with nbd.connect(daemon.uri("v")) as host:
        host.pwrite(b"a" * MIB, 32 * MIB)
        host.flush()
        os.truncate(path, 20 * MIB)
        assert errno_of(lambda: host.pwrite(b"b" * BLOCK, 0)) == errno.EIO
        assert errno_of(lambda: host.pread(BLOCK, 32 * MIB)) == errno.EIO
        assert errno_of(lambda: nbd.allocation(host, MIB, 32 * MIB)) == errno.EIO
    assert "must have" in daemon.refused("volume", "create", "w", "--size", "4M", "--device", "small")
    assert path.stat().st_size == 20 * MIB
    assert daemon.end() == 1


def test_a_disk_that_became_shorter_gives_eio_and_not_enospc(daemon: Daemon, short_dir: Path) -> None:
    needed()
    file = short_dir / "disk.img"
    file.write_bytes(contents())
    with loop_device(file) as disk:
        try:
            make_volume(daemon, disk)
            daemon.ok("snapshot", "delete", "v@s")
            with nbd.connect(daemon.uri("v")) as host:
                host.pwrite(b"a" * BLOCK, 0)
                host.flush()
                os.truncate(file, CUT)
                check("losetup", "--set-capacity", disk)
                for number, call in enumerate(changes(host)):
                    if number != 4:  # a disk does not become longer by a write: this one may succeed
                        assert errno_of(call) == errno.EIO, number
                assert errno_of(host.pread, BLOCK, LOST) == errno.EIO
                assert errno_of(nbd.allocation, host, MIB, LOST) == errno.EIO
                assert errno_of(host.flush) == errno.EIO
            assert run("nbdcopy", daemon.uri("v"), "null:").rc != 0
            assert state_of(daemon)["state"] == "faulty"
            os.truncate(file, SIZE)
            check("losetup", "--set-capacity", disk)  # the kernel tells everybody
            with nbd.connect(daemon.uri("v")) as host:
                assert errno_of(host.pread, BLOCK, LOST) == errno.EIO
            daemon.ok("device", "retry", "base")
            assert state_of(daemon)["state"] == "ok"
        finally:
            daemon.stop()  # it holds the disk
    daemon.start()


@pytest.mark.slow
def test_nbdkit_tells_the_same(make_daemon: Callable[..., Daemon]) -> None:
    daemon = make_daemon("--frontend", "nbdkit")
    path = daemon.directory / "base.img"
    path.write_bytes(contents())
    make_volume(daemon, path)
    os.truncate(path, CUT)
    for export in ("v", "v@s"):
        with nbd.connect(daemon.uri(export)) as host:
            assert errno_of(host.pread, BLOCK, LOST) == errno.EIO
            assert errno_of(nbd.allocation, host, MIB, LOST) == errno.EIO
        assert run("nbdcopy", daemon.uri(export), "null:").rc != 0
    assert "input/output error" in daemon.refused("backup", "v@s", "-o", daemon.directory / "b.pv")


@pytest.mark.parametrize("log", [pytest.param(False, marks=pytest.mark.slow), True])
def test_a_volume_on_a_file_that_became_short_is_degraded_and_can_be_deleted(
    daemon: Daemon, log: bool
) -> None:
    """Also with a restart in between; and nothing is left that keeps the next one of its name from being
    made."""
    export, name = ("w", "w.log") if log else ("w@s", "w.data")
    for restart in (False, True):
        daemon.ok("volume", "create", "w", "--size", "8M", "--partition-size", "1M", "--processors", "1")
        write_all(daemon, "w")
        daemon.ok("snapshot", "create", "w", "--name", "s")
        write_all(daemon, "w")
        os.truncate(daemon.state_dir / "devices" / name, 2 * MIB)
        with nbd.connect(daemon.uri(export)) as handle:
            assert errno_of(handle.pread, SIZE, 0) == errno.EIO
        with suppress(nbd.NbdError):
            write_all(daemon, "w")
        wait_until(lambda: daemon.volume("w")["connections"] == 0, "the clients have left")
        shown = daemon.volume("w")
        assert (shown["state"], f"device {name} is faulty" in str(shown["reason"])) == ("degraded", True)
        if restart:
            daemon.end()
            daemon.start()
        daemon.ok("volume", "delete", "w", "--yes")
        assert list((daemon.state_dir / "devices").iterdir()) == []


def write_all(daemon: Daemon, export: str) -> None:
    """Write all of an export, durably."""
    with nbd.connect(daemon.uri(export)) as handle:
        handle.pwrite(contents(), 0)
        handle.flush()
