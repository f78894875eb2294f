"""file_systems: small file systems for one test, of a kind and size of its choice, and how they are filled.

How it works      An image in the given folder, mounted by a loop device, or a tmpfs. Needs root, and the
                  kind's mkfs; a test is skipped where there is none. The mount ends when the block ends.
"""

import contextlib
import errno
import itertools
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.proc import check, run

MAKE = {
    "btrfs": ("mkfs.btrfs", "-q", "--mixed"),  # else a small one runs out of metadata, room or not
    "btrfs-metadata": ("mkfs.btrfs", "-q", "-m", "single"),
    "xfs": ("mkfs.xfs", "-q", "-m", "reflink=1"),
    "ext4": ("mkfs.ext4", "-q"),
    "ext4-few-files": ("mkfs.ext4", "-q", "-N", "128"),
}


@contextlib.contextmanager
def small(folder: Path, kind: str, size: str) -> Iterator[Path]:
    """A file system of this kind and size, mounted in `folder`."""
    place = folder / "disk"
    place.mkdir()
    if kind == "tmpfs":
        made = run("mount", "-t", "tmpfs", "-o", f"size={size}", "none", place)
    else:
        if shutil.which(MAKE[kind][0], path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin") is None:
            pytest.skip(f"{MAKE[kind][0]} is not installed")
        image = folder / "disk.img"
        check("truncate", "-s", size, image)
        check(*MAKE[kind], image)
        made = run("mount", "-o", "loop", image, place)
    if made.rc != 0:
        pytest.skip(f"{kind} cannot be mounted here")
    try:
        yield place
    finally:
        check("umount", "--lazy", place)


def fill(disk: Path, *, leave: int = 0) -> Path:
    """A file that takes all that is left of a file system but for so many bytes."""
    ballast = disk / "ballast"
    with ballast.open("ab", buffering=0) as file:
        for piece in (1 << 20, 64 << 10, 4096):
            # Some file systems tell only at the next try, or after a sync, that there is room after all.
            for _ in range(3):
                with contextlib.suppress(OSError):
                    while True:
                        _append(file.fileno(), piece)
                with contextlib.suppress(OSError):
                    os.fsync(file.fileno())
        if leave:
            file.truncate(max(0, file.tell() - leave))
            os.fsync(file.fileno())
    return ballast


def fill_with_files(disk: Path) -> Path:
    """A folder with so many files that a file system has room for no more."""
    folder = disk / "files"
    folder.mkdir(exist_ok=True)
    first = len(list(folder.iterdir()))
    with contextlib.suppress(OSError):
        for number in itertools.count(first):
            (folder / str(number)).touch()
    return folder


def fill_metadata(disk: Path) -> Path:
    """A folder whose attributes and files take all room that btrfs has for metadata."""
    folder = disk / "files"
    folder.mkdir()
    numbers = itertools.count()
    for _ in range(3):  # it tells only at the next try, or after a sync, that there is room after all
        with contextlib.suppress(OSError):
            for number in numbers:
                (folder / str(number)).touch()
                for attribute in range(16):
                    os.setxattr(folder / str(number), f"user.{attribute}", bytes(15000))
        os.sync()
    with contextlib.suppress(OSError):
        for number in numbers:
            (folder / str(number)).touch()
    os.sync()
    return folder


def _append(fd: int, size: int) -> None:
    if os.write(fd, b"\xa5" * size) < size:
        raise OSError(errno.ENOSPC, "a part of it")
