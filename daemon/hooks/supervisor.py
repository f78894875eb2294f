"""The supervisor of one hook command: a separate program that ends all processes of the command.

How it works      polyvold runs this file as a script (daemon/hooks/command.py) with one end of a socket
                  as its standard input. It is a subreaper: a descendant of the command that loses its parent
                  becomes its child, also after setsid or a double fork. To end all, it kills its children and
                  waits for them until none is left; their children become its own. The command's output is
                  read from a pipe; only its beginning and its end are stored.
Protocol          Lines of JSON. polyvold: {"arguments", "environment"}, once; then "end" or "leave", or it
                  closes the socket, which means "end". Answers: {"failed"}: it could not be started; {"code",
                  "alone", "head", "tail"}: it has ended, `alone` if no process of it is left, and then the
                  supervisor ends too; {"gone", "head", "tail"}: all its processes have ended.
Invariants        SV1 only children are killed, and only the supervisor reaps them, so that no pid can have
                  been reused; SV2 memory is bounded, whatever the command writes; SV3 no process of a command
                  outlives polyvold, except those that a thaw command left on purpose.
Owner and locks   One thread. It imports nothing of polyvol: it starts in about 20 ms, with any Python.
Errors            A process that cannot be killed (it hangs in the kernel, or changed its user) is retried
                  until it has ended.
"""

import contextlib
import ctypes
import json
import os
import select
import signal
import socket
import time
from pathlib import Path

KEPT_BYTES = 2048
"""How much of the beginning, and of the end, of what a command writes is kept."""
_FREE_BYTES = 1 << 20
"""What a command may write at full speed; beyond it, some 10 MB a second are read."""
_READ_BYTES = 64 << 10
_REST_S = 0.005
_STOPPING = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
_PDEATHSIG = 1
_CHILD_SUBREAPER = 36
_libc = ctypes.CDLL(None, use_errno=True)


class Output:
    """The command's output: its beginning and its end."""

    def __init__(self, fd: int) -> None:
        self.fd = fd
        self.head = b""
        self.tail = b""
        self.total = 0
        self.open = True

    def read(self) -> bool:
        """Read once, without waiting; whether there was data."""
        try:
            data = os.read(self.fd, _READ_BYTES)
        except BlockingIOError:
            return False
        if not data:
            self.open = False
            return False
        missing = KEPT_BYTES - len(self.head)
        self.head += data[:missing]
        self.tail = (self.tail + data[missing:])[-KEPT_BYTES:]
        self.total += len(data)
        if self.total > _FREE_BYTES:
            time.sleep(_REST_S)
        return True

    def drain(self) -> None:
        """Read all that is available."""
        until = self.total + _FREE_BYTES
        while self.open and self.total < until and self.read():
            pass

    def words(self) -> dict[str, str]:
        """The stored output."""
        return {"head": _text(self.head), "tail": _text(self.tail)}


