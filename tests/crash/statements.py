"""statements: kills each verb before, or fails it at, each of its statements, and checks the result.

How it works      `python -m tests.crash.statements` makes a state (statement_verbs.py) once. A trial,
                  VERB WAY N, lays it out, starts a service on it, and asks for the verb, in which the N-th
                  statement kills the process or fails (points.py). Each trial has processes of its own,
                  forked from one that has everything loaded. `--trial VERB/WAY/N` makes one trial
                  alone; `--verb` and `--way` make those alone; `--part I/M` makes every M-th one.
What must hold    kill: `polyvol check` finds nothing; a start succeeds, also after another kill in it; the
                  visible state is that before the verb or after it, files and labels too; a verb that was not
                  done succeeds now. error: the verb fails, and everything is as before or after it, in the
                  running service, at the latest after a reload, and after a restart; a verb that was not done
                  succeeds now. errors: the same if all statements from the N-th on fail. defect: the same
                  with an unexpected exception.
Errors            Exit code 1 when a trial fails; the last line of the output is a result in JSON.
"""

import argparse
import contextlib
import faulthandler
import json
import operator
import os
import pickle
import shutil
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from polyvol.daemon.check import check_state
from polyvol.daemon.service import Service
from polyvol.mapping.errors import PolyvolError
from tests.crash.history import Lost
from tests.crash.points import KILLED, POINTS, Defect, Module, Way, install
from tests.crash.recorder import SMALL
from tests.crash.state_images import Image, asides, capture, lay_out_again
from tests.crash.statement_verbs import BETWEEN, VERBS, Verb, build, look
from tests.support.proc import Argument, run

WAYS: tuple[Way, ...] = ("kill", "error", "errors", "defect")
START, STOP = "start", "stop"
"""Killed only, as verbs are."""
TRIAL_S = 60
"""How long a process may take; then it ends with what each of its threads does."""
NOW_NS = 1_795_000_000 * 10**9
Seen = dict[str, Any]


@dataclass
class Result:
    """How many trials there were of each way, and what was wrong."""

    trials: dict[str, int] = field(default_factory=dict)
    failures: list[dict[str, str]] = field(default_factory=list)


@contextlib.contextmanager
def serving(root: Path) -> Iterator[Service]:
    """A service on the state below a root."""
    begun = time.monotonic_ns()
    # The same minute each time, so that no schedule comes to be due.
    service = Service(
        root / "state",
        processors=2,
        serve_nbd=False,
        engine_module=Module(),
        clock=lambda: NOW_NS + time.monotonic_ns() - begun,
    )
    service.start()
    try:
        yield service
    finally:
        POINTS.disarm()
        service.stop()


def isolate(work: Callable[[], Any]) -> tuple[int, Any]:
    """Do something in a forked process: how it ended (0, 1, KILLED), and what it gave or what was wrong."""
    read, written = os.pipe()
    pid = os.fork()
    if pid == 0:
        code, told = 0, b""
        faulthandler.dump_traceback_later(TRIAL_S, exit=True)
        try:
            os.close(read)
            told = pickle.dumps(work())
        except BaseException as error:
            code, told = (
                1,
                pickle.dumps(f"{error}\n{'' if isinstance(error, Lost) else traceback.format_exc()}"),
            )
        with open(written, "wb") as file:  # noqa: PTH123 - it has no path
            file.write(told)
        os._exit(code)
    os.close(written)
    with open(read, "rb") as file:  # noqa: PTH123
        told = file.read()
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    return code, pickle.loads(told) if told else None


