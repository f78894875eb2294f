"""Events: what happened recently that an operator should know, for the log and for `polyvol status`.

How it works      A short list in memory, newest last; each is a line in the daemon's log too. A restart
                  begins a new list.
Owner and locks   Any thread may add and read: one lock over the list.
"""

import logging
import threading
from collections import deque
from typing import Literal

from polyvol.daemon.types.base import iso
from polyvol.daemon.types.status import EventView
from polyvol.mapping.clock import wall_ns

EVENTS_MAX = 100
_log = logging.getLogger("polyvol")


class Events:
    """The latest EVENTS_MAX events."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._events: deque[EventView] = deque(maxlen=EVENTS_MAX)

    def add(
        self, level: Literal["info", "warning"], text: str, *, volume: str | None = None, **more: object
    ) -> None:
        """Add an event: one sentence that names the object. `more`: fields for the journal."""
        with self._lock:
            self._events.append(EventView(time=iso(wall_ns()), level=level, volume=volume, text=text))
        fields = more if volume is None else {"VOLUME": volume, **more}
        _log.log(logging.WARNING if level == "warning" else logging.INFO, "%s", text, extra=fields)

    def add_once(
        self, level: Literal["info", "warning"], text: str, *, volume: str | None = None, **more: object
    ) -> None:
        """As `add`, unless the latest events have it already: for actions that are retried."""
        if all(event.text != text for event in self.latest()):
            self.add(level, text, volume=volume, **more)

    def latest(self) -> list[EventView]:
        """All stored events, oldest first."""
        with self._lock:
            return list(self._events)
