"""A hook command that runs: started, waited for, and ended with all that it has started.

How it works      Each command has a supervisor (daemon/hooks/supervisor.py, which has the protocol): a small
                  process that adopts whatever the command starts. Orders and answers go over a socket; when
                  that closes because polyvold has died, the supervisor ends all of it.
Invariants        HC1 the caller that started a command ends it or leaves it; HC2 no call exceeds its time
                  limit.
Owner and locks   A command belongs to one thread at a time.
Errors            None: a failure is a clause in `Ended`.
"""

import contextlib
import json
import os
import select
import signal
import socket
import sys
import threading
import time
from dataclasses import dataclass

from polyvol.daemon.hooks import supervisor as hook_supervisor
from polyvol.daemon.host.caller import parent_of
from polyvol.mapping.os_errors import reason

_supervisors: set[int] = set()
"""Process ids of all supervisors: children that are not waited for, so no other process has the number."""
_SCRIPT = hook_supervisor.__file__
_POLL_S = 0.1
_LINE_BYTES_MAX = 1 << 20
_SHOWN_MAX = 200
"""How many characters of a line that a command wrote are shown."""


@dataclass(frozen=True)
class Call:
    """A command to run: what it belongs to, and how it is run."""

    what: str
    arguments: list[str]
    environment: dict[str, str]
    timeout_s: int


@dataclass(frozen=True)
class Ended:
    """How a command has ended: `trouble` is a clause, None on success; `alone`: no process of it is left."""

    trouble: str | None
    alone: bool


class Command:
    """One command and its supervisor. `said`: its output, in one line, when it has ended."""

    def __init__(self, call: Call) -> None:
        self._call = call
        self._control, theirs = socket.socketpair()
        self._received = b""
        self.said = ""
        self._pid: int | None = None
        python = sys.executable or "/usr/bin/python3"
        with theirs:
            try:
                self._pid = os.posix_spawn(
                    python,
                    [python, "-I", "-S", _SCRIPT],
                    {},
                    file_actions=[(os.POSIX_SPAWN_DUP2, theirs.fileno(), 0)],
                    setsid=True,
                    setsigmask=[],
                    setsigdef=[signal.SIGPIPE, signal.SIGXFSZ],
                )
            except OSError as error:
                self._control.close()
                self._failure = f"could not be started: {python}: {reason(error)}"
        if self._pid is not None:
            _supervisors.add(self._pid)
            what = {"arguments": call.arguments, "environment": call.environment}
            self._send(json.dumps(what).encode() + b"\n")

    def wait(self, stopping: threading.Event, stopping_s: float) -> Ended:
        """Wait until it has ended or its time is over; it is not killed here. Once `stopping` is set, it has
        at most `stopping_s` seconds left."""
        if self._pid is None:
            return Ended(self._failure, alone=True)
        end = time.monotonic() + self._call.timeout_s
        told = False
        while True:
            said = self._hear(_POLL_S)
            if said is not None:
                return self._ended(said)
            if stopping.is_set() and not told:
                told = True
                end = min(end, time.monotonic() + stopping_s)
            if time.monotonic() >= end:
                why = f"did not end within {self._call.timeout_s} s and was killed"
                if told:
                    why = "was killed because polyvold is being stopped"
                return Ended(why, alone=False)

    def end(self, timeout_s: float | None) -> bool:
        """End all its processes; False if that did not succeed in time (None: no time limit)."""
        if self._pid is None:
            return True
        with contextlib.suppress(OSError):
            os.kill(self._pid, signal.SIGCONT)  # the command may have stopped it
        self._send(b"end\n")
        until = None if timeout_s is None else time.monotonic() + timeout_s
        while True:
            left_s = 3600.0 if until is None else until - time.monotonic()
            if left_s <= 0:
                return False
            said = self._hear(left_s)
            if said is not None and "code" not in said:
                self._note(said)
                self._detach()
                return True

    def leave(self) -> None:
        """Let its remaining processes run."""
        if self._pid is not None:
            self._send(b"leave\n")
            self._detach()

    def _ended(self, said: dict[str, object]) -> Ended:
        alone = bool(said.get("alone", True))
        if alone:
            self._detach()
        if "failed" in said:
            return Ended(f"could not be started: {said['failed']}", alone)
        if "code" not in said:
            return Ended("was lost: its supervisor was killed", alone)
        self._note(said)
        code = said["code"]
        return Ended(None if code == 0 else f"ended with {code}", alone)

    def _note(self, said: dict[str, object]) -> None:
        self.said = shown(str(said.get("head", "")), str(said.get("tail", ""))) or self.said

    def _hear(self, timeout_s: float) -> dict[str, object] | None:
        """The next answer, {} if the supervisor has ended, None if none arrives in time."""
        until = time.monotonic() + timeout_s
        poll = select.poll()  # not select: there may be more than 1,024 descriptors
        poll.register(self._control, select.POLLIN)
        while b"\n" not in self._received:
            if not poll.poll(max(0.0, until - time.monotonic()) * 1000):
                return None
            try:
                data = self._control.recv(_LINE_BYTES_MAX)
            except ConnectionError:
                data = b""
            if not data:
                return {}
            self._received += data
        line, _, self._received = self._received.partition(b"\n")
        found: dict[str, object] = json.loads(line)
        return found

    def _send(self, data: bytes) -> None:
        try:
            self._control.sendall(data)
        except OSError:
            return  # it has ended, which `_hear` says

    def _detach(self) -> None:
        """Reap the supervisor, which ends or has ended."""
        assert self._pid is not None, "it was started"
        self._control.close()
        _supervisors.discard(self._pid)
        os.waitpid(self._pid, 0)
        self._pid = None
        self._failure = "has ended"


def is_of_command(pid: int | None) -> bool:
    """Whether a process belongs to a running command, or to what one left in the background."""
    while pid is not None and pid not in _supervisors:
        pid = parent_of(pid)
    return pid is not None


def shown(head: str, tail: str) -> str:
    """A command's output, for a sentence: its first line, and its last if that differs."""
    lines = [line for line in (head + tail).splitlines() if line.strip()]
    if not lines:
        return ""
    first, last = _printable(lines[0]), _printable(lines[-1])
    return first if len(lines) == 1 else f"{first} ... {last}"


def _printable(line: str) -> str:
    clean = "".join(sign if sign.isprintable() else "?" for sign in line.strip())
    return clean if len(clean) <= _SHOWN_MAX else f"{clean[:_SHOWN_MAX]}..."