class Trials:
    """Trials on one image of a state."""

    def __init__(self, root: Path) -> None:
        self._root = root
        built: tuple[Image, dict[str, bytes]] = self._right(self._build)
        self._image, self._labels = built
        self._before: Seen = self._right(self._see)
        self._after: dict[str, tuple[Seen, Seen, list[str]]] = {}
        self._between: dict[str, list[Seen]] = {}
        self.result = Result()

    def seen(self, verb: str, service: Service) -> Seen:
        """What can be seen. The label of a disk that could not be written to stays when it is removed."""
        found = look(service, self._root)
        if verb.startswith("device remove"):
            found["files"] = [
                (*file[:2], file[2] if "nobody" not in file[2] else "") for file in found["files"]
            ]
        return found

    @staticmethod
    def _right(work: Callable[[], Any]) -> Any:
        code, told = isolate(work)
        if code:
            raise Lost(f"without a fault: {told}")
        return told

    def _build(self) -> tuple[Image, dict[str, bytes]]:
        (self._root / "disks").mkdir(parents=True)
        with serving(self._root) as service:
            build(service, self._root)
        # Two names, so that the device can be retried at the other one.
        (self._root / "disks" / "b-moved.img").hardlink_to(self._root / "disks" / "b.img")
        return capture(self._root), asides(self._root)

    def _see(self) -> Seen:
        lay_out_again(self._image, self._labels, self._root)
        with serving(self._root) as service:
            return look(service, self._root)

    def of(self, verb: str, way: Way, drawn: Callable[[int], bool]) -> None:
        """Trials of a verb in a way, at those of its statements that are drawn, by number."""
        if verb not in self._after:
            self._after[verb] = self._right(lambda: self._done(verb, VERBS.get(verb)))
            between = [self._right(partial(self._done, verb, step)) for step in BETWEEN.get(verb, [])]
            self._between[verb] = [seen for each in between for seen in each[:2]]
        for number, name in enumerate(self._after[verb][2], 1):
            if not drawn(number) or (way == "defect" and name.startswith("os: ")):
                continue
            wrong = self._kill(verb, number) if way == "kill" else self._fail(verb, way, number)
            self.result.trials[way] = self.result.trials.get(way, 0) + 1
            if wrong is not None:
                told = {"trial": f"--trial '{verb}/{way}/{number}'", "name": name, "wrong": wrong}
                self.result.failures.append(told)

    def _done(self, verb: str, step: Verb | None) -> tuple[Seen, Seen, list[str]]:
        """What is seen after a verb, and after a restart; its statements."""
        lay_out_again(self._image, self._labels, self._root)
        with self._begun(verb) as service:
            if step is not None:
                step(service, self._root)
            names = POINTS.names
            seen = self.seen(verb, service)
            if verb == STOP:
                POINTS.arm("count")
                service.stop()
                names = POINTS.names
        self._check("after the verb")
        with serving(self._root) as service:
            return seen, self.seen(verb, service), names

    @contextlib.contextmanager
    def _begun(self, verb: str, way: Way = "count", at: int = 0) -> Iterator[Service]:
        """A service with its points armed."""
        if verb == START:
            POINTS.arm(way, at)
        with serving(self._root) as service:
            if verb != START:
                POINTS.arm(way, at)
            yield service

    def _verb(self, verb: str, service: Service) -> None:
        if verb in VERBS:
            VERBS[verb](service, self._root)

    def _check(self, when: str) -> None:
        problems = check_state(self._root / "state", data=True).problems
        if problems:
            raise Lost(f"`polyvol check` finds {when}: {'; '.join(problems)}")

    # Kills

    def _kill(self, verb: str, at: int) -> str | None:
        lay_out_again(self._image, self._labels, self._root)

        def killed() -> None:
            with self._begun(verb, "kill", at) as service:
                self._verb(verb, service)
                if verb != STOP:
                    POINTS.disarm()

        code, told = isolate(killed)
        if code == 1:
            return str(told)
        if code == KILLED and verb != START:  # and the start is killed as well, somewhere
            isolate(lambda: self._check("after the kill"))
            again = 1 + hash_of(f"{verb} {at}") % 40
            code, told = isolate(lambda: self._started(again))
            if code == 1:
                return str(told)
        code, told = isolate(lambda: self._judged(verb))
        return None if code == 0 else str(told)

    def _started(self, at: int) -> None:
        self._check("after the kill")
        POINTS.arm("kill", at)
        with serving(self._root):
            POINTS.disarm()

    def _judged(self, verb: str) -> None:
        """Look at what a kill has left, and do what was not done."""
        self._check("after the kill")
        with serving(self._root) as service:
            before = self._compare(verb, self.seen(verb, service), 1, "after the kill and a start")
            if before:
                self._verb(verb, service)
                self._compare(verb, self.seen(verb, service), 0, "when it is done again", done=True)
        self._check("after all")

    # Errors

    def _fail(self, verb: str, way: Way, at: int) -> str | None:
        lay_out_again(self._image, self._labels, self._root)
        code, told = isolate(lambda: self._failed(verb, way, at))
        return None if code == 0 else str(told)

    def _failed(self, verb: str, way: Way, at: int) -> None:
        with self._begun(verb, way, at) as service:
            failed = self._refused(verb, service)
            hit = POINTS.hit
            POINTS.disarm()
            seen = self.seen(verb, service)
            if seen not in (self._before, self._after[verb][0], *self._between[verb]):
                service.reload()
                seen = self.seen(verb, service)
            before = self._compare(verb, seen, 0, "after the error")
            if not failed and hit and seen == self._before != self._after[verb][0]:
                raise Lost("the verb did nothing, and did not fail")
        self._check("after the error and a stop")
        with serving(self._root) as service:
            before = self._compare(verb, self.seen(verb, service), 1, "after the error and a restart")
            if before:
                self._verb(verb, service)
                self._compare(verb, self.seen(verb, service), 0, "when it is done again", done=True)
        self._check("after all")

    def _refused(self, verb: str, service: Service) -> bool:
        try:
            self._verb(verb, service)
        except (PolyvolError, Defect):
            return True
        return False

    def _compare(self, verb: str, seen: Seen, restarted: int, when: str, *, done: bool = False) -> bool:
        """Whether all is as before the verb; Lost if it is not as before and not as after it."""
        after = self._after[verb][:2][restarted]
        if seen == after:
            return False
        if not done and seen in (self._before, *self._between[verb]):
            return True
        before = self._before
        wrong = [f"{what}: {difference(seen[what], before[what], after[what])}" for what in seen]
        raise Lost(f"{when}: " + "; ".join(each for each in wrong if each[-1] != " "))


