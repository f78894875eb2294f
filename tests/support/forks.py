"""forks: polyvol and polyvold as processes that are forked from one that has imported them already.

How it works      Most of the time of a short `polyvol` goes into imports. So each process of the tests has
                  one server, started at the first use, which imports everything and then waits. For each
                  program it forks; the new process gets its own session, arguments, environment, working
                  directory and standard streams, and runs the same function as the console script. A process
                  between the two waits for its end and reports its exit code. Tests of imports, console
                  scripts and closed standard streams start the real programs (proc.py).
Owner and locks   The server ends with the process that started it: it holds the other end of a pipe. What
                  it forked continues, and is ended by the test that asked for it, by process id.
Errors            AssertionError with the program's output if it takes too long.
"""

import atexit
import ctypes
import fcntl
import gc
import importlib
import json
import os
import pkgutil
import select
import selectors
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from tests.support.proc import TIMEOUT_S, Argument, Background, Result, end_session, environment

ROOT = Path(__file__).resolve().parents[2]
PROGRAMS = {"polyvol": "polyvol.daemon.client.cli.main", "polyvold": "polyvol.daemon.main"}
"""The console scripts, and the modules with their `main`."""
PRELOADED = (
    "polyvol.daemon.client",
    "polyvol.daemon.process.main_loop",
    "polyvol.daemon.service",
    "polyvol.engine",
)
DESCRIPTORS_MAX = 250
"""The most descriptors that a process can be given: the kernel passes few more at a time."""
_PR_SET_NAME = 15
_NUMBER = struct.Struct("<q")


