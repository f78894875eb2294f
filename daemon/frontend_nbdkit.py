"""The front-end nbdkit: polyvold as the keeper of an nbdkit that runs the service inside its Python plugin.

How it works      The keeper binds the NBD sockets and hands them to nbdkit by socket activation
                  (LISTEN_FDS), so that they have the right mode from the start and outlive nbdkit: a client
                  that connects while it is started again waits in the backlog. Sockets that systemd passed
                  are handed on, the control socket to the plugin. nbdkit finds our packages
                  because its interpreter is made the one that we run on (PATH leads to it). `ready` is said
                  when the control API answers.
                  To stop, it has nbdkit's clients leave by closing a pipe to the plugin: nbdkit ends when
                  they are gone.
Invariants        K1 at most one nbdkit runs; K2 it ends when the keeper ends (--exit-with-parent); K3 one
                  that dies before it was ever ready is not started again: its own message says why.
Errors            StateLocked, SocketUnusable, FrontendFailed.
"""

import fcntl
import importlib.util
import os
import shutil
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

from polyvol.daemon import sockets, state
from polyvol.daemon.cli.client import ApiError, Client
from polyvol.daemon.config import Config
from polyvol.daemon.errors import FrontendFailed
from polyvol.daemon.main import announce
from polyvol.daemon.notify import notify, watchdog_interval_s
from polyvol.mapping.errors import PolyvolError

RESTART_DELAY_S = 1.0
READY_TIMEOUT_S = 60.0
STOP_TIMEOUT_S = 10.0
_POLL_S = 0.05
_PASSED_FD_MIN = 64
_ACTIVATE = """
import os, sys
count = int(sys.argv[1])
held = [os.dup(int(number)) for number in sys.argv[2:2 + count]]
held = [number if number >= 3 + count else __import__("fcntl").fcntl(number, 0, 3 + count) for number in held]
for wanted, number in enumerate(held, 3):
    os.dup2(number, wanted, inheritable=True)
os.environ.update(LISTEN_FDS=str(count), LISTEN_PID=str(os.getpid()))
os.execvp(sys.argv[2 + count], sys.argv[2 + count:])
"""
"""Run by a Python of its own: puts the sockets where socket activation wants them, then becomes nbdkit."""


def supervise(config: Config, told: threading.Event, passed: sockets.Passed | None = None) -> None:
    """Keep nbdkit serving until `told` is set, then stop it. The calling thread is its parent (K2)."""
    passed = passed or sockets.Passed()
    plugin = find_plugin()
    state.make_state_dir(config.state_dir)
    state.StateLock(config.state_dir).release()  # held by another: say so now; nbdkit takes it itself
    path = config.nbd_socket or state.nbd_socket(config.state_dir)
    listeners = list(passed.nbd) or [sockets.bind_unix(path)]
    try:
        if config.nbd_listen is not None:
            listeners += sockets.bind_tcp(config.nbd_listen)
        _Keeper(config, plugin, listeners, passed.control).run(told)
    finally:
        passed.close()
        for listener in listeners:
            listener.close()
        if not passed.nbd:
            path.unlink(missing_ok=True)


def find_plugin() -> Path:
    """Where our nbdkit plugin is."""
    spec = importlib.util.find_spec("polyvol.nbd_plugin")
    for folder in (spec.submodule_search_locations or ()) if spec is not None else ():
        plugin = Path(folder) / "polyvol_plugin.py"
        if plugin.exists():
            return plugin
    raise FrontendFailed(why="its plugin polyvol_plugin.py is not installed")


class _Keeper:
    """One nbdkit after the other."""

    def __init__(
        self, config: Config, plugin: Path, listeners: list[socket.socket], control: socket.socket | None
    ) -> None:
        self._config = config
        self._plugin = plugin
        self._listeners = listeners
        self._control = control
        self._addresses = [sockets.nbd_uri(listener) for listener in listeners]
        self._ready = False
        self._leave = -1

    def run(self, told: threading.Event) -> None:
        while not told.is_set():
            process = self._start()
            try:
                self._watch(process, told)
            finally:
                os.close(self._leave)
                _stop(process)
            if not told.is_set():
                if not self._ready:
                    raise FrontendFailed(why=f"it ended with status {process.returncode} before it was ready")
                told.wait(RESTART_DELAY_S)
        notify("STOPPING=1")

    def _start(self) -> "subprocess.Popen[bytes]":
        nbdkit = shutil.which("nbdkit")
        if nbdkit is None:
            raise FrontendFailed(why="there is no nbdkit on the PATH")
        numbers = [str(listener.fileno()) for listener in self._listeners]
        command = [sys.executable, "-c", _ACTIVATE, str(len(numbers)), *numbers]
        command += [nbdkit, "--exit-with-parent", "python", str(self._plugin)]
        command += [f"state-dir={self._config.state_dir}"]
        if self._config.processors is not None:
            command += [f"processors={self._config.processors}"]
        command += [f"nbd-address={address}" for address in self._addresses]
        fds = [listener.fileno() for listener in self._listeners]
        if self._control is not None:
            number = fcntl.fcntl(self._control, fcntl.F_DUPFD, _PASSED_FD_MIN)  # out of the NBD sockets' way
            command.append(f"control-fd={number}")
            fds.append(number)
        reading, self._leave = os.pipe()
        fds.append(fcntl.fcntl(reading, fcntl.F_DUPFD, _PASSED_FD_MIN))
        command.append(f"leave-fd={fds[-1]}")
        os.close(reading)
        environment = os.environ | {
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', os.defpath)}",
        }
        if sys.path:
            environment["PYTHONPATH"] = os.pathsep.join(part for part in sys.path if part)
        try:
            return subprocess.Popen(
                command, env=environment, pass_fds=fds, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL
            )
        finally:
            for number in fds[len(self._listeners) :]:
                os.close(number)

    def _watch(self, process: "subprocess.Popen[bytes]", told: threading.Event) -> None:
        """Until nbdkit ends or we are told to: say when it is ready, the first time, and that it is well."""
        waited = 0.0
        watchdog_s = watchdog_interval_s()
        ping_at = time.monotonic()
        while process.poll() is None and not told.wait(_POLL_S):
            if self._ready:
                if watchdog_s is not None and time.monotonic() >= ping_at and self._answers(process.pid):
                    notify("WATCHDOG=1")
                    ping_at = time.monotonic() + watchdog_s
                continue
            if self._answers(process.pid):
                self._ready = True
                announce(self._addresses)
            waited += _POLL_S
            if waited > READY_TIMEOUT_S and not self._ready:
                raise FrontendFailed(why=f"its control socket did not answer within {READY_TIMEOUT_S:.0f} s")

    def _answers(self, pid: int) -> bool:
        try:
            return bool(Client(self._config.state_dir).get("status")["daemon"]["pid"] == pid)
        except (PolyvolError, ApiError):
            return False


def _stop(process: "subprocess.Popen[bytes]") -> None:
    """Ask nbdkit to stop; kill it if it does not, though its clients were told to leave.

    Killed, it loses nothing that was acknowledged; the next start recovers, which takes a little longer."""
    if process.poll() is None:
        process.terminate()
        try:
            process.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            process.kill()
    process.wait()
