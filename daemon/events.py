"""Events: what has happened of late that an operator should know, for the log and for `polyvol status`.

How it works      A short list in memory, newest last; each is a line in the daemon's log too. A restart
                  begins a new list.
Owner and locks   Any thread may add and read: one lock over the list.
"""

import logging
import threading
import time
from collections import deque
from collections.abc import Mapping
from typing import Literal

from polyvol.daemon.views import EventView, iso

EVENTS_MAX = 100
_log = logging.getLogger("polyvol")


class Events:
    """The latest EVENTS_MAX events."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._events: deque[EventView] = deque(maxlen=EVENTS_MAX)

    def add(
        self,
        level: Literal["info", "warning"],
        text: str,
        *,
        volume: str | None = None,
        fields: Mapping[str, str] | None = None,
    ) -> None:
        """Something has happened: one sentence that names the thing. `fields`: more of the journal's."""
        with self._lock:
            self._events.append(EventView(time=iso(time.time_ns()), level=level, volume=volume, text=text))
        extra = dict(fields or {})
        if volume is not None:
            extra["VOLUME"] = volume
        _log.log(logging.WARNING if level == "warning" else logging.INFO, "%s", text, extra=extra)

    def latest(self) -> list[EventView]:
        """All that are kept, oldest first."""
        with self._lock:
            return list(self._events)
