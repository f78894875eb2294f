"""No space: what says that a file system has no room."""

import errno
import threading
from pathlib import Path

NO_SPACE = (errno.ENOSPC, errno.EDQUOT)
"""What the system answers where a file system or a quota has no room."""
NEEDED = "16 MiB"
"""What a start or a change finds enough, but for volumes' journals and very large catalogs."""
PROBES = ".probe-*"
"""Files that are made to see whether there is room. A killed process leaves them."""


def probe_path(directory: Path) -> Path:
    """The file by which the calling thread, and nobody else, sees whether a directory has room."""
    return directory / f".probe-{threading.get_native_id()}"


def is_no_space(error: BaseException) -> bool:
    """Whether an error of a call says that there is no room."""
    return isinstance(error, OSError) and error.errno in NO_SPACE
