"""test_model_nbd: through NBD too a volume and its snapshots hold what was written, also after SIGKILL.

How it works      The operations of support/model.py on a real polyvold over several connections. The everyday
                  part always does the same operations, the slow part new ones. One daemon serves all examples
                  of a test, each with a volume of its own.
"""

import itertools
import random
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import HealthCheck, event, given, settings

from tests.clients.system import SIZE, NbdSystem
from tests.support.daemon import Daemon
from tests.support.model import Burst, Cut, Model, Op, Restart, Write, operations

COMMON: dict[str, Any] = {
    "deadline": None,
    "database": None,
    "print_blob": True,
    "suppress_health_check": [
        HealthCheck.too_slow,
        HealthCheck.data_too_large,
        HealthCheck.function_scoped_fixture,
    ],
}
NUMBERS = itertools.count(1)


def run(daemon: Daemon, ops: list[Op]) -> None:
    """Do the operations on a new volume of a daemon."""
    if not daemon.running:
        daemon.start()
    system = NbdSystem(daemon, f"v{next(NUMBERS)}")
    try:
        model = Model(system)
        model.run(ops)
        event("found no space" if model.refused else "found space")
    finally:
        system.remove()


@pytest.mark.slow
@settings(**COMMON, max_examples=4, derandomize=True)
@given(ops=operations(SIZE, restarts=False))
@pytest.mark.timeout(600)
def test_what_was_written_is_read(daemon: Daemon, ops: list[Op]) -> None:
    run(daemon, ops)


@pytest.mark.slow
@settings(**COMMON, max_examples=4)
@given(ops=operations(SIZE))
@pytest.mark.timeout(900)
def test_what_was_written_is_read_at_length(daemon: Daemon, ops: list[Op]) -> None:
    run(daemon, ops)


@pytest.mark.slow
def test_a_kill_loses_nothing_acknowledged(daemon: Daemon) -> None:
    """Writes of every size, snapshots, kills: without a single flush."""
    system = NbdSystem(daemon, "v")
    model = Model(system)
    draw = random.Random(4)
    for turn in range(3):
        for _ in range(12):
            length = draw.choice([1, 512, 4096, 5000, 65536, 300_000])
            offset = draw.randrange(SIZE - length)
            model.step(Write(offset, length, draw.randrange(1 << 30)))
        model.step(Cut(own_rule=turn == 1))
        model.step(Burst(tuple(Write(at * 600_000, 400_000, at + turn) for at in range(6)), cut=False))
        model.step(Restart(kill=True))
    model.step(Restart(kill=False))


@pytest.mark.slow
def test_the_front_end_nbdkit_holds_it_too(make_daemon: Callable[..., Daemon]) -> None:
    """The same operations through nbdkit, restarts included."""
    daemon = make_daemon("--frontend", "nbdkit")
    system = NbdSystem(daemon, "v")
    model = Model(system)
    draw = random.Random(5)
    for _ in range(2):
        for _ in range(8):
            length = draw.choice([1, 4096, 5000, 300_000])
            model.step(Write(draw.randrange(SIZE - length), length, draw.randrange(1 << 30)))
        model.step(Cut())
    model.step(Restart(kill=False))
