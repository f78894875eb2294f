"""The front end nbdkit: polyvold as the keeper of an nbdkit that runs the service inside its Python plugin.

How it works      The keeper binds the NBD sockets and hands them to nbdkit by socket activation
                  (LISTEN_FDS), so that they have the right mode from the start and outlive nbdkit: a client
                  that connects during a restart waits in the backlog. Sockets from systemd are passed on, the
                  control socket to the plugin. The keeper takes the lock of the state directory and passes it
                  on too. nbdkit's Python gets its home and its path from this process's Python; the PYTHON*
                  variables of the environment do not reach it. `ready` is reported when the control API
                  answers.
                  A socket pair connects the keeper with the plugin (nbd_plugin/keeper.py has its messages).
                  SIGHUP reads the settings again and makes the plugin reload; if nbdkit ends before it has
                  done so, the next one does. To stop, the keeper closes its end: the plugin disconnects the
                  clients, and ends nbdkit.
Invariants        FK1 at most one nbdkit runs; FK2 nbdkit is killed when the keeper ends, whenever that is:
                  the kernel does it (PR_SET_PDEATHSIG), asked before nbdkit is executed, and by the plugin
                  again; FK3 one that dies before it was ever ready is not restarted: its own message gives
                  the reason; FK4 the lock is held while the keeper, nbdkit, or what becomes nbdkit lives.
Errors            StateLocked, SocketUnusable, FrontendFailed. A reload that fails is logged.
"""

import contextlib
import fcntl
import importlib.util
import logging
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from polyvol.daemon.client.cli.client import ApiError, Client
from polyvol.daemon.config import Config
from polyvol.daemon.errors import FrontendFailed
from polyvol.daemon.host import sockets
from polyvol.daemon.host.notify import notify, watchdog_interval_s
from polyvol.daemon.host.signals import ENDING, RELOADING
from polyvol.daemon.isolation import DEFECT
from polyvol.daemon.main import announce
from polyvol.daemon.state import directory as state
from polyvol.mapping.errors import PolyvolError

RESTART_DELAY_S = 1.0
READY_TIMEOUT_S = 60.0
STOP_TIMEOUT_S = 10.0
_POLL_S = 0.05
_PASSED_FD_MIN = 64
_MESSAGE_BYTES_MAX = 4096
_ACTIVATE = """
import ctypes, fcntl, os, signal, sys
PR_SET_PDEATHSIG = 1
parent, count = int(sys.argv[1]), int(sys.argv[2])
ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
if os.getppid() != parent:
    sys.exit("polyvold has ended")
held = [os.dup(int(number)) for number in sys.argv[3:3 + count]]
held = [number if number >= 3 + count else fcntl.fcntl(number, fcntl.F_DUPFD, 3 + count) for number in held]
for wanted, number in enumerate(held, 3):
    os.dup2(number, wanted, inheritable=True)
os.environ.update(LISTEN_FDS=str(count), LISTEN_PID=str(os.getpid()))
os.execvp(sys.argv[3 + count], sys.argv[3 + count:])
"""
"""Run by a Python of its own: has the kernel kill it when its parent ends (FK2), puts the sockets where
socket activation wants them, then becomes nbdkit. A parent that ended before that is noticed by its
number."""
NextSignal = Callable[[float], int | None]
_log = logging.getLogger("polyvol")


def supervise(
    config: Config,
    next_signal: NextSignal,
    read_again: Callable[[], Config],
    passed: sockets.InheritedSockets | None = None,
) -> None:
    """Keep nbdkit serving until a signal ends it, then stop it. The calling thread is its parent (FK2).

    `next_signal` waits so many seconds at most for a signal; `read_again` reads the settings again."""
    passed = passed or sockets.InheritedSockets()
    plugin = find_plugin()
    state.make_state_dir(config.state_dir)
    lock = state.StateLock(config.state_dir)
    try:
        path = config.nbd_socket or state.nbd_socket(config.state_dir)
        listeners = list(passed.nbd) or [sockets.bind_unix(path)]
        try:
            if config.nbd_listen is not None:
                listeners += sockets.bind_tcp(config.nbd_listen)
            _Keeper(config, plugin, listeners, passed.control, lock).run(next_signal, read_again)
        finally:
            passed.close()
            for listener in listeners:
                listener.close()
            if not passed.nbd:
                path.unlink(missing_ok=True)
    finally:
        lock.release()


