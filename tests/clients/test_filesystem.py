"""test_filesystem: the kernel's file systems on a volume, and their snapshots mounted beside them.

How it works      nbdfuse and a loop device make a disk of an export (support/fuse.py). Files are copied in
                  and synced; a snapshot is taken while more are being written; the snapshot is mounted
                  read-only beside the live file system and must have every file that was synced, byte for
                  byte. Then a copy of the snapshot goes through the file system's own recovery, must have
                  them too, and its checker must find nothing wrong.
Errors            Skipped only where /dev/fuse or loop devices are missing.
"""

import filecmp
import os
import shutil
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.support import fuse, nbd
from tests.support.daemon import Daemon
from tests.support.proc import check

SOURCES = Path("/usr/share/doc")
COPIED_BYTES = 6 << 20
MAKE = {"ext4": ["mkfs.ext4", "-q"], "xfs": ["mkfs.xfs", "-q"]}
BESIDE = {"ext4": ["ro", "noload"], "xfs": ["ro", "norecovery", "nouuid"]}
MKFS_TIB_S = 30.0


def copy_files(target: Path) -> int:
    """Copy real files, up to COPIED_BYTES of them; how many."""
    copied = size = 0
    for path in sorted(SOURCES.rglob("*")):
        if path.is_file() and not path.is_symlink() and path.stat().st_size:
            place = target / path.relative_to(SOURCES)
            place.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, place)
            copied, size = copied + 1, size + path.stat().st_size
            if size > COPIED_BYTES:
                break
    assert copied > 50, f"{SOURCES} has only {copied} files"
    return copied


def sync(path: Path) -> None:
    """Make a whole file system durable, in place and not only in its journal: XFS shows a mount without
    recovery nothing else."""
    check("sync", "--file-system", path)
    check("fsfreeze", "--freeze", path)
    check("fsfreeze", "--unfreeze", path)


def compare(one: Path, other: Path) -> int:
    """Every file below `one` is below `other`, the same; how many."""
    count = 0
    for path in one.rglob("*"):
        if path.is_file():
            same = other / path.relative_to(one)
            assert filecmp.cmp(path, same, shallow=False), f"{same} differs from {path}"
            count += 1
    return count


@contextmanager
def writing(directory: Path) -> Iterator[None]:
    """Write, rewrite, sync and remove files while the body runs."""
    stop = threading.Event()
    failed: list[BaseException] = []

    def write() -> None:
        try:
            number = 0
            while not stop.is_set():
                path = directory / f"file{number % 20}"
                path.write_bytes(os.urandom(50_000))
                if number % 5 == 0:
                    with path.open("rb") as file:
                        os.fsync(file.fileno())
                if number % 7 == 0:
                    path.unlink()
                number += 1
        except BaseException as error:
            failed.append(error)

    directory.mkdir()
    thread = threading.Thread(target=write)
    thread.start()
    try:
        time.sleep(0.3)
        yield
    finally:
        stop.set()
        thread.join()
    assert not failed, failed


def check_copy(kind: str, image: Path, directory: Path, copied: int) -> None:
    """A copy of a snapshot recovers, by being mounted, and then has no fault."""
    with fuse.loop_device(image) as device, fuse.mount(device, directory, name="recovered") as recovered:
        assert compare(recovered / "synced", SOURCES) == copied
        assert any((recovered / "busy").iterdir())
    if kind == "ext4":
        check("e2fsck", "-fn", image)
    else:
        check("xfs_repair", "-n", "-f", image)


@contextmanager
def made(kind: str, address: str, directory: Path) -> Iterator[Path]:
    """A device with a new file system."""
    with fuse.block_device(address, directory) as device:
        check(*MAKE[kind], device)
        yield device


