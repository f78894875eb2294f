"""Workers: threads for jobs that may wait for a device, so that one that hangs does not delay the others.

How it works      `Workers` runs jobs on threads, `concurrent` of them; a job that has run for STUCK_S is not
                  counted any more, and the next one starts beside it. There is one job for each key at a
                  time: a further one is dropped if one already waits, and otherwise runs after the present
                  one. So a hang costs a thread, never a turn. `answers` asks many questions at once, and
                  waits for as long as answers come.
Owner and locks   One lock over what runs and waits. Jobs run without it.
Errors            An exception in a job is logged. RuntimeError where the system refuses a thread and none
                  will take the job.
"""

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Hashable, Mapping, Sized
from functools import partial
from typing import TypeVar

STUCK_S = 5.0
CONCURRENT_MAX = 8
QUESTIONS_CONCURRENT_MAX = 32
Job = Callable[[], object]
Question = TypeVar("Question", bound=Hashable)
Answer = TypeVar("Answer")
_log = logging.getLogger("polyvol")


def ended(job: Job, timeout_s: float, name: str) -> bool:
    """Run a job on a thread, and wait for it at most so long; whether it has ended. Raises what it raises."""
    failure: list[BaseException] = []

    def run() -> None:
        try:
            job()
        except BaseException as error:
            failure.append(error)

    thread = threading.Thread(target=run, name=name, daemon=True)
    thread.start()
    thread.join(timeout_s)
    if failure:
        raise failure[0]
    return not thread.is_alive()


def answers(
    questions: Mapping[Question, Callable[[], Answer]],
    patience_s: float,
    name: str,
    late: Callable[[Answer], object] = lambda _: None,
) -> dict[Question, Answer]:
    """Ask all questions, QUESTIONS_CONCURRENT_MAX at a time: the answers that have come when all were asked
    and none has come for so long. Where none has come for STUCK_S, more are asked beside those that hang.
    `late` is given each answer that comes afterwards. Raises what a question raises."""
    condition = threading.Condition()
    todo = deque(questions)
    found: dict[Question, Answer] = {}
    failures: list[BaseException] = []
    given_up = False

    def ask() -> None:
        while True:
            with condition:
                if not todo:
                    return
                key = todo.popleft()
            try:
                answer = questions[key]()
            except BaseException as error:
                with condition:
                    failures.append(error)
                    condition.notify_all()
                return
            with condition:
                if not given_up:
                    found[key] = answer
                    condition.notify_all()
                    continue
            late(answer)

    def begin() -> None:
        for _ in range(min(len(todo), QUESTIONS_CONCURRENT_MAX)):
            threading.Thread(target=ask, name=name, daemon=True).start()

    with condition:
        begin()
        while len(found) < len(questions) and not failures:
            news = partial(_more_than, found, failures, len(found))
            if condition.wait_for(news, STUCK_S if todo else patience_s):
                continue
            if not todo:
                break
            begin()
        given_up = True
    if failures:
        raise failures[0]
    return dict(found)


def _more_than(found: Sized, failures: Sized, number: int) -> bool:
    return len(found) > number or len(failures) > 0


class Workers:
    """Runs jobs, named `name`."""

    def __init__(self, name: str, *, concurrent: int = CONCURRENT_MAX, stuck_s: float = STUCK_S) -> None:
        self._name = name
        self._at_a_time = concurrent
        self._stuck_s = stuck_s
        self._condition = threading.Condition()
        self._queue: deque[Hashable] = deque()
        self._jobs: dict[Hashable, Job] = {}
        self._running: dict[Hashable, float] = {}
        self._timer: threading.Timer | None = None
        self._stopped = False

    def run(self, key: Hashable, job: Job) -> bool:
        """Have a job run soon; False if one for this key waits already, or after `stop`. RuntimeError if no
        thread can be started for it: then it does not run."""
        with self._condition:
            if key in self._jobs or self._stopped:
                return False
            self._jobs[key] = job
            self._queue.append(key)
            if not self._begin() and key in self._jobs:
                self._queue.remove(key)
                del self._jobs[key]
                raise RuntimeError("the system refuses a thread")
            return True

    def busy(self, key: Hashable) -> bool:
        """Whether a job for this key runs or waits."""
        with self._condition:
            return key in self._running or key in self._jobs

    def wait(self, timeout_s: float | None = None) -> bool:
        """Wait until there is no job, at most so long; whether there is none."""
        with self._condition:
            return self._condition.wait_for(lambda: not self._running and not self._queue, timeout_s)

    def stop(self, timeout_s: float) -> bool:
        """Begin no more jobs, and wait for those that run, at most so long; whether all have ended."""
        with self._condition:
            self._stopped = True
            self._queue.clear()
            self._jobs.clear()
            if self._timer is not None:
                self._timer.cancel()
        return self.wait(timeout_s)

    def _begin(self) -> bool:
        """Begin what may begin now; False if the system refuses a thread: the rest stays in the queue until
        the next call. Under `_condition`."""
        now = time.monotonic()
        counted = [began for began in self._running.values() if now - began < self._stuck_s]
        free = self._at_a_time - len(counted)
        for key in [key for key in self._queue if key not in self._running][: max(0, free)]:
            thread = threading.Thread(
                target=self._work, args=(key, self._jobs[key]), name=self._name, daemon=True
            )
            try:
                thread.start()
            except RuntimeError:
                return False
            self._queue.remove(key)
            del self._jobs[key]
            self._running[key] = now
        if self._timer is None and any(key not in self._running for key in self._queue):
            # Those that count may hang: then they count no more.
            timer = threading.Timer(self._stuck_s, self._look_again)
            timer.daemon = True
            try:
                timer.start()
            except RuntimeError:
                return False
            self._timer = timer
        return True

    def _look_again(self) -> None:
        with self._condition:
            self._timer = None
            if not self._stopped:
                self._begin()

    def _work(self, key: Hashable, job: Job) -> None:
        try:
            job()
        except Exception:
            _log.exception("%s", self._name)
        finally:
            with self._condition:
                del self._running[key]
                self._begin()
                self._condition.notify_all()
