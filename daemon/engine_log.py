"""Engine log: what the engine has to say goes to the daemon's log, with the daemon's fields.

How it works      The engine's threads put lines into a short queue, and never wait (engine/src/log.rs). A
                  thread takes them out and logs them as `polyvol.engine`, so they reach the journal, or
                  stderr, as all that polyvold logs: with VOLUME and DEVICE by their names, ENGINE_CODE, which
                  is the same in all releases, and ERRNO. Lines that were dropped because there were too many
                  are counted and reported.
Owner and locks   Its thread, `polyvol-log`. It takes no lock of objects.
Errors            A line whose names cannot be found is logged with the numbers.
"""

import logging
import threading
import time
from contextlib import ExitStack
from typing import TYPE_CHECKING

from polyvol.daemon.context import Context
from polyvol.daemon.engine_border import EngineModule
from polyvol.daemon.errors import log_failure

if TYPE_CHECKING:
    from polyvol.engine import LogLine

WAIT_S = 3600.0
STOP_S = 5.0
"""How long a stop waits for it: names are in the catalog, whose disk may hang."""
AGAIN_S = 2.0
"""How long it waits after a failure, so that it does not fill the log."""
_LEVELS = {"error": logging.ERROR, "warning": logging.WARNING, "info": logging.INFO}
_log = logging.getLogger("polyvol.engine")


class EngineLog:
    """The thread. Start it once there is a context."""

    def __init__(self, module: EngineModule, context: Context) -> None:
        self._module = module
        self._context = context
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="polyvol-log", daemon=True)

    def start(self, undo: ExitStack) -> None:
        """Begin; `undo` ends it."""
        undo.callback(self.stop)
        self._thread.start()

    def stop(self) -> None:
        """End, after all that was said has been logged, but do not wait for ever; idempotent."""
        self._stopping.set()
        until = time.monotonic() + STOP_S
        while self._thread.is_alive() and time.monotonic() < until:
            self._module.wake_log_readers()
            self._thread.join(0.05)  # it may not have begun to wait
        if not self._thread.is_alive():
            self._take(0.0)

    def _run(self) -> None:
        while not self._stopping.is_set():
            try:
                self._take(WAIT_S)
            except Exception as error:
                log_failure(_log, "logging what the engine says", error)
                self._stopping.wait(AGAIN_S)

    def _take(self, timeout_s: float) -> None:
        lines, dropped = self._module.next_log_lines(timeout_s)
        for line in lines:
            self._say(line)
        if dropped:
            _log.warning("%d lines of the engine were dropped: there were too many", dropped)

    def _say(self, line: "LogLine") -> None:
        fields: dict[str, object] = {"ENGINE_CODE": line["code"]}
        text = line["text"]
        for noun, identity in (("device", line["device"]), ("volume", line["volume"])):
            if identity is not None:
                name = self._name(noun, identity)
                fields[noun.upper()] = name
                text = f"{noun} {name}: {text}"
        if line["errno"]:
            fields["ERRNO"] = line["errno"]
        if line["times"] > 1:
            text += f" ({line['times']} times)"
        _log.log(_LEVELS[line["level"]], "%s", text, extra=fields)

    def _name(self, noun: str, identity: int) -> str:
        """What users call a volume or a device; its number if that cannot be found out."""
        catalog = self._context.catalog
        try:
            if noun == "device":
                return self._context.device_names()[identity]
            return next(each.shown_name for each in catalog.volumes.all() if each.id == identity)
        except Exception:
            return f"number {identity}"
