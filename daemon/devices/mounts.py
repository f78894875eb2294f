"""Files that appear after the start: finds a missing device whose file system is mounted later.

How it works      One thread sleeps on /proc/self/mountinfo, which the kernel marks at each mount; while a
                  device is missing it also checks every few seconds, because a file can appear without a
                  mount. A check is one stat of the device's path, by workers (workers.py): a file system that
                  hangs delays only this device. A file that exists, and is not the one that was refused the
                  last time, is tried as `polyvol device retry` would, by other workers. So are disks that did
                  not answer at the start; udev.py finds those that appear later.
Invariants        MO1 while no device is missing, nothing is checked; MO2 after `stop`, nothing is tried,
                  unless a device hangs.
Owner and locks   The checking threads hold no lock; `found` takes what it needs.
Errors            None. A file that is not the device stays the reason why it is missing.
"""

import logging
import os
import select
import stat
import threading
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import partial
from pathlib import Path

from polyvol.daemon.workers import Workers
from polyvol.mapping.errors import PolyvolError

MOUNTS = "/proc/self/mountinfo"
INTERVAL_S = 5.0
STOP_S = 5.0
"""How long a stop waits for devices that are being tried."""
_State = tuple[int, int, int, int]
_log = logging.getLogger("polyvol")


class MountWatch:
    """Calls `found` with the id of a missing device when a file is at its path. `missing`: the paths of all
    missing devices, by id; it must not block."""

    def __init__(self, missing: Callable[[], Mapping[int, Path]], found: Callable[[int], object]) -> None:
        self._missing = missing
        self._found = found
        self._probes = Workers("polyvol-look")
        self._tries = Workers("polyvol-try")
        self._refused: dict[int, _State] = {}
        self._wake, self._woken = os.pipe()
        self._thread = threading.Thread(target=self._run, name="polyvol-mounts", daemon=True)

    def start(self) -> None:
        """Begin to watch."""
        self._thread.start()

    def stop(self) -> None:
        """End it. A check of a file system that hangs is abandoned; devices that are being tried are waited
        for, at most STOP_S, because that changes them."""
        os.close(self._woken)
        if self._thread.is_alive():
            self._thread.join()
        os.close(self._wake)
        self._probes.stop(0)
        if not self._tries.stop(STOP_S):
            _log.warning("trying missing devices is left behind: it does not end")

    def _run(self) -> None:
        with open(MOUNTS, encoding="utf-8") as mounts:  # noqa: PTH123 - it is only waited for
            poll = select.poll()
            poll.register(mounts, select.POLLPRI)
            poll.register(self._wake, select.POLLIN)
            while not any(fd == self._wake for fd, _ in poll.poll(INTERVAL_S * 1000)):
                try:
                    self.look()
                except Exception:  # the thread must not end
                    _log.exception("looking for devices that are missing")

    def look(self) -> None:
        """Check every missing device that is not being checked."""
        missing = self._missing()
        for device in [known for known in self._refused if known not in missing]:
            del self._refused[device]
        for device, path in missing.items():
            if not (self._probes.busy(device) or self._tries.busy(device)):
                self._probes.run(device, partial(self._look_at, device, path))

    def _look_at(self, device: int, path: Path) -> None:
        state = _state_of(path)
        if state is None or state == self._refused.get(device):
            return
        self._refused[device] = state
        self._tries.run(device, partial(self._try, device, path))

    def _try(self, device: int, path: Path) -> None:
        try:
            self._found(device)
        except PolyvolError as error:
            _log.info("%s: %s", path, error)
        except Exception:
            _log.exception("%s is there, and could not be tried", path)


def _state_of(path: Path) -> _State | None:
    """The identity of the file at a path, by stat; None if there is none."""
    with suppress(OSError, ValueError):
        status = path.stat()
        if stat.S_ISREG(status.st_mode):
            return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns
        if stat.S_ISBLK(status.st_mode):
            return status.st_rdev, status.st_ino, 0, 0
    return None
