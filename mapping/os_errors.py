"""OSError in words: the reason, and what to do about it. The one table of errno values that users meet.

How it works      `reason` gives a clause ('permission denied on the directory /a'), `advice` what to do. If
                  the path is given that was worked on, an error of a directory above it names that directory.
                  What the table does not have is in the C library's words.
Errors            None: both answer for every exception.
"""

import errno
import os
from pathlib import Path

DEFAULT_ADVICE = "check both ends, then try again"
_NO_SPACE = "free some space there, then try again"
_TABLE: dict[int, tuple[str, str]] = {
    errno.EACCES: ("permission denied", "change its permissions, or run this as a user who has access"),
    errno.EPERM: ("operation not permitted", "run this as a user who may do it"),
    errno.ENOENT: ("it does not exist", "correct the path"),
    errno.ENOTDIR: ("a directory of its path is not a directory", "correct the path"),
    errno.EISDIR: ("it is a directory", "give the path of a file"),
    errno.ELOOP: (
        "it has too many symbolic links, or is one itself",
        "give the path of the file",
    ),
    errno.ENAMETOOLONG: ("its name is too long", "give a shorter name"),
    errno.EEXIST: ("it exists already", "choose another name"),
    errno.EROFS: ("its file system is read-only", "give a path on another file system"),
    errno.ENOSPC: ("no space left on its file system", _NO_SPACE),
    errno.EDQUOT: ("the disk quota is used up", _NO_SPACE),
    errno.EFBIG: (
        "it would become larger than a file may be here",
        "use a file system with a larger limit, or raise the limit on file sizes (`ulimit -f`)",
    ),
    errno.EMFILE: ("too many open files in this process", "raise the limit on open files (`ulimit -n`)"),
    errno.ENFILE: ("too many open files on this machine", "end programs, or raise the sysctl fs.file-max"),
    errno.ENOMEM: ("not enough memory", "end programs that use much memory, then try again"),
    errno.EAGAIN: ("it does not take more connections now", "try again later"),
    errno.EBADF: ("it is closed", "do not close it when starting the program"),
    errno.EBUSY: ("it is in use", "end what uses it, then try again"),
    errno.ETXTBSY: ("it is a program that is running", "give another path"),
    errno.ENXIO: ("no device or reader is behind it", "correct the path"),
    errno.ENODEV: ("there is no such device", "correct the path"),
    errno.EIO: ("input/output error", "see the kernel's log (`dmesg`) for errors of its disk"),
    errno.EPIPE: ("the program that reads it has ended", "keep it running until the end"),
    errno.ECONNRESET: ("the other end has closed the connection", "check that end, then try again"),
    errno.ECONNREFUSED: ("nobody listens there", "start the server"),
    errno.ETIMEDOUT: ("no answer in time", "check that end and the network, then try again"),
    errno.EADDRINUSE: ("the address is in use", "end what uses it, or give another one"),
    errno.EADDRNOTAVAIL: ("this machine does not have that address", "give one of its addresses"),
    errno.ESPIPE: ("it is a pipe, which cannot be positioned", "give a regular file"),
    errno.EOPNOTSUPP: ("its file system does not support it", "give a path on another file system"),
}


def reason(error: BaseException, path: Path | str | None = None) -> str:
    """Why a call failed, as a clause. `path`: what it was about."""
    if not isinstance(error, OSError) or error.errno is None:
        return str(error) or "an unknown reason"
    above = None if path is None else directory_at_fault(error.errno, path)
    if above is not None and error.errno == errno.ENOENT:
        return f"the directory {above} does not exist"
    if above is not None:
        return f"permission denied on the directory {above}"
    if error.errno in _TABLE:
        return _TABLE[error.errno][0]
    return as_clause(error.strerror or os.strerror(error.errno))


def as_clause(text: str) -> str:
    """A sentence of the system or of a library, to stand within one of ours: its first letter is small."""
    return text[:1].lower() + text[1:]


def reason_of(number: int, path: Path | str | None = None) -> str:
    """As `reason`, for the number of an error of the system."""
    return reason(OSError(number, os.strerror(number)), path)


def advice(error: BaseException, default: str = DEFAULT_ADVICE) -> str:
    """What to do about it; `default` where the table has nothing better."""
    number = error.errno if isinstance(error, OSError) else None
    return _TABLE[number][1] if number in _TABLE else default


def directory_at_fault(number: int, path: Path | str) -> Path | None:
    """The directory above a path that is not there, cannot be searched, or may not be written, where the
    number of an error is for that; None if the error is about the path itself."""
    path = Path(os.path.abspath(path))  # noqa: PTH100 - symbolic links stay as they are
    for parent in reversed(path.parents):
        if number == errno.ENOENT and not os.path.lexists(parent):
            return parent
        if number == errno.EACCES and parent.is_dir() and not _may(parent, os.X_OK):
            return parent
    if number == errno.EACCES and not os.path.lexists(path) and not _may(path.parent, os.W_OK):
        return path.parent
    return None


def _may(directory: Path, mode: int) -> bool:
    return os.access(directory, mode, effective_ids=True)
