"""signals: polyvold receives its signals, whatever else happens to the process."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest

from tests.support.proc import pause

WAIT_S = 0.05
PROGRAM = f"""
from polyvol.daemon.host import signals
signals.block()
while True:
    print(signals.next_signal({WAIT_S}), flush=True)
"""


@pytest.fixture
def waiting() -> Iterator["subprocess.Popen[str]"]:
    """A process that prints what each of its waits gives."""
    with subprocess.Popen([sys.executable, "-c", PROGRAM], stdout=subprocess.PIPE, text=True) as process:
        try:
            yield process
        finally:
            process.kill()


def next_word(process: "subprocess.Popen[str]") -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


@pytest.mark.parametrize(
    "number", [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.slow), signal.SIGHUP]
)
def test_a_signal_ends_the_wait(waiting: "subprocess.Popen[str]", number: signal.Signals) -> None:
    assert next_word(waiting) == "None"
    os.kill(waiting.pid, number)
    assert number in [_number(next_word(waiting)) for _ in range(20)]


def _number(word: str) -> int | None:
    return None if word == "None" else int(word)


def test_a_stop_that_outlasts_the_wait_is_no_signal(waiting: "subprocess.Popen[str]") -> None:
    assert next_word(waiting) == "None"
    for _ in range(5):
        pause(waiting.pid)
        time.sleep(3 * WAIT_S)
        os.kill(waiting.pid, signal.SIGCONT)
        assert [next_word(waiting) for _ in range(3)] == ["None"] * 3
