"""test_power_cuts: a loss of power at any moment loses nothing that a flush covered, and no snapshot.

How it works      A real polyvold is recorded under load; from the recording many after-crash images are made
                  and checked (power_cuts.py). `scripts/torture --only power-cuts` does the same for longer.
"""

from pathlib import Path

import pytest

from tests.crash.power_cuts import Result, check_recording
from tests.crash.workload import record


def assert_nothing_lost(result: Result) -> None:
    assert result.failures == []


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_power_cuts_lose_nothing_that_was_flushed(tmp_path: Path) -> None:
    recording = record(tmp_path / "recording", seed=5, seconds=1.5, sync_us=300)
    result = check_recording(recording, seed=5, count=60)
    assert_nothing_lost(result)
    assert result.images == 60


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_power_cut_after_a_kill_loses_nothing_that_was_flushed(tmp_path: Path) -> None:
    recording = record(tmp_path / "recording", seed=6, seconds=1.5, kills=1)
    result = check_recording(recording, seed=6, count=60)
    assert_nothing_lost(result)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_many_power_cuts_lose_nothing_that_was_flushed(tmp_path: Path) -> None:
    recording = record(tmp_path / "recording", seed=12, seconds=4, sync_us=500)
    result = check_recording(recording, seed=12, count=300, timeout_s=600)
    assert_nothing_lost(result)
    assert result.images == 300
    assert result.again > 0
    assert result.real > 0
