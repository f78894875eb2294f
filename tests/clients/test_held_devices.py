"""test_held_devices: what polyvold serves is its own: other polyvolds, QEMU, mkfs and mount are refused.

How it works      Two daemons on copies of one state directory; QEMU's programs on a file that is served, and
                  the other way round; the programs of util-linux and e2fsprogs on a loop device that is
                  served; a restart by a manager that keeps descriptors, with somebody who waits for the disk.
Errors            Skipped where loop devices or QEMU are missing.
"""

import errno
import json
import os
import shutil
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support import fuse
from tests.support.daemon import BIN, Daemon
from tests.support.nbd import connect
from tests.support.proc import Argument, Background, check, listens, run, wait_until
from tests.support.service_manager import Manager

MIB = 1 << 20
QEMU = ("qemu-io", "qemu-img", "qemu-nbd")


@pytest.fixture(params=["native", pytest.param("nbdkit", marks=pytest.mark.slow)])
def either(request: pytest.FixtureRequest, make_daemon: Callable[..., Daemon]) -> Daemon:
    """A daemon with either front-end."""
    return make_daemon("--frontend", request.param)


@pytest.fixture
def disk(short_dir: Path) -> Iterator[Path]:
    """A disk of 200 MiB."""
    fuse.needed()
    image = short_dir / "disk.img"
    with image.open("wb") as file:
        file.truncate(200 * MIB)
    with fuse.loop_device(image) as path:
        yield path


def make(daemon: Daemon, path: Path) -> None:
    """Volume v on device d at this path, with something on it."""
    daemon.ok("device", "add", path, "--name", "d", *([] if path.exists() else ["--size", "200M"]))
    daemon.ok("volume", "create", "v", "--size", "8M", "--device", "d", "--log-device", "d")
    write(daemon, b"a")


def write(daemon: Daemon, byte: bytes) -> None:
    with connect(daemon.uri("v")) as host:
        host.pwrite(byte * MIB, 0)
        host.flush()


def read(daemon: Daemon) -> bytes:
    with connect(daemon.uri("v")) as host:
        return bytes(host.pread(MIB, 0))


def device(daemon: Daemon) -> Any:
    return json.loads(daemon.ok("device", "show", "d", "--json"))


@pytest.mark.slow
def test_of_two_daemons_one_has_the_device_and_the_older_is_refused(either: Daemon) -> None:
    make(either, either.directory / "d.img")
    either.stop()
    copied = either.directory / "b"
    shutil.copytree(either.state_dir, copied / "state")
    either.start()
    with Daemon(copied) as other:
        assert device(other)["state"] == "missing"
        assert device(other)["reason"].endswith("is in use by another program, which holds it exclusively")
        assert "in use by another program" in other.refused("device", "retry", "d")
        either.stop()
        assert "so this one is older" in other.refused("device", "retry", "d")
        other.restart()
        assert "so this one is older" in device(other)["reason"]
        other.stop()
        assert "so this one is older" in run(BIN / "polyvol", "check", "--state-dir", copied / "state").out
    either.start()
    assert device(either)["state"] == "ok"
    assert read(either) == b"a" * MIB


def test_a_device_is_there_at_once_after_a_kill(either: Daemon) -> None:
    make(either, either.directory / "d.img")
    for _ in range(3):
        write(either, b"b")
        either.kill()
        either.start()
        assert device(either)["state"] == "ok", either.said()
    assert read(either) == b"b" * MIB


@pytest.mark.skipif(not all(map(shutil.which, QEMU)), reason="QEMU's programs are missing")
def test_qemu_is_refused_a_file_that_is_served(either: Daemon) -> None:
    path = either.directory / "d.img"
    make(either, path)
    commands: list[list[Argument]] = [
        ["qemu-io", "-f", "raw", "-c", "write 0 64k", path],
        ["qemu-io", "-f", "raw", "-r", "-c", "read 0 64k", path],
        ["qemu-img", "resize", "-f", "raw", path, "300M"],
        ["qemu-img", "bench", "-f", "raw", "-c", "1", "-w", path],
        ["qemu-img", "convert", "-f", "raw", "-O", "raw", path, either.directory / "copy"],
    ]
    for command in commands:
        result = run(*command)
        assert result.rc != 0
        assert "Failed to get " in result.err, result.err
    assert read(either) == b"a" * MIB
    assert run("qemu-img", "info", "--force-share", "-f", "raw", path).rc == 0
    either.stop()
    check("qemu-io", "-f", "raw", "-c", "read 0 64k", path)


