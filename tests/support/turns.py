"""turns: tests that run side by side, and tests that have the machine for themselves.

How it works      scripts/test runs pytest in several processes. Each test holds `floor` while it runs, shared
                  with others, or alone if it is marked so because it measures time. Who waits for `floor`
                  holds `gate`, so that those who came later wait behind it, and none waits forever.
"""

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def turn(directory: Path, *, alone: bool) -> Iterator[None]:
    """Wait until this test may run, and keep the floor until it has ended. The kernel gives back what a
    process that died has held."""
    directory.mkdir(parents=True, exist_ok=True)
    with (directory / "gate").open("w") as gate, (directory / "floor").open("w") as floor:
        fcntl.flock(gate, fcntl.LOCK_EX)
        fcntl.flock(floor, fcntl.LOCK_EX if alone else fcntl.LOCK_SH)
        fcntl.flock(gate, fcntl.LOCK_UN)
        yield
