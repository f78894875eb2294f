"""Hot-plug of disks: udev events, by pyudev, call the verbs of devices.

How it works      One thread sleeps on udev's netlink socket, or the kernel's where no udev runs. When a disk
                  is removed, the open devices with its number become missing; I/O on them fails by itself,
                  because the disk is gone. A disk that is added or changes may be a missing device: at its
                  old path, or by its label at another; it is then reopened, and its partitions are served
                  again.
Invariants        UD1 without events nothing is checked.
Owner and locks   Workers (workers.py) call the verbs, for each disk in order: a disk that hangs does not
                  delay events of others.
Errors            All are logged. Without the socket the daemon runs on, and devices come back by
                  `polyvol device retry`.
"""

import contextlib
import logging
from collections import deque
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pyudev

from polyvol.daemon.workers import Workers
from polyvol.mapping.errors import PolyvolError
from polyvol.mapping.os_errors import reason

UDEV_CONTROL = Path("/run/udev/control")
BUFFER_BYTES = 8 << 20
STOP_S = 5.0
"""How long a stop waits for verbs under way."""
_log = logging.getLogger("polyvol")


def _why(error: Exception) -> str:
    return reason(error) if isinstance(error, OSError) else "pyudev cannot be loaded"


class DiskWatch:
    """Calls `gone` with a disk's number when it is removed, and `came` with its path when one is added."""

    def __init__(self, gone: Callable[[int], object], came: Callable[[Path], object]) -> None:
        self._gone = gone
        self._came = came
        self._observer: Any = None
        self._workers = Workers("polyvol-disk")
        self._news: dict[str, deque[tuple[str, Path, int]]] = {}

    def start(self) -> None:
        """Begin to watch."""
        source = "udev" if UDEV_CONTROL.exists() else "kernel"
        try:
            monitor = pyudev.Monitor.from_netlink(pyudev.Context(), source)
            monitor.filter_by("block")
            with contextlib.suppress(OSError):  # only root may have more than others
                monitor.set_receive_buffer_size(BUFFER_BYTES)
            self._observer = pyudev.MonitorObserver(monitor, callback=self._observed, name="polyvol-udev")
            self._observer.start()
        except (OSError, ImportError) as error:
            self._observer = None
            text = "no news of disks can be had (%s): `polyvol device retry` brings them back"
            _log.warning(text, _why(error))

    def stop(self) -> None:
        """End it; no verb is called afterwards, and those in progress are awaited for a bounded time."""
        if self._observer is not None:
            self._observer.stop()
            self._observer = None
        if not self._workers.stop(STOP_S):
            _log.warning("looking at disks is left behind: it does not end")

    def _observed(self, device: pyudev.Device) -> None:
        try:
            self._take_up(device)
        except Exception:  # it would end the watch over all disks
            _log.exception("news of a disk")

    def _take_up(self, device: pyudev.Device) -> None:
        node = device.device_node
        if node is not None:
            news = (str(device.action), Path(node), int(device.device_number))
            self._news.setdefault(node, deque()).append(news)
            self._workers.run(node, partial(self._tell, node))

    def _tell(self, node: str) -> None:
        """Handle all events of a disk, in order."""
        while self._news[node]:
            self.happened(*self._news[node].popleft())

    def happened(self, action: str, node: Path, number: int) -> None:
        """Handle an event of the disk with this path and number."""
        try:
            if action == "remove":
                self._gone(number)
            elif action in ("add", "change", "online"):
                self._came(node)
        except PolyvolError as error:
            _log.warning("disk %s: %s", node, error)
        except Exception:  # the thread must not end, because later events count too
            _log.exception("disk %s: news of it could not be dealt with", node)
