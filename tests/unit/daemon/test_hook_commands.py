"""Hook commands that misbehave: endless output, processes that outlive the time-out, a killed polyvold."""

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from polyvol.daemon.hooks import supervisor as hook_supervisor
from polyvol.daemon.hooks.command import Call, Command, shown
from polyvol.daemon.hooks.supervisor import KEPT_BYTES
from tests.support.proc import wait_until

NEVER = threading.Event()


def call(script: str, timeout_s: int = 30) -> Call:
    return Call("volume v", ["/bin/sh", "-c", script], {"PATH": os.defpath}, timeout_s)


def python(script: str, timeout_s: int = 30) -> Call:
    return Call("volume v", [sys.executable, "-I", "-S", "-c", script], {}, timeout_s)


class Running:
    """The processes whose environment has a mark."""

    def __init__(self) -> None:
        self.mark = f"hooktest{os.getpid()}x{time.monotonic_ns()}"

    def marked(self, made: Call) -> Call:
        return Call(made.what, made.arguments, {**made.environment, "MARK": self.mark}, made.timeout_s)

    def has(self, pid: int) -> bool:
        try:
            return self.mark.encode() in Path(f"/proc/{pid}/environ").read_bytes()
        except OSError:
            return False

    def pids(self) -> list[int]:
        numbers = [int(each.name) for each in Path("/proc").iterdir() if each.name.isdecimal()]
        return [pid for pid in numbers if self.has(pid)]

    def leaders(self) -> list[int]:
        """Those that lead a session; a process may end or fork during the query."""
        found = []
        for pid in self.pids():
            with suppress(ProcessLookupError):
                if os.getsid(pid) == pid:
                    found.append(pid)
        return found

    def kill(self) -> bool:
        """Kill all of them; whether there were any. Each may end by then, and its pid be reused."""
        found = self.pids()
        for pid in found:
            with suppress(ProcessLookupError), os.fdopen(os.pidfd_open(pid), "rb") as handle:
                if self.has(pid):
                    signal.pidfd_send_signal(handle.fileno(), signal.SIGKILL)
        return bool(found)


@pytest.fixture
def running() -> Iterator[Running]:
    found = Running()
    yield found
    # Twice: what forks may be missed by one look.
    wait_until(lambda: not found.kill() and not found.kill(), "the end of all that was left", 30)


