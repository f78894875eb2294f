"""turns: tests that run side by side, that share the machine with one other, or have it for themselves.

How it works      scripts/test runs pytest in several processes. There are as many places as processes, and
                  each test holds some while it runs: one; all, if it is `alone` because it measures time;
                  all but one, if it needs most of the machine and has `few` others beside it. A place is a
                  file's lock, which the kernel gives back when its process dies. Who waits for places holds
                  the gate, so that those who came later wait behind it, and none waits forever.
Invariants        T1 only who holds the gate takes places, and nobody who holds one waits for the gate:
                     so nobody waits in a circle.
"""

import fcntl
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import IO, Literal

Beside = Literal["others", "few", "alone"]
"""Who may run beside a test."""

POLL_S = 0.02


@contextmanager
def turn(directory: Path, *, places: int, beside: Beside) -> Iterator[None]:
    """Wait until this test may run, of as many processes as there are places, and keep its places until it
    has ended."""
    directory.mkdir(parents=True, exist_ok=True)
    wanted = {"others": 1, "few": max(1, places - 1), "alone": places}[beside]
    with ExitStack() as held:
        with (directory / "gate").open("w") as gate:
            fcntl.flock(gate, fcntl.LOCK_EX)
            left = [held.enter_context((directory / f"place-{number}").open("w")) for number in range(places)]
            while wanted:
                for place in list(left):
                    if wanted and _locked(place):
                        left.remove(place)
                        wanted -= 1
                if wanted:
                    time.sleep(POLL_S)
        yield


def _locked(file: IO[str]) -> bool:
    """Lock it, unless another has."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
