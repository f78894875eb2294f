"""test_model: a volume and its snapshots hold what was written, whatever is done to them.

How it works      Random operations through the engine's handle, compared with bytes in memory; see
                  support/model.py. The everyday part always does the same operations, the slow part new ones.
"""

import errno
import random
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, event, given, settings, strategies as st

from tests.engine.system import LOG_BYTES, MIB, PROCESSORS, SIZE, VOLUME, EngineSystem
from tests.support.model import (
    Cut,
    Delete,
    Flush,
    Grow,
    Model,
    Op,
    Restart,
    Trim,
    Write,
    content,
    errno_of,
    operations,
)
from tests.support.proc import wait_until

COMMON: dict[str, Any] = {
    "deadline": None,
    "database": None,
    "print_blob": True,
    "suppress_health_check": [HealthCheck.too_slow, HealthCheck.data_too_large],
}


def run(sparse: bool, small: bool, ops: list[Op]) -> None:
    """Do the operations on a new volume; a small log fills up."""
    log_bytes = LOG_BYTES if not small else LOG_BYTES - 4 * MIB
    with (
        tempfile.TemporaryDirectory(prefix="pv-model-") as directory,
        EngineSystem(Path(directory), sparse=sparse, log_bytes=log_bytes) as system,
    ):
        model = Model(system)
        model.run(ops)
        event("found no space" if model.refused else "found space")


@pytest.mark.slow
@settings(**COMMON, max_examples=40, derandomize=True)
@given(st.booleans(), st.booleans(), operations(SIZE))
@pytest.mark.timeout(600)
def test_what_was_written_is_read(sparse: bool, small: bool, ops: list[Op]) -> None:
    run(sparse, small, ops)


@pytest.mark.slow
@settings(**COMMON, max_examples=100)
@given(st.booleans(), st.booleans(), operations(SIZE))
@pytest.mark.timeout(900)
def test_what_was_written_is_read_at_length(sparse: bool, small: bool, ops: list[Op]) -> None:
    run(sparse, small, ops)


@pytest.fixture
def system(tmp_path: Path) -> Any:
    with EngineSystem(tmp_path) as system:
        yield system


def fill(model: Model, draw: random.Random) -> None:
    """Cut and overwrite until a write finds no space."""
    before = model.refused
    for _ in range(20):
        model.step(Cut())
        model.step(Write(0, SIZE, draw.randrange(1 << 30)))
        if model.refused > before:
            return
    raise AssertionError("the change log never filled up")


def test_a_full_log_refuses_writes_and_harms_nothing(system: EngineSystem) -> None:
    model = Model(system)
    draw = random.Random(1)
    model.step(Write(0, SIZE, draw.randrange(1 << 30)))
    fill(model, draw)
    model.check()
    assert model.refused
    for kill in (False, True):
        model.step(Restart(kill))
    model.step(Write(12345, 4096, 5))


def test_deleting_snapshots_makes_room_again(system: EngineSystem) -> None:
    model = Model(system)
    draw = random.Random(2)
    for turn in range(3):
        fill(model, draw)
        refused = model.refused
        while model.snapshots:
            model.step(Delete(draw.randrange(len(model.snapshots))))
        model.step(Cut())
        for partition in draw.sample(range(5), 5):
            model.step(Write(partition * MIB, MIB, draw.randrange(1 << 30)))
        assert model.refused == refused, f"turn {turn}: no room though every snapshot was deleted"
        model.step(Restart(kill=bool(turn % 2)))


@pytest.mark.slow
def test_a_log_that_is_added_makes_room_at_once(tmp_path: Path) -> None:
    with EngineSystem(tmp_path, log_bytes=4 * MIB) as system:
        model = Model(system)
        draw = random.Random(3)
        for turn in range(3):
            fill(model, draw)
            refused = model.refused
            model.step(Grow())
            for partition in draw.sample(range(5), 3):
                model.step(Write(partition * MIB, MIB, draw.randrange(1 << 30)))
            assert model.refused == refused, f"turn {turn}: no room though 4 MiB were added"
            model.step(Restart(kill=bool(turn % 2)))


def test_writes_that_wait_for_room_cost_nothing_and_end_when_nobody_makes_any(system: EngineSystem) -> None:
    model = Model(system)
    fill(model, random.Random(4))
    engine = system.engine
    engine.ask_when_full(VOLUME, True)
    system.cut()
    with ThreadPoolExecutor(6) as pool:
        writers = [pool.submit(errno_of, _whole_write(system, number)) for number in range(5)]
        assert engine.next_event(10) == {"kind": "log-full", "volume": VOLUME}
        before = _batches(system)
        time.sleep(0.5)
        assert _batches(system) - before < 20, "they try again only when there may be room"
        assert engine.next_event(0) is None
        assert engine.space(VOLUME)["starving"]
        # What needs no room goes on, a cut among it.
        system.flush()
        system.read(SIZE, 0)
        assert not any(writer.done() for writer in writers)
        engine.ask_when_full(VOLUME, False)
        assert {writer.result(10) for writer in writers} == {errno.ENOSPC}
    assert not engine.space(VOLUME)["starving"]


def _whole_write(system: EngineSystem, number: int) -> Callable[[], None]:
    return lambda: system.write(bytes([number]) * MIB, number * MIB)


def _batches(system: EngineSystem) -> int:
    return sum(processor["batches"] for processor in system.engine.stats()["processors"])


