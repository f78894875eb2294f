"""memory: makes the C library return memory that is free after a peak of clients or calls.

How it works      By default glibc has an arena for each of many threads, returns only the end of each to the
                  kernel, and only above a threshold that grows with the largest buffer ever freed, up to 64
                  MiB. So a process stays nearly as large as its peak. Fixed values replace that: few
                  arenas, a low threshold, and mappings of their own for large buffers
                  (docs/decisions/0039-memory-is-given-back.md has the measurements).
Errors            none: where the C library is not glibc nothing is done.
"""

import ctypes
import os

ARENAS_PER_CORE = 2
ARENAS_MIN = 4
TRIM_BYTES = 1 << 20
"""How much an arena keeps free at its end."""
MAPPED_BYTES_MIN = 1 << 20
"""From this size on a buffer is a mapping of its own. The engine keeps those that are used again and again
(engine/src/nbd/buffer_pool.rs)."""
_M_TRIM_THRESHOLD = -1
_M_MMAP_THRESHOLD = -3
_M_ARENA_MAX = -8


def give_back() -> None:
    """Set that up, for threads that are started from now on. May be called again."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_ARENA_MAX, max(ARENAS_MIN, ARENAS_PER_CORE * (os.cpu_count() or 1)))
        mallopt(_M_TRIM_THRESHOLD, TRIM_BYTES)
        mallopt(_M_MMAP_THRESHOLD, MAPPED_BYTES_MIN)
