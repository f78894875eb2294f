"""Locks and workers: what hangs holds up only who asked for it, and the order of locks is asserted."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from polyvol.daemon.errors import DeviceBusy, VolumeBusy
from polyvol.daemon.locks import WAITING_MAX, Locks
from polyvol.daemon.workers import Workers, ended
from polyvol.mapping.ids import VolumeId
from tests.support.proc import wait_until


@contextmanager
def elsewhere(locks: Locks, named: dict[VolumeId, str], what: str = "something") -> Iterator[None]:
    """Another thread holds these volumes."""
    held, done = threading.Event(), threading.Event()

    def hold() -> None:
        with locks.volumes(named, what):
            held.set()
            done.wait(30)

    thread = threading.Thread(target=hold, daemon=True)
    thread.start()
    assert held.wait(10)
    try:
        yield
    finally:
        done.set()
        thread.join()


def test_who_waits_too_long_is_refused_with_what_holds_the_volume() -> None:
    locks = Locks()
    with elsewhere(locks, {VolumeId(1): "a"}, "snapshot create"):
        with pytest.raises(VolumeBusy, match="volume a has been busy with snapshot create for 0 s"):
            locks.volumes({VolumeId(1): "a"}, "volume set", wait_s=0.05).__enter__()
        with locks.volumes({VolumeId(2): "b"}, "volume set", wait_s=0):
            assert [each.what for each in locks.operations()] == ["snapshot create", "volume set"]
    with locks.volumes({VolumeId(1): "a"}, "volume set", wait_s=0):
        pass
    assert locks.operations() == []


def test_several_are_taken_together_and_none_is_held_while_another_is_waited_for() -> None:
    locks = Locks()
    taken, done = threading.Event(), threading.Event()

    def both() -> None:
        with locks.volumes({VolumeId(1): "a", VolumeId(2): "b"}, "snapshot create"):
            taken.set()
            done.wait(30)

    with elsewhere(locks, {VolumeId(2): "b"}):
        threading.Thread(target=both, daemon=True).start()
        [operation] = locks.operations()
        wait_until(lambda: locks.waiting(operation) == 1, "one to wait", 10)
        with locks.volumes({VolumeId(1): "a"}, "volume set", wait_s=0):
            assert not taken.is_set()
    assert taken.wait(10)
    assert [each.names for each in locks.operations()] == [["a", "b"]]
    done.set()


def test_no_more_than_a_few_wait_for_one_volume() -> None:
    locks = Locks()

    def take(wait_s: float | None = None) -> None:
        with locks.volumes({VolumeId(1): "a"}, "volume set", wait_s=wait_s):
            pass

    with elsewhere(locks, {VolumeId(1): "a"}):
        threads = [threading.Thread(target=take, daemon=True) for _ in range(WAITING_MAX)]
        for thread in threads:
            thread.start()
        [operation] = locks.operations()
        wait_until(lambda: locks.waiting(operation) == WAITING_MAX, "all to wait", 10)
        with pytest.raises(VolumeBusy):
            locks.volumes({VolumeId(1): "a"}, "volume set").__enter__()
        # Whose record is made already, or whose application is quiesced, is not refused for that.
        made = threading.Thread(target=take, args=(30.0,), daemon=True)
        made.start()
        wait_until(lambda: locks.waiting(operation) == WAITING_MAX + 1, "one more to wait", 10)
        threads.append(made)
    for thread in threads:
        thread.join(10)
        assert not thread.is_alive()


def test_a_stop_refuses_who_waits() -> None:
    locks = Locks()
    with elsewhere(locks, {VolumeId(1): "a"}):
        threading.Timer(0.05, locks.close).start()
        with pytest.raises(VolumeBusy):
            locks.volumes({VolumeId(1): "a"}, "volume set").__enter__()


def test_a_device_is_waited_for_likewise() -> None:
    locks = Locks()
    with locks.device(1, "d", "device retry"):
        refused: list[DeviceBusy] = []

        def other() -> None:
            with pytest.raises(DeviceBusy) as caught:
                locks.device(1, "d", "device remove", wait_s=0).__enter__()
            refused.append(caught.value)

        assert ended(other, 10, "other")
        assert refused[0].message == "device d has been busy with device retry for 0 s"


def test_a_breach_of_the_order_is_a_defect() -> None:
    locks = Locks()
    with locks.catalog_lock:
        for breach in (
            lambda: locks.volumes({VolumeId(1): "a"}, "x").__enter__(),
            lambda: locks.device(1, "d", "x").__enter__(),
            lambda: locks.room({VolumeId(1): "a"}, "x").__enter__(),
            lambda: locks.may_wait("the engine's flush"),
            locks.catalog_lock.__enter__,
        ):
            with pytest.raises(AssertionError):
                breach()
    with locks.volumes({VolumeId(2): "b"}, "x"):
        for identity in (1, 2):
            with pytest.raises(AssertionError):
                locks.volumes({VolumeId(identity): "v"}, "x").__enter__()
        with locks.volumes({VolumeId(3): "c"}, "x"):
            pass
    with locks.device(1, "d", "x"), pytest.raises(AssertionError):
        locks.volumes({VolumeId(1): "a"}, "x").__enter__()
    with locks.group(1, "g", "x"), locks.volumes({VolumeId(1): "a"}, "x"), pytest.raises(AssertionError):
        locks.group(2, "h", "x").__enter__()


def test_room_is_made_while_a_cut_is_waited_for_and_not_otherwise() -> None:
    locks = Locks()
    lent, go_on, made, over = (threading.Event() for _ in range(4))

    def take() -> None:
        with locks.volumes({VolumeId(1): "a", VolumeId(2): "b"}, "snapshot create") as operation:
            with locks.lent(operation):
                lent.set()
                go_on.wait(30)
            assert made.is_set(), "it goes on only when nobody has what was lent"
        over.set()

    threading.Thread(target=take, daemon=True).start()
    assert lent.wait(10)
    with pytest.raises(VolumeBusy):
        locks.volumes({VolumeId(1): "a"}, "volume delete", wait_s=0).__enter__()
    with locks.room({VolumeId(1): "a"}, "making room", wait_s=0):
        go_on.set()
        assert not over.wait(0.1)
        made.set()
    assert over.wait(10)
    with elsewhere(locks, {VolumeId(1): "a"}), pytest.raises(VolumeBusy):
        locks.room({VolumeId(1): "a"}, "making room", wait_s=0).__enter__()


def test_jobs_that_hang_take_no_turn_from_others() -> None:
    pool = Workers("test", concurrent=2, stuck_s=0.1)
    go_on, done = threading.Event(), threading.Event()
    for key in range(4):
        pool.run(key, lambda: go_on.wait(30))
    assert pool.run("last", done.set)
    assert done.wait(10)
    assert pool.busy(0)
    assert not pool.wait(0.01)
    go_on.set()
    assert pool.wait(10)


def test_one_job_at_a_time_for_each_key_and_one_that_waits() -> None:
    pool = Workers("test")
    go_on = threading.Event()
    runs: list[int] = []
    together: list[int] = []

    def job() -> None:
        runs.append(1)
        together.append(len(runs) - len(together))
        go_on.wait(30)

    assert pool.run("a", job)
    wait_until(lambda: runs == [1], "the first to run", 10)
    assert pool.run("a", job)
    assert not pool.run("a", job), "one waits already"
    go_on.set()
    assert pool.wait(10)
    assert len(runs) == 2


def test_a_stop_of_workers_waits_for_no_job_that_hangs() -> None:
    pool = Workers("test")
    go_on = threading.Event()
    pool.run("a", lambda: go_on.wait(30))
    assert not pool.stop(0.05)
    assert not pool.run("b", go_on.set)
    go_on.set()
    assert pool.wait(10)
