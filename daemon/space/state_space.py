"""State space: free space in the state directory, and what is retried when there is more.

How it works      The space monitor (change_logs.py) calls it every few seconds. Where little is left, a file
                  of a journal segment's size is allocated and removed again: only that shows whether there is
                  space, on every kind of file system. The result is in `context.state_trouble`, which status
                  and volumes show. Once there is space again, the reserve is made (reserve.py), and volumes
                  that could not be served are retried.
                  A processor whose journal cannot get its next segment reports that while half of the newest
                  one is left (`journal_full`). Then its journal is replaced by a checkpoint and a small
                  segment, for which space is reserved, and the old segment is removed: writes continue. If
                  that fails, the sentence names the volumes whose writes fail, and it is retried at each
                  look, with growing pauses, and at once after a snapshot or volume was deleted.
                  Each look also checks whether files there were changed from outside (state_files.py).
Owner and locks   `look` and `journal_full` are called by one thread, `refresh` by any. At most one other
                  thread replaces journals; while it runs, it alone changes `_failed` and the pause. Both may
                  change `_full` then, one id at a time.
Errors            None.
"""

import contextlib
import errno
import logging
import os
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from polyvol.daemon.context import Context
from polyvol.daemon.errors import log_failure
from polyvol.daemon.space.state_files import StateFiles
from polyvol.daemon.state.reserve import Reserve, few_files_left, free_bytes, try_allocate
from polyvol.mapping.no_space import NEEDED_BYTES, PROBES, is_no_space, probe_path
from polyvol.mapping.opening import matching
from polyvol.mapping.os_errors import advice, reason
from polyvol.mapping.partition import round_up
from polyvol.mapping.records.volumes import Volume
from polyvol.mapping.sizes import format_size

_log = logging.getLogger("polyvol.space")
SEGMENT_BYTES = 8 << 20
"""A journal segment: each processor of each volume needs one from time to time."""
LOW_BYTES = 256 << 20
"""With less than this, or a twentieth of the file system where that is less, a warning is due."""
LOW_LEAST = 32 << 20
_NEEDED_STEP = 4 << 20
"""The room to be freed is rounded up to this: each other number is another note."""
_PAUSE_LEAST_S = 2.0
_PAUSE_MAX_S = 30.0
SEGMENTS_KEPT = 2
"""Journal segments of a processor that a checkpoint does not remove: the newest, and the one that follows."""