@pytest.mark.parametrize("kind", ["ext4", pytest.param("xfs", marks=pytest.mark.slow)])
def test_a_snapshot_under_load_mounts_beside_and_is_clean(daemon: Daemon, kind: str) -> None:
    fuse.needed()
    directory = daemon.directory
    volume = daemon.make_volume("v", size="512M", partition_size="1M")
    with (
        made(kind, daemon.uri(volume), directory) as device,
        fuse.mount(device, directory) as live,
    ):
        copied = copy_files(live / "synced")
        sync(live)
        with writing(live / "busy"):
            daemon.ok("snapshot", "create", volume, "--name", "s")
            daemon.ok("snapshot", "create", volume, "--name", "t")
        shutil.rmtree(next((live / "synced").iterdir()))
        for name in ("s", "t"):
            disk = fuse.block_device(daemon.uri(f"{volume}@{name}"), directory, name=name, read_only=True)
            with disk as held, fuse.mount(held, directory, *BESIDE[kind], name=f"fs-{name}") as beside:
                assert compare(beside / "synced", SOURCES) == copied
                with pytest.raises(OSError, match="Read-only"):
                    (beside / "new").touch()
        image = directory / "copy.img"
        nbd.copy(daemon.uri(f"{volume}@s"), image)
    check_copy(kind, image, directory, copied)
    with fuse.block_device(daemon.uri(volume), directory) as device:
        if kind == "ext4":
            check("e2fsck", "-fn", device)
        else:
            check("xfs_repair", "-n", device)


def test_trimmed_space_goes_back_to_the_device(daemon: Daemon) -> None:
    fuse.needed()
    volume = daemon.make_volume("v", size="256M", partition_size="1M")
    devices = [daemon.directory / f"v-{number}.img" for number in (0, 1)]
    with fuse.block_device(daemon.uri(volume), daemon.directory) as device:
        check("mkfs.ext4", "-q", device)
        with fuse.mount(device, daemon.directory) as live:
            (live / "large").write_bytes(os.urandom(32 << 20))
            sync(live)
            full = sum(path.stat().st_blocks for path in devices) * 512
            assert full > 32 << 20
            (live / "large").unlink()
            sync(live)
            check("fstrim", live)
            left = sum(path.stat().st_blocks for path in devices) * 512
            assert left < full - (28 << 20), f"{left} of {full} bytes are still allocated"


@pytest.mark.slow
def test_mkfs_on_a_tebibyte_takes_seconds(daemon: Daemon) -> None:
    fuse.needed()
    place: list[str] = []
    for number in range(2):
        daemon.add_devices(f"big{number}", size="600G")
        place += ["--device", f"big{number}"]
    daemon.add_devices("log", size="8G")
    daemon.ok("volume", "create", "v", "--size", "1T", *place, "--log-device", "log")
    with fuse.block_device(daemon.uri("v"), daemon.directory) as device:
        for kind in ("xfs", "ext4"):
            began = time.monotonic()
            check(*MAKE[kind], *(["-F"] if kind == "ext4" else ["-f"]), device, timeout_s=100)
            took = time.monotonic() - began
            assert took < MKFS_TIB_S, f"mkfs.{kind} took {took:.1f} s"
            with fuse.mount(device, daemon.directory) as path:
                (path / "file").write_text("here")
            if kind == "xfs":
                daemon.ok("snapshot", "create", "v", "--name", "s")
    held = sum((daemon.directory / f"big{number}.img").stat().st_blocks * 512 for number in range(2))
    assert held < 8 << 30, f"{held} bytes are allocated"


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["ext4", "xfs"])
def test_a_snapshot_that_was_not_frozen_is_mounted_by_a_clone_and_a_frozen_one_as_it_is(
    daemon: Daemon, kind: str
) -> None:
    """What docs/installing.md proposes."""
    fuse.needed()
    directory = daemon.directory
    volume = daemon.make_volume("v", size="512M", partition_size="1M")
    with made(kind, daemon.uri(volume), directory) as device, fuse.mount(device, directory) as live:
        (live / "file").write_bytes(b"synced")
        with (live / "file").open("rb") as file:
            os.fsync(file.fileno())
        daemon.ok("snapshot", "create", volume, "--name", "plain")
        check("fsfreeze", "--freeze", live)
        daemon.ok("snapshot", "create", volume, "--name", "frozen")
        check("fsfreeze", "--unfreeze", live)
        address = daemon.uri(f"{volume}@frozen")
        with (
            fuse.block_device(address, directory, name="frozen", read_only=True) as disk,
            fuse.mount(disk, directory, *BESIDE[kind], name="fs-frozen") as beside,
        ):
            assert (beside / "file").read_bytes() == b"synced"
        daemon.ok("volume", "clone", f"{volume}@plain", "look")
        options = ["nouuid"] if kind == "xfs" else []
        with (
            fuse.block_device(daemon.uri("look"), directory, name="look") as disk,
            fuse.mount(disk, directory, *options, name="fs-look") as clone,
        ):
            assert (clone / "file").read_bytes() == b"synced"
