"""calls: a script of verbs on a real polyvold, which is killed before one of its calls, each in turn.

How it works      The script's steps are asked for one after the other, while the daemon's own threads do what
                  they do; recorder.c counts the calls that change files, all threads together, and kills the
                  daemon before the call of the number that is tried, counted from the beginning of a step.
                  Then the state is checked as it is, the daemon is started (or killed again before a call of
                  that start), and everything is compared whole with the ledger. Each number is tried in one of several ways:
                  as it is, or with a kind of call that begins later, so that the next step comes in between.
                  `Script.count` runs the script once without a kill, so that each step's calls are known;
                  `Script.attempt` tries one of them. A moment has a name, WAY:STEP:CALL.
What must hold    What settling.py compares; then the rest of the script can be done, and a clean stop and
                  start changes nothing.
Errors            Lost, with the first difference. The directory then has the state and the logs.
"""

import random
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from polyvol.daemon.check import check_state
from tests.crash.asking import PARTITION, Asking, Gone
from tests.crash.history import SECTOR, Lost, contents
from tests.crash.ledger import Ledger
from tests.crash.recorder import SMALL, Calls, delayed
from tests.crash.settling import Compared, settle
from tests.support import nbd
from tests.support.daemon import Daemon
from tests.support.proc import wait_until

BLOCK_SECTORS = 8
NOTES = "verbs.log"

Steps = list[tuple[str, Callable[[], object]]]
"""What is done, and how."""
WAYS: dict[str, tuple[str, int, str]] = {
    "plain": ("any", 0, ""),
    "checkpoints": ("rename", 150_000, "checkpoint"),
    "syncs": ("sync", 3000, "volumes"),
    "catalog": ("write", 3000, "catalog"),
}
"""Which calls begin later, by how many microseconds, on which files."""


@dataclass(frozen=True)
class Moment:
    """The call before which the daemon is killed: the `call`-th from the beginning of a step."""

    way: str
    step: int
    call: int

    def __str__(self) -> str:
        return f"{self.way}:{self.step}:{self.call}"

    @classmethod
    def parse(cls, text: str) -> "Moment":
        """From its name."""
        way, step, call = text.split(":")
        return cls(way, int(step), int(call))


class Script:
    """The script, on a daemon whose directory is `directory`: a short path."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self.compared = Compared()

    def count(self) -> list[int]:
        """How many calls each step makes, with those of the daemon's own threads meanwhile."""
        with self._fresh("plain") as (asking, calls):
            counts = [calls.count]
            for _, step in steps(asking):
                step()
                counts.append(calls.count)
        return [after - before for before, after in pairwise(counts)]

    def attempt(self, moment: Moment, draw: random.Random) -> bool:
        """Kill it at this moment, start it again, compare; whether it was killed there."""
        with self._fresh(moment.way) as (asking, calls):
            daemon, script = asking.daemon, steps(asking)
            try:
                done = self._until_killed(asking, script, calls, moment)
                hit = not daemon.running
                asking.note("killed" if hit else "not killed: there were fewer calls")
                daemon.kill()
                self._check(daemon)
                if draw.random() < 0.3:
                    self._kill_start(asking, calls, draw.randint(1, 60))
                calls.begin()
                daemon.start()
                self.compared += settle(asking)
                if draw.random() < 0.25:
                    self._go_on(asking, script[done:])
                daemon.kill()
            finally:
                asking.keep_notes(self._directory / NOTES)
            said = daemon.said()
            if "panicked" in said or "Traceback" in said:
                raise Lost(f"polyvold has panicked:\n{said[-5000:]}")
        return hit

    @contextmanager
    def _fresh(self, way: str) -> Iterator[tuple[Asking, Calls]]:
        shutil.rmtree(self._directory, ignore_errors=True)
        root = self._directory / "root"
        root.mkdir(parents=True)
        calls = Calls(root, self._directory / "calls")
        kind, us, part = WAYS[way]
        daemon = Daemon(self._directory, "--processors", "2")
        daemon.move(root / "state")
        delays = delayed(root, kind, us, part) if us else {}
        daemon.environment = {**SMALL, **delays, **calls.environment}
        with daemon:
            yield Asking(daemon, Ledger()), calls
            daemon.kill()

    @staticmethod
    def _until_killed(asking: Asking, script: Steps, calls: Calls, moment: Moment) -> int:
        """Do the script until the daemon is killed; how many steps were begun."""
        for number, (what, step) in enumerate(script):
            if number == moment.step:
                calls.kill_at(calls.count + moment.call)
            asking.note(f"step {number}: {what}")
            try:
                step()
            except Gone:
                wait_until(lambda: not asking.daemon.running, "the end of a daemon that does not answer")
                return number + 1
        return len(script)

    def _check(self, daemon: Daemon) -> None:
        if problems := check_state(daemon.state_dir, data=True).problems:
            more = f", and {len(problems) - 1} more problems" if problems[1:] else ""
            raise Lost(f"`polyvol check` finds: {problems[0]}{more}")

    def _kill_start(self, asking: Asking, calls: Calls, call: int) -> None:
        """Start it, and have it killed before this call of the start, if it makes so many."""
        daemon = asking.daemon
        calls.begin()
        calls.kill_at(call)
        asking.note(f"start, killed at call {call}")
        with suppress(AssertionError):  # it has ended
            daemon.start()
        daemon.kill()
        self._check(daemon)

    def _go_on(self, asking: Asking, script: Steps) -> None:
        """The rest of the script, then a stop and a start, which change nothing."""
        for what, step in script:
            asking.note(f"going on: {what}")
            step()
        self.compared += settle(asking)
        asking.daemon.stop()
        self._check(asking.daemon)
        asking.daemon.start()
        self.compared += settle(asking)


