"""Growth of log areas: how large a step is, where it goes, and which areas log rules allow."""

from collections.abc import Mapping, Sequence
from uuid import uuid4

import pytest
from hypothesis import given, strategies as st

from polyvol.mapping.extent import Extent, total
from polyvol.mapping.plans.inventory import Inventory
from polyvol.mapping.plans.log_growth import allowed_areas, plan_step, room_on, step_size, takes_any
from polyvol.mapping.plans.placement import AREA_SIZE_MIN, CHUNK_SIZE
from polyvol.mapping.records.devices import Device
from polyvol.mapping.records.log_areas import LogArea
from polyvol.mapping.records.log_rules import LogRule

MIB = 1 << 20
AREAS = [LogArea(number, (Extent(device, 0, 64 * MIB),)) for number, device in enumerate((1, 2, 3, 1), 1)]
"""Areas 1 and 4 are on device 1."""


def inventory(
    room: Mapping[int, int], *, broken: Sequence[int] = (), adopted: Sequence[int] = ()
) -> Inventory:
    """Devices with so many free bytes, by id; the first MiB of each is the label's."""
    devices = {
        f"d{number}": Device(
            number, uuid4(), f"d{number}", "/d", "file", number in adopted, MIB + free, True, None, "ready", 0
        )
        for number, free in room.items()
    }
    unusable = dict.fromkeys(broken, "it is gone")
    return Inventory(devices, unusable, lambda _: [], lambda _: [], set(), {}, 2)


@pytest.mark.parametrize(
    ("present", "limit", "step"),
    [
        (64, 128, 64),  # a quarter would be less than an area needs
        (1024, 4096, 256),
        (1024, 1100, 76),  # what the limit leaves
        (1024, 1025, 0),  # less than a chunk
        (1024, 1024, 0),
        (1024, 512, 0),
        (1024, 0, 0),
        (1026, 4096, 260),  # whole chunks
    ],
)
def test_a_step_is_a_quarter_within_the_limit(present: int, limit: int, step: int) -> None:
    assert step_size(present * MIB, limit * MIB) == step * MIB


@given(st.integers(1, 1 << 44), st.integers(0, 1 << 44))
def test_steps_end_at_the_limit_and_never_exceed_it(present: int, limit: int) -> None:
    steps = 0
    while step := step_size(present, limit):
        assert step % CHUNK_SIZE == 0
        assert step >= AREA_SIZE_MIN or limit - present - step < CHUNK_SIZE
        present += step
        steps += 1
        assert present <= limit
        assert steps < 4095, "there are numbers for all of them"
    assert limit - present < CHUNK_SIZE


def test_a_step_goes_where_there_is_room() -> None:
    there = inventory({1: 10 * MIB, 2: 100 * MIB, 3: 200 * MIB})
    assert room_on([1, 2, 3, 9], there) == {1: 8 * MIB, 2: 100 * MIB, 3: 200 * MIB}
    for size, order, device, placed in (
        (64, (1, 2, 3), 2, 64),  # the first that has room
        (64, (3, 2), 3, 64),
        (152, (1, 2, 3), 3, 152),
        (400, (1, 2, 3), 3, 200),  # else what the largest has
        (400, (1, 2), 2, 100),
    ):
        extents = plan_step(size * MIB, order, there)
        assert ({each.device for each in extents}, total(extents)) == ({device}, placed * MIB)
    assert plan_step(64 * MIB, (), there) == plan_step(0, (1, 2), there) == ()
    assert plan_step(64 * MIB, (1, 9), inventory({1: 3 * MIB})) == ()


def test_devices_that_cannot_be_used_get_nothing() -> None:
    room = {1: 100 * MIB, 2: 100 * MIB}
    assert room_on([1, 2], inventory(room, broken=[1], adopted=[2])) == {}
    (extent,) = plan_step(64 * MIB, (1, 2), inventory(room, broken=[1]))
    assert extent.device == 2


@pytest.mark.parametrize(
    ("rules", "allowed", "free"),
    [
        ((), [[1, 2, 3, 4]], True),
        ((LogRule((1,)),), [[1, 4]], False),
        ((LogRule((1,)), LogRule((2,))), [[1, 2, 4]], False),
        ((LogRule((1,), others=True),), [[1, 2, 3, 4]], True),
        ((LogRule((3,), (0, 7)), LogRule((1,))), [[3], [1, 4]], False),
        ((LogRule((3,), (0, 7)),), [[3], [1, 2, 3, 4]], True),
        ((LogRule((3,), processor=1, others=True), LogRule((2,))), [[1, 2, 3, 4], [2]], False),
    ],
)
def test_the_areas_that_rules_allow(rules: tuple[LogRule, ...], allowed: list[list[int]], free: bool) -> None:
    assert allowed_areas(rules, AREAS) == allowed
    assert takes_any(rules) is free