class Supervisor:
    """One command, and all processes that it starts."""

    def __init__(self, control: socket.socket) -> None:
        self._control = control
        self._received = b""
        self._woken, waking = os.pipe()
        for fd in (self._woken, waking):
            os.set_blocking(fd, False)
        signal.set_wakeup_fd(waking, warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        self._main = 0
        self._code: int | None = None

    def run(self) -> None:
        """Run to the end of the command and its processes."""
        line = self._line()
        if not line:
            return
        call = json.loads(line)
        reading, writing = os.pipe()
        os.set_blocking(reading, False)
        output = Output(reading)
        failure = self._start(call["arguments"], call["environment"], writing)
        os.close(writing)
        if failure is not None:
            self._say(failed=failure)
            return
        while True:
            order = self._wait(output)
            if order == "ended":
                output.drain()
                alone = not _reap(None)
                self._say(code=self._code, alone=alone, **output.words())
                if alone:
                    return
            elif order == "leave":
                _leave(output)
                return
            else:
                output.drain()
                os.close(reading)
                end_all()
                self._say(gone=True, **output.words())
                return

    def _line(self) -> str:
        """The next line from polyvold; empty if it has closed the socket."""
        while b"\n" not in self._received:
            data = self._control.recv(_READ_BYTES)
            if not data:
                return ""
            self._received += data
        line, _, self._received = self._received.partition(b"\n")
        return line.decode()

    def _start(self, arguments: list[str], environment: dict[str, str], output: int) -> str | None:
        """Start the command; the reason of a failure, or None."""
        parent = os.getpid()
        failing, failed = os.pipe()
        self._main = os.fork()
        if self._main == 0:
            try:
                _become(arguments, environment, output, parent)
            except (OSError, ValueError) as error:
                os.write(failed, (getattr(error, "strerror", None) or str(error)).encode())
            finally:
                os._exit(127)
        os.close(failed)
        with os.fdopen(failing, "rb") as file:
            text = file.read(KEPT_BYTES)
        if not text:
            return None
        os.waitpid(self._main, 0)
        return _text(text)

    def _wait(self, output: Output) -> str:
        """Wait until the command has ended ("ended", once), or an order arrives."""
        if b"\n" in self._received:
            return self._line()
        poll = select.poll()
        poll.register(self._control, select.POLLIN)
        poll.register(self._woken, select.POLLIN)
        if output.open:
            poll.register(output.fd, select.POLLIN)
        while True:
            ready = {fd for fd, _ in poll.poll()}
            if self._control.fileno() in ready:
                return self._line() or "end"
            if output.fd in ready and not output.read() and not output.open:
                poll.unregister(output.fd)
            if self._woken in ready:
                os.read(self._woken, _READ_BYTES)
                if self._reap_main():
                    return "ended"

    def _reap_main(self) -> bool:
        """Reap all ended children; whether the command has just been among them."""
        ended: dict[int, int] = {}
        _reap(ended)
        if self._main not in ended:
            return False
        self._code = os.waitstatus_to_exitcode(ended[self._main])
        return True

    def _say(self, **what: object) -> None:
        with contextlib.suppress(OSError):  # polyvold is gone
            self._control.sendall(json.dumps(what).encode() + b"\n")


def end_all() -> None:
    """Kill children until there are none (SV1). Quick at first, because some fork quickly."""
    began = time.monotonic()
    while True:
        for child in _children():
            with contextlib.suppress(PermissionError, ProcessLookupError):
                os.kill(child, signal.SIGKILL)
        if not _reap(None):
            return
        if time.monotonic() - began > 1:
            time.sleep(0.02)


def _reap(ended: dict[int, int] | None) -> bool:
    """Reap ended children, and note their statuses; whether any are left."""
    while True:
        try:
            child, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return False
        if child == 0:
            return True
        if ended is not None:
            ended[child] = status


def _children() -> list[int]:
    own = os.getpid()
    try:
        return [int(word) for word in Path(f"/proc/{own}/task/{own}/children").read_text().split()]
    except OSError:  # a kernel without it
        return [int(each.name) for each in Path("/proc").iterdir() if _parent(each) == own]


def _parent(process: Path) -> int | None:
    try:
        return int((process / "stat").read_text().rpartition(")")[2].split()[1])
    except (OSError, IndexError, ValueError):
        return None


def _leave(output: Output) -> None:
    """Let the remaining processes run: they are no longer children here, and can continue to write."""
    output.drain()
    if not output.open or os.fork() != 0:
        return
    for number in _STOPPING:
        signal.signal(number, signal.SIG_DFL)
    os.set_blocking(output.fd, True)
    while output.open:
        output.read()


def _become(arguments: list[str], environment: dict[str, str], output: int, parent: int) -> None:
    """Become the command: in its own session, killed when the supervisor ends."""
    os.setsid()
    _libc.prctl(_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:
        return
    signal.set_wakeup_fd(-1)
    for number in (*_STOPPING, signal.SIGCHLD, signal.SIGPIPE, signal.SIGXFSZ):
        signal.signal(number, signal.SIG_DFL)
    with contextlib.suppress(OSError, ValueError):
        score = Path("/proc/self/oom_score_adj")
        if int(score.read_text()) < 0:
            score.write_text("0")  # the OOM killer spares polyvold, but not its hooks
    null = os.open("/dev/null", os.O_RDONLY)
    for source, fd in ((null, 0), (output, 1), (output, 2)):
        os.dup2(source, fd)
    os.execve(arguments[0], arguments, environment)


def _text(data: bytes) -> str:
    return data.decode("utf-8", "replace")


if __name__ == "__main__":
    for stopping in _STOPPING:
        signal.signal(stopping, signal.SIG_IGN)  # polyvold gives the order
    _libc.prctl(_CHILD_SUBREAPER, 1, 0, 0, 0)
    _libc.prctl(_PDEATHSIG, signal.SIGCONT, 0, 0, 0)  # SV3: the command may have stopped it
    Supervisor(socket.socket(fileno=0)).run()