@pytest.mark.slow
@pytest.mark.skipif(not all(map(shutil.which, QEMU)), reason="QEMU's programs are missing")
def test_a_file_that_qemu_has_is_refused(daemon: Daemon) -> None:
    path, socket = daemon.directory / "d.img", daemon.directory / "qemu.sock"
    make(daemon, path)
    daemon.stop()
    command: list[Argument] = ["qemu-nbd", "-f", "raw", "--persistent", "-k", socket, path]
    with Background(*command, log=daemon.directory / "qemu.log") as server:
        server.wait_until(lambda: listens(socket), "qemu-nbd's socket", 20)
        daemon.start()
        assert "in use by another program" in device(daemon)["reason"]
        assert "in use by another program" in daemon.refused("device", "add", path, "--force")
    daemon.ok("device", "retry", "d")
    assert read(daemon) == b"a" * MIB


def test_a_disk_that_is_served_is_refused_to_others(disk: Path, either: Daemon, short_dir: Path) -> None:
    make(either, disk)
    where = short_dir / "m"
    where.mkdir()
    commands: list[list[Argument]] = [
        ["mke2fs", "-q", "-t", "ext4", disk],
        ["mount", disk, where],
        ["blkdiscard", disk],
        ["wipefs", "--all", disk],
        ["mkswap", disk],
        ["sfdisk", "--quiet", "--delete", disk],
    ]
    for command in commands:
        assert run(*command).rc != 0, command
    with pytest.raises(OSError, match="busy"):
        os.open(disk, os.O_RDWR | os.O_EXCL)
    assert read(either) == b"a" * MIB
    either.ok("device", "retry", "d")  # it opens it again while it has it
    assert read(either) == b"a" * MIB
    either.ok("volume", "delete", "v", "--yes")
    either.ok("device", "remove", "d")
    os.close(os.open(disk, os.O_RDWR | os.O_EXCL))


@pytest.mark.slow
def test_a_start_does_not_serve_a_disk_that_is_mounted(disk: Path, either: Daemon, short_dir: Path) -> None:
    make(either, disk)
    either.stop()
    label = disk.read_bytes()[:MIB]
    check("mke2fs", "-q", "-t", "ext4", disk)
    with fuse.mount(disk, short_dir) as where:
        either.start()
        assert device(either)["reason"] == f"{disk} is mounted at {where}"
        assert either.volume("v")["state"] == "degraded"
        assert f"is mounted at {where}" in either.refused("device", "retry", "d")
    # A mount namespace that was made while it was mounted may have it mounted for a moment longer.
    wait_until(lambda: is_free(disk), f"that nobody has {disk}")
    with disk.open("r+b") as file:
        file.write(label)
    either.ok("device", "retry", "d")
    assert either.volume("v")["state"] == "serving"


def is_free(disk: Path) -> bool:
    """Whether nobody has a disk exclusively."""
    try:
        os.close(os.open(disk, os.O_RDONLY | os.O_EXCL))
    except OSError as error:
        if error.errno != errno.EBUSY:
            raise
        return False
    return True


def test_a_disk_and_its_partition_are_not_two_devices(disk: Path, daemon: Daemon) -> None:
    script = "label: gpt\nstart=2048, size=100M\n"
    run("sfdisk", "--quiet", disk, stdin=script.encode())
    run("partx", "--add", disk)
    part = Path(f"{disk}p1")
    try:
        if not part.exists():
            pytest.skip("this kernel makes no partitions of loop devices")
        daemon.ok("device", "add", part, "--name", "d", "--force")
        for options in ([], ["--force"], ["--adopt"]):
            assert "the same storage as device d" in daemon.refused("device", "add", disk, *options)
        daemon.ok("device", "remove", "d")
        daemon.ok("device", "add", disk, "--name", "d", "--adopt")
        assert "the same storage as device d" in daemon.refused("device", "add", part, "--force")
        daemon.stop()
    finally:
        run("partx", "--delete", disk)


