"""No space: detecting a full file system, and the kinds that need no space to overwrite."""

import errno
import os
import threading
from pathlib import Path

from polyvol.mapping.sizes import format_size

NO_SPACE = (errno.ENOSPC, errno.EDQUOT)
"""What the system answers where a file system or a quota has no room."""
NEEDED_BYTES = 16 << 20
NEEDED = format_size(NEEDED_BYTES)
"""What a start or a change finds enough, but for volumes' journals and very large catalogs."""
PROBES = ".probe-*"
"""Files that are made to see whether there is room. A killed process leaves them."""
_IN_PLACE = ("ext2", "ext3", "ext4", "tmpfs")


def probe_path(directory: Path) -> Path:
    """The file by which the calling thread, and nobody else, sees whether a directory has room."""
    return directory / f".probe-{threading.get_native_id()}"


def is_no_space(error: BaseException) -> bool:
    """Whether an error of a call says that there is no room."""
    return isinstance(error, OSError) and error.errno in NO_SPACE


def writes_in_place(directory: Path) -> bool:
    """Whether a file system is of a kind where bytes that were allocated once need no room when they are
    written again, also through a mapping. Where it is not known: no."""
    try:
        number = directory.stat().st_dev
        mounts = Path("/proc/self/mountinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return False
    wanted = f"{os.major(number)}:{os.minor(number)}"
    fields = [line.split() for line in mounts.splitlines()]
    return any(each[2] == wanted and each[each.index("-") + 1] in _IN_PLACE for each in fields)
