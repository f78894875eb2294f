"""quiet: keep other programs of this machine out of the figures, as far as the scheduler lets us.

How it works      Everything that takes part gets the same higher priority: by niceness, which children
                  inherit, and by the niceness of its session, which is what counts between sessions where the
                  kernel groups processes by session (sched_autogroup). Only root may; for others nothing
                  changes. And a virtual machine's free memory may be with its host, and getting it back would
                  be what is measured: so it is touched before, and kept from going back, also by telling the
                  kernel to report no free memory to the host. (What sockets buffer is memory of
                  another kind, which nothing that a program holds keeps there.)
"""

import mmap
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

NICENESS = -15
FREE_SHARE_MAX = 0.75
"""How much of the free memory is kept from going back to a host, at most."""
_PIECE_BYTES = 1 << 20
_PIECE_KEPT_BYTES = 4096
_REPORTING = Path("/sys/module/page_reporting/parameters/page_reporting_order")
"""Free blocks of 2 to the power of this pages, and larger ones, are reported to the host."""
_ORDERS = ("11", "10")
"""Larger than any block, where the kernel takes that; else the largest."""
_POPULATE_WRITE = 23
"""Linux's MADV_POPULATE_WRITE."""


@contextmanager
def kept_memory(size: int) -> Iterator[None]:
    """So many bytes of the free memory are there, and stay.

    What a guest gives back to its host are blocks of 2 MiB and more that are completely free: a page of each
    is in use here.
    """
    free = os.sysconf("SC_AVPHYS_PAGES") * mmap.PAGESIZE
    size = max(1, int(min(size, free * FREE_SHARE_MAX)) // _PIECE_BYTES) * _PIECE_BYTES
    with mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as memory:
        with suppress(OSError):  # a kernel that does not know one of them
            memory.madvise(mmap.MADV_NOHUGEPAGE)
            memory.madvise(_POPULATE_WRITE)
        for at in range(0, size, _PIECE_BYTES):
            begin, length = at + _PIECE_KEPT_BYTES, _PIECE_BYTES - _PIECE_KEPT_BYTES
            memory.madvise(mmap.MADV_DONTNEED, begin, length)
        with _unreported():
            yield


@contextmanager
def _unreported() -> Iterator[None]:
    """Free memory is not reported to the host, where we may say so; as before afterwards.

    Where it is not reported already, that is another's to undo.
    """
    before = _reporting_order()
    if before is None or before in _ORDERS:
        yield
        return
    any(_set_reporting_order(order) for order in _ORDERS)
    try:
        yield
    finally:
        _set_reporting_order(before)


def _reporting_order() -> str | None:
    try:
        return _REPORTING.read_text().strip()
    except OSError:
        return None


def _set_reporting_order(order: str) -> bool:
    """Whether the kernel, and who we are, allow it."""
    try:
        _REPORTING.write_text(order)
    except OSError:
        return False
    return True


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
