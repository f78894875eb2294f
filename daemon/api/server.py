"""The control API's server: HTTP on the control socket, by waitress, on threads of its own.

How it works      One thread runs waitress's loop, which reads requests and writes responses. Calls that only
                  read run on a few dedicated threads, and never block. All others run on workers
                  (workers.py), where a call that waits for disks delays no other; the lock of a volume or
                  device limits how many calls wait for it (locks.py).
                  A client that stops responding cannot delay others: above CONNECTIONS_MAX connections the
                  one that has been idle longest is closed, and so is one that sends requests and does not
                  read the answers.
Invariants        HS1 The pipe that wakes the loop is closed last, by the thread that stopped the loop:
                     waitress writes to the pipe's descriptor number, which another file could have by then.
Owner and locks   Only the service is shared; its verbs take their own locks. `answers` and `stop`
                  belong to one thread.
Errors            What the HTTP library refuses (a header that cannot be read) is answered as JSON too.
"""

import contextlib
import itertools
import logging
import socket
import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from waitress import create_server
from waitress.channel import HTTPChannel
from waitress.parser import HTTPRequestParser, ParsingError
from waitress.task import ErrorTask, ThreadedTaskDispatcher
from waitress.wasyncore import close_all, loop

from polyvol.daemon.api.application import BODY_BYTES_MAX, Application, error_text
from polyvol.daemon.errors import BadRequest
from polyvol.daemon.host.caller import called_over
from polyvol.daemon.host.sockets import BACKLOG
from polyvol.daemon.workers import Workers
from polyvol.mapping.os_errors import as_clause
from polyvol.mapping.sizes import format_size

if TYPE_CHECKING:
    from polyvol.daemon.service import Service

_READERS = 4
_CHANGERS = 32
"""Other calls that run at a time, not counting those that have run for LONG_S."""
LONG_S = 1.0
CONNECTIONS_MAX = 200
"""Beyond that, a new connection ends the one that was idle longest. Those with a call under way stay."""
UNREAD_BYTES_MAX = 1 << 20
"""How much of earlier answers may be unread when the next request of the same connection is answered."""
_LOOP_INTERVAL_S = 30
"""How often the loop comes round when nothing happens, to close connections that were idle long."""
_STOP_TIMEOUT_S = 5.0
"""How long a stop waits for answers to be read."""
CALLS_S = 10.0
"""How long a stop waits for calls that have begun."""
_STOP_POLL_S = 0.01
_REFUSED = {
    413: f"its body is longer than {format_size(BODY_BYTES_MAX)}",
    431: "its header is too long",
}
"""What to say of HTTP statuses with which the HTTP library refuses a request."""
_log = logging.getLogger("polyvol.api")
logging.getLogger("waitress.queue").setLevel(logging.ERROR)  # a call that waits for a thread is normal


class ControlServer:
    """Serves one service on one listening socket."""

    def __init__(self, service: "Service", listener: socket.socket) -> None:
        self._service = service
        self._listener = listener
        self._http: Any = None  # waitress has no type annotations
        self._thread = threading.Thread(target=self._run, name="polyvol-api", daemon=True)
        self._ended = threading.Event()

    def start(self) -> None:
        """Start the threads: requests are answered from now on."""
        application = Application(self._service)
        self._tasks = _Tasks(application.only_looks)
        self._http = create_server(
            application,
            sockets=[self._listener],
            _dispatcher=self._tasks,
            ident="polyvold",
            # Above the limit of a body, so that a client that exceeds the limit can read the error.
            max_request_body_size=4 * BODY_BYTES_MAX,
            cleanup_interval=_LOOP_INTERVAL_S,
            connection_limit=10 * CONNECTIONS_MAX,  # _Channel decides which connections are accepted
            outbuf_high_watermark=UNREAD_BYTES_MAX,
            backlog=BACKLOG,
        )
        self._http.channel_class = _Channel
        self._thread.start()

    def answers(self, timeout_s: float) -> bool:
        """Whether the loop completes a turn within this time."""
        if self._http is None:  # HS1
            return False
        came_round = threading.Event()
        self._http.trigger.pull_trigger(came_round.set)
        return came_round.wait(timeout_s)

    def stop(self) -> None:
        """Stop answering after the calls in progress, with a bounded wait; idempotent."""
        http, self._http = self._http, None
        if http is None:
            return
        http.trigger.pull_trigger(lambda: setattr(http, "accepting", False))
        self._tasks.stop(CALLS_S)
        until = time.monotonic() + _STOP_TIMEOUT_S
        while time.monotonic() < until and _unread(http):
            time.sleep(_STOP_POLL_S)
        self._ended.set()
        http.trigger.pull_trigger()
        if self._thread.is_alive():
            self._thread.join()
        close_all(http._map)

    def _run(self) -> None:
        sockets = self._http._map
        while not self._ended.is_set():
            # poll, because select is limited to 1,024 file descriptors.
            loop(_LOOP_INTERVAL_S, use_poll=True, map=sockets, count=1)