def difference(seen: Any, before: Any, after: Any) -> str:
    """How a part of what was seen differs from before and after; "" if it was the same in all."""
    if seen == before == after:
        return ""
    if seen in (before, after):
        return "as before" if seen == before else "as after"
    if isinstance(seen, dict):
        seen, before, after = (sorted(each.items()) for each in (seen, before, after))
    if not isinstance(seen, list):
        return f"{seen}, before {before}, after {after}"
    new = [each for each in seen if each not in before and each not in after]
    gone = [each for each in before if each in after and each not in seen]
    return f"there is {new}, there is not {gone}" if new or gone else "partly as before, partly as after"


def hash_of(text: str) -> int:
    """A number that is the same each time."""
    return int.from_bytes(text.encode()) % 1_000_003


def way_of(text: str) -> Way:
    """A way by its name."""
    return next(way for way in WAYS if way == text)


def _is_drawn(trial: str, part: int, parts: int, number: int) -> bool:
    return hash_of(f"{trial} {number}") % parts == part


def main() -> int:
    """The program."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--trial", action="append", metavar="VERB/WAY/N")
    parser.add_argument("--verb", action="append", choices=[*VERBS, START, STOP])
    parser.add_argument("--way", action="append", choices=WAYS)
    parser.add_argument("--part", default="0/1", metavar="I/M")
    options = parser.parse_args()
    install()
    part, parts = (int(each) for each in options.part.split("/"))
    directory = Path(tempfile.mkdtemp(prefix="polyvol-statements-", dir="/dev/shm"))
    try:
        trials = Trials(directory / "root")
        for trial in options.trial or ():
            verb, way, number = trial.split("/")
            trials.of(verb, way_of(way), partial(operator.eq, int(number)))
        for verb in options.verb or [*VERBS, START, STOP] if not options.trial else ():
            for way in options.way or WAYS:
                if way == "kill" or verb in VERBS:
                    drawn = partial(_is_drawn, f"{verb} {way}", part, parts)
                    trials.of(verb, way, drawn)
    finally:
        shutil.rmtree(directory)
    print(json.dumps(asdict(trials.result)), flush=True)
    return 1 if trials.result.failures else 0


def run_statements(*words: Argument, timeout_s: float = 600) -> Result:
    """Run the program with these arguments; its result."""
    ended = run(sys.executable, "-m", __name__, *words, env=SMALL, timeout_s=timeout_s)
    lines = ended.out.splitlines()
    if ended.rc not in (0, 1) or not lines:
        return Result(failures=[{"trial": "", "wrong": f"it ended with {ended.rc}:\n{ended.out}{ended.err}"}])
    return Result(**json.loads(lines[-1]))


if __name__ == "__main__":
    sys.exit(main())
