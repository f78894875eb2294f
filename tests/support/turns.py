"""turns: tests that run side by side, that share the machine with few others, or have it for themselves.

How it works      scripts/test runs pytest in several processes, in two groups: the last one by itself, and
                  all others. Each test holds the floor of its process's group while it runs, shared with
                  others. One that is `alone`, because it measures time, holds both floors by itself; one
                  with `few` others, because it needs most of the machine, that of the greater group. Who
                  waits for a floor holds its gate, so that those who came later wait behind it, and none
                  waits forever.
Invariants        T1 floors are taken in their order, so that nobody waits in a circle.
"""

import fcntl
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Literal

Beside = Literal["others", "few", "alone"]
"""Who may run beside a test."""


@contextmanager
def turn(directory: Path, *, last: bool, beside: Beside) -> Iterator[None]:
    """Wait until this test, of the `last` process or another, may run, and keep the floor until it has ended.
    The kernel gives back what a process that died has held."""
    directory.mkdir(parents=True, exist_ok=True)
    alone, shared = fcntl.LOCK_EX, fcntl.LOCK_SH
    floors = {
        "others": [(int(last), shared)],
        "few": [(0, alone), *([(1, shared)] if last else [])],
        "alone": [(0, alone), (1, alone)],
    }
    with ExitStack() as held:
        for number, how in floors[beside]:
            floor = held.enter_context((directory / f"floor-{number}").open("w"))
            with (directory / f"gate-{number}").open("w") as gate:
                fcntl.flock(gate, fcntl.LOCK_EX)
                fcntl.flock(floor, how)
        yield
