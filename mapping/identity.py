"""The lasting identity of an adopted device, which has no label among its data.

How it works      A file: its inode number and birth time (statx). A copy of it has others; another
                  name of it has the same. A disk: the identity that its maker gave it, from sysfs; a
                  partition: its disk's, and where it begins. It stays the same over restarts of the host.
Errors            Nothing raises: where there is no such identity, or it cannot be relied on, it is None.
"""

import contextlib
import ctypes
import os
import struct
from pathlib import Path

from polyvol.mapping.opening import OpenFile

SYSFS = Path("/sys/dev/block")
_KEYS = ("device/wwid", "wwid", "dm/uuid", "serial", "device/serial")
_EMPTY_PATH = 0x1000
_WANTED = 0x100 | 0x800
"""STATX_INO and STATX_BTIME."""
_STATX_BYTES = 256
_libc = ctypes.CDLL(None, use_errno=True)


def lasting_identity(file: OpenFile) -> str | None:
    """The identity of the file or disk."""
    return _of_file(file.fd) if file.kind == "file" else _of_disk(os.fstat(file.fd).st_rdev)


def _of_file(fd: int) -> str | None:
    buffer = ctypes.create_string_buffer(_STATX_BYTES)
    try:
        failed = _libc.statx(fd, b"", _EMPTY_PATH, ctypes.c_uint(_WANTED), buffer)
    except AttributeError:  # a C library without it
        return None
    mask = struct.unpack_from("=I", buffer, 0)[0]
    if failed or mask & _WANTED != _WANTED:
        return None  # a file system without birth times may renumber its files when it is mounted
    inode = struct.unpack_from("=Q", buffer, 32)[0]
    seconds, nanoseconds = struct.unpack_from("=qI", buffer, 80)
    return f"file {inode} of {seconds}.{nanoseconds:09}"


def _of_disk(number: int) -> str | None:
    disk = Path(os.path.realpath(SYSFS / f"{os.major(number)}:{os.minor(number)}"))
    where = ""
    with contextlib.suppress(OSError):
        if (disk / "partition").exists():
            where = f" from sector {(disk / 'start').read_text().strip()}"
            disk = disk.parent
    for key in _KEYS:
        with contextlib.suppress(OSError):
            text = " ".join((disk / key).read_text(errors="replace").split())
            if text:
                return f"disk {text}{where}"
    return None
