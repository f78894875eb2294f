"""quiet: keep other programs of this machine out of the figures, as far as the scheduler lets us.

How it works      Everything that takes part gets the same higher priority: by niceness, which children
                  inherit, and by the niceness of its session, which is what counts between sessions where the
                  kernel groups processes by session (sched_autogroup). Only root may; for others nothing
                  changes. And the memory that a turn will take is touched before: a virtual machine's free
                  memory may be with its host, and getting it back would be what is measured.
"""

import mmap
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

NICENESS = -15
TURN_BYTES = 1 << 30
"""What a turn of writes takes of memory, at most about."""


def touch_memory() -> None:
    """Have as much of the free memory be there as a turn takes."""
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | mmap.MAP_POPULATE
    mmap.mmap(-1, TURN_BYTES, flags=flags).close()


@contextmanager
def favoured() -> Iterator[None]:
    """This process, what it starts, and its session, which is as before afterwards."""
    with suppress(PermissionError):
        os.setpriority(os.PRIO_PROCESS, 0, NICENESS)
    before = _session_niceness()
    favour(os.getpid())
    try:
        yield
    finally:
        if before is not None:
            _set_session(os.getpid(), before)


def favour(pid: int) -> None:
    """The session of another process that takes part."""
    if os.geteuid() == 0:
        _set_session(pid, NICENESS)


def _session_niceness() -> int | None:
    try:
        return int(Path("/proc/self/autogroup").read_text().split()[-1])
    except (OSError, ValueError, IndexError):
        return None


def _set_session(pid: int, niceness: int) -> None:
    with suppress(OSError):
        Path(f"/proc/{pid}/autogroup").write_text(str(niceness))
