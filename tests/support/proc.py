"""proc: run programs, bounded in time, and never leave one behind.

How it works      `run` waits for a program and returns what it said; `Background` is one that goes on until
                  it is stopped. Both start a new session, so that a program and its children are ended
                  together, by id.
Errors            AssertionError with the program's output when it failed, was not there, or took too long.
"""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import IO, Protocol, Self

TIMEOUT_S = 60.0
STOP_S = 20.0
POLL_S = 0.02
SYSTEM_PATH = "/usr/sbin:/usr/bin:/sbin:/bin"

Argument = str | Path | int


@dataclass(frozen=True)
class Result:
    """What a program left: its exit code (negative: the signal that ended it), its output, its errors."""

    rc: int
    out: str
    err: str


def environment(extra: Mapping[str, str] | None = None) -> dict[str, str]:
    """The environment of every program that tests start: the system's own tools are found first."""
    path = f"{Path(sys.executable).parent}:{SYSTEM_PATH}:{os.environ.get('PATH', '')}"
    kept = {name: value for name, value in os.environ.items() if not name.startswith("POLYVOL_")}
    return {**kept, "PATH": path, "LC_ALL": "C.UTF-8", **(extra or {})}


def tool(name: str) -> str:
    """The path of a program; the tests fail where scripts/test should have installed it."""
    found = shutil.which(name, path=environment()["PATH"])
    assert found, f"{name} is not installed: run scripts/setup test"
    return found


def command_line(command: Sequence[Argument]) -> list[str]:
    """A command as strings, its program by full path."""
    first, *rest = map(str, command)
    return [first if "/" in first else tool(first), *rest]


def end_session(pid: int, number: int = signal.SIGKILL) -> None:
    """Signal a program that this module started, and all that it started in its session."""
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, number)


def run(
    *command: Argument,
    timeout_s: float = TIMEOUT_S,
    env: Mapping[str, str] | None = None,
    stdin: bytes | None = None,
    cwd: Path | None = None,
) -> Result:
    """Run a program to its end, whatever its exit code."""
    process = subprocess.Popen(
        command_line(command),
        stdin=subprocess.DEVNULL if stdin is None else subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=environment(env),
        cwd=cwd,
        start_new_session=True,
    )
    with process:
        try:
            out, err = process.communicate(stdin, timeout=timeout_s)
        except subprocess.TimeoutExpired:
            end_session(process.pid)
            out, err = process.communicate()
            said = (out + err).decode(errors="replace")
            raise AssertionError(f"{command[0]} took over {timeout_s} s: {command}\n{said}") from None
        except BaseException:
            end_session(process.pid)
            raise
    return Result(process.returncode, out.decode(errors="replace"), err.decode(errors="replace"))


def check(
    *command: Argument,
    timeout_s: float = TIMEOUT_S,
    env: Mapping[str, str] | None = None,
    stdin: bytes | None = None,
    cwd: Path | None = None,
) -> str:
    """Run a program that has to succeed, and return its output."""
    result = run(*command, timeout_s=timeout_s, env=env, stdin=stdin, cwd=cwd)
    assert result.rc == 0, f"{command} gave {result.rc}:\n{result.out}{result.err}"
    return result.out


def has_ended(pid: int) -> bool:
    """Whether a process has ended; its exit code may be left, if nobody has waited for it."""
    with suppress(FileNotFoundError, ProcessLookupError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    return True


def pause(pid: int) -> None:
    """Stop a process by SIGSTOP, and wait until all its threads have stopped: they may go on for a moment."""
    os.kill(pid, signal.SIGSTOP)
    states = Path(f"/proc/{pid}/task")

    def has_stopped() -> bool:
        texts = [(task / "stat").read_text() for task in states.iterdir()]
        return all(text.rpartition(")")[2].split()[0] == "T" for text in texts)

    wait_until(has_stopped, f"the stop of process {pid}")


def wait_until(condition: Callable[[], bool], what: str, timeout_s: float = TIMEOUT_S) -> None:
    """Poll until a condition holds."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, f"{what} did not happen within {timeout_s} s"
        time.sleep(POLL_S)


def listens(path: Path) -> bool:
    """Whether somebody listens on a unix socket, which does not connect to it."""
    accepts = "00010000"
    sockets = (line.split() for line in Path("/proc/net/unix").read_text().splitlines())
    return any(words[-1] == str(path) and words[3] == accepts for words in sockets)


class Process(Protocol):
    """What Background needs of subprocess.Popen."""

    pid: int

    def poll(self) -> int | None: ...

    def wait(self, timeout: float | None = None) -> int: ...

    def send_signal(self, number: int) -> None: ...


class Background:
    """A program that runs until it is stopped; its output goes to a log file."""

    def __init__(
        self,
        *command: Argument,
        log: Path,
        env: Mapping[str, str] | None = None,
        cwd: Path | None = None,
        pass_fds: Sequence[int] = (),
    ) -> None:
        self.command = command_line(command)
        self.log = log
        output: IO[bytes]
        with log.open("ab") as output:
            self._process: Process = subprocess.Popen(
                self.command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                env=environment(env),
                cwd=cwd,
                pass_fds=pass_fds,
                start_new_session=True,
            )

    @property
    def pid(self) -> int:
        """The program's process id."""
        return self._process.pid

    @property
    def rc(self) -> int | None:
        """Its exit code, None while it runs."""
        return self._process.poll()

    def said(self) -> str:
        """What it has written up to now."""
        return self.log.read_text(errors="replace")

    def wait_until(self, condition: Callable[[], bool], what: str, timeout_s: float = TIMEOUT_S) -> None:
        """Poll until a condition holds; at once an error when the program ends before."""

        def holds() -> bool:
            if condition():
                return True
            assert self.rc is None, f"{self.command} ended with {self.rc} before {what}:\n{self.said()}"
            return False

        try:
            wait_until(holds, what, timeout_s)
        except AssertionError as error:
            raise AssertionError(f"{error}\n{self.said()}") from None

    def wait(self, timeout_s: float = STOP_S) -> int:
        """Wait for its end; its exit code."""
        try:
            return self._process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            said = self.said()
            self.kill()
            raise AssertionError(f"{self.command} did not end within {timeout_s} s:\n{said}") from None

    def signal(self, number: int) -> None:
        """Signal the program alone."""
        if self.rc is None:
            self._process.send_signal(number)

    def stop(self, timeout_s: float = STOP_S) -> int:
        """Ask it to end, and wait; its exit code."""
        self.signal(signal.SIGTERM)
        return self.wait(timeout_s)

    def kill(self) -> None:
        """End it and its children at once."""
        end_session(self.pid)
        self._process.wait(STOP_S)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Leave nothing behind, also when the test failed."""
        if self.rc is None:
            self.signal(signal.SIGTERM)
            with suppress(subprocess.TimeoutExpired):
                self._process.wait(STOP_S)
        self.kill()