def find_plugin() -> Path:
    """Where our nbdkit plugin is."""
    spec = importlib.util.find_spec("polyvol.nbd_plugin")
    for folder in (spec.submodule_search_locations or ()) if spec is not None else ():
        plugin = Path(folder) / "polyvol_plugin.py"
        if plugin.exists():
            return plugin
    raise FrontendFailed(why="its plugin polyvol_plugin.py is not installed")


class _Keeper:
    """Runs one nbdkit after the other."""

    def __init__(
        self,
        config: Config,
        plugin: Path,
        listeners: list[socket.socket],
        control: socket.socket | None,
        lock: state.StateLock,
    ) -> None:
        self._config = config
        self._plugin = plugin
        self._listeners = listeners
        self._control = control
        self._lock = lock
        self._addresses = [sockets.nbd_uri(listener) for listener in listeners]
        self._ready = False
        self._told_to_end = False
        self._reload_wanted = False
        self._reloading = False
        self._heard = b""

    def run(self, next_signal: NextSignal, read_again: Callable[[], Config]) -> None:
        """Run until a signal ends it."""
        while not self._told_to_end:
            process, channel = self._start()
            try:
                self._watch(process, channel, next_signal, read_again)
            finally:
                channel.close()
                _stop(process)
                self._lock.sign()  # it was nbdkit's
            self._reload_wanted = self._reload_wanted or self._reloading
            self._heard = b""
            if not self._told_to_end:
                if not self._ready:
                    raise FrontendFailed(why=f"it ended with status {process.returncode} before it was ready")
                self._pause(next_signal)
        notify("STOPPING=1")

    def _start(self) -> "tuple[subprocess.Popen[bytes], socket.socket]":
        """nbdkit, and our end of its channel."""
        nbdkit = shutil.which("nbdkit")
        if nbdkit is None:
            raise FrontendFailed(why="there is no nbdkit on the PATH")
        numbers = [str(listener.fileno()) for listener in self._listeners]
        command = [sys.executable, "-I", "-S", "-c", _ACTIVATE, str(os.getpid()), str(len(numbers)), *numbers]
        command += [nbdkit, "--foreground", "python", str(self._plugin)]
        command += [f"state-dir={self._config.state_dir}"]
        if self._config.processors is not None:
            command += [f"processors={self._config.processors}"]
        command.append(f"io-timeout={self._config.io_timeout_s}")
        command += [f"nbd-address={address}" for address in self._addresses]
        ours, its = socket.socketpair()
        passed = {"keeper-fd": its.fileno(), "lock-fd": self._lock.fileno()}
        if self._control is not None:
            passed["control-fd"] = self._control.fileno()
        fds = [listener.fileno() for listener in self._listeners]
        try:
            for name, number in passed.items():  # out of the NBD sockets' way
                fds.append(fcntl.fcntl(number, fcntl.F_DUPFD_CLOEXEC, _PASSED_FD_MIN))
                command.append(f"{name}={fds[-1]}")
            return (
                subprocess.Popen(
                    command,
                    env=_environment(),
                    pass_fds=fds,
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                ),
                ours,
            )
        except BaseException:
            ours.close()
            raise
        finally:
            its.close()
            for number in fds[len(self._listeners) :]:
                os.close(number)

    def _watch(
        self,
        process: "subprocess.Popen[bytes]",
        channel: socket.socket,
        next_signal: NextSignal,
        read_again: Callable[[], Config],
    ) -> None:
        """Wait until nbdkit ends or must be stopped; report its first readiness, and that it still
        answers."""
        channel.setblocking(False)
        answers = False
        waited = 0.0
        watchdog_s = watchdog_interval_s()
        ping_at = time.monotonic()
        while process.poll() is None and not self._told_to_end:
            self._obey(next_signal(_POLL_S))
            self._hear(channel)
            if not answers:
                answers = self._answers(process.pid)
                if answers and not self._ready:
                    self._ready = True
                    announce(self._addresses)
                waited += _POLL_S
                if waited > READY_TIMEOUT_S and not self._ready:
                    raise FrontendFailed(
                        why=f"its control socket did not answer within {READY_TIMEOUT_S:.0f} s"
                    )
                continue
            if self._reload_wanted:
                self._reload(channel, read_again)
            if watchdog_s is not None and time.monotonic() >= ping_at and self._answers(process.pid):
                notify("WATCHDOG=1")
                ping_at = time.monotonic() + watchdog_s

    def _pause(self, next_signal: NextSignal) -> None:
        """Wait before restarting nbdkit, unless asked to end."""
        until = time.monotonic() + RESTART_DELAY_S
        while not self._told_to_end and (left := until - time.monotonic()) > 0:
            self._obey(next_signal(left))

    def _obey(self, number: int | None) -> None:
        self._told_to_end = self._told_to_end or number in ENDING
        self._reload_wanted = self._reload_wanted or number == RELOADING

    def _reload(self, channel: socket.socket, read_again: Callable[[], Config]) -> None:
        """Read the settings again, and have the plugin reload; `_hear` has its answer."""
        self._reload_wanted = False
        self._reloading = True
        notify("RELOADING=1", f"MONOTONIC_USEC={time.monotonic_ns() // 1000}")
        try:
            read = read_again()
        except PolyvolError as error:
            self._reloaded(str(error))
            return
        except Exception:
            _log.exception("reading the settings again")
            self._reloaded(DEFECT)
            return
        processors, io_timeout_s = read.processors, read.io_timeout_s
        self._config = replace(self._config, processors=processors, io_timeout_s=io_timeout_s)
        line = f"reload {'-' if processors is None else processors} {io_timeout_s}\n"
        with contextlib.suppress(OSError):  # it is ending, and the next one reloads
            channel.sendall(line.encode())

    def _hear(self, channel: socket.socket) -> None:
        """Act on messages of the plugin, one a line; an incomplete line waits for the rest."""
        try:
            self._heard += channel.recv(_MESSAGE_BYTES_MAX)
        except OSError:
            return  # it says nothing, or is ending
        *lines, self._heard = self._heard.split(b"\n")
        for line in lines:
            word, _, rest = line.decode("utf-8", "replace").partition(" ")
            if word == "hangup":
                self._reload_wanted = True
            elif word == "reloaded":
                self._reloaded(rest)

    def _reloaded(self, failure: str) -> None:
        self._reloading = False
        if failure:
            _log.error("the reload failed, and what was set before goes on: %s", failure)
        else:
            _log.info("reloaded")
        notify("READY=1")

    def _answers(self, pid: int) -> bool:
        try:
            return bool(Client(self._config.state_dir).get("status")["daemon"]["pid"] == pid)
        except (PolyvolError, ApiError):
            return False


def _environment() -> dict[str, str]:
    """nbdkit's environment: its Python finds what ours finds, whatever PATH and PYTHON* variables say."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    path = os.pathsep.join(part for part in sys.path if part)
    return kept | {"PYTHONHOME": sys.base_prefix, "PYTHONPATH": path, "PYTHONNOUSERSITE": "1"}


def _stop(process: "subprocess.Popen[bytes]") -> None:
    """Wait until nbdkit has stopped, as its plugin requests; kill it if it does not.

    Killed, it loses nothing that was acknowledged; the next start recovers, which takes a little longer."""
    try:
        process.wait(STOP_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        process.kill()
    process.wait()
