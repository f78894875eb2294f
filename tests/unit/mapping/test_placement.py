"""Placement: no overlap, everything covered, sizes respected, balance kept."""

from itertools import pairwise

import pytest
from hypothesis import given, strategies as st

from polyvol.mapping.errors import BadProcessors, DeviceTooSmall
from polyvol.mapping.extent import BLOCK_SIZE, Extent, FreeSpace, free_runs, joined, total
from polyvol.mapping.partition import Partition, partition_lengths
from polyvol.mapping.plans.placement import (
    AREA_SIZE_MIN,
    CHUNK_SIZE,
    BadProcessorNumbers,
    area_size,
    choose_owners,
    choose_processors,
    place_area,
    place_on_base,
    place_partitions,
)

MIB = 1 << 20
sizes = st.integers(1, 20_000).map(lambda blocks: blocks * BLOCK_SIZE)
partition_sizes = st.sampled_from([MIB, 2 * MIB, 16 * MIB, 64 * MIB])


@st.composite
def runs_of_devices(draw: st.DrawFn) -> dict[int, list[Extent]]:
    """Free runs of one to four devices, in blocks, apart from each other."""
    devices: dict[int, list[Extent]] = {}
    for device in range(1, draw(st.integers(1, 4)) + 1):
        at = 256 * BLOCK_SIZE
        runs = []
        for gap, length in draw(st.lists(st.tuples(st.integers(1, 9), st.integers(1, 9000)), max_size=6)):
            at += gap * BLOCK_SIZE
            runs.append(Extent(device, at, length * BLOCK_SIZE))
            at += length * BLOCK_SIZE
        devices[device] = runs
    return devices


def place(
    size: int, partition_size: int, processors: list[int], runs: dict[int, list[Extent]]
) -> list[Partition]:
    space = {device: FreeSpace(free) for device, free in runs.items()}
    names = {device: f"d{device}" for device in runs}
    lengths = dict(enumerate(partition_lengths(size, partition_size)))
    return place_partitions("volume v", lengths, choose_owners(len(lengths), processors), space, names)


@given(sizes, partition_sizes, st.integers(1, 5), runs_of_devices())
def test_a_placement_covers_the_volume_with_free_bytes_given_once(
    size: int, partition_size: int, count: int, runs: dict[int, list[Extent]]
) -> None:
    free = sum(total(of_device) for of_device in runs.values())
    if free < size:
        with pytest.raises(DeviceTooSmall) as refused:
            place(size, partition_size, list(range(count)), runs)
        assert refused.value.facts["needed"] == size
        assert refused.value.facts["free"] == free
        return
    partitions = place(size, partition_size, list(range(count)), runs)
    assert [part.number for part in partitions] == list(range(-(-size // partition_size)))
    for part in partitions:
        assert total(part.extents) == min(partition_size, size - part.number * partition_size)
    given_out = sorted((e for part in partitions for e in part.extents), key=lambda e: (e.device, e.offset))
    for extent, following in pairwise(given_out):
        assert extent.device != following.device or extent.end <= following.offset
    for extent in given_out:
        assert extent.offset % BLOCK_SIZE == 0
        assert extent.length % BLOCK_SIZE == 0
        assert extent.length > 0
        assert any(run.offset <= extent.offset and extent.end <= run.end for run in runs[extent.device])


@given(sizes, partition_sizes, st.lists(st.integers(0, 255), min_size=1, max_size=6, unique=True))
def test_processors_and_equal_devices_get_equal_shares_and_neighbours_differ(
    size: int, partition_size: int, processors: list[int]
) -> None:
    runs = {device: [Extent(device, MIB, 1 << 40)] for device in (1, 2, 3)}
    partitions = place(size, partition_size, processors, runs)
    for shares in (
        [sum(part.processor == number for part in partitions) for number in processors],
        [sum(part.extents[0].device == device for part in partitions) for device in runs],
    ):
        assert max(shares) - min(shares) <= 1
    for part, following in pairwise(partitions):
        assert part.extents[0].device != following.extents[0].device
        assert len(processors) == 1 or part.processor != following.processor


def test_a_partition_is_put_together_of_pieces_only_when_no_device_has_room_for_a_whole_one() -> None:
    runs = {1: [Extent(1, 0, 3 * MIB // 2)], 2: [Extent(2, 0, 3 * MIB // 2)]}
    partitions = place(3 * MIB, MIB, [0], runs)
    assert [len(part.extents) for part in partitions] == [1, 1, 2]
    assert {extent.device for extent in partitions[2].extents} == {1, 2}


def test_a_full_device_leaves_the_rest_to_the_others() -> None:
    runs = {1: [Extent(1, 0, MIB)], 2: [Extent(2, 0, 9 * MIB)]}
    partitions = place(5 * MIB, MIB, [0], runs)
    assert [part.extents[0].device for part in partitions] == [1, 2, 2, 2, 2]


@given(sizes, partition_sizes)
def test_on_a_base_every_byte_stays_where_it_is(size: int, partition_size: int) -> None:
    count = -(-size // partition_size)
    partitions = place_on_base(size, partition_size, choose_owners(count, [0, 1]), 7)
    assert joined([e for part in partitions for e in part.extents]) == [Extent(7, 0, size)]


@given(sizes, runs_of_devices())
def test_a_log_takes_whole_chunks_of_what_is_free(size: int, runs: dict[int, list[Extent]]) -> None:
    space = FreeSpace(runs[1])
    usable = space.usable(CHUNK_SIZE)
    if usable < AREA_SIZE_MIN:
        with pytest.raises(DeviceTooSmall):
            place_area("log", size, "d", space)
        return
    extents = place_area("log", size, "d", space)
    assert total(extents) == min(usable, area_size(size))
    assert all(extent.length % CHUNK_SIZE == 0 for extent in extents)


def test_the_least_loaded_processors_are_chosen() -> None:
    assert choose_processors(None, 4, {0: 9}) == [0, 1, 2, 3]
    assert choose_processors(2, 4, {0: 9, 2: 1}) == [1, 3]
    assert choose_processors(6, 4, {}) == [0, 1, 2, 3, 4, 5]


def test_processors_that_are_named_are_taken() -> None:
    assert choose_processors((3, 0), 2, {0: 9}) == [0, 3]
    for wanted, words in (
        ((), "no processor is named"),
        ((1, 1), "processor 1 is named twice"),
        ((256,), "256 is not the number of a processor"),
        ((-1,), "-1 is not the number of a processor"),
    ):
        with pytest.raises(BadProcessorNumbers, match=words):
            choose_processors(wanted, 4, {})
    with pytest.raises(BadProcessors):
        choose_processors(0, 4, {})


@given(st.lists(st.tuples(st.integers(0, 40), st.integers(1, 10)), max_size=8))
def test_free_runs_are_what_no_extent_covers(used: list[tuple[int, int]]) -> None:
    area = Extent(1, 5, 30)
    free = free_runs(area, [Extent(1, offset, length) for offset, length in used])
    covered = {byte for offset, length in used for byte in range(offset, offset + length)}
    assert {byte for run in free for byte in range(run.offset, run.end)} == set(range(5, 35)) - covered
    assert all(run.end < following.offset for run, following in pairwise(free))
