"""The clocks: the wall clock, which an administrator or NTP may set, and a steady one, which nobody can set.

How it works      Stored times are of the wall clock, for people to read. Waiting and intervals use a steady
                  clock. A `JumpWatch` compares both: the wall clock was set if it has moved by more than the
                  steady one. The steady clock is CLOCK_BOOTTIME, which runs while the machine sleeps, so that
                  resuming is not a jump.
Invariants        CC1 a wall time fits the catalog's columns whatever the clock says: 0 (1970) to
                  INSTANT_NS_MAX (2262).
Owner and locks   A JumpWatch belongs to one thread at a time.
"""

import time
from collections.abc import Callable

Clock = Callable[[], int]
"""Nanoseconds; since 1970 (UTC) for a wall clock."""
INSTANT_NS_MAX = (1 << 63) - 1
JUMP_NS = 2_000_000_000
"""A smaller difference between two looks is followed and not reported: NTP does that all the time."""


def in_range(instant_ns: int) -> int:
    """The instant, or the nearest one that can be stored (CC1)."""
    return min(max(instant_ns, 0), INSTANT_NS_MAX)


def wall_ns() -> int:
    """What the wall clock says, nanoseconds since 1970 (UTC)."""
    return in_range(time.time_ns())


def steady_ns() -> int:
    """Nanoseconds since this machine was booted."""
    return time.clock_gettime_ns(time.CLOCK_BOOTTIME)


class JumpWatch:
    """Tells when the wall clock was set."""

    def __init__(self, wall: Clock, steady: Clock) -> None:
        self._wall = wall
        self._steady = steady
        wall_now, steady_now = self._both()
        self._offset = wall_now - steady_now

    def look(self) -> tuple[int, int]:
        """By how much the wall clock was set since the last look (ns, negative: back; 0: it was not), and
        what it says now."""
        wall_now, steady_now = self._both()
        offset = wall_now - steady_now
        jump, self._offset = offset - self._offset, offset
        return (jump if abs(jump) >= JUMP_NS else 0), wall_now

    def _both(self) -> tuple[int, int]:
        """Both clocks, read as if at one time."""
        while True:
            before, wall_now, after = self._steady(), self._wall(), self._steady()
            if after - before < JUMP_NS // 4:
                return wall_now, after
