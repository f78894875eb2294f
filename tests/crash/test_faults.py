"""test_faults: failed system calls are reported as failures, and break no promise.

How it works      faults.py fails one call at a time of a fixed scenario and judges what is left; a polyvold
                  is started with a failing call too, to see what it says. `scripts/torture --only faults`
                  tries more.
"""

from pathlib import Path

import pytest

from tests.crash.faults import try_faults
from tests.crash.recorder import library
from tests.crash.workload import make_volume
from tests.support.daemon import Daemon
from tests.support.proc import Background


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_failing_calls_break_no_promise() -> None:
    result = try_faults(seed=1, count=25)
    assert result.failures == []
    assert result.hit > 20


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_many_failing_calls_break_no_promise() -> None:
    result = try_faults(seed=21, count=35, timeout_s=280)
    assert result.failures == []


def test_a_start_that_fails_says_why_in_one_sentence(short_dir: Path) -> None:
    daemon = failing(short_dir, "sync 1 5 1 catalog")
    process = Background(*daemon.command(), log=daemon.log, env=daemon.environment)
    with process:
        assert process.wait() == 1
    assert len(daemon.said().splitlines()) <= 2, daemon.said()
    assert "Traceback" not in daemon.said()


def test_a_stop_that_fails_says_why_in_one_sentence(short_dir: Path) -> None:
    daemon = failing(short_dir, "rename 1 5 1 volumes")
    with daemon:
        api = daemon.api
        make_volume(
            lambda body: api.post("devices", body=body),
            lambda body: api.post("volumes", body=body),
            daemon.state_dir,
        )
        code = daemon.end()
    assert code == 1
    assert "Traceback" not in daemon.said()
    assert "checkpoint was not written: input/output error" in daemon.said()


def failing(directory: Path, fault: str) -> Daemon:
    """A polyvold in which this call fails."""
    root = directory / "root"
    root.mkdir()
    daemon = Daemon(directory, "--processors", "2")
    daemon.move(root / "state")
    daemon.environment = {
        "LD_PRELOAD": str(library()),
        "RECORDER_ROOT": str(root),
        "RECORDER_FAULT": fault,
    }
    return daemon
