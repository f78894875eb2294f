"""Fill level: how full the change logs of each volume are, how fast they fill, how long what is free lasts,
and when to warn. No engine, no thread.

How it works      A `FillLevel` gets a volume's use every few seconds. It keeps the samples of the last
                  minutes in which something changed, for the rate. It reports a level once when the use
                  reaches it, and not again until the use has fallen HYSTERESIS below that level. How long
                  the free space lasts is told by the last hour, in which snapshots came and went: what was
                  redirected, less what became free.
Owner and locks   Updated by one thread, read by any: the view is replaced as a whole.
"""

from collections import deque
from typing import Literal

from polyvol.daemon.types.log_areas import SpaceView

Level = Literal["ok", "low", "critical", "full"]
LEVELS: tuple[tuple[Level, float], ...] = (("ok", 0.0), ("low", 0.75), ("critical", 0.9), ("full", 1.0))
"""Each level, and the share of the logs in use from which on it is that level."""
HYSTERESIS = 0.05
WINDOW_S = 300.0
HOUR_S = 3600.0
STEP_S = 60.0
"""Between two samples of the last hour."""
MEASURED_LEAST_S = 300.0
"""For so long it must have been measured before anything is said of hours."""


def level_of(used: int, size: int) -> Level:
    """The level of so much in use."""
    return [level for level, share in LEVELS if used >= share * size][-1] if size else "ok"


class FillLevel:
    """How one volume's change logs fill."""

    def __init__(self) -> None:
        self._samples: deque[tuple[float, int]] = deque()
        self._hour: deque[tuple[float, int, int]] = deque()
        self._measured = ((0.0, 0, 0), (0.0, 0, 0))
        """The first and the last sample of the last hour: when, use, bytes redirected."""
        self._warned = 0
        self.rate = 0
        """Net growth in the last minutes, bytes a second; 0 where they do not grow."""

    def tell(self, now_s: float, used: int, size: int, redirected: int = 0) -> Level | None:
        """The use is `used` of `size` now, and `redirected` bytes were redirected since polyvold serves the
        volume. The level that was crossed upwards, if a warning is due."""
        self._sample(now_s, used)
        self._sample_hour(now_s, used, redirected)
        reached = [level for level, _ in LEVELS].index(level_of(used, size))
        while self._warned > reached and used < (LEVELS[self._warned][1] - HYSTERESIS) * size:
            self._warned -= 1
        if reached <= self._warned:
            return None
        self._warned = reached
        return LEVELS[reached][0]

    def view(self, used: int, size: int) -> SpaceView:
        """What a user is shown."""
        free = size - used
        measured_s, redirected, grown = self._of_hour()
        return SpaceView(
            size=size,
            used=used,
            free=free,
            level=level_of(used, size),
            rate=self.rate,
            full_after_s=free // self.rate if self.rate > 0 else None,
            measured_s=int(measured_s),
            redirected_per_hour=redirected,
            freed_per_hour=None if redirected is None or grown is None else max(0, redirected - grown),
            lasts_s=int(free * HOUR_S / grown) if grown is not None and grown > 0 else None,
        )

    def _of_hour(self) -> tuple[float, int | None, int | None]:
        """For how long the last hour was measured, seconds, and what was redirected in it, and by how much
        the use grew, bytes an hour; 0 and None while that is too short."""
        (begin_s, began_used, began), (now_s, used, redirected) = self._measured
        measured_s = now_s - begin_s
        if measured_s < MEASURED_LEAST_S:
            return 0.0, None, None
        hours = measured_s / HOUR_S
        return measured_s, int((redirected - began) / hours), int((used - began_used) / hours)

    def _sample_hour(self, now_s: float, used: int, redirected: int) -> None:
        samples = self._hour
        now = (now_s, used, redirected)
        if redirected < self._measured[1][2]:
            samples.clear()  # the engine has begun again
        if not samples or now_s - samples[-1][0] >= STEP_S:
            samples.append(now)
        while len(samples) > 1 and samples[1][0] <= now_s - HOUR_S:
            samples.popleft()
        self._measured = (samples[0], now)

    def _sample(self, now_s: float, used: int) -> None:
        samples = self._samples
        while len(samples) > 1 and samples[1][0] <= now_s - WINDOW_S:
            samples.popleft()
        # An unchanged use is one sample: the oldest one moves along.
        if samples and samples[0][0] < now_s - WINDOW_S:
            samples[0] = (now_s - WINDOW_S, samples[0][1])
        if not samples or samples[-1][1] != used:
            samples.append((now_s, used))
        begin_s, begin = samples[0]
        elapsed_s = now_s - begin_s
        self.rate = max(0, int((used - begin) / elapsed_s)) if elapsed_s > 0 else 0
