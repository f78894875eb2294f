"""Probes: calls that return at once, or never because something hangs, with a time limit.

How it works      A `stat` of a path on a file system that hangs never returns. Probes run on a thread, one
                  after the other; those that return in time have an answer. One that does not return costs
                  a thread, and is not run again until it has returned.
Owner and locks   One lock over who runs what. Probes run without it.
Errors            An exception in a probe is logged; the probe then has no answer. So it is if no
                  thread can be started.
"""

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Generic, TypeVar

PROBE_S = 0.25
"""Time limit of one probe, in seconds."""
PROBES_S = 0.75
"""Time limit of all probes of one call, in seconds."""
Question = TypeVar("Question", bound=Hashable)
Answer = TypeVar("Answer")
_log = logging.getLogger("polyvol")


@dataclass(eq=False)
class _Round(Generic[Question, Answer]):
    """Questions that one thread asks, one after the other."""

    questions: "deque[tuple[Question, Callable[[], Answer]]]"
    answers: dict[Question, Answer]
    at: Question | None = None
    asked: int = 0
    given_up: bool = False
    ended: bool = False

    def moved(self, asked: int) -> bool:
        """Whether it has ended, or asked more than so many questions."""
        return self.ended or self.asked > asked


class Probes:
    """Runs probes with a time limit."""

    def __init__(self) -> None:
        self._condition = threading.Condition()
        self._stuck: set[Hashable] = set()

    def ask(self, questions: Mapping[Question, Callable[[], Answer]]) -> dict[Question, Answer]:
        """The answers that came in time, by the questions' keys."""
        answers: dict[Question, Answer] = {}
        until = time.monotonic() + PROBES_S
        with self._condition:
            todo = deque((key, ask) for key, ask in questions.items() if key not in self._stuck)
            while todo:
                round_: _Round[Question, Answer] = _Round(todo, answers)
                thread = threading.Thread(target=self._ask, args=(round_,), name="polyvol-look", daemon=True)
                try:
                    thread.start()
                except RuntimeError as error:
                    _log.warning("paths are not looked at: %s", error)  # no thread can be started
                    break
                self._follow(round_, until)
                if round_.ended or time.monotonic() >= until:
                    break
            return dict(answers)

    def _follow(self, round_: "_Round[Question, Answer]", until: float) -> None:
        """Until a round has ended, or a question of it is not answered in time. Under `_condition`."""
        asked = -1
        while round_.moved(asked) and not round_.ended:
            asked = round_.asked
            left = max(0.0, min(PROBE_S, until - time.monotonic()))
            self._condition.wait_for(partial(round_.moved, asked), left)
        if not round_.ended:
            round_.given_up = True
            if round_.at is not None:
                self._stuck.add(round_.at)

    def _ask(self, round_: "_Round[Question, Answer]") -> None:
        while True:
            with self._condition:
                if round_.given_up or not round_.questions:
                    round_.ended = not round_.given_up
                    self._condition.notify_all()
                    return
                round_.at, ask = round_.questions.popleft()
                round_.asked += 1
                self._condition.notify_all()
            answer: Answer | None = None
            answered = False
            try:
                answer = ask()
                answered = True
            except Exception:
                _log.exception("looking at %s", round_.at)
            with self._condition:
                self._stuck.discard(round_.at)
                if answered and not round_.given_up:
                    round_.answers[round_.at] = answer  # type: ignore[assignment]
