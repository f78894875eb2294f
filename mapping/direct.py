"""Whether a file or disk can be used past the page cache (O_DIRECT), in blocks of 4096 bytes.

How it works      A trial: one block of it is read so, through another opening of what is open already.
                  If there is no file yet, or an empty one, an unnamed temporary file in the same directory is
                  tried instead.
Errors            DeviceNotDirect; DeviceIo if no file can be made there. Nothing has changed, either way.
"""

import errno
import mmap
import os
import tempfile
from pathlib import Path

from polyvol.mapping.errors import DeviceIo, DeviceNotDirect
from polyvol.mapping.extent import BLOCK_SIZE
from polyvol.mapping.opening import OpenFile
from polyvol.mapping.os_errors import reason


def check_direct(path: Path, file: OpenFile | None, size: int) -> None:
    """DeviceNotDirect unless the open file, of `size` bytes, or a file that is made at the path, takes
    O_DIRECT."""
    if file is not None and size > 0:
        why = _read_direct(Path(file.proc_path))
    else:
        try:
            with tempfile.TemporaryFile(dir=path.resolve().parent, buffering=0) as trial:
                trial.write(b"\1" * BLOCK_SIZE)  # of a hole, a file system may not ask the disk
                why = _read_direct(Path(f"/proc/self/fd/{trial.fileno()}"))
        except OSError as error:
            raise DeviceIo(what="making", path=path, why=error) from error
    if why is not None:
        raise DeviceNotDirect(path=path, why=why)


def _read_direct(path: Path) -> str | None:
    """Read the first block past the page cache. Why that cannot be, as a clause; None if it can."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_DIRECT | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as error:
        return _reason(error, "its file system does not take O_DIRECT")
    try:
        with mmap.mmap(-1, BLOCK_SIZE) as block:  # memory that is aligned to pages
            os.preadv(fd, [block], 0)
    except OSError as error:
        return _reason(error, f"it does not take single blocks of {BLOCK_SIZE} bytes with O_DIRECT")
    finally:
        os.close(fd)
    return None


def _reason(error: OSError, refused: str) -> str:
    return refused if error.errno == errno.EINVAL else reason(error)
