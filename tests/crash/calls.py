"""calls: a script of verbs on a real polyvold, which is killed before the K-th call of each of its steps.

How it works      The script requests its steps in order, while the daemon's own threads run. recorder.c
                  counts the calls that change files, all threads together, and kills the daemon before the
                  K-th call of a step, if there are that many. Then the stopped state is checked, the daemon
                  is started (and sometimes killed during that too), everything is compared completely with
                  the ledger, and the step is requested again, so that the script continues. That is one pass,
                  WAY:K. Some ways delay a kind of call, so that the next step overlaps with it. All passes
                  together kill the daemon before every call; of steps that only write, before each
                  CALLS_WRITING-th.
What must hold    What settling.py compares, after each kill and at the end, after a clean stop and a start.
Errors            Lost, with the first difference. The directory then has the state and the logs.
"""

import random
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
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

CALLS_MAX = 64
"""A step that does not only write makes no more calls than this, or twice as many."""
CALLS_WRITING = 8

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
class Pass:
    """A pass through the script in which each step is killed before this call."""

    way: str
    call: int

    def __str__(self) -> str:
        return f"{self.way}:{self.call}"

    @classmethod
    def parse(cls, text: str) -> "Pass":
        """From its name."""
        way, call = text.split(":")
        return cls(way, int(call))


@dataclass
class Tried:
    """Counts of passes, kills in steps and in starts, and of compared objects."""

    passes: int = 0
    kills: int = 0
    starting: int = 0
    compared: Compared = field(default_factory=Compared)


class Script:
    """The script, on a daemon whose directory is `directory`: a short path."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self.tried = Tried()

    def run(self, one: Pass, *, first: int = 0, last: int = 1 << 30) -> None:
        """One pass. Only the steps from `first` to `last` are killed, and the script ends after the last."""
        draw = random.Random(str(one))
        with self._fresh(one.way) as (asking, calls):
            try:
                for number, (what, step) in enumerate(steps(asking)[: last + 1]):
                    asking.note(f"step {number}: {what}")
                    if number >= first:
                        call = one.call * (CALLS_WRITING if what.startswith("write") else 1)
                        calls.kill_at(calls.count + call)
                    if not self._done(asking, step):
                        self._start_again(asking, calls, draw)
                        asking.note(f"step {number} again")
                        step()
                    calls.kill_at(0)
                self._stop_and_start(asking)
            finally:
                asking.keep_notes(self._directory / NOTES)
            said = asking.daemon.said()
            if "panicked" in said or "Traceback" in said:
                raise Lost(f"polyvold has panicked:\n{said[-5000:]}")
        self.tried.passes += 1

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
    def _done(asking: Asking, step: Callable[[], object]) -> bool:
        """Ask for a step; whether the daemon has outlived it."""
        try:
            step()
        except Gone:
            wait_until(lambda: not asking.daemon.running, "the end of a daemon that does not answer")
        return asking.daemon.running

    def _start_again(self, asking: Asking, calls: Calls, draw: random.Random) -> None:
        """Check what a kill has left, start it, compare."""
        asking.note("killed")
        self.tried.kills += 1
        self._check(asking.daemon)
        if draw.random() < 0.15:
            self._kill_start(asking, calls, draw.randint(1, 60))
        calls.begin()
        asking.daemon.start()
        self.tried.compared += settle(asking)

    @staticmethod
    def _check(daemon: Daemon) -> None:
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
        self.tried.starting += 1
        self._check(daemon)

    def _stop_and_start(self, asking: Asking) -> None:
        self.tried.compared += settle(asking)
        asking.daemon.stop()
        self._check(asking.daemon)
        asking.daemon.start()
        self.tried.compared += settle(asking)


def steps(asking: Asking) -> Steps:
    """The script. Each step can be asked for whatever became of those before it."""

    def written(volume: str, blocks: range, *, flush: bool = True) -> Callable[[], object]:
        return lambda: write(asking, volume, blocks, flush=flush)

    def roll_back(snapshot: str, *, safety: str | None = None) -> Callable[[], object]:
        return lambda: asking.roll_back("v", snapshot, safety=safety is not None, name=safety)

    disk = str(asking.daemon.state_dir.parent / "d.img")
    schedule = {"name": "hourly", "target": "c", "keep": {"last": 2}, "every_s": 3600}
    return [
        ("make a volume", lambda: asking.create(2 * PARTITION, name="v")),
        ("write all of it", written("v", range(0, 512, 5))),
        ("snapshot s1", lambda: asking.take("v", name="s1")),
        ("write", written("v", range(0, 90, 2))),
        ("snapshot s2", lambda: asking.take("v", name="s2")),
        ("write", written("v", range(60))),
        ("roll back to s2, and nothing needs that", roll_back("s2")),
        ("write", written("v", range(20, 120))),
        ("snapshot z1", lambda: asking.take("v", name="z1")),
        ("delete it, and begin to forget", lambda: asking.delete_some("v", "z")),
        ("wait a moment", lambda: time.sleep(0.05)),
        ("roll back to s2 again", roll_back("s2")),
        ("wait for what is forgotten", lambda: time.sleep(0.35)),
        ("write", written("v", range(300, 340))),
        ("snapshot s3", lambda: asking.take("v", name="s3")),
        ("clone s2", lambda: asking.clone("v", "s2", 1, name="c")),
        ("write to the clone", written("c", range(40))),
        ("delete s2", lambda: asking.delete("v", "s2")),
        ("make a group", lambda: asking.group(["v", "c"], name="g")),
        ("snapshot of the group", lambda: asking.take_whole("g", name="w1")),
        ("write", written("v", range(0, 512, 7), flush=False)),
        ("roll back with a safety snapshot", roll_back("s3", safety="s4")),
        ("grow", lambda: asking.grow("v", 100)),
        ("write to what is new", written("v", range(500, 600))),
        ("roll the group back", lambda: asking.roll_back_whole("g", "w1", safety=False)),
        ("add a log", lambda: asking.plain("post", "volumes", "v", "logs", size=4 << 20)),
        ("write", written("v", range(100, 160))),
        ("delete the group's snapshot", lambda: asking.delete_whole("g", "w1")),
        ("delete s1, s3 and s4", lambda: asking.delete_some("v", "s")),
        ("delete the group", lambda: asking.delete_group("g")),
        ("snapshot of the clone", lambda: asking.take("c", name="s5")),
        ("wait for the deletions", lambda: time.sleep(0.1)),
        ("delete the source", lambda: asking.delete_volume("v")),
        ("write to the clone", written("c", range(100, 300))),
        ("snapshot of the clone", lambda: asking.take("c", name="s6")),
        ("add a device", lambda: asking.plain("post", "devices", path=disk, name="d", size=4 << 20)),
        ("hold a snapshot", lambda: asking.hold("c", "s6")),
        ("release it", lambda: asking.release("c", "s6")),
        ("add a schedule", lambda: asking.plain("post", "schedules", **schedule)),
        ("pause it", lambda: asking.plain("patch", "schedules", "hourly", paused=True)),
        ("remove it", lambda: asking.plain("delete", "schedules", "hourly")),
        ("remove the device", lambda: asking.plain("delete", "devices", "d")),
        ("delete the clone", lambda: asking.delete_volume("c")),
    ]


def write(asking: Asking, volume: str, blocks: range, *, flush: bool = True) -> None:
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


def passes() -> list[Pass]:
    """All passes, those with the calls that most steps make first."""
    return [Pass(way, call) for call in range(1, CALLS_MAX + 1) for way in WAYS]
