"""What the benchmark does to the machine for its time is undone afterwards."""

from pathlib import Path

import pytest

from scripts.benchmark import quiet


@pytest.fixture
def reporting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """In place of the kernel's parameter."""
    path = tmp_path / "page_reporting_order"
    monkeypatch.setattr(quiet, "_REPORTING", path)
    return path


def test_free_memory_is_not_reported_meanwhile_and_is_again_afterwards(reporting: Path) -> None:
    reporting.write_text("9\n")
    with quiet.kept_memory(1 << 20):
        assert int(reporting.read_text()) > 9
    assert reporting.read_text() == "9"


def test_one_bench_beside_another_leaves_it_as_the_first_has_found_it(reporting: Path) -> None:
    reporting.write_text("9\n")
    first, second = quiet.kept_memory(1 << 20), quiet.kept_memory(1 << 20)
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    second.__exit__(None, None, None)
    assert reporting.read_text() == "9"


def test_a_kernel_that_reports_nothing_is_left_as_it_is(reporting: Path) -> None:
    with quiet.kept_memory(1 << 20):
        assert not reporting.exists()
    assert not reporting.exists()