@pytest.mark.parametrize(
    "script",
    [
        "yes",
        "exec 2>&1; yes >&2",
        *(pytest.param(each, marks=pytest.mark.slow) for each in ("cat /dev/zero", "cat /dev/urandom")),
    ],
)
def test_a_command_that_never_stops_talking_costs_a_bounded_room(
    script: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    command = Command(call(script, 1))
    supervisor = command._pid
    ended = command.wait(NEVER, 0)
    assert ended.trouble == "did not end within 1 s and was killed"
    memory = Path(f"/proc/{supervisor}/statm").read_text().split()
    assert (int(memory[1]) - int(memory[2])) * 4096 < 32 << 20
    assert command.end(5)
    assert len(command.said) < 1000
    assert command.said.isprintable()
    assert list(tmp_path.iterdir()) == []


def test_a_command_that_a_stop_ends_is_said_to_be_killed_by_it() -> None:
    stopping = threading.Event()
    stopping.set()
    command = Command(call("sleep 60", 60))
    assert command.wait(stopping, 0.1).trouble == "was killed because polyvold is being stopped"
    assert command.end(5)


def test_the_beginning_and_the_end_of_what_a_command_says_are_kept() -> None:
    command = Command(call("echo first; seq 100000; echo last; exit 3"))
    ended = command.wait(NEVER, 0)
    assert (ended.trouble, ended.alone) == ("ended with 3", True)
    assert command.said == "first ... last"
    assert shown("", "") == ""
    assert shown("\x1b[31mred\x00\n", "") == "?[31mred?"
    assert len(shown("x" * KEPT_BYTES, "y" * KEPT_BYTES)) < 300


def test_a_command_whose_output_is_closed_or_whose_input_is_not_read_is_like_others() -> None:
    for script in ("exec >&- 2>&-; exit 0", "cat; exit 0", "exec <&-; exit 0"):
        assert Command(call(script)).wait(NEVER, 0).trouble is None


def test_what_cannot_be_started_says_why() -> None:
    for arguments in (["/nix/nix"], ["/"], ["/bin/true", "x" * 300_000]):
        ended = Command(Call("volume v", arguments, {}, 5)).wait(NEVER, 0)
        assert ended.trouble is not None
        assert ended.trouble.startswith("could not be started: ")
        assert ended.alone


FORKS = {
    "a session": "setsid sleep 600 & sleep 600",
    "twice": "(setsid sh -c 'setsid sleep 600 & sleep 600' &) ; sleep 600",
    "signals are ignored": "trap '' TERM INT HUP; (trap '' TERM INT HUP; setsid sleep 600 &); sleep 600",
    "many": "for i in $(seq 50); do setsid sh -c 'sleep 600 & setsid sleep 600' & done; sleep 600",
}
QUICK = {
    "one that forks and leaves": "import os\nwhile True:\n  if os.fork(): os._exit(0)",
    "one that forks on": (
        "import os, time\nwhile True:\n  if os.fork() == 0:\n    os.setsid(); time.sleep(600)\n"
        "  time.sleep(.002)"
    ),
}


@pytest.mark.parametrize("script", FORKS.values(), ids=FORKS.keys())
def test_nothing_outlives_the_time_out(script: str, running: Running) -> None:
    command = Command(running.marked(call(script, 1)))
    ended = command.wait(NEVER, 0)
    assert "was killed" in str(ended.trouble)
    assert running.pids()
    assert command.end(10)
    assert running.pids() == []


@pytest.mark.parametrize("script", QUICK.values(), ids=QUICK.keys())
def test_what_forks_quickly_is_ended_too(script: str, running: Running) -> None:
    command = Command(running.marked(python(script, 1)))
    ended = command.wait(NEVER, 0)
    assert ended.trouble is None or "was killed" in ended.trouble
    assert command.end(20)
    assert running.pids() == []


def test_what_is_left_of_a_command_is_ended_or_left(running: Running) -> None:
    script = "setsid sh -c 'while :; do echo x; sleep 0.01; done' & exit 0"
    first = Command(running.marked(call(script)))
    assert first.wait(NEVER, 0).alone is False
    # a process in the middle of an exec has no environment, and so no mark, for an instant
    wait_until(lambda: bool(running.pids()), "what the command left is seen", 10)
    assert first.end(10)
    assert running.pids() == []
    second = Command(running.marked(call(script)))
    ended = second.wait(NEVER, 0)
    assert (ended.trouble, ended.alone) == (None, False)
    second.leave()
    # its shell leads a session, once setsid has begun one
    wait_until(lambda: bool(running.leaders()), "what the command left is seen", 10)
    [left] = running.leaders()
    begun = written(left)
    wait_until(lambda: written(left) > begun + 3, "more output: it is read still", 10)


def written(pid: int) -> int:
    """How many calls a process has made to write something."""
    lines = dict(line.split(": ") for line in Path(f"/proc/{pid}/io").read_text().splitlines())
    return int(lines["syscw"])


def test_a_supervisor_that_is_killed_is_told(running: Running) -> None:
    command = Command(running.marked(call("kill -9 $PPID; exec sleep 600")))
    ended = command.wait(NEVER, 0)
    assert ended.trouble == "was lost: its supervisor was killed"
    wait_until(lambda: running.pids() == [], "the end of the command", 10)


@pytest.mark.parametrize("first", ["true", "kill -STOP $PPID"])
def test_what_runs_ends_with_polyvold(running: Running, first: str) -> None:
    """The process that has started a command is killed: all of the command ends."""
    script = (
        "import sys, threading\nfrom polyvol.daemon.hooks.command import Call, Command\n"
        f"env = {{'MARK': '{running.mark}'}}\n"
        f"call = Call('v', ['/bin/sh', '-c', '{first}; setsid sleep 600 & sleep 600'], env, 600)\n"
        "command = Command(call)\nprint('begun', flush=True)\ncommand.wait(threading.Event(), 0)\n"
    )
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "begun\n"
        wait_until(lambda: len(running.pids()) >= 2, "the command", 10)
        process.kill()
    wait_until(lambda: running.pids() == [], "the end of all of it", 10)


def test_a_supervisor_that_was_asked_nothing_ends() -> None:
    ours, theirs = socket.socketpair()
    with theirs:
        process = subprocess.Popen(
            [sys.executable, "-I", "-S", hook_supervisor.__file__], stdin=theirs.fileno()
        )
    ours.close()
    assert process.wait(10) == 0