class Forked:
    """A program of PROGRAMS, with these descriptors as its standard streams and those that systemd would pass
    to it; as subprocess.Popen."""

    def __init__(
        self,
        command: Sequence[str],
        descriptors: Sequence[int],
        env: Mapping[str, str],
    ) -> None:
        request = {"command": command, "env": dict(env), "cwd": str(Path.cwd())}
        text = json.dumps(request).encode()
        self._connection = _connected()
        socket.send_fds(self._connection, [_NUMBER.pack(len(text))], list(descriptors))
        self._connection.sendall(text)
        self.pid = _number(self._connection)
        self.returncode: int | None = None
        self._lock = threading.Lock()

    def poll(self) -> int | None:
        """Its exit code (negative: the signal that ended it), None while it runs."""
        return self._ended(0)

    def wait(self, timeout: float | None = None) -> int:
        """Wait for its end; subprocess.TimeoutExpired."""
        code = self._ended(timeout)
        if code is None:
            assert timeout is not None
            raise subprocess.TimeoutExpired(str(self.pid), timeout)
        return code

    def send_signal(self, number: int) -> None:
        """Signal the program alone."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def _ended(self, timeout_s: float | None) -> int | None:
        with self._lock:
            if self.returncode is None:
                with selectors.DefaultSelector() as selector:
                    selector.register(self._connection, selectors.EVENT_READ)
                    if not selector.select(timeout_s):
                        return None
                self.returncode = _number(self._connection)
                self._connection.close()
            return self.returncode


class ForkedBackground(Background):
    """A Background of one of PROGRAMS."""

    def __init__(
        self,
        program: str,
        *arguments: Argument,
        log: Path,
        env: Mapping[str, str] | None = None,
        passed: Sequence[int] = (),
    ) -> None:
        self.command = [program, *map(str, arguments)]
        self.log = log
        with open(os.devnull, "rb") as nothing, log.open("ab") as output:  # noqa: PTH123
            descriptors = (nothing.fileno(), output.fileno(), output.fileno(), *passed)
            self._process = Forked(self.command, descriptors, environment(env))


def run(
    program: str,
    *arguments: Argument,
    env: Mapping[str, str] | None = None,
    timeout_s: float = TIMEOUT_S,
) -> Result:
    """Run a program of PROGRAMS to its end, whatever its exit code; as `proc.run`."""
    pipes = [os.pipe(), os.pipe()]
    with open(os.devnull, "rb") as nothing:  # noqa: PTH123 - a descriptor is wanted
        streams = (nothing.fileno(), pipes[0][1], pipes[1][1])
        try:
            process = Forked([program, *map(str, arguments)], streams, environment(env))
        finally:
            for _, end in pipes:
                os.close(end)
    out, err, in_time = _all_of([begin for begin, _ in pipes], timeout_s)
    if not in_time:
        end_session(process.pid)
        process.wait(TIMEOUT_S)
        raise AssertionError(f"{program} took over {timeout_s} s: {arguments}\n{out}{err}")
    return Result(process.wait(TIMEOUT_S), out, err)


def _all_of(fds: Sequence[int], timeout_s: float) -> tuple[str, str, bool]:
    """All that is written to two pipes until their ends, and whether these came in time. They are closed."""
    texts = {fd: b"" for fd in fds}
    deadline = time.monotonic() + timeout_s
    with selectors.DefaultSelector() as selector:
        for fd in fds:
            selector.register(fd, selectors.EVENT_READ)
        while selector.get_map():
            ready = selector.select(deadline - time.monotonic())
            if not ready and time.monotonic() >= deadline:
                break
            for key, _ in ready:
                piece = os.read(key.fd, 1 << 16)
                texts[key.fd] += piece
                if not piece:
                    selector.unregister(key.fd)
        in_time = not selector.get_map()
    for fd in fds:
        os.close(fd)
    out, err = (texts[fd].decode(errors="replace") for fd in fds)
    return out, err, in_time


_starting = threading.Lock()
_listens_at: list[str] = []


def _connected() -> socket.socket:
    """A connection to the server of this process, which is started if need be."""
    with _starting:
        if not _listens_at:
            _listens_at.append(_start())
    connection = socket.socket(socket.AF_UNIX)
    connection.connect(_listens_at[0])
    return connection


def _start() -> str:
    """Start the server; where it listens."""
    listener = socket.socket(socket.AF_UNIX)
    address = f"\0polyvol-forks-{os.getpid()}-{time.monotonic_ns()}"
    listener.bind(address)
    listener.listen(64)
    ours, theirs = os.pipe()
    process = subprocess.Popen(
        [sys.executable, "-m", __name__, str(listener.fileno()), str(ours)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        cwd=ROOT,
        env=environment(),
        pass_fds=(listener.fileno(), ours),
        start_new_session=True,
    )
    listener.close()
    os.close(ours)

    def stop() -> None:
        os.close(theirs)
        process.wait(TIMEOUT_S)

    atexit.register(stop)
    return address


def _number(connection: socket.socket) -> int:
    text = b""
    while len(text) < _NUMBER.size:
        piece = connection.recv(_NUMBER.size - len(text))
        assert piece, "the process that forks has ended"
        text += piece
    number: int = _NUMBER.unpack(text)[0]
    return number


def _serve(listener: socket.socket, alive: int) -> Callable[[], object] | None:
    """Fork for each request until the pipe ends: None. In a process that was asked for: what it is to run."""
    for name in PRELOADED:
        module = importlib.import_module(name)
        for below in pkgutil.walk_packages(getattr(module, "__path__", []), f"{name}."):
            importlib.import_module(below.name)
    mains: dict[str, Callable[[], object]] = {
        program: importlib.import_module(module).main for program, module in PROGRAMS.items()
    }
    gc.collect()
    gc.freeze()
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # those in between need not be waited for
    assert len(list(Path("/proc/self/task").iterdir())) == 1, "a process with threads must not be forked"
    poll = select.poll()
    poll.register(listener, select.POLLIN)
    poll.register(alive, select.POLLIN)
    while all(fd == listener.fileno() for fd, _ in poll.poll()):
        connection, _ = listener.accept()
        if os.fork() == 0:
            listener.close()
            os.close(alive)
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            return mains[_taken(connection)]
        connection.close()
    return None


def _taken(connection: socket.socket) -> str:
    """Take a request; the program, in the process that was asked for. The one that waits for it ends here."""
    start, descriptors, _, _ = socket.recv_fds(connection, _NUMBER.size, DESCRIPTORS_MAX)
    text, length = b"", _NUMBER.unpack(start)[0]
    while len(text) < length:
        text += connection.recv(length - len(text))
    request = json.loads(text)
    pid = os.fork()
    if pid == 0:
        os.setsid()
        connection.close()
        above = [fcntl.fcntl(fd, fcntl.F_DUPFD, 3 + DESCRIPTORS_MAX) for fd in descriptors]
        for fd in descriptors:
            os.close(fd)
        for number, fd in enumerate(above):
            os.dup2(fd, number)
            os.close(fd)
        _renew_streams()
        os.environ.clear()
        os.environ.update(request["env"])
        if "LISTEN_FDS" in os.environ:
            os.environ["LISTEN_PID"] = str(os.getpid())
        time.tzset()
        os.chdir(request["cwd"])
        program, *arguments = request["command"]
        ctypes.CDLL(None).prctl(_PR_SET_NAME, program.encode())
        sys.argv = [str(Path(sys.executable).with_name(program)), *arguments]
        return str(program)
    for fd in descriptors:
        os.close(fd)
    connection.sendall(_NUMBER.pack(pid))
    _, status = os.waitpid(pid, 0)
    with suppress(BrokenPipeError):  # nobody wants to know
        connection.sendall(_NUMBER.pack(os.waitstatus_to_exitcode(status)))
    os._exit(0)


def _renew_streams() -> None:
    """Python's own streams, as it makes them at its start: the old ones were made for other files."""
    strict = {"encoding": "utf-8", "errors": "surrogateescape", "closefd": False}
    sys.stdin = sys.__stdin__ = open(0, **strict)  # type: ignore[call-overload, misc]  # noqa: SIM115
    sys.stdout = sys.__stdout__ = open(1, "w", **strict)  # type: ignore[call-overload, misc]  # noqa: SIM115
    strict["errors"] = "backslashreplace"
    sys.stderr = sys.__stderr__ = open(2, "w", buffering=1, **strict)  # type: ignore[call-overload, misc]  # noqa: SIM115


if __name__ == "__main__":
    _program = _serve(socket.socket(fileno=int(sys.argv[1])), int(sys.argv[2]))
    if _program is not None:
        sys.exit(_program())  # type: ignore[arg-type]  # as the console scripts do