def steps(asking: Asking) -> Steps:
    """The script. Each step can be asked for whatever became of those before it."""

    def write(volume: str, blocks: range, *, flush: bool = True) -> Callable[[], object]:
        return lambda: _write(asking, volume, blocks, flush=flush)

    def roll_back(snapshot: str, *, safety: str | None = None) -> Callable[[], object]:
        return lambda: asking.roll_back("v", snapshot, safety=safety is not None, name=safety)

    return [
        ("make a volume", lambda: asking.create(2 * PARTITION, name="v")),
        ("write all of it", write("v", range(0, 512, 5))),
        ("snapshot s1", lambda: asking.take("v", name="s1")),
        ("write", write("v", range(0, 90, 2))),
        ("snapshot s2", lambda: asking.take("v", name="s2")),
        ("write", write("v", range(60))),
        ("roll back to s2, and nothing needs that", roll_back("s2")),
        ("write", write("v", range(20, 120))),
        ("begin to forget it", lambda: asking.delete_some("v", "none")),
        ("wait a moment", lambda: time.sleep(0.05)),
        ("roll back to s2 again", roll_back("s2")),
        ("wait for what is forgotten", lambda: time.sleep(0.35)),
        ("write", write("v", range(300, 340))),
        ("snapshot s3", lambda: asking.take("v", name="s3")),
        ("clone s2", lambda: asking.clone("v", "s2", 1, name="c")),
        ("write to the clone", write("c", range(40))),
        ("delete s2", lambda: asking.delete("v", "s2")),
        ("make a group", lambda: asking.group(["v", "c"], name="g")),
        ("snapshot of the group", lambda: asking.take_whole("g", name="w1")),
        ("write", write("v", range(0, 512, 7), flush=False)),
        ("roll back with a safety snapshot", roll_back("s3", safety="s4")),
        ("grow", lambda: asking.grow("v", 100)),
        ("write to what is new", write("v", range(500, 600))),
        ("roll the group back", lambda: asking.roll_back_whole("g", "w1", safety=False)),
        ("add a log", lambda: asking.plain("post", "volumes", "v", "logs", size=4 << 20)),
        ("write", write("v", range(100, 160))),
        ("delete the group's snapshot", lambda: asking.delete_whole("g", "w1")),
        ("delete s1, s3 and s4", lambda: asking.delete_some("v", "s")),
        ("delete the group", lambda: asking.delete_group("g")),
        ("snapshot of the clone", lambda: asking.take("c", name="s5")),
        ("wait for the deletions", lambda: time.sleep(0.1)),
        ("delete the source", lambda: asking.delete_volume("v")),
        ("write to the clone", write("c", range(100, 300))),
        ("snapshot of the clone", lambda: asking.take("c", name="s6")),
        ("delete the clone", lambda: asking.delete_volume("c")),
    ]


def _write(asking: Asking, volume: str, blocks: range, *, flush: bool) -> None:
    """Write some blocks, each by a write of its own; and flush."""
    ledger = asking.ledger
    if (live := ledger.volumes.get(volume)) is None:
        return
    try:
        with nbd.connect(asking.daemon.uri(volume)) as handle:
            for block in blocks:
                first, tag = block * BLOCK_SECTORS, next(ledger.numbers)
                data = contents(tag, first, BLOCK_SECTORS)
                if (first + BLOCK_SECTORS) * SECTOR > live.size:
                    return
                ticket = ledger.issue(live, first, BLOCK_SECTORS, tag)
                handle.pwrite(data, first * SECTOR)
                ledger.done(live, ticket, first, data)
            if flush:
                handle.flush()
    except nbd.NbdError as error:
        raise Gone from error


def moments(counts: list[int]) -> list[Moment]:
    """All moments of a script whose steps make so many calls, in an order that visits all steps and ways
    early."""
    every = [
        Moment(way, step, call)
        for way in WAYS
        for step, calls in enumerate(counts)
        for call in range(1, calls + 1)
    ]
    random.Random(0).shuffle(every)
    return every
