"""test_lineage: kills and power losses leave rollbacks, clones and deletions done or not done."""

from pathlib import Path

import pytest

from tests.crash.lineage import check_recording, record


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize("seed", [1, 2])
def test_kills_and_power_cuts_leave_each_step_done_or_not(tmp_path: Path, seed: int) -> None:
    record(tmp_path / "recording", seed=seed, turns=40)
    assert check_recording(tmp_path / "recording", seed=seed, count=40) == ""