def test_without_snapshots_all_space_comes_back(system: EngineSystem) -> None:
    model = Model(system)
    for seed in range(3):
        model.step(Cut())
        model.step(Write(seed * 5000, 2 * MIB, seed + 1))
    while model.snapshots:
        model.step(Delete(0))
    # What was redirected stays where it is, once: at most the blocks of the volume.
    wait_until(lambda: system.used_bytes() <= SIZE, "the end of what only snapshots saw", 10)
    model.step(Trim(0, SIZE))
    model.step(Flush())
    wait_until(lambda: system.used_bytes() == 0, "the end of what nobody sees", 10)
    model.check()


@pytest.mark.slow
def test_what_a_deleted_snapshot_held_can_be_used_at_once(tmp_path: Path) -> None:
    """Also by another processor than the one that had it."""
    with EngineSystem(tmp_path, log_bytes=8 * MIB) as system:
        model = Model(system)
        for turn in range(12):
            mine, other = ((0, 3), (1, 4))[:: 1 if turn % 2 else -1]
            model.step(Trim(0, SIZE))
            for seed in range(4):
                for partition in mine:
                    model.step(Write(partition * MIB, MIB, seed + 1))
                model.step(Cut())
            assert model.refused == 0
            model.step(Trim(0, SIZE))
            while model.snapshots:
                model.step(Delete(0))
            model.step(Cut())
            for partition in other:
                model.step(Write(partition * MIB, MIB, turn + 1))
            assert model.refused == 0, f"turn {turn}: no room though nothing else was held"
            model.step(Delete(0))


@pytest.mark.slow
def test_space_is_used_again_for_ever(tmp_path: Path) -> None:
    """Many times the log's size goes through it. No processor ever needs more than 2 chunks of 4 MiB: 2 MiB
    for its partitions, 4 MiB for as many snapshots, and 1 MiB for the one that is just being deleted."""
    draw = random.Random(3)
    with EngineSystem(tmp_path, log_bytes=PROCESSORS * 8 * MIB) as system:
        model = Model(system)
        for turn in range(80):
            model.step(Cut())
            model.step(Write(draw.randrange(5) * MIB, MIB, turn + 1))
            if len(model.snapshots) > 3:
                model.step(Delete(draw.randrange(3)))
        assert model.refused == 0, "writes were refused though there was room"


def test_what_lies_outside_is_refused(system: EngineSystem) -> None:
    live = system.live
    assert live.size == SIZE
    assert not live.read_only
    assert errno_of(lambda: live.pread(1, SIZE)) == errno.EINVAL
    assert errno_of(lambda: live.pread(2, SIZE - 1)) == errno.EINVAL
    assert errno_of(lambda: live.pread(1, 1 << 63)) == errno.EINVAL
    assert errno_of(lambda: live.trim(4096, SIZE)) == errno.EINVAL
    assert errno_of(lambda: live.block_status(1, SIZE)) == errno.EINVAL
    assert errno_of(lambda: live.pwrite(b"xy", SIZE - 1)) == errno.ENOSPC
    assert errno_of(lambda: live.zero(2, SIZE - 1)) == errno.ENOSPC
    assert system.read(SIZE, 0) == bytes(SIZE)


def test_a_snapshot_refuses_every_change(system: EngineSystem) -> None:
    system.write(b"a" * 4096, 0)
    name = system.cut()
    handle = system.engine.open(f"v@{name}")
    assert errno_of(lambda: handle.pwrite(b"x", 0)) == errno.EPERM
    assert errno_of(lambda: handle.zero(4096, 0)) == errno.EPERM
    assert errno_of(lambda: handle.trim(4096, 0)) == errno.EPERM
    handle.flush()
    assert handle.pread(4096, 0) == b"a" * 4096
    handle.close()


def test_overwriting_at_full_speed_never_runs_out(tmp_path: Path) -> None:
    """Each overwrite takes a fresh slot and frees one; what is really in use is a fraction of the log."""
    with EngineSystem(tmp_path, log_bytes=PROCESSORS * 8 * MIB) as system:
        system.write(random.Random(10).randbytes(5 * MIB), 0)
        system.cut()

        def overwrite(seed: int) -> int:
            draw = random.Random(seed)
            data = draw.randbytes(64 * 1024)
            for _ in range(2500):
                system.write(data, draw.randrange(80) * 64 * 1024)
            return seed

        with ThreadPoolExecutor(4) as pool:
            assert list(pool.map(overwrite, range(4))) == [0, 1, 2, 3]


def test_space_that_is_being_freed_is_waited_for(tmp_path: Path) -> None:
    """Two chunks of 4 MiB: one holds what is in use, the other nothing but what was overwritten. A write that
    finds no free slot has to wait until that one is free, and not only until it is being freed."""
    with EngineSystem(tmp_path, log_bytes=8 * MIB) as system:
        system.cut()
        for seed in range(6):
            system.write(content(seed, MIB), 3 * (seed % 2) * MIB)
        # Unlike a snapshot that is committed, a mere cut flushes nothing.
        system.engine.cut([{"volume": VOLUME, "log_rules": []}])
        for seed in range(6, 10):
            system.write(content(seed, MIB), 3 * (seed % 2) * MIB)
        assert system.read(MIB, 0) == content(8, MIB)
        assert system.read(MIB, 3 * MIB) == content(9, MIB)
