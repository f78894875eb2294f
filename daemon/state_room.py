"""The room in the state directory: how much there is, and what goes on by itself when there is more.

How it works      The watch over the change logs (space.py) has it looked at every few seconds. Where little
                  is left, a file of a journal segment's size is allocated and removed again: only that says
                  whether there is room, whatever the kind of file system. What was found is in
                  `context.state_trouble`, which status and volumes show. Once there is room again, the
                  reserve is made (reserve.py), and volumes that could not be served are tried again.
                  Where there is none, old journal segments are replaced by checkpoints, for which the
                  reserve has room: often that is room enough.
Owner and locks   `look` is called by one thread.
Errors            None.
"""

import contextlib
import logging
import os
import threading
from collections.abc import Callable, Sequence
from pathlib import Path

from polyvol.daemon.context import Context
from polyvol.daemon.errors import log_failure
from polyvol.daemon.reserve import Reserve, few_files_left, free_bytes, try_allocate
from polyvol.daemon.sizes import format_size
from polyvol.daemon.state_files import StateFiles
from polyvol.mapping.no_space import NEEDED, PROBES, is_no_space, probe_path
from polyvol.mapping.os_errors import reason
from polyvol.mapping.records import Volume

_log = logging.getLogger("polyvol.room")
SEGMENT_BYTES = 8 << 20
"""A journal segment: each processor of each volume needs one now and then."""
LOW_BYTES = 256 << 20
"""With less than this, or a twentieth of the file system where that is less, a warning is due."""
LOW_LEAST = 32 << 20
SEGMENTS_KEPT = 2
"""Journal segments of a processor that a checkpoint does not remove: the newest, and the one that follows."""


class StateRoom:
    """The watch over the state directory. `again`: what to do when there is room after there was none."""

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
        for left in self._directory.glob(PROBES):  # by a killed process
            with contextlib.suppress(OSError):
                left.unlink()

    def look(self) -> None:
        """See how much room there is, and whether files are gone, and say so where that has changed."""
        moved = self._files.is_moved()
        if not moved:
            self._reserve.make()
        context, before = self._context, self._was
        free = free_bytes(self._directory)
        low = free < self._low_bytes() * (2 if self._low else 1)  # or one would be told again and again
        now = self.refresh(always=moved or low or few_files_left(self._directory))
        if now is not None:
            if now != before:
                context.events.add("warning", now)
            self._relieve()
        elif before is not None:
            context.events.add("info", f"{self._directory} can be written to again")
            threading.Thread(target=self._go_on, name="polyvol-again", daemon=True).start()
        if low and not self._low and now is None:
            text = (
                f"the file system of {self._directory} has only {format_size(free)} left; when it is full,"
                " writes and snapshots fail; free some of it"
            )
            context.events.add("warning", text)
        self._low, self._was = low, now
        self._files.look()

    def refresh(self, *, always: bool = False) -> str | None:
        """Look again, `always` or if something was wrong; what is wrong now. Any thread may call."""
        with self._looking:
            if always or self._context.state_trouble is not None:
                self._context.state_trouble = self._trouble()
            return self._context.state_trouble

    def _go_on(self) -> None:
        """Try again what could not be done; in a thread of its own, because it waits for devices."""
        try:
            self._again()
        except Exception as error:
            log_failure(_log, "serving volumes again", error)

    def _relieve(self) -> None:
        """Have journals that take more room than they need replaced by checkpoints, in a thread of its own:
        they wait for devices."""
        if self._relief is not None and self._relief.is_alive():
            return
        volumes = [each for each in self._context.catalog.volumes() if self._context.is_served(each)]
        large = [volume.id for volume in volumes if self._has_old_segments(volume)]
        if large:
            self._relief = threading.Thread(
                target=self._checkpoint, args=(large,), name="polyvol-relief", daemon=True
            )
            self._relief.start()

    def _has_old_segments(self, volume: Volume) -> bool:
        processors = len(self._context.catalog.volume_processors(volume.id))
        journals = list(self._context.volume_directory(volume).glob("*.journal"))
        return len(journals) > SEGMENTS_KEPT * processors

    def _checkpoint(self, volumes: Sequence[int]) -> None:
        with self._reserve.given_up():
            for volume in volumes:
                with contextlib.suppress(self._context.engine_error):  # it is tried again at the next look
                    self._context.engine.checkpoint(volume)

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
        if is_no_space(error) and few_files_left(self._directory):
            return (
                f"the file system of {self._directory} has no room for more files (`df -i`): writes fail when"
                " the present journals are full, and so do changes; remove files there"
            )
        if is_no_space(error):
            return (
                f"no space is left on the file system of {self._directory}: writes fail when the present"
                f" journals are full, and so do snapshots and changes; free at least {NEEDED} there, or"
                " delete snapshots or volumes"
            )
        return f"nothing can be written to {self._directory}: {reason(error)}"


def _try(path: Path) -> OSError | None:
    error = try_allocate(path, SEGMENT_BYTES)
    with contextlib.suppress(OSError):
        path.unlink(missing_ok=True)
    return error
