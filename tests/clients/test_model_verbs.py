"""test_model_verbs: groups, holds, growth, clones, deletions and restarts in any order (support/verbs.py)."""

from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis.stateful import run_state_machine_as_test

from tests.support.daemon import Daemon
from tests.support.verbs import Verbs

COMMON: dict[str, Any] = {
    "deadline": None,
    "database": None,
    "print_blob": True,
    "suppress_health_check": list(HealthCheck),
}


def run(daemon: Daemon, **how: Any) -> None:
    """Run the machine on a daemon."""
    machine = type("VerbsOfDaemon", (Verbs,), {"daemon": daemon})
    run_state_machine_as_test(machine, settings=settings(**COMMON, **how))


@pytest.mark.slow
def test_verbs_in_the_same_orders_do_what_they_say(daemon: Daemon) -> None:
    run(daemon, max_examples=6, stateful_step_count=30, derandomize=True)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_verbs_in_any_order_do_what_they_say(daemon: Daemon) -> None:
    run(daemon, max_examples=5, stateful_step_count=50)
