"""Questions asked side by side: those that hang hold up no other, whatever their number and place."""

import threading
from functools import partial

import pytest

from polyvol.daemon import workers
from polyvol.daemon.workers import answers


@pytest.fixture(autouse=True)
def _quickly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workers, "QUESTIONS_CONCURRENT_MAX", 4)
    monkeypatch.setattr(workers, "STUCK_S", 0.05)


def test_all_are_answered() -> None:
    assert answers({number: partial(str, number) for number in range(50)}, 5, "t") == {
        number: str(number) for number in range(50)
    }
    assert answers({}, 5, "t") == {}


def test_many_that_hang_hold_up_none() -> None:
    go_on, late = threading.Event(), []
    came = threading.Semaphore(0)

    def hangs(number: int) -> str:
        go_on.wait(20)
        return f"late {number}"

    def note(answer: str) -> None:
        late.append(answer)
        came.release()

    questions = {n: partial(hangs, n) if n < 20 else partial(str, n) for n in range(40)}
    assert answers(questions, 0.2, "t", note) == {number: str(number) for number in range(20, 40)}
    go_on.set()
    for _ in range(20):
        assert came.acquire(timeout=10)
    assert sorted(late) == sorted(f"late {number}" for number in range(20))
