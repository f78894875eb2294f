"""soak: a polyvold under all concurrent work of users and of its own threads, killed repeatedly.

How it works      In each turn, WRITERS clients write, zero, trim and flush sectors of their own on all
                  volumes, and ASKERS threads request verbs of all kinds, while schedules with an interval of
                  a second take snapshots and drop them, deletions continue in the background, and small
                  change logs fill up.
                  After a drawn time the daemon is killed; some of the next starts are killed too. Segments
                  and checkpoints are small, and in half of the turns the naming of checkpoints, and other
                  calls, take longer than they would, so that verbs come in between. After each kill the state
                  is checked as it is, and after the start everything is compared whole (settling.py).
                  What was found is the base of the next turn.
What must hold    Acknowledged writes are preserved, blocks of those in flight are old or new; every reported
                  snapshot exists and has the same bytes; a verb in flight was completed or not done; all
                  volumes are served; `check` finds nothing.
Errors            Lost, with the first difference. The directory then has the state, polyvold's log, and the
                  log of verbs.
"""

import errno
import random
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from polyvol.daemon.check import check_state
from tests.crash.asking import PARTITION, Asking, Gone
from tests.crash.drawing import LARGE, Drawing
from tests.crash.history import SECTOR, ZEROES, Lost, contents
from tests.crash.ledger import Ledger, Live
from tests.crash.recorder import SMALL, delayed
from tests.crash.settling import Compared, settle
from tests.support import nbd
from tests.support.daemon import Daemon

WRITERS, ASKERS = 3, 3
STRIPE = 128
"""Sectors that one client has in a row."""
TURN_S = (0.05, 1.5)
NOTES = "verbs.log"


@dataclass
class Done:
    """What was done: kills under load and of starts, verbs, and what was compared after them."""

    kills: int = 0
    starting: int = 0
    stops: int = 0
    verbs: int = 0
    writes: int = 0
    compared: Compared = field(default_factory=Compared)


def soak(directory: Path, seed: int, *, count: int, deadline: float) -> Iterator[Done]:
    """Kill so many times, or until the time (monotonic) is over; each time, what was done. `directory` has a
    short path."""
    draw = random.Random(seed)
    done = Done()
    daemon = Daemon(directory, "--processors", "2")
    asking = Asking(daemon, Ledger())
    (directory / "extra").mkdir()
    daemon.environment = dict(SMALL)
    with daemon:
        try:
            _begin(asking)
            for turn in range(count):
                if time.monotonic() > deadline:
                    break
                _turn(asking, draw, f"{seed}-{turn}", done)
                yield done
            settle(asking)
        finally:
            asking.keep_notes(directory / NOTES)
        if "panicked" in daemon.said() or "Traceback" in daemon.said():
            raise Lost(f"polyvold has panicked:\n{daemon.said()[-5000:]}")


def _begin(asking: Asking) -> None:
    for size in (PARTITION + 12 * 4096, 2 * PARTITION):
        assert asking.create(size)
    asking.group(asking.ledger.volumes)
    settle(asking)


def _turn(asking: Asking, draw: random.Random, seed: str, done: Done) -> None:
    daemon = asking.daemon
    load = Load(asking, seed)
    load.run_until_killed(draw.uniform(*TURN_S), stop=draw.random() < 0.1)
    done.kills += load.killed
    done.stops += not load.killed
    for _ in range(draw.choice((0, 0, 0, 1, 2))):
        _kill_start(asking, draw.uniform(0, 0.4))
        done.starting += 1
    _check(daemon, data=True)
    daemon.environment = {**SMALL, **_delays(draw, daemon)}
    asking.note("start")
    daemon.start()
    asking.note("started")
    done.compared += settle(asking)
    done.verbs = sum(asking.asked.values())
    done.writes += load.writes


DELAYS = (
    ("rename", "checkpoint", (20_000, 60_000)),
    ("sync", "", (1000, 5000)),
    ("write", "catalog", (1000, 5000)),
    ("any", "volumes", (500, 3000)),
)
"""Calls of a kind, on some of the files, and how many microseconds they may take longer."""


def _delays(draw: random.Random, daemon: Daemon) -> dict[str, str]:
    """Calls that take longer in the next turn, if any."""
    kind, part, us = draw.choice(DELAYS)
    if draw.random() < 0.4:
        return {}
    return delayed(daemon.directory, kind, draw.choice(us), part, draw.choice((1, 2, 5)))


def _kill_start(asking: Asking, after_s: float) -> None:
    daemon = asking.daemon
    asking.note(f"start, killed after {after_s:.3f} s")
    daemon.launch()
    time.sleep(after_s)
    assert daemon.running, daemon.said()
    daemon.kill()


