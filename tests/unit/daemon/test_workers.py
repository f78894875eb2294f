"""test_workers: threads for jobs, where the system refuses one.

How it works      `threading.Thread.start` fails as it does at the limit of threads.
"""

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from polyvol.daemon.workers import Workers
from polyvol.mapping.probes import Probes


@contextmanager
def no_threads(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    def refuses(_: object) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", refuses)
        yield


def test_a_job_whose_thread_is_refused_neither_counts_as_running_nor_blocks_its_key(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    workers, ended = Workers("t"), threading.Event()
    with no_threads(monkeypatch), pytest.raises(RuntimeError):
        workers.run("key", ended.set)
    assert not workers.busy("key")
    assert workers.wait(0)
    assert workers.run("key", ended.set)
    assert ended.wait(20)
    assert workers.stop(20)


def test_jobs_that_wait_when_a_thread_is_refused_run_later(monkeypatch: pytest.MonkeyPatch) -> None:
    workers, go_on, second = Workers("t", concurrent=1), threading.Event(), threading.Event()
    workers.run("first", lambda: go_on.wait(20))
    workers.run("second", second.set)
    with no_threads(monkeypatch):
        go_on.set()
        while workers.busy("first"):
            workers.wait(0.01)
    assert workers.busy("second")
    assert workers.run("third", lambda: None)
    assert second.wait(20)
    assert workers.wait(20)


def test_a_probe_without_a_thread_has_no_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    probes = Probes()
    with no_threads(monkeypatch):
        assert probes.ask({"path": lambda: 1}) == {}
    assert probes.ask({"path": lambda: 1}) == {"path": 1}
