"""Relocation worker: has the engine bring blocks of each volume from change logs back to their base places.

How it works      One thread looks at every volume that is served each LOOK_S, or each QUIET_LOOK_S while
                  hosts do nothing and there is nothing to move. A volume that may have blocks
                  to move gets a job of its own, which moves blocks for about JOB_S. While its hosts are
                  active, blocks are moved only if more than half of its log areas is used, or it has a rate;
                  the engine then gives way to hosts, but for what the log areas use above URGENT.
                  A volume with a rate gets its next job when what the last ones moved is due by that rate.
                  After a pass that has found nothing, nothing is done until hosts have changed something, a
                  snapshot was deleted, or IDLE_S is over.
Away, and home    Where a snapshot sees the base places, blocks stay in change logs, in as many pieces as
                  hosts have written. While hosts are idle, what snapshots see there is moved to slots first.
                  A block costs two copies then, so this is done within a credit: relocation never copies more
                  than hosts have written. What was written since the newest snapshot may be written again
                  soon, so it waits until hosts have been idle for SETTLED_S.
Owner and locks   Its thread, `polyvol-relocation`, and its jobs take no lock: the engine refuses what cannot
                  be, and a volume may be closed at any time.
Errors            An engine error ends the job; the next one is begun as if it had found nothing.
"""

import contextlib
import logging
import os
import threading
import time
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING

from polyvol.daemon.context import Context
from polyvol.daemon.errors import log_failure
from polyvol.daemon.relocation_progress import MOVING, NOTHING_TO_MOVE, OFF, RelocationProgress
from polyvol.daemon.workers import Workers
from polyvol.mapping.ids import VolumeId
from polyvol.mapping.records.volumes import Volume
from polyvol.mapping.sizes import format_size

if TYPE_CHECKING:
    from polyvol.engine import RelocationReport

LOOK_SETTING = "POLYVOL_RELOCATION_LOOK_S"
LOOK_S = 0.5
QUIET_LOOK_S = 4.0
"""How often volumes are looked at that the last look found without requests and without blocks to move."""
JOB_S = 1.0
"""How long a job moves blocks, about: settings are looked at between two."""
IDLE_S = 60.0
"""How long after a pass that has found nothing another one is made in any case."""
STOP_S = 5.0
GIVE_WAY = 0.5
"""While hosts are active nothing is moved, unless more than this share of the log areas is used."""
URGENT = 0.9
"""What the log areas use above this share is moved as if hosts were idle."""
RELIEF_BYTES = 64 << 20
"""How much is moved, at most, for writes that wait for free slots."""
RELIEF_S = 2.0
SETTLED_S = 60.0
"""How long hosts must be idle until what they wrote since the newest snapshot is put in order too."""
SCATTERED_RUNS = 8
"""2 MiB of a volume (a leaf) are scattered if they lie in at least so many runs of slots."""
AWAY_BYTES = 64 << 20
"""How much is moved away at a time: the log areas use so much more until the live blocks are home."""
AWAY_LEAST = 1 << 20
"""Less is not worth a pass."""
_ALL = 1 << 50
_log = logging.getLogger("polyvol.relocation")


@dataclass
class _Seen:
    """What a look at a volume has found: how many requests, how many bytes hosts have written, how many drops
    of snapshots have ended, and what its log areas use, in bytes."""

    requests: int
    written: int
    drops: int
    used: int
    size: int

    @property
    def share(self) -> float:
        return self.used / self.size if self.size else 0.0


