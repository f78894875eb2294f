"""Fill level: how full the change logs of each volume are, how fast they fill, and when to warn. No engine,
no thread.

How it works      A `FillLevel` gets a volume's use every few seconds. It keeps the samples of the last
                  minutes in which something changed, for the rate. It reports a level once when the use
                  reaches it, and not again until the use has fallen HYSTERESIS below that level.
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


def level_of(used: int, size: int) -> Level:
    """The level of so much in use."""
    return [level for level, share in LEVELS if used >= share * size][-1] if size else "ok"


class FillLevel:
    """How one volume's change logs fill."""

    def __init__(self) -> None:
        self._samples: deque[tuple[float, int]] = deque()
        self._warned = 0
        self.rate = 0
        """Net growth in the last minutes, bytes a second; 0 where they do not grow."""

    def tell(self, now_s: float, used: int, size: int) -> Level | None:
        """The use is `used` of `size` now. The level that was crossed upwards, if a warning is due."""
        self._sample(now_s, used)
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
        return SpaceView(
            size=size,
            used=used,
            free=free,
            level=level_of(used, size),
            rate=self.rate,
            full_after_s=free // self.rate if self.rate > 0 else None,
        )

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
