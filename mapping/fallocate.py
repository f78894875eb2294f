"""Making ranges of a file or disk read as zeros, by fallocate(2) where it can and by writing where it cannot.

Python's `os` has only posix_fallocate, which cannot punch; so this calls the C library, which has been loaded
anyway. Errors are OSError.
"""

import ctypes
import errno
import os

_KEEP_SIZE = 0x01
_PUNCH_HOLE = 0x02
_ZERO_RANGE = 0x10
_WRITE_SIZE = 4 << 20

_libc = ctypes.CDLL(None, use_errno=True)
_libc.fallocate.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64]
_libc.fallocate.restype = ctypes.c_int


def zero(fd: int, offset: int, length: int, *, punch: bool) -> None:
    """Make `length` bytes from `offset` read as zeros; `punch` gives their space back, else it is kept."""
    modes = [_PUNCH_HOLE, _ZERO_RANGE] if punch else [_ZERO_RANGE]
    for mode in modes:
        if _libc.fallocate(fd, mode | _KEEP_SIZE, offset, length) == 0:
            return
        failure = ctypes.get_errno()
        if failure not in (errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS, errno.ENODEV):
            raise OSError(failure, os.strerror(failure))
    _write_zeros(fd, offset, length)


def _write_zeros(fd: int, offset: int, length: int) -> None:
    zeros = bytes(min(length, _WRITE_SIZE))
    while length:
        written = os.pwrite(fd, zeros[:length], offset)
        offset += written
        length -= written
