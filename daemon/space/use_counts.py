"""Use counts: what volumes hold in change logs, counted in the background, so that `status` has it at once.

How it works      The space monitor looks at each volume every few seconds. A volume in which something has
                  changed since its last count is counted by a worker, not more often than each LEAST_S, and
                  so seldom that counting takes no more than a hundredth of the time. `context.uses` has the
                  results.
Owner and locks   `look` is called by one thread, and waits for nothing; the workers take no locks.
Errors            An engine error ends a count: the volume is being closed.
"""

import time
from functools import partial

from polyvol.daemon.context import Context
from polyvol.daemon.types.usage import VolumeUseView
from polyvol.daemon.volumes.usage import volume_use
from polyvol.daemon.workers import Workers
from polyvol.mapping.ids import VolumeId
from polyvol.mapping.records.volumes import Volume

LEAST_S = 2.0
"""Between two counts of a volume."""
REST_FACTOR = 100
"""How many times as long as a count took nothing is counted."""
_Seen = tuple[int, ...]


class UseCounts:
    """Counts what volumes hold."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._workers = Workers("polyvol-use")
        self._seen: dict[VolumeId, _Seen] = {}
        self._next_s: dict[VolumeId, float] = {}

    def stop(self, within_s: float) -> bool:
        """End after the counts in progress, with a bounded wait; whether they have ended."""
        return self._workers.stop(within_s)

    def keep_only(self, volumes: set[VolumeId]) -> None:
        """Forget all other volumes."""
        for known in (self._seen, self._next_s, self._context.uses, self._context.use_seconds):
            for gone in known.keys() - volumes:
                known.pop(gone, None)

    def look(self, volume: Volume) -> None:
        """Begin to count what a volume that is served holds, if that is due. Engine errors."""
        if time.monotonic() < self._next_s.get(volume.id, 0.0):
            return
        seen = self._see(volume)
        if self._seen.get(volume.id) == seen and volume.id in self._context.uses:
            return
        self._next_s[volume.id] = time.monotonic() + LEAST_S
        self._workers.run(volume.id, partial(self._count, volume, seen))

    def _see(self, volume: Volume) -> _Seen:
        stats = self._context.engine.volume_stats(volume.id)
        moved = self._context.relocations.get(volume.id)
        counts = (stats["writes"], stats["zeroes"], stats["trims"], stats["drops"], stats["epoch"])
        used = (log["used_bytes"] for log in stats["logs"])
        return (*counts, 0 if moved is None else moved.moved, *used)

    def _count(self, volume: Volume, seen: _Seen) -> VolumeUseView | None:
        found = volume_use(self._context, volume)
        took_s = self._context.use_seconds.get(volume.id, 0.0)
        self._next_s[volume.id] = time.monotonic() + max(LEAST_S, REST_FACTOR * took_s)
        if found is not None:
            self._seen[volume.id] = seen
        return found