class _Tasks(ThreadedTaskDispatcher):  # type: ignore[misc]  # waitress has no types
    """Runs the calls: those that only read on its own threads, all others on workers."""

    def __init__(self, only_looks: Callable[[str, str], bool]) -> None:
        super().__init__()
        self._only_looks = only_looks
        self._workers = Workers("polyvol-call", concurrent=_CHANGERS, stuck_s=LONG_S)
        self._numbers = itertools.count()
        self.set_thread_count(_READERS)

    def add_task(self, task: Any) -> None:  # noqa: ANN401
        """Have a connection's next call run."""
        request = task.requests[0]
        if request.error or self._only_looks(request.command, request.request_uri):
            super().add_task(task)
            return
        try:
            self._workers.run(next(self._numbers), task.service)
        except RuntimeError:
            super().add_task(task)  # no thread can be started: one that there is answers

    def stop(self, timeout_s: float) -> None:
        """Wait for the calls in progress, at most this long."""
        if not self._workers.stop(timeout_s):
            _log.warning("calls of the control API are left behind: they do not end")
        super().shutdown(timeout=timeout_s)


def _unread(http: Any) -> bool:  # noqa: ANN401
    """Whether any client has not read all of an answer."""
    return any(channel.total_outbufs_len for channel in list(http.active_channels.values()))


class _Refusal(ErrorTask):  # type: ignore[misc]  # waitress has no types
    """An error of the HTTP library, in the form that every error has."""

    def execute(self) -> None:
        error = self.request.error
        why = _REFUSED.get(error.code) or as_clause(error.body)
        text = error_text(BadRequest(why=why))
        self.status = f"{error.code} {error.reason}"
        self.response_headers.append(("Content-Type", "application/json; charset=utf-8"))
        self.set_close_on_finish()
        self.content_length = len(text)
        self.write(text)


class _Parser(HTTPRequestParser):  # type: ignore[misc]  # waitress has no types
    """Reads one request."""

    path = ""
    """waitress logs it, also where the header has none."""

    def parse_header(self, header_plus: bytes) -> None:
        """Read the header; ParsingError also where Python's own parser of addresses refuses one."""
        try:
            super().parse_header(header_plus)
        except ValueError as error:
            raise ParsingError("the address is not one") from error


class _Channel(HTTPChannel):  # type: ignore[misc]  # waitress has no types
    """A connection."""

    error_task_class = _Refusal
    parser_class = _Parser

    def __init__(self, server: Any, *arguments: Any, **named: Any) -> None:  # noqa: ANN401
        super().__init__(server, *arguments, **named)
        channels = list(server.active_channels.values())
        if len(channels) <= CONNECTIONS_MAX:
            return
        # This thread reads all requests, so a connection without one cannot get one now.
        idle = [each for each in channels if each is not self and not each.requests and not each.will_close]
        if idle:
            oldest = min(idle, key=lambda each: (each.total_outbufs_len > 0, each.last_activity))
            oldest.handle_close()

    def service(self) -> None:
        """Answer one request."""
        with called_over(self.socket):
            super().service()

    def _flush_outbufs_below_high_watermark(self) -> None:
        """End the connection if too much is unread. waitress would block in a shared thread."""
        if self.total_outbufs_len > UNREAD_BYTES_MAX:
            self.connected = False  # the caller, and what follows, sees that
            with contextlib.suppress(OSError, AttributeError):  # the loop has closed it
                self.socket.shutdown(socket.SHUT_RDWR)  # the loop sees that, and closes it
