"""Due times: when each schedule is due, even if the wall clock is set.

How it works      A schedule's due time is planned once and kept in memory, by the wall clock as it stands
                  now. What an earlier process ran is known by the wall clock only (`last_ns` in the catalog,
                  and the newest snapshot of the schedule); if that time is in the future, it is ignored, and
                  the schedule is due at its next regular time. When the clock is set:
                  - a schedule that has not run (nor was made or resumed) in this process is planned again, as
                    at a start;
                  - an interval continues by the steady clock: its due time moves along with the wall clock;
                  - a cron expression follows the wall clock: skipped times are made up once, repeated times
                    are due again.
Invariants        DU1 the clock being set, however often, makes a schedule run at most one more time for each
                  time, and never later than its next regular time by the clock as it then stands, or, for an
                  interval, one interval later than planned.
                  DU2 every verb moves the plans along with the wall clock before it uses it, so that no plan
                  made after the clock was set is moved because of that.
Owner and locks   One lock, held for a read or a change; under it only the clocks are called.
"""

import threading
from dataclasses import dataclass

from polyvol.mapping.clock import Clock, JumpWatch
from polyvol.snapshot.timing import Timing


@dataclass
class _Plan:
    """`due` by the wall clock as it stands (None: never); `here`: what was due before was done in this
    process."""

    timing: Timing
    due: int | None
    here: bool


class DueTimes:
    """When schedules are due, by their ids."""

    def __init__(self, wall: Clock, steady: Clock) -> None:
        self._jumps = JumpWatch(wall, steady)
        self._lock = threading.Lock()
        self._plans: dict[int, _Plan] = {}
        self._untold = 0

    def look(self) -> int:
        """By how much the wall clock was set since the last look (ns); the plans follow."""
        with self._lock:
            self._follow()
            jump, self._untold = self._untold, 0
            return jump

    def _follow(self) -> int:
        """Move the plans if the wall clock was set (DU2); what it says."""
        jump, now = self._jumps.look()
        if jump:
            self._untold += jump
            self._plans = {key: _moved(plan, jump, now) for key, plan in self._plans.items() if plan.here}
        return now

    def due(self, schedule: int) -> int | None:
        """When a schedule that is planned is due; None if never, or if it is not planned."""
        return self.due_and_now(schedule)[0]

    def due_and_now(self, schedule: int) -> tuple[int | None, int]:
        """The same, and what the wall clock said then."""
        with self._lock:
            now = self._follow()
            plan = self._plans.get(schedule)
            return (None if plan is None else plan.due), now

    def planned(self, schedule: int) -> bool:
        """Whether a schedule has its due time."""
        with self._lock:
            return schedule in self._plans

    def plan(self, schedule: int, timing: Timing, done_until: int) -> None:
        """Plan a schedule of which all that was due until `done_until` (by the wall clock, and not in its
        future) is done."""
        with self._lock:
            self._follow()
            self._plans[schedule] = _Plan(timing, timing.after(done_until), here=False)

    def done(self, schedule: int, timing: Timing) -> int | None:
        """A schedule has just run, or begins now: when it is due next."""
        with self._lock:
            due = timing.after(self._follow())
            self._plans[schedule] = _Plan(timing, due, here=True)
            return due

    def forget(self, schedule: int) -> None:
        """A schedule is no more, or is paused."""
        with self._lock:
            self._plans.pop(schedule, None)


def _moved(plan: _Plan, jump: int, now: int) -> _Plan:
    """A plan of a schedule that has run, after the wall clock was set to `now`."""
    if plan.due is None:
        return plan
    if plan.timing.every_s is not None:
        return _Plan(plan.timing, plan.due + jump, here=True)
    following = plan.timing.after(now)
    due = plan.due if following is None else min(plan.due, following)
    return _Plan(plan.timing, due, here=True)
