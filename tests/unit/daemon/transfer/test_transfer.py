"""Transfers without a server: plans, the pipeline, unpacking, and what an incremental restore may follow."""

import threading
import time
from collections.abc import Iterator
from itertools import pairwise
from typing import cast

import pytest
import zstandard
from crc32c import crc32c
from hypothesis import given, strategies as st

from polyvol.daemon.client.transfer.client import NbdExport, _merged
from polyvol.daemon.client.transfer.pipeline import in_order
from polyvol.daemon.client.transfer.plan import Run, bytes_in, pieces, plan
from polyvol.daemon.client.transfer.restore import Unpacker, uncovered
from polyvol.snapshot.errors.streams import StreamBroken
from polyvol.snapshot.stream import CHUNK_BYTES, Frame, FrameKind

BLOCK = 4096


class _Told:
    """An export whose status is known."""

    def __init__(self, runs: list[tuple[int, bool, bool]]) -> None:
        self._runs = runs

    def status(self) -> Iterator[tuple[int, int, bool, bool]]:
        at = 0
        for length, zeros, changed in self._runs:
            yield at, length, zeros, changed
            at += length


STATUS = st.lists(
    st.tuples(st.integers(1, 700).map(lambda blocks: blocks * BLOCK), st.booleans(), st.booleans()),
    max_size=20,
)


@given(STATUS, st.integers(0, 3000))
def test_a_plan_has_what_changed_and_nothing_else(runs: list[tuple[int, bool, bool]], first: int) -> None:
    start = first * BLOCK
    planned = plan(cast(NbdExport, _Told(runs)), start=start)
    wanted = {}
    at = 0
    for length, zeros, changed in runs:
        for block in range(at, at + length, BLOCK):
            if changed and block >= start:
                wanted[block] = zeros
        at += length
    cut = list(pieces(planned))
    told = {block: run.zeros for run in cut for block in range(run.offset, run.end, BLOCK)}
    assert told == wanted
    assert bytes_in(planned) == BLOCK * sum(not zeros for zeros in wanted.values())
    assert all(run.zeros or run.offset // CHUNK_BYTES == (run.end - 1) // CHUNK_BYTES for run in cut)
    assert all(one.end <= other.offset for one, other in pairwise(cut))


@given(st.lists(st.integers(1, 9), min_size=1), st.lists(st.integers(1, 9), min_size=1))
def test_two_contexts_are_told_as_far_as_both_go(one: list[int], other: list[int]) -> None:
    flagged = [
        [value for index, length in enumerate(lengths) for value in (length, index)]
        for lengths in (one, other)
    ]
    spread = [[index for index, length in enumerate(each) for _ in range(length)] for each in (one, other)]
    merged = [pair for length, *pair in _merged(*flagged) for _ in range(length)]
    assert merged == [list(pair) for pair in zip(*spread, strict=False)]


def test_results_come_in_order_and_few_are_under_way() -> None:
    most, now, lock = 0, 0, threading.Lock()

    def work(piece: int) -> int:
        nonlocal most, now
        with lock:
            now += 1
            most = max(most, now)
        time.sleep(0.002 if piece % 3 else 0)
        with lock:
            now -= 1
        return piece

    assert list(in_order(work, range(200), threads=4)) == list(range(200))
    assert 1 < most <= 4


def test_what_fails_ends_the_work() -> None:
    begun = []

    def work(piece: int) -> int:
        begun.append(piece)
        if piece == 5:
            raise ValueError("no")
        return piece

    results: list[int] = []
    with pytest.raises(ValueError, match="no"):
        results.extend(in_order(work, range(1000), threads=2))
    assert len(begun) < 20


def frame(kind: FrameKind, payload: bytes, length: int, content_crc: int) -> Frame:
    return Frame(kind, 3, 0, length, len(payload), crc32c(payload), content_crc)


def test_contents_that_are_not_what_was_packed_are_refused() -> None:
    unpacker = Unpacker("it")
    data = b"abcd" * 1024
    packed = zstandard.compress(data)
    assert unpacker.contents(frame(FrameKind.ZSTD, packed, BLOCK, crc32c(data)), packed) == data
    assert unpacker.contents(frame(FrameKind.PLAIN, data, BLOCK, crc32c(data)), data) == data
    assert unpacker.contents(Frame(FrameKind.ZEROS, 0, 0, BLOCK), b"") is None
    huge = zstandard.compress(bytes(1 << 30))  # would unpack to a GiB
    streamed = zstandard.ZstdCompressor(write_content_size=False).compress(data)
    for payload, crc in [
        (packed, 0),
        (huge, 0),
        (b"not zstd", 0),
        (streamed, crc32c(data)),
        (packed[:-1], 0),
    ]:
        with pytest.raises(StreamBroken, match="frame 3 does not unpack"):
            unpacker.contents(frame(FrameKind.ZSTD, payload, BLOCK, crc), payload)
    with pytest.raises(StreamBroken):
        unpacker.contents(frame(FrameKind.PLAIN, data, BLOCK, 1), data)


EXTENTS = st.lists(st.tuples(st.integers(1, 5), st.integers(1, 5)), max_size=8)


def extents(gaps: list[tuple[int, int]]) -> list[tuple[int, int]]:
    found, at = [], 0
    for gap, length in gaps:
        found.append((at + gap, length))
        at += gap + length
    return found


@given(EXTENTS, EXTENTS)
def test_what_is_not_overwritten_is_found(one: list[tuple[int, int]], other: list[tuple[int, int]]) -> None:
    changed, covered = extents(one), extents(other)
    inside = {at for offset, length in covered for at in range(offset, offset + length)}
    outside = [each for each in changed if not set(range(each[0], sum(each))) <= inside]
    assert uncovered(changed, covered) == (outside[0] if outside else None)


def test_runs_have_ends() -> None:
    assert Run(4096, 8192, True).end == 12288
