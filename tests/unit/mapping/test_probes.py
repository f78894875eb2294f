"""Probes: what does not answer keeps nobody waiting."""

import threading
import time
from pathlib import Path

import pytest

from polyvol.mapping import occupied, probes
from polyvol.mapping.probes import Probes
from tests.support.proc import wait_until


def test_a_question_that_is_not_answered_keeps_no_other_waiting_and_is_not_asked_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(probes, "PROBE_S", 0.1)
    asker = Probes()
    go_on = threading.Event()
    asked: list[int] = []

    def hangs() -> int:
        asked.append(1)
        go_on.wait(30)
        return 0

    questions = {"a": lambda: 1, "hangs": hangs, "b": lambda: 2}
    assert asker.ask(questions) == {"a": 1, "b": 2}
    assert asker.ask(questions) == {"a": 1, "b": 2}
    assert asked == [1]
    go_on.set()
    wait_until(lambda: asker.ask(questions) == {"a": 1, "hangs": 0, "b": 2}, "all answers", 10)


def test_many_questions_that_hang_are_given_up_together() -> None:
    asker = Probes()
    go_on = threading.Event()
    began = time.monotonic()
    assert asker.ask({number: lambda: go_on.wait(30) for number in range(100)}) == {}
    assert time.monotonic() - began < 10
    go_on.set()


def test_a_loop_device_over_a_file_that_hangs_keeps_no_other_disk_from_being_added(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    go_on = threading.Event()
    for name in ("hung", "well"):
        (tmp_path / "block" / f"loop-{name}" / "loop").mkdir(parents=True)
        (tmp_path / "block" / f"loop-{name}" / "loop" / "backing_file").write_text(f"/{name}\n")

    def identity_of(path: Path) -> tuple[int, int] | None:
        if path.name == "hung":
            go_on.wait(30)
        return (7, 8) if path.name == "well" else None

    monkeypatch.setattr(occupied, "SYSFS", tmp_path / "block")
    monkeypatch.setattr(occupied, "identity_of", identity_of)
    began = time.monotonic()
    assert occupied.file_users()[7, 8] == "the file of loop-well"
    assert time.monotonic() - began < 10
    go_on.set()
