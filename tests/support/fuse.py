"""fuse: an export as a file (nbdfuse), that file as a disk (a loop device), that disk as a file system.

How it works      nbdfuse presents an export as one file, losetup makes it a block device, mount mounts
                  that. So the kernel's file systems run on polyvol where the kernel has no NBD of its own.
Owner and locks   Each context manager undoes its own part, in reverse, whatever failed in between.
Errors            Tests are skipped, with the reason, where /dev/fuse or loop devices are missing or
                  forbidden. Every mount is looked up in /proc/mounts before its path is handed out: a
                  command on a path that is not mounted would hit the machine's own file system.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.support.proc import Background, check, run, wait_until


def needed() -> None:
    """Skip the calling test where its means are missing."""
    if os.geteuid() != 0:
        pytest.skip("loop devices and mounts need root")
    for path in ("/dev/fuse", "/dev/loop-control"):
        if not os.access(path, os.R_OK | os.W_OK):
            pytest.skip(f"{path} is missing or cannot be opened")


def mounted(path: Path) -> bool:
    """Whether something is mounted at exactly this path."""
    quoted = str(path).replace("\\", "\\134").replace(" ", "\\040")
    return any(line.split(" ")[1] == quoted for line in Path("/proc/mounts").read_text().splitlines())


def unmount(path: Path) -> None:
    """Unmount a path if it is mounted; lazily when it is still busy, so that nothing outlives the test."""
    if mounted(path) and run("umount", path).rc != 0:
        check("umount", "--lazy", path)


@contextmanager
def disk_file(
    address: str, directory: Path, *, name: str = "disk", read_only: bool = False
) -> Iterator[Path]:
    """An export as a file."""
    needed()
    path = directory / name
    path.touch()
    options = ["--readonly"] if read_only else []
    with Background("nbdfuse", *options, path, address, log=directory / f"{name}.nbdfuse.log") as process:
        try:
            process.wait_until(lambda: mounted(path), "the mount by nbdfuse", 20)
            yield path
        finally:
            unmount(path)
            process.wait()


@contextmanager
def loop_device(path: Path, *, read_only: bool = False, direct: bool = False) -> Iterator[Path]:
    """A file as a block device; `direct`: past the file's own page cache."""
    options = ["--read-only"] if read_only else []
    options += ["--direct-io=on"] if direct else []
    device = Path(check("losetup", *options, "--find", "--show", path).strip())
    try:
        yield device
    finally:
        check("losetup", "--detach", device)
        # The kernel releases it a little later; nbdfuse's file stays busy until then.
        wait_until(lambda: str(path) not in run("losetup", "--list").out, f"the end of {device}", 20)


@contextmanager
def mount(device: Path, directory: Path, *options: str, name: str = "fs") -> Iterator[Path]:
    """A block device's file system, mounted."""
    path = directory / name
    path.mkdir(exist_ok=True)
    check("mount", *(("-o", ",".join(options)) if options else ()), device, path)
    try:
        assert mounted(path), f"{path} is not mounted"
        yield path
    finally:
        unmount(path)


@contextmanager
def block_device(
    address: str, directory: Path, *, name: str = "disk", read_only: bool = False
) -> Iterator[Path]:
    """An export as a block device: nbdfuse and a loop device in one."""
    with (
        disk_file(address, directory, name=name, read_only=read_only) as path,
        loop_device(path, read_only=read_only) as device,
    ):
        yield device
