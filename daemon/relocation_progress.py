"""Relocation progress: how much of a volume was relocated, and what relocation does now. No engine, no
thread.

Owner and locks   Updated by the worker's jobs and by those who make room for writes, under a lock; read by
                  any.
"""

import threading
import time

from polyvol.daemon.types.usage import VolumeUseView
from polyvol.daemon.types.volumes import RelocationView
from polyvol.mapping.sizes import format_size

NOTHING_TO_MOVE = "nothing to move"
"""The state after a pass that has found nothing."""
MOVING = "moving"
OFF = "off"
NOT_BEGUN = "has not begun"
WINDOW_S = 10.0
"""The speed is that of so many last seconds, about."""


class RelocationProgress:
    """How far the relocation of one volume's blocks is."""

    def __init__(self) -> None:
        self.moved = 0
        """Bytes that were moved since polyvold began to serve the volume."""
        self.failed = 0
        """Batches with blocks that could not be moved."""
        self.live_before: int | None = None
        """Bytes that hosts had written before polyvold began to serve the volume, and that were still in its
        change logs then; None: not counted yet."""
        self.state = NOT_BEGUN
        """What it does, or why it waits, for people."""
        self._lock = threading.Lock()
        self._speed = 0.0
        self._at_s = time.monotonic()

    def add(self, now_s: float, moved: int, failed: int) -> None:
        """So many bytes were moved until now since the last call, and so many batches failed."""
        with self._lock:
            self.moved += moved
            self.failed += failed
            passed_s = max(1e-3, now_s - self._at_s)
            share = min(1.0, passed_s / WINDOW_S)
            self._speed += (moved / passed_s - self._speed) * share
            self._at_s = now_s

    def count_before(self, use: VolumeUseView | None, written: int) -> None:
        """Note what was in change logs when polyvold began to serve the volume, at its first count; `written`
        as in `credit`."""
        if self.live_before is None and use is not None:
            self.live_before = max(0, use.live + self.moved - written)

    def credit(self, written: int) -> int:
        """How many bytes may be copied, so that no more are than hosts have written: `written` since polyvold
        began to serve the volume, and before that what the volume had in change logs then."""
        return max(0, (self.live_before or 0) + written - self.moved)

    def view(
        self, rate: int | None, use: VolumeUseView | None = None, written: int | None = None
    ) -> RelocationView:
        """What a user is shown; `rate`: the volume's setting; `use`: what it holds, as last counted;
        `written`: bytes that its hosts have written since polyvold began to serve it."""
        passed_s = time.monotonic() - self._at_s
        speed = 0 if passed_s > WINDOW_S else int(self._speed)
        left = None if use is None else use.comes_back
        caused_by = (self.live_before or 0) + (written or 0)
        return RelocationView(
            rate=rate,
            moved=self.moved,
            failed=self.failed,
            speed=speed,
            state=_explained(self._state_at(rate), use),
            left=left,
            eta_s=left // speed if left is not None and speed else None,
            written=written,
            amplification=round(self.moved / caused_by, 3) if caused_by else None,
        )

    def _state_at(self, rate: int | None) -> str:
        """The state, which may be of a look before the setting was changed to `rate`."""
        if rate == 0:
            return OFF
        return NOT_BEGUN if self.state == OFF else self.state


def _explained(state: str, use: VolumeUseView | None) -> str:
    """A state with what keeps blocks in change logs, where nothing is to move."""
    if use is None or state != NOTHING_TO_MOVE or use.comes_back:
        return state
    keeps = []
    if use.snapshots_keep:
        keeps.append(f"snapshots need the base places of {format_size(use.snapshots_keep)}")
    if use.clones_keep:
        keeps.append(f"clones pin {format_size(use.clones_keep)}")
    return f"{state}: {' and '.join(keeps)}" if keeps else state