@dataclass
class _Watched:
    """A volume that is watched: what the last look found (`seen`); of the last pass that found nothing to
    move, what the look before it had found (`done`), and when it ended (`done_s`)."""

    seen: _Seen
    done: _Seen | None = None
    done_s: float = field(default_factory=time.monotonic)
    is_active: bool = False
    active_s: float = field(default_factory=time.monotonic)
    """When hosts were seen active last."""
    rate: int | None = None
    due_s: float = 0.0
    """With this rate, when what was moved so far is due, and the next job begins."""

    def waits(self, rate: int | None) -> bool:
        """Whether a job now would exceed the rate."""
        return rate is not None and self.rate == rate and time.monotonic() < self.due_s

    def due_now(self, rate: int | None) -> int:
        """How many bytes a job that begins now may move. What a late begin has missed is made up for, but for
        not more than one job."""
        now_s = time.monotonic()
        last_s = self.due_s if self.rate == rate else 0.0
        self.rate, self.due_s = rate, max(last_s, now_s - JOB_S)
        return _ALL if rate is None else int(rate * (JOB_S + now_s - self.due_s))

    def note(self, moved: int) -> None:
        """So many bytes were moved."""
        if self.rate:
            self.due_s += moved / self.rate


class RelocationWorker:
    """Relocates blocks of all volumes."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._stopping = threading.Event()
        self._workers = Workers("polyvol-relocate")
        self._watched: dict[VolumeId, _Watched] = {}
        self._look_s, self._quiet_look_s = _pauses()
        self._thread = threading.Thread(target=self._run, name="polyvol-relocation", daemon=True)

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def stop(self) -> None:
        """End after the jobs in progress, with a bounded wait; idempotent."""
        self._stopping.set()
        if self._thread.is_alive():
            self._thread.join()
        if not self._workers.stop(STOP_S):
            _log.warning("a relocation is left behind: it does not end")

    def _run(self) -> None:
        quiet = False
        while not self._stopping.wait(self._quiet_look_s if quiet else self._look_s):
            try:
                quiet = self.look()
            except Exception as error:
                log_failure(_log, "looking for blocks to relocate", error)

    def look(self) -> bool:
        """Begin jobs for the volumes in which something may be to move now; whether all volumes are quiet."""
        context = self._context
        volumes = {volume.id: volume for volume in context.catalog.volumes.all() if context.is_served(volume)}
        for known in (self._watched, context.relocations):
            for gone in known.keys() - volumes.keys():
                known.pop(gone, None)
        quiet = True
        for volume in volumes.values():
            with contextlib.suppress(context.engine_error):  # it may be closed in the meantime
                if self._is_due(volume):
                    self._workers.run(volume.id, partial(self._move, volume))
                quiet = quiet and self._is_quiet(volume)
        return quiet

    def _is_quiet(self, volume: Volume) -> bool:
        """Whether the last look found no requests since the one before, and nothing to move."""
        watched = self._watched.get(volume.id)
        progress = self._context.relocations.get(volume.id)
        if watched is None or volume.relocation_rate == 0:
            return True  # it is never relocated
        return not watched.is_active and progress is not None and progress.state == NOTHING_TO_MOVE

    def _is_due(self, volume: Volume) -> bool:
        """Whether blocks of a volume are to be moved now; says why not."""
        progress = self._context.relocations.setdefault(volume.id, RelocationProgress())
        if volume.relocation_rate == 0:
            progress.state = OFF
            return False
        if volume.source is not None:
            progress.state = "none: a clone has no base places"
            return False
        seen = self._see(volume)
        progress.count_before(self._context.uses.get(volume.id), seen.written)
        watched = self._watched.setdefault(volume.id, _Watched(seen))
        active = watched.seen.requests != seen.requests
        watched.seen, watched.is_active = seen, active
        if active:
            watched.active_s = time.monotonic()
        if watched.done == seen and time.monotonic() - watched.done_s < IDLE_S:
            progress.state = NOTHING_TO_MOVE
            return False
        if active and volume.relocation_rate is None and seen.share <= GIVE_WAY:
            progress.state = "waits until hosts are idle"
            return False
        if watched.waits(volume.relocation_rate):
            progress.state = "waits, because more would exceed its rate"
            return False
        return True

    def _see(self, volume: Volume) -> _Seen:
        engine = self._context.engine
        stats, space = engine.volume_stats(volume.id), engine.space(volume.id)
        requests = stats["reads"] + stats["writes"] + stats["zeroes"] + stats["trims"]
        return _Seen(requests, stats["write_bytes"], stats["drops"], space["used_bytes"], space["size_bytes"])

    def _move(self, volume: Volume) -> None:
        """Move blocks of a volume for a while, no faster than its rate."""
        context = self._context
        progress = context.relocations.get(volume.id)
        watched = self._watched.get(volume.id)
        if progress is None or watched is None or self._stopping.is_set():
            return
        before, wanted = watched.seen, watched.due_now(volume.relocation_rate)
        if progress.state != MOVING:
            progress.state = "looks for blocks to move"
        try:
            excess = before.used - int(URGENT * before.size)
            urgent = excess > 0
            most = min(wanted, excess) if urgent else wanted
            report = self._relocate(volume, most, JOB_S, watched, urgent=urgent)
            home = report["bytes"]
            if urgent and home >= excess:
                report = self._relocate(volume, wanted - home, JOB_S, watched)
                home += report["bytes"]
            away = report["at_end"] and home == 0 and self._move_away(volume, watched, wanted)
        except context.engine_error as error:
            progress.state = f"failed: {error}"
            watched.done, watched.done_s = before, time.monotonic()
            return
        if report["at_end"] and home == 0 and not away:
            progress.state = NOTHING_TO_MOVE
            watched.done, watched.done_s = before, time.monotonic()
        elif home:
            progress.state = MOVING
            self._served_again(volume)

    def _move_away(self, volume: Volume, watched: _Watched, wanted: int) -> bool:
        """Move away what snapshots see at base places of scattered blocks, at most `wanted` bytes of it, if
        hosts are idle and the credit allows it; whether there may be more to move soon."""
        progress = self._context.relocations.get(volume.id)
        if progress is None or watched.is_active:
            return progress is not None
        idle_s = time.monotonic() - watched.active_s
        credit = progress.credit(watched.seen.written) // 2
        if credit < AWAY_LEAST:
            return False
        progress.state = "moving what snapshots see away from base places"
        scattered = (SCATTERED_RUNS, idle_s < SETTLED_S)
        most = min(wanted, AWAY_BYTES, credit)
        report = self._relocate(volume, most, JOB_S, watched, scattered=scattered)
        return report["bytes"] > 0 or not report["at_end"]

    def _relocate(
        self,
        volume: Volume,
        most: int,
        time_s: float,
        watched: _Watched | None,
        *,
        urgent: bool = False,
        scattered: tuple[int, bool] | None = None,
    ) -> "RelocationReport":
        """Move at most so many bytes, and note it; `watched`: None for what no rate limits."""
        report = self._context.engine.relocate(volume.id, most, time_s, urgent, scattered)
        progress = self._context.relocations.setdefault(volume.id, RelocationProgress())
        progress.add(time.monotonic(), report["bytes"], report["failed"])
        if watched is not None:
            watched.note(report["bytes"])
        return report

    def _served_again(self, volume: Volume) -> None:
        """Have writes wait for slots again that were refused for lack of them: there are some now."""
        if volume.id in self._context.refusing:
            with contextlib.suppress(self._context.engine_error):
                self._context.ask_when_full(volume)

    def relieve(self, volume: Volume) -> int:
        """Move blocks for writes that wait for free slots: how many bytes. An engine error if it fails."""
        if not volume.is_relocated:
            return 0
        report = self._relocate(volume, RELIEF_BYTES, RELIEF_S, None, urgent=True)
        if report["bytes"]:
            _log.debug("%s moved for writes that wait", format_size(report["bytes"]))
        return report["bytes"]


def _pauses() -> tuple[float, float]:
    """LOOK_S and QUIET_LOOK_S, or what tests have put in their place: POLYVOL_RELOCATION_LOOK_S, in seconds,
    which only shortens them."""
    try:
        look_s = float(os.environ.get(LOOK_SETTING, ""))
    except ValueError:
        return LOOK_S, QUIET_LOOK_S
    if not look_s > 0:
        return LOOK_S, QUIET_LOOK_S
    return min(LOOK_S, look_s), min(QUIET_LOOK_S, look_s)
