"""direct: whether files of a directory can be used past the page cache, and what that has of them."""

import ctypes
import mmap
import os
from pathlib import Path

import pytest

BLOCK = 4096

_libc = ctypes.CDLL(None, use_errno=True)


def needed(directory: Path) -> None:
    """Skip the calling test where this directory's file system has no O_DIRECT."""
    probe = directory / "direct-probe"
    probe.touch()
    try:
        os.close(os.open(probe, os.O_RDONLY | os.O_DIRECT))
    except OSError as error:
        pytest.skip(f"the file system of {directory} has no O_DIRECT ({error.strerror})")
    finally:
        probe.unlink()


def drop_pages(path: Path) -> None:
    """Have the page cache keep nothing of a file, if it can drop it."""
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(fd)


def cached_blocks(path: Path, offset: int = 0, length: int = 0) -> int:
    """How many blocks of this range of a file, or to its end, are in the page cache; asking brings none."""
    length = length or path.stat().st_size - offset
    with (
        path.open("rb") as file,
        mmap.mmap(file.fileno(), length, mmap.MAP_PRIVATE, offset=offset) as mapping,
    ):
        first = ctypes.c_char.from_buffer(mapping)
        found = ctypes.create_string_buffer(-(-length // BLOCK))
        rc = _libc.mincore(ctypes.c_void_p(ctypes.addressof(first)), ctypes.c_size_t(length), found)
        del first  # else the mapping could not be closed
    assert rc == 0, os.strerror(ctypes.get_errno())
    return sum(byte & 1 for byte in found.raw)
