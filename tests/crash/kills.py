"""kills: SIGKILL of a polyvold at any moment, again and again on the same state.

How it works      `kill_again_and_again` runs the load of workload.py (writes, zeroes, trims, flushes, cuts,
                  deletions), kills the daemon after a drawn time, and starts it again, killing some starts
                  too. Segments and checkpoints are small, so that kills meet rolls and checkpoints. In most
                  turns blocks are relocated. The state found then is the base of the next turn. Sometimes
                  everything is deleted and trimmed.
What must hold    Every acknowledged write is preserved; every reported snapshot exists, with the same bytes;
                  one that was requested but not reported is absent, or complete and of one instant; a deleted
                  one does not exist; if nothing is left, no slot is in use.
Errors            Lost.
"""

import random
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.clients.system import delete_when_unused
from tests.crash.history import Clock, Expected, History, Lost, Snapshot, packed
from tests.crash.recorder import SMALL
from tests.crash.workload import RELOCATIONS, SECTORS, SIZE, VOLUME, Load, make_volume
from tests.support.daemon import Daemon
from tests.support.nbd import connect, read_all

EMPTY_EVERY = 6


@dataclass
class Kills:
    """How many kills there were under load, and while the daemon was starting; bytes that were relocated."""

    under_load: int = 0
    starting: int = 0
    relocated: int = 0


def kill_again_and_again(directory: Path, seed: int, *, count: int, deadline: float) -> Iterator[Kills]:
    """Kill so many times, or until the time (monotonic) is over; each time, how many there were. `directory`
    has a short path."""
    draw = random.Random(seed)
    done = Kills()
    daemon = Daemon(directory, "--processors", "2")
    daemon.environment = dict(SMALL)
    with daemon:
        api = daemon.api
        make_volume(
            lambda body: api.post("devices", body=body),
            lambda body: api.post("volumes", body=body),
            daemon.state_dir,
        )
        history = History(SECTORS)
        for turn in range(count):
            if time.monotonic() > deadline:
                return
            api.patch("volumes", VOLUME, body={"relocate": draw.choice(RELOCATIONS)})
            load = Load(daemon, Clock(None), seed * 1000 + turn, history)
            load.run_until_killed(draw.uniform(0.02, 0.6))
            done.under_load += 1
            done.relocated += load.history.relocated
            for _ in range(draw.choice((0, 0, 1, 2))):
                _kill_start(daemon, draw.uniform(0, 1.2))
                done.starting += 1
            daemon.start()
            history = _check(daemon, load.history)
            if turn % EMPTY_EVERY == EMPTY_EVERY - 1:
                history = _empty(daemon, history)
            yield done
        if "panicked" in daemon.said():
            raise Lost(f"polyvold has panicked:\n{daemon.said()}")


def _kill_start(daemon: Daemon, after_s: float) -> None:
    daemon.launch()
    time.sleep(after_s)
    assert daemon.running, daemon.said()
    daemon.kill()


def _check(daemon: Daemon, history: History) -> History:
    """Compare; the history that goes on from what was found."""
    expected = Expected(history)
    base = read_all(daemon.uri(VOLUME))
    expected.check_live(base, 0, everything=True)
    names = {each["name"] for each in daemon.api.get("snapshots")}
    expected.check_names(names, 0)
    known = {one.name: one for one in history.snapshots}
    kept = []
    for name in names:
        data = read_all(daemon.uri(f"{VOLUME}@{name}"))
        expected.check_snapshot(name, data)
        if known[name].issued:  # of this turn
            expected.check_instant(known[name], data)
        kept.append(Snapshot(name, 0, reported_at=0, content=packed(data)))
    return History(SECTORS, base=base, snapshots=kept)


def _empty(daemon: Daemon, history: History) -> History:
    """Delete all snapshots and trim everything: no slot may be in use."""
    for one in history.snapshots:
        delete_when_unused(daemon, VOLUME, one.name)
    with connect(daemon.uri(VOLUME)) as handle:
        handle.trim(SIZE, 0)
        handle.flush()
    used = daemon.volume(VOLUME)["space"]["used"]
    if used:
        raise Lost(f"{used} bytes of the change log are in use although nothing refers to them")
    return History(SECTORS)