class StateSpaceMonitor:
    """The watch over the state directory. `again`: called when there is space after there was none."""

    def __init__(self, context: Context, reserve: Reserve, again: Callable[[], None]) -> None:
        self._files = StateFiles(context)
        self._context = context
        self._directory = context.state_dir
        self._reserve = reserve
        self._again = again
        self._low = False
        self._was: str | None = None
        self._looking = threading.Lock()
        self._relief: threading.Thread | None = None
        self._full: set[int] = set()
        self._failed: set[int] = set()
        self._pause_s = 0.0
        self._next_s = 0.0
        self._count = 0
        for left in self._directory.glob(PROBES):  # left by a killed process
            with contextlib.suppress(OSError):
                left.unlink()

    def look(self) -> None:
        """Check the free space and the files, and report changes."""
        moved = self._files.is_moved()
        if not moved:
            self._reserve.make()
        context, before = self._context, self._was
        free = free_bytes(self._directory)
        low = free < self._low_bytes() * (2 if self._low else 1)  # hysteresis, to report it once
        unusual = moved or low or few_files_left(self._directory) or _is_read_only(self._directory)
        now = self.refresh(always=unusual or bool(self._full))
        if now is not None:
            if now != before:
                context.events.add("warning", now)
        elif before is not None:
            context.events.add("info", f"{self._directory} can be written to again")
            self.try_again()
        self._relieve(little=now is not None)
        if low and not self._low and now is None:
            text = (
                f"the file system of {self._directory} has only {format_size(free)} left; when it is full,"
                " snapshots and changes fail, and writes may; free some of it"
            )
            context.events.add("warning", text)
        self._low, self._was = low, now
        self._files.look()

    def journal_full(self, volume: int) -> None:
        """Handle a journal of this volume that has no space for its next segment."""
        self._full.add(volume)
        if not self._failed or time.monotonic() >= self._next_s:  # else it was tried a moment ago
            self._relieve(little=True)

    def refresh(self, *, always: bool = False) -> str | None:
        """Check again, `always` or if there was a problem; the present problem. Any thread may call."""
        with self._looking:
            if always or self._context.state_trouble is not None:
                self._context.state_trouble = self._trouble()
            return self._context.state_trouble

    def try_again(self) -> None:
        """Try again what could not be done; in a thread of its own, because it waits for devices."""
        threading.Thread(target=self._go_on, name="polyvol-again", daemon=True).start()

    def _go_on(self) -> None:
        try:
            self._again()
        except Exception as error:
            log_failure(_log, "serving volumes again", error)

    def _relieve(self, *, little: bool) -> None:
        """If a journal has no room for its next segment, or `little` room is left, have checkpoints replace
        such journals and those that take more than they need; in a thread, because it waits for devices."""
        if self._relief is not None and self._relief.is_alive():
            return
        if not little and not self._full:
            return
        catalog = self._context.catalog
        volumes = [each for each in catalog.volumes.all() if self._context.is_served(each)]
        self._full &= {volume.id for volume in volumes}
        self._failed &= self._full
        count = len(volumes) + sum(len(catalog.snapshots.of(volume.id)) for volume in volumes)
        if count < self._count:  # something was deleted, so checkpoints are smaller
            self._next_s = self._pause_s = 0.0
        self._count = count
        wanting = [volume for volume in volumes if volume.id in self._full or self._has_old_segments(volume)]
        if not wanting or (self._failed and time.monotonic() < self._next_s):
            return
        ids = [volume.id for volume in wanting]
        self._relief = threading.Thread(
            target=self._checkpoint, args=(ids,), name="polyvol-relief", daemon=True
        )
        self._relief.start()

    def _has_old_segments(self, volume: Volume) -> bool:
        processors = len(self._context.catalog.volumes.processors(volume.id))
        journals = matching(self._context.volume_directory(volume), "*.journal")
        return len(journals) > SEGMENTS_KEPT * processors

    def _checkpoint(self, volumes: Sequence[int]) -> None:
        failed = set()
        with self._reserve.given_up_for_journals():
            for volume in volumes:
                self._full.discard(volume)  # an event from now on is about another segment
                try:
                    self._context.engine.relieve(volume)
                except self._context.engine_error:
                    failed.add(volume)
        self._full |= failed
        self._failed = failed
        self._pause_s = min(_PAUSE_MAX_S, max(_PAUSE_LEAST_S, 2 * self._pause_s)) if failed else 0.0
        self._next_s = time.monotonic() + self._pause_s

    def _low_bytes(self) -> int:
        with contextlib.suppress(OSError):
            found = os.statvfs(self._directory)
            return min(LOW_BYTES, max(LOW_LEAST, found.f_blocks * found.f_frsize // 20))
        return LOW_BYTES

    def _trouble(self) -> str | None:
        """What is wrong, as a sentence; None if a journal segment has room."""
        if self._files.is_moved():
            return self._files.moved_sentence()
        error = _try(probe_path(self._directory))
        if error is None:
            return None
        place = f"the file system of {self._directory}"
        writes = self._writes()
        if is_no_space(error) and few_files_left(self._directory):
            return (
                f"{place} has no room for more files (`df -i`): snapshots and changes fail, {writes};"
                " deleting works; remove files there"
            )
        if is_no_space(error):
            quota = error.errno == errno.EDQUOT
            what = f"no space is left in the disk quota for {self._directory}" if quota else ""
            return (
                f"{what or f'no space is left on {place}'}: snapshots and changes fail, {writes}; deleting"
                f" works; {'raise the quota, or ' if quota else ''}free at least {self._needed()} there"
            )
        if error.errno == errno.EROFS:
            return (
                f"{place} is read-only: snapshots, changes, deleting and flushes fail; see the kernel's log"
                " (`dmesg`) for errors of its disk, then mount it read-write"
            )
        return (
            f"nothing can be written to {self._directory} ({reason(error)}): snapshots, changes and deleting"
            f" fail; {advice(error, 'check its file system')}"
        )

    def _writes(self) -> str:
        """What happens to writes, as a clause."""
        names = [each.shown_name for each in self._context.catalog.volumes.all() if each.id in self._failed]
        if not names:
            return "and writes go on in the room that is kept for journals"
        which = f"volume{'' if len(names) == 1 else 's'} {', '.join(names)}"
        return (
            f"and so do writes of {which} when the present journals are full, until a checkpoint has room"
            " (it needs less after snapshots were deleted)"
        )

    def _needed(self) -> str:
        """The advice what to free."""
        more = self._reserve.size() + self._reserve.journals_size() + SEGMENT_BYTES
        return format_size(max(NEEDED_BYTES, round_up(more, _NEEDED_STEP)))


def _is_read_only(directory: Path) -> bool:
    with contextlib.suppress(OSError):
        return bool(os.statvfs(directory).f_flag & os.ST_RDONLY)
    return True


def _try(path: Path) -> OSError | None:
    error = try_allocate(path, SEGMENT_BYTES)
    with contextlib.suppress(OSError):
        path.unlink(missing_ok=True)
    return error