def test_a_bind_mount_of_a_device_is_not_another_device(daemon: Daemon, short_dir: Path) -> None:
    fuse.needed()
    make(daemon, daemon.directory / "d.img")
    other = short_dir / "other"
    other.touch()
    check("mount", "--bind", daemon.directory / "d.img", other)
    try:
        for options in ([], ["--force"], ["--adopt"]):
            assert "is device d already" in daemon.refused("device", "add", other, *options)
    finally:
        check("umount", other)


def test_deleting_a_volume_clears_its_device_and_not_what_has_its_path(daemon: Daemon) -> None:
    path = daemon.directory / "d.img"
    make(daemon, path)
    path.rename(daemon.directory / "moved.img")
    path.write_bytes(b"PRECIOUS" * (8 * MIB))
    assert "its path shows another file now" in daemon.ok("status")
    assert "its path shows another file now" in daemon.ok("device", "show", "d")
    daemon.ok("volume", "delete", "v", "--yes")
    assert path.read_bytes() == b"PRECIOUS" * (8 * MIB)
    daemon.ok("volume", "create", "v", "--size", "8M", "--device", "d", "--log-device", "d")
    assert read(daemon) == bytes(MIB)
    daemon.restart()
    assert "carries no label" in device(daemon)["reason"]
    daemon.ok("device", "retry", "d", "--path", daemon.directory / "moved.img")
    assert read(daemon) == bytes(MIB)


@pytest.mark.slow
def test_nobody_takes_a_disk_during_a_live_restart(disk: Path, short_dir: Path) -> None:
    with Manager(short_dir) as manager:
        make(manager, disk)
        stop = threading.Event()
        taken: list[str] = []

        def wait_for_it() -> None:
            while not stop.is_set():
                try:
                    os.close(os.open(disk, os.O_RDONLY | os.O_EXCL))
                    taken.append("taken")
                except OSError:
                    pass

        taker = threading.Thread(target=wait_for_it)
        taker.start()
        try:
            for _ in range(3):
                manager.restart()
                assert device(manager)["state"] == "ok"
        finally:
            stop.set()
            taker.join(20)
        assert not taken
        assert read(manager) == b"a" * MIB
        manager.stop()
        assert any(name.startswith("device-") for name in manager.stored)
        manager.forget_devices()
        os.close(os.open(disk, os.O_RDONLY | os.O_EXCL))
        manager.start()
        assert device(manager)["state"] == "ok"


@pytest.mark.slow
def test_a_device_that_was_handed_over_is_the_one_that_was_open(short_dir: Path) -> None:
    with Manager(short_dir) as manager:
        path = short_dir / "d.img"
        make(manager, path)
        path.rename(short_dir / "moved.img")
        shutil.copy(short_dir / "moved.img", path)
        write(manager, b"b")
        manager.restart()
        assert read(manager) == b"b" * MIB
        assert "its path shows another file now" in device(manager)["reason"]


@pytest.mark.slow
def test_its_own_state_is_no_device(daemon: Daemon, short_dir: Path) -> None:
    """By no name: also with --force, as a hard link, through a link, or as a new file among the others."""
    make(daemon, short_dir / "disk.img")
    state = daemon.state_dir
    journal = next(state.glob("volumes/*/*.journal"))
    linked, led = short_dir / "linked", short_dir / "led"
    linked.hardlink_to(journal)
    led.symlink_to(state / "catalog.db")
    manifest = next(state.glob("manifests/*/*"))
    for path in (state / "catalog.db", state / "catalog.mark", journal, manifest, linked, led):
        for words in (("--adopt",), ("--adopt", "--force"), ("--force",)):
            said = daemon.refused("device", "add", path, *words)
            assert f"{path} cannot be used as a device: it is part of polyvold's own state" in said
    new = journal.parent / "new"
    daemon.refused("device", "add", new, "--size", "80M")
    assert not new.exists()
    daemon.ok("device", "add", state / "devices" / "inside", "--size", "80M")
    assert read(daemon) == b"a" * MIB
    assert "user.polyvol.label" not in os.listxattr(journal)
