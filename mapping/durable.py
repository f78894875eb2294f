"""Durable: names and files that survive power loss.

How it works      A file is replaced by a new one that is complete and synced before it gets the name. A
                  created or removed name is durable when its directory is synced.
Durability        On return of a function here, its effect is durable.
Errors            OSError of the calls.
"""

import os
from pathlib import Path


def sync_directory(path: Path, *, dir_fd: int | None = None) -> None:
    """Make created and removed names in a directory durable. `dir_fd`: the directory that the path is
    relative to."""
    _sync(os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=dir_fd))


def sync_file(path: Path) -> None:
    """Make a file's contents durable."""
    _sync(os.open(path, os.O_RDONLY | os.O_CLOEXEC))


def write_file(path: Path, data: bytes, *, mode: int) -> None:
    """Have a file hold `data`; its name is not made durable. `mode`: as of open(2), if it is created.
    A symbolic link is refused."""
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW, mode)
    with os.fdopen(fd, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(fd)


def replace_file(path: Path, new: Path, data: bytes, *, mode: int) -> None:
    """Have a file hold `data`, durably; a kill leaves it as it was or as it is to be. `new`: the name that it
    has until it is complete, in the same directory; `mode`: as of open(2)."""
    write_file(new, data, mode=mode)
    new.rename(path)
    sync_directory(path.parent)


def _sync(fd: int) -> None:
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