def _check(daemon: Daemon, *, data: bool) -> None:
    if problems := check_state(daemon.state_dir, data=data).problems:
        more = f", and {len(problems) - 1} more problems" if problems[1:] else ""
        raise Lost(f"`polyvol check` finds, before the start: {problems[0]}{more}")


class Load:
    """The threads of one turn."""

    def __init__(self, asking: Asking, seed: str) -> None:
        self.killed = False
        self.writes = 0
        self._asking = asking
        self._seed = seed
        self._ending = False
        self._stop = threading.Event()
        self._failures: list[BaseException] = []

    def run_until_killed(self, seconds: float, *, stop: bool = False) -> None:
        """Load for so long, then kill the daemon; `stop`: as systemd does."""
        bodies: list[Callable[[], None]] = [partial(self._write, number) for number in range(WRITERS)]
        bodies += [partial(self._ask, number) for number in range(ASKERS)]
        threads = [threading.Thread(target=self._guarded, args=(body,)) for body in bodies]
        for thread in threads:
            thread.start()
        self._stop.wait(seconds)
        self._ending = True
        if stop and not self._failures:
            self._asking.note("stop")
            self._asking.daemon.stop()
        else:
            self._asking.note("kill")
            self._asking.daemon.kill()
            self.killed = True
        self._stop.set()
        for thread in threads:
            thread.join(60)
            assert not thread.is_alive(), "a client hangs"
        if self._failures:
            raise self._failures[0]

    def _guarded(self, body: Callable[[], None]) -> None:
        try:
            body()
        except Gone as error:
            if not self._ending:
                self._fail(error)
        except BaseException as error:
            self._fail(error)

    def _fail(self, error: BaseException) -> None:
        self._failures.append(error)
        self._stop.set()

    def _ask(self, number: int) -> None:
        drawing = Drawing(self._asking, random.Random(f"{self._seed}-asker-{number}"))
        while not self._stop.is_set():
            drawing.next()

    def _write(self, number: int) -> None:
        draw = random.Random(f"{self._seed}-writer-{number}")
        ledger = self._asking.ledger
        while not self._stop.is_set():
            with ledger.lock:
                choice = [live for _, live in sorted(ledger.volumes.items()) if not live.quiet]
                live = draw.choice(choice) if choice else None
                if live is not None:
                    live.clients += 1
            if live is None:
                time.sleep(0.001)
                continue
            try:
                self._client(live, number, draw)
            except nbd.NbdError:
                time.sleep(0.002)  # a rollback has disconnected it, or the volume is gone, or the daemon
            finally:
                with ledger.lock:
                    live.clients -= 1

    def _client(self, live: Live, number: int, draw: random.Random) -> None:
        """A client's connection."""
        with nbd.connect(self._asking.daemon.uri(live.name)) as handle:
            sectors = handle.get_size() // SECTOR
            for _ in range(draw.choice((1, 4, 30))):
                if live.quiet or self._stop.is_set():
                    return
                if draw.random() < 0.1:
                    handle.flush()
                    continue
                stripe = draw.randrange(sectors // STRIPE // WRITERS) * WRITERS + number
                length = STRIPE if live.size >= LARGE else draw.choice((1, 3, 8, 8, 8, 16, STRIPE))
                first = stripe * STRIPE + draw.randrange(STRIPE - length + 1)
                if draw.random() < 0.7:
                    first -= first % 8
                self._change(handle, live, first, length, draw)
                if self._seed.endswith(("1", "4", "7")):
                    time.sleep(draw.uniform(0, 0.004))

    def _change(self, handle: Any, live: Live, first: int, length: int, draw: random.Random) -> None:
        """A write, or sometimes zeros or a trim."""
        ledger, kind = self._asking.ledger, draw.choices(("write", "zero", "trim"), (8, 1, 1))[0]
        fua = nbd.FUA if draw.random() < 0.1 else 0
        tag = next(ledger.numbers) if kind == "write" else 0
        what = f"{kind} {tag} {live.name} sectors {first} to {first + length - 1}"
        self._asking.note(what)
        ticket = ledger.issue(live, first, length, tag)
        self.writes += 1
        try:
            if kind == "write":
                data = contents(tag, first, length)
                handle.pwrite(data, first * SECTOR, fua)
            else:
                data = ZEROES * length
                (handle.zero if kind == "zero" else handle.trim)(length * SECTOR, first * SECTOR, fua)
        except nbd.NbdError as error:
            self._asking.note(f"failed ({error}) {what}")
            if error.errnum != errno.ENOSPC:
                raise
            return  # some of it may be there
        self._asking.note(f"done {what}")
        if kind != "trim":  # which may be done in part
            ledger.done(live, ticket, first, data)
