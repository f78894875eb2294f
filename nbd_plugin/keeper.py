"""keeper: the plugin's end of the channel from polyvold, and nbdkit's signals.

How it works      polyvold keeps one end of a socket pair, the plugin has the other. Messages are lines:
                    polyvold: `reload N S` (N processors at least, an io-timeout of S seconds; `-`: as it is)
                    plugin:   `reloaded`, `reloaded WHY IT FAILED`, `hangup` (nbdkit has got a SIGHUP)
                  When polyvold closes its end, the clients leave and nbdkit ends.
                  SIGTERM, SIGINT, SIGQUIT and SIGHUP are blocked in every thread of nbdkit and waited for:
                  the first three end it in the same way, SIGHUP reloads. nbdkit's own handlers would end it
                  only when the last client has disconnected by itself, and refuse new ones until then.
                  A reload has a thread of its own: one that waits for a slow disk does not delay the end.
Owner and locks   `start` is called once, in nbdkit's main thread, before any other thread is started.
Errors            A failed reload is reported to polyvold, or logged if there is none; later reloads are still
                  done.
"""

import contextlib
import ctypes
import logging
import os
import signal
import socket
import threading
import time
from collections.abc import Callable

import nbdkit

from polyvol.daemon.isolation import DEFECT
from polyvol.mapping.errors import PolyvolError
from polyvol.nbd_plugin import disconnect

GRACE_S = 0.5
"""How long clients may take to read their last answers."""
LINE_BYTES_MAX = 256
FAILURE_CHARACTERS_MAX = 1000
"""The maximum length of a failed reload's reason, in messages to polyvold."""
PR_SET_PDEATHSIG = 1
ENDING = frozenset({signal.SIGTERM, signal.SIGINT, signal.SIGQUIT})
Setting = int | None
Reload = Callable[[Setting, Setting], None]
_log = logging.getLogger("polyvol")


def end_with_keeper(channel: int) -> None:
    """Have the kernel kill nbdkit when polyvold ends; end it now if polyvold has ended.

    polyvold has asked for that before it executed nbdkit, and nbdkit 1.32 has made a SIGTERM of it. An nbdkit
    that is starting, or has a slow disk, would continue after that, and hold the state directory's lock."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    with socket.socket(fileno=os.dup(channel)) as other_end:
        try:
            ended = other_end.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT) == b""
        except BlockingIOError:
            ended = False
    if ended:
        os._exit(1)


class Keeper:
    """polyvold as the plugin sees it. `channel` is None when nbdkit was started by hand; `clients` are the
    addresses at which nbdkit's clients connect; `reload` takes the least number of processors and the
    io-timeout in seconds, None for what is to stay as it is."""

    def __init__(self, channel: socket.socket | None, clients: disconnect.Addresses, reload: Reload) -> None:
        self._channel = channel
        self._clients = clients
        self._reload = reload
        self._settings: tuple[Setting, Setting] = None, None
        self._reload_wanted = threading.Event()
        self._ending = threading.Lock()

    def start(self) -> None:
        """Begin to wait for signals and for polyvold."""
        signal.pthread_sigmask(signal.SIG_BLOCK, {*ENDING, signal.SIGHUP})
        tasks = [self._wait_for_signals, self._reload_each_time]
        tasks += [self._listen] if self._channel is not None else []
        for task in tasks:
            threading.Thread(target=task, name=task.__name__.strip("_"), daemon=True).start()

    def _wait_for_signals(self) -> None:
        while signal.sigwait({*ENDING, signal.SIGHUP}) == signal.SIGHUP:
            if self._channel is None:
                self._reload_wanted.set()
            else:
                self._say("hangup")
        self._end()

    def _listen(self) -> None:
        assert self._channel is not None
        with contextlib.suppress(OSError), self._channel.makefile("r", encoding="utf-8") as lines:
            while line := lines.readline(LINE_BYTES_MAX):
                processors, io_timeout_s = [*line.split(), "-", "-"][1:3]
                self._settings = _setting(processors), _setting(io_timeout_s)
                self._reload_wanted.set()
        self._end()

    def _end(self) -> None:
        """Have the clients leave, and nbdkit end. The first call does it."""
        if self._ending.acquire(blocking=False):
            with contextlib.suppress(OSError):  # too many files are open
                disconnect.shut_down(self._clients, socket.SHUT_RD)
            nbdkit.shutdown()
            time.sleep(GRACE_S)
            with contextlib.suppress(OSError):
                disconnect.shut_down(self._clients, socket.SHUT_RDWR)

    def _reload_each_time(self) -> None:
        while self._reload_wanted.wait():
            self._reload_wanted.clear()
            failure = ""
            try:
                self._reload(*self._settings)
            except PolyvolError as error:
                failure = str(error)
            except Exception:
                _log.exception("reloading")
                failure = DEFECT
            if self._channel is not None:
                self._say(f"reloaded {' '.join(failure.split())[:FAILURE_CHARACTERS_MAX]}")
            elif failure:
                _log.error("the reload failed, and what was set before goes on: %s", failure)

    def _say(self, line: str) -> None:
        assert self._channel is not None
        with contextlib.suppress(OSError):  # polyvold has ended, which `_listen` sees
            self._channel.sendall(f"{line}\n".encode())


def _setting(word: str) -> Setting:
    return int(word) if word.isascii() and word.isdecimal() else None
