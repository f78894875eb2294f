"""test_atomicity: power losses leave snapshots of a group whole or absent, and volumes of a size reported."""

from pathlib import Path

import pytest

from tests.crash.atomicity import check_recording, record


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_power_cuts_leave_wholes_and_sizes_as_they_were_reported(tmp_path: Path) -> None:
    record(tmp_path / "recording", seed=3, turns=14)
    assert check_recording(tmp_path / "recording", seed=3, count=40) == ""
