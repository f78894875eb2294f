"""sim_debug: what the sim engine says of itself: its log lines, and what it is at."""

import threading
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from polyvol.engine import EngineInspection, LogLine
    from tests.support.sim_engine import SimWorld


class SimLog:
    """What an engine reports of itself. A test puts lines into `log`, and calls `wake_log_readers`."""

    def __init__(self) -> None:
        self.log: list[LogLine] = []
        self.dropped_lines = 0
        self.inspection: EngineInspection | None = None
        """What `inspect` answers, if not that there is nothing."""
        self.used: dict[int, int] = {}
        """Volume -> what its change logs hold, bytes, as `space` says."""
        self.checkpoint_errno: dict[int, int] = {}
        """Volume -> why its last checkpoint failed."""
        self._logged = threading.Condition()
        self._woken = False

    def next_log_lines(self, timeout_s: float) -> "tuple[list[LogLine], int]":
        """Take out what there is; waits for it or for `wake_log_readers`, at most so long."""
        with self._logged:
            self._logged.wait_for(lambda: self.log or self.dropped_lines or self._woken, timeout_s)
            found, self.log = self.log, []
            dropped, self.dropped_lines = self.dropped_lines, 0
            self._woken = False
        return found, dropped

    def wake_log_readers(self) -> None:
        """Have `next_log_lines` return."""
        with self._logged:
            self._woken = True
            self._logged.notify_all()


class SimInspection:
    """As polyvol.engine.Engine, what `inspect` is of."""

    world: "SimWorld"

    def inspect(self) -> "EngineInspection":
        """What a test has put into the world's `inspection`."""
        if self.world.inspection is not None:
            return self.world.inspection
        nothing: EngineInspection = {
            "processors": [],
            "flushers": [],
            "pools": [],
            "cutting": False,
            "memory": {},
            "limits": {},
        }
        return nothing
